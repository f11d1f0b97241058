"""The unmodified programs of LLaVA and FastChat against our servers, and ours against theirs.

Skipped where they are not installed (fschat 0.2.36, llava-torch 1.2.2.post1, without their dependencies).
"""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from serve.fleet import PROMPT, Fleet, answer, open_stream, records_of
from serve.real_service import RealService

from benchmarks.servers import Server, free_port, start, wait_until

QUESTION = "What is the capital of France?"

needs_fastchat = pytest.mark.skipif(importlib.util.find_spec("fastchat") is None, reason="fschat is not installed")
needs_llava = pytest.mark.skipif(importlib.util.find_spec("llava") is None, reason="llava-torch is not installed")


@pytest.fixture(autouse=True)
def logs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both projects write log files into their working directory."""
    monkeypatch.setenv("LOGDIR", str(tmp_path))


@pytest.fixture
def fastchat_controller() -> Iterator[str]:
    port = free_port()
    with start("fastchat.serve.controller", ["--host", "127.0.0.1", "--port", str(port)]) as server:
        url = f"http://127.0.0.1:{port}"
        wait_ready(server, url + "/test_connection")
        yield url


def wait_ready(server: Server, url: str) -> None:
    """Until GET `url` succeeds."""

    def ready() -> bool:
        assert server.process.poll() is None, server.output()
        try:
            return requests.get(url, timeout=5).status_code == 200
        except requests.RequestException:
            return False

    wait_until(url, ready)


def models_of(controller: str) -> Any:
    return requests.post(controller + "/list_models", timeout=10).json()["models"]


@needs_llava
@pytest.mark.parametrize("through", ["controller", "worker"])
def test_llavas_test_message(service: RealService, tmp_path: Path, through: str) -> None:
    member = service.controller if through == "controller" else service.workers[0]
    flags = [f"--{through}-address", member.url, "--model-name", service.name, "--message", QUESTION]
    before = [worker.health()["generated_tokens"] for worker in service.workers]
    command = [sys.executable, "-m", "llava.serve.test_message", *flags]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    # It prints the prompt with a line for each word, then the last word so far, over and over on one line; and it sends
    # that separator, a blank, as the stop string, so there is not much to read.
    assert QUESTION.replace(" ", "\n") in run.stdout
    assert "NETWORK ERROR" not in run.stdout
    assert sum(worker.health()["generated_tokens"] for worker in service.workers) > sum(before)


@needs_fastchat
def test_fastchats_openai_server_on_our_controller_and_worker(service: RealService) -> None:
    port = free_port()
    flags = ["--host", "127.0.0.1", "--port", str(port), "--controller-address", service.controller.url]
    with start("fastchat.serve.openai_api_server", flags) as server:
        url = f"http://127.0.0.1:{port}/v1"
        wait_ready(server, url + "/models")
        assert [model["id"] for model in requests.get(url + "/models", timeout=10).json()["data"]] == [service.name]
        body = {"model": service.name, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        chat = requests.post(url + "/chat/completions", json=body, timeout=60).json()
        assert "Paris" in chat["choices"][0]["message"]["content"]
        assert chat["choices"][0]["finish_reason"] == "stop"
        assert chat["usage"]["total_tokens"] == chat["usage"]["prompt_tokens"] + chat["usage"]["completion_tokens"]
        body = {"model": service.name, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 4}
        completion = requests.post(url + "/completions", json=body, timeout=60).json()
        assert "Paris" in completion["choices"][0]["text"]
        assert completion["choices"][0]["finish_reason"] == "length"
        likely = {**body, "logprobs": 3, "n": 2, "echo": True}
        completion = requests.post(url + "/completions", json=likely, timeout=60).json()
        assert [choice["index"] for choice in completion["choices"]] == [0, 1]
        for choice in completion["choices"]:
            assert "Paris" in choice["text"]
            logprobs = choice["logprobs"]
            assert "The capital of France is" + "".join(logprobs["tokens"]) == choice["text"]
            assert logprobs["text_offset"][0] == len("The capital of France is")
            own, tops = logprobs["token_logprobs"], logprobs["top_logprobs"]
            for token, logprob, top in zip(logprobs["tokens"], own, tops, strict=True):
                assert len(top) == 3
                assert top[token] == logprob == max(top.values())  # greedy
        too_long = requests.post(url + "/completions", json={**body, "prompt": "word " * 3000}, timeout=60)
        assert (too_long.status_code, too_long.json()["code"]) == (400, 40303)


@needs_fastchat
def test_our_worker_at_fastchats_controller(fastchat_controller: str) -> None:
    flags = ["--controller-address", fastchat_controller, "--tokens", "5", "--heartbeat-interval", "0.2"]
    with Fleet() as fleet:
        fleet.start("benchmarks.timed_worker", *flags)
        wait_until("our worker is listed", lambda: models_of(fastchat_controller) == ["timed"])
        body = {"model": "timed", "prompt": PROMPT}
        stream = requests.post(fastchat_controller + "/worker_generate_stream", json=body, stream=True, timeout=30)
        assert records_of(stream)[-1]["text"] == answer(5)


@needs_fastchat
def test_fastchats_worker_at_our_controller() -> None:
    with Fleet() as fleet:
        controller = fleet.controller()
        port = free_port()
        with start("tests.serve.fastchat_worker", ["--port", str(port), "--controller", controller.url]) as worker:
            wait_ready(worker, f"http://127.0.0.1:{port}/docs")
            assert models_of(controller.url) == ["words"]
            records = records_of(open_stream(controller, prompt="zero ", model="words"))
            assert [record["text"] for record in records] == ["zero one ", "zero one two ", "zero one two three"]
            assert controller.status()["queue_length"] == 0
