"""Controllers and workers as real processes, for tests that talk to them over HTTP."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import requests

from benchmarks.servers import Server, free_port, start, wait_for_health, wait_until
from tinyserve.serve.wire import Record, RecordDecoder

PROMPT = "USER: how are you? ASSISTANT:"


@dataclass
class Member:
    url: str
    server: Server

    def post(self, route: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + route, json=body, timeout=30, **options)

    def health(self) -> dict[str, Any]:
        return requests.get(self.url + "/health", timeout=30).json()

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

    def start(self, module: str, *flags: str, port: int | None = None) -> Member:
        """Runs a server module and waits until it answers."""
        port = port or free_port()
        server = self._stack.enter_context(start(module, ["--port", str(port), *flags]))
        wait_for_health(f"http://127.0.0.1:{port}", server=server)
        return Member(f"http://127.0.0.1:{port}", server)

    def controller(self, *flags: str, port: int | None = None) -> Member:
        return self.start("tinyserve.serve.controller", "--host", "127.0.0.1", *flags, port=port)

    def timed_worker(
        self, controller: Member | None, *flags: str, model: str = "timed", token: str | None = None
    ) -> Member:
        """A real worker whose generator yields the words w0, w1, ... by the clock; registered when this returns."""
        if controller is None:
            return self.start("benchmarks.timed_worker", "--no-register", "--model-name", model, *flags)
        where = ["--controller-address", controller.url, *(["--worker-token", token] if token else [])]
        worker = self.start("benchmarks.timed_worker", *where, "--model-name", model, *flags)
        beat = {"worker_name": worker.url, "queue_length": 0, "worker_token": token}
        wait_until("registration", lambda: controller.post("/receive_heart_beat", beat).json()["exist"])
        return worker

    def faulty_worker(self, controller: Member, fault: str, model: str = "timed", speed: float = 1.0) -> Member:
        worker = self.start("tests.serve.faulty_worker", "--fault", fault, "--model", model)
        register(controller, worker.url, (model,), speed)
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
