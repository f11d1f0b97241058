"""Keeps a worker known to its controller: registers it, reports its queue length, registers again when forgotten.

Runs in a thread of its own, so a slow or absent controller never delays a request. It knows one controller and two
routes, and nothing about models.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import requests

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0  # of one call to the controller
MIN_GAP_S = 0.05  # between two reports, so that a busy worker does not flood its controller
FIRST_RETRY_S = 0.5  # after a failed call; doubles up to the interval


class HeartbeatError(RuntimeError):
    """The controller cannot be reached or refused the call."""


class Heartbeat:
    """Reports to the controller every `interval_s`, and soon after each call of `notify`."""

    def __init__(
        self,
        controller_address: str,
        worker_address: str,
        status: Callable[[], dict[str, Any]],
        interval_s: float = 30.0,
        token: str | None = None,
        multimodal: bool = False,
    ) -> None:
        """
        Args:
            controller_address, worker_address: http(s)://host:port, without a slash at the end.
            status: the worker's status as the register route wants it; called from this object's thread.
            interval_s: seconds between two reports when nothing changes.
            token: the secret that the controller asks of its workers.
            multimodal: the model takes images, which the controller tells FastChat's clients.
        """
        self._controller = controller_address
        self._worker = worker_address
        self._status = status
        self._interval_s = interval_s
        self._multimodal = multimodal
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = requests.Session()
        self._wake = threading.Event()
        self._stopping = False
        self._reachable = True
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; a call that is under way is not waited for."""
        self._stopping = True
        self._wake.set()

    def notify(self) -> None:
        """The queue length changed: report soon. Never blocks; several calls may become one report."""
        self._wake.set()

    def register(self) -> None:
        """Tells the controller about the worker.

        Raises:
            HeartbeatError: the controller cannot be reached, or refuses.
        """
        body = {
            "worker_name": self._worker,
            "check_heart_beat": True,
            "worker_status": self._status(),
            "multimodal": self._multimodal,
        }
        self._post("/register_worker", body)
        log.info("registered %s at the controller %s", self._worker, self._controller)

    def send(self) -> bool:
        """Reports the queue length; False when the controller does not know the worker.

        Raises:
            HeartbeatError: the controller cannot be reached, or refuses.
        """
        body = {"worker_name": self._worker, "queue_length": self._status()["queue_length"]}
        answer = self._post("/receive_heart_beat", body)
        if not isinstance(answer, dict) or "exist" not in answer:
            raise HeartbeatError(f'{self._controller}/receive_heart_beat must answer with "exist", got {answer!r}')
        return bool(answer["exist"])

    def _post(self, route: str, body: dict[str, Any]) -> Any:
        url = self._controller + route
        try:
            response = self._session.post(url, json=body, headers=self._headers, timeout=TIMEOUT_S)
            if response.status_code != 200:
                raise HeartbeatError(f"{url} answered {response.status_code}: {response.text[:200]}")
            return response.json()
        except (requests.RequestException, ValueError) as error:
            raise HeartbeatError(f"{url}: {error}") from error

    def _run(self) -> None:
        registered = False
        retry_s = FIRST_RETRY_S
        while not self._stopping:
            self._wake.clear()
            try:
                if not (registered and self.send()):
                    registered = False
                    self.register()
                registered, retry_s = True, FIRST_RETRY_S
                self._report(True, "")
                self._wake.wait(self._interval_s)
                time.sleep(MIN_GAP_S)
            except HeartbeatError as error:
                self._report(False, str(error))
                self._sleep(min(retry_s, self._interval_s))
                retry_s *= 2

    def _sleep(self, seconds: float) -> None:
        """Waits whatever `notify` says: changes of the queue are no reason to ask an absent controller more often."""
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._wake.wait(left)
            if not self._stopping:
                self._wake.clear()

    def _report(self, reachable: bool, why: str) -> None:
        if reachable != self._reachable:
            if reachable:
                log.info("the controller %s is reachable again", self._controller)
            else:
                log.warning("the controller does not answer, trying again until it does: %s", why)
            self._reachable = reachable
