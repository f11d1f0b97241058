"""Unmodified LLaVA and FastChat against our controller and worker, and ours against theirs: one line per check.

    python -m tests.interop.run [--model FOLDER]

Needs the package index and some minutes, so it is not part of `make test`. Every process is real, every model too.
"""

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import requests

from benchmarks.servers import Server, free_port, start, wait_for_health, wait_until
from tinyserve.serve.client import ServerError, post, stream

from .upstream import Upstream

QUESTION = "What is the capital of France?"
PROMPT = "The capital of France is"
NAME = "smollm"  # what every worker here calls its model
HOST = "127.0.0.1"


def url_of(port: int) -> str:
    return f"http://{HOST}:{port}"


def wait_for_model(controller: str, name: str, *servers: Server) -> None:
    """Until the controller lists the model, as long as the servers live."""

    def listed() -> bool:
        for server in servers:
            if server.process.poll() is not None:
                raise RuntimeError(f"{server.module} ended:\n{server.output()[-2000:]}")
        try:
            return name in post(controller, "/list_models")["models"]
        except ServerError:
            return False

    wait_until(f"{name} at {controller}", listed, 180)


def answers(address: str, route: str) -> bool:
    try:
        post(address, route)
    except ServerError:
        return False
    return True


def completes(address: str, model: str = NAME) -> str:
    """The greedy completion that a controller or worker streams; checks the records on the way."""
    body = {"model": model, "prompt": PROMPT, "max_new_tokens": 8, "temperature": 0, "stop": "</s>"}
    records = list(stream(address, body))
    codes = {record["error_code"] for record in records}
    text = str(records[-1]["text"])
    assert codes == {0}, records[-1]
    assert text.startswith(PROMPT), text
    assert "Paris" in text, text
    return f"{len(records)} records, the last: {text!r}"


@contextmanager
def our_controller() -> Iterator[str]:
    port = free_port()
    with start("tinyserve.serve.controller", ["--host", HOST, "--port", str(port)]) as server:
        wait_for_health(url_of(port), server=server)
        yield url_of(port)


@contextmanager
def our_worker(model: Path, controller: str, *flags: str) -> Iterator[str]:
    """A worker of ours with the real model, registered."""
    port = free_port()
    where = ["--host", HOST, "--port", str(port), "--controller-address", controller, "--model-name", NAME]
    with start("tinyserve.serve.model_worker", [*where, "--model-path", str(model), *flags]) as server:
        wait_for_model(controller, NAME, server)
        yield url_of(port)


@contextmanager
def their_controller(upstream: Upstream, package: str, port: int | None = None) -> Iterator[str]:
    port = port or free_port()
    with upstream.serve(f"{package}.serve.controller", "--host", HOST, "--port", str(port)):
        wait_until(f"{package}'s controller", lambda: answers(url_of(port), "/list_models"))
        yield url_of(port)


@contextmanager
def their_worker(upstream: Upstream, package: str, model: Path, controller: str) -> Iterator[Server]:
    """A worker of theirs with the real model, registered."""
    port = free_port()
    flag = {"llava": "--model-name", "fastchat": "--model-names"}[package]
    where = ["--host", HOST, "--port", str(port), "--worker-address", url_of(port), "--controller-address", controller]
    arguments = [*where, "--model-path", str(model), flag, NAME, "--device", "cpu"]
    with upstream.serve(f"{package}.serve.model_worker", *arguments) as server:
        wait_for_model(controller, NAME, server)
        wait_until("the worker listens", lambda: answers(url_of(port), "/worker_get_status"))  # it registers before
        yield server


def openai_server(upstream: Upstream, controller: str) -> str:
    """Every route of FastChat's OpenAI server that a text client uses."""
    port = free_port()
    flags = ["--host", HOST, "--port", str(port), "--controller-address", controller]
    with upstream.serve("fastchat.serve.openai_api_server", *flags):
        api = url_of(port) + "/v1"

        def models() -> list[str]:
            try:
                return [card["id"] for card in requests.get(api + "/models", timeout=20).json()["data"]]
            except requests.ConnectionError:
                return []

        wait_until("FastChat's OpenAI server lists the model", lambda: models() == [NAME])
        chat = {"model": NAME, "temperature": 0, "max_tokens": 16, "messages": [{"role": "user", "content": QUESTION}]}
        whole = ask(api + "/chat/completions", chat)
        answer = whole["choices"][0]["message"]["content"]
        assert "Paris" in answer, whole
        assert whole["usage"]["completion_tokens"] > 0, whole
        streamed = events(api + "/chat/completions", {**chat, "stream": True})
        pieces = [event["choices"][0]["delta"].get("content") or "" for event in streamed]
        assert "".join(pieces) == answer, (pieces, answer)
        completion = {"model": NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": 8}
        text = ask(api + "/completions", completion)["choices"][0]["text"]
        assert "Paris" in text, text
        parts = [event["choices"][0]["text"] for event in events(api + "/completions", {**completion, "stream": True})]
        assert "".join(parts) == text, (parts, text)
        long = {**chat, "messages": [{"role": "user", "content": "word " * 20000}]}
        refused = requests.post(api + "/chat/completions", json=long, timeout=120)
        assert refused.status_code == 400, refused.text
        assert "context" in refused.json()["message"], refused.text
        return f"chat {answer!r} in {len(pieces)} events; completion {text!r} in {len(parts)}; too long a prompt: 400"


def ask(url: str, body: dict[str, Any]) -> Any:
    response = requests.post(url, json=body, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def events(url: str, body: dict[str, Any]) -> list[Any]:
    """The server-sent events before [DONE]."""
    response = requests.post(url, json=body, timeout=120, stream=True)
    lines = [line.removeprefix(b"data: ") for line in response.iter_lines() if line]
    assert lines[-1] == b"[DONE]", lines
    return [json.loads(line) for line in lines[:-1]]


Check = Callable[[], str]


def checks(upstream: Upstream, model: Path) -> Iterator[tuple[str, Check]]:
    """Name and body of every check; what several need is started between them."""

    def test_message(package: str, controller: str) -> str:
        flags = ["--controller-address", controller, "--model-name", NAME, "--message", QUESTION]
        printed = upstream.run(f"{package}.serve.test_message", *flags)
        assert f"Models: ['{NAME}']" in printed, printed
        assert QUESTION.split()[-1] in printed, printed
        return "printed " + repr(printed.replace("\r", "\n").split("\n")[-2][-60:])

    with our_controller() as controller, our_worker(model, controller) as worker:
        yield "our controller and worker: stream through the controller", lambda: completes(controller)
        yield "LLaVA's test_message with ours", lambda: test_message("llava", controller)
        yield "FastChat's test_message with ours", lambda: test_message("fastchat", controller)
        yield "FastChat's OpenAI server before our controller and worker", lambda: openai_server(upstream, controller)
        for package in ("llava", "fastchat"):
            with our_controller() as empty:

                def register(package: str = package, empty: str = empty) -> str:
                    flags = ["--controller-address", empty, "--worker-name", worker, "--check-heart-beat"]
                    upstream.run(f"{package}.serve.register_worker", *flags)
                    return completes(empty)

                yield f"{package}'s register_worker registers our worker at our controller", register

    for package in ("llava", "fastchat"):
        name = f"{package}'s controller with our worker, and its restart"
        yield name, partial(restart, upstream, package, model)

    with ExitStack() as stack:

        def before_theirs() -> str:
            theirs = stack.enter_context(their_controller(upstream, "fastchat"))
            stack.enter_context(our_worker(model, theirs))
            return openai_server(upstream, theirs)

        yield "FastChat's OpenAI server before FastChat's controller and our worker", before_theirs

    for package, folder in (("llava", model), ("fastchat", upstream.model_for_fastchat(model))):
        name = f"{package}'s worker at our controller, and its death"
        yield name, partial(foreign, upstream, package, folder)


def restart(upstream: Upstream, package: str, model: Path) -> str:
    """Our worker registers with their controller, streams through it, and registers again when it has come back."""
    port = free_port()
    with ExitStack() as stack:
        first = ExitStack()
        theirs = first.enter_context(their_controller(upstream, package, port))
        stack.enter_context(first)
        stack.enter_context(our_worker(model, theirs, "--heartbeat-interval", "1"))
        completes(theirs)
        first.close()  # kills it
        stack.enter_context(their_controller(upstream, package, port))
        wait_for_model(theirs, NAME)
        return completes(theirs)


def foreign(upstream: Upstream, package: str, model: Path) -> str:
    """Their worker registers with our controller and streams through it; when it is killed the client is told."""
    with our_controller() as controller, their_worker(upstream, package, model, controller) as server:
        told = completes(controller)
        post(controller, "/refresh_all_workers")
        completes(controller)
        body = {"model": NAME, "prompt": PROMPT, "max_new_tokens": 500, "temperature": 0, "stop": "</s>"}
        last: dict[str, Any] = {}
        for number, record in enumerate(stream(controller, body)):
            last = record
            if number == 2:
                server.kill()
        assert last["error_code"] == 3, last
        return told + f"; killed: {last['text']!r}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder (default: the demo's model)")
    args = parser.parse_args(argv)
    model = args.model
    if model is None:
        from tinyserve.demo import smollm2

        model = smollm2.prepare()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, check in checks(Upstream(Path(folder)), model.resolve()):
            try:
                print(f"PASS  {name}: {check()}", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
    print("all passed" if not failed else f"{failed} FAILED")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
