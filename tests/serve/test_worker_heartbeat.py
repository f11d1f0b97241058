"""A worker's heartbeat against a real controller that is late, forgetful, gone, or no controller at all."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serve.fleet import Fleet, Member

from benchmarks.servers import free_port, wait_until
from tinyserve.serve.worker_heartbeat import Heartbeat, HeartbeatError

WORKER = "http://127.0.0.1:9"
SOON_S = 20.0


class Reporter:
    """What a heartbeat reports, changeable by the test."""

    def __init__(self, controller: str, interval_s: float = 0.2, token: str | None = None) -> None:
        self.queue_length = 0
        self.heartbeat = Heartbeat(controller, WORKER, self.status, interval_s, token)

    def status(self) -> dict[str, Any]:
        return {"model_names": ["m"], "speed": 1, "queue_length": self.queue_length}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as members:
        yield members


def wait_listed(controller: Member) -> None:
    wait_until("the worker is listed", lambda: controller.post("/list_models").json() == {"models": ["m"]}, SOON_S)


def test_a_late_controller_and_one_that_was_restarted_get_to_know_the_worker(fleet: Fleet) -> None:
    port = free_port()
    reporter = Reporter(f"http://127.0.0.1:{port}")
    reporter.heartbeat.start()  # nobody listens there yet
    controller = fleet.controller(port=port)
    wait_listed(controller)
    controller.server.kill()
    controller = fleet.controller(port=port)
    wait_listed(controller)
    reporter.heartbeat.stop()


def test_changes_of_the_queue_are_reported_long_before_the_interval(fleet: Fleet) -> None:
    controller = fleet.controller()
    reporter = Reporter(controller.url, interval_s=3600)
    reporter.heartbeat.start()
    wait_listed(controller)
    for length in (7, 0):
        reporter.queue_length = length
        reporter.heartbeat.notify()
        wait_until("the queue length", lambda: controller.status()["queue_length"] == reporter.queue_length, SOON_S)
    reporter.heartbeat.stop()


def test_the_token_is_shown_and_its_lack_is_an_error(fleet: Fleet) -> None:
    controller = fleet.controller("--worker-token", "secret")
    Reporter(controller.url, token="secret").heartbeat.register()
    with pytest.raises(HeartbeatError, match="/register_worker answered 401"):
        Reporter(controller.url).heartbeat.register()


def test_notify_does_not_wait_for_a_controller_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts and never answers
        reporter = Reporter(f"http://127.0.0.1:{listener.getsockname()[1]}")
        reporter.heartbeat.start()
        listener.accept()
        start = time.perf_counter()
        for _ in range(1000):
            reporter.heartbeat.notify()
        assert time.perf_counter() - start < 0.5
        reporter.heartbeat.stop()


def test_an_unreachable_controller_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(HeartbeatError, match=f"{url}/register_worker"):
        Reporter(url).heartbeat.register()
