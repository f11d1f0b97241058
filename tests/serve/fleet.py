"""Controllers and workers as real processes, for tests that talk to them over HTTP."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import requests

from benchmarks.servers import Server, free_port, start, wait_for_health
from tinyserve.serve.wire import Record, RecordDecoder

PROMPT = "USER: how are you? ASSISTANT:"


@dataclass
class Member:
    url: str
    server: Server

    def post(self, route: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + route, json=body, timeout=30, **options)

    def status(self) -> dict[str, Any]:
        return self.post("/worker_get_status").json()


class Fleet:
    """Everything started inside its with block ends with it."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def _start(self, module: str, port: int, *flags: str) -> Member:
        member = Member(
            f"http://127.0.0.1:{port}", self._stack.enter_context(start(module, ["--port", str(port), *flags]))
        )
        wait_for_health(member.url, server=member.server)
        return member

    def controller(self, *flags: str, port: int | None = None) -> Member:
        return self._start("tinyserve.serve.controller", port or free_port(), "--host", "127.0.0.1", *flags)

    def timed_worker(self, controller: Member | None, *flags: str, model: str = "timed") -> Member:
        """A real worker whose generator yields the words w0, w1, ... by the clock; registered when this returns."""
        where = ["--controller-address", controller.url] if controller else ["--no-register"]
        worker = self._start("benchmarks.timed_worker", free_port(), *where, "--model-name", model, *flags)
        if controller:
            wait_for_health(controller.url, lambda health: model in health["models"])
        return worker

    def faulty_worker(
        self, controller: Member, fault: str, speed: float = 1.0, check_heart_beat: bool = True
    ) -> Member:
        worker = self._start("tests.serve.faulty_worker", free_port(), "--fault", fault)
        register(controller, worker.url, speed=speed, check_heart_beat=check_heart_beat)
        return worker


def register(
    controller: Member,
    worker_url: str,
    models: tuple[str, ...] = ("timed",),
    speed: float = 1.0,
    queue_length: int = 0,
    check_heart_beat: bool = True,
) -> None:
    status = {"model_names": list(models), "speed": speed, "queue_length": queue_length}
    body = {"worker_name": worker_url, "check_heart_beat": check_heart_beat, "worker_status": status}
    response = controller.post("/register_worker", body)
    assert (response.status_code, response.json()) == (200, None)


def open_stream(member: Member, prompt: str = PROMPT, model: str = "timed", **params: Any) -> requests.Response:
    """A generation request whose answer has not been read yet."""
    body = {"model": model, "prompt": prompt, "temperature": 0, **params}
    return member.post("/worker_generate_stream", body, stream=True)


def records_of(response: requests.Response) -> list[Record]:
    """All records, to the end of the stream."""
    assert response.status_code == 200, response.text
    decoder = RecordDecoder()
    records = [record for data in response.iter_content(chunk_size=None) for record in decoder.feed(data)]
    decoder.finish()
    return records


def answer(num_tokens: int, prompt: str = PROMPT) -> str:
    """What a timed worker's last record says."""
    return prompt + "".join(f"w{index} " for index in range(num_tokens))
