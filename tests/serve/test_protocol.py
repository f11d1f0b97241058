"""The whole wire protocol with the real model: real processes, real HTTP, real text."""

import itertools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from serve.fleet import Fleet, Member, records_of
from serve.real_service import RealService
from transformers import AutoTokenizer

from benchmarks.servers import ROOT, wait_for_health, wait_until
from tinyserve.serve import cli
from tinyserve.serve.wire import Record, RecordDecoder

SOON_S = 20.0
TOPICS = ("France", "the sea", "two cats", "winter", "a bridge", "music", "old books", "bread")
OPENINGS = ("Tell me about {}.", "A short poem about {}:", "The history of {} begins", "I have never seen {} like")
PROMPTS = [opening.format(topic) for topic, opening in itertools.product(TOPICS, OPENINGS)]


def ask(member: Member, prompt: str, **params: Any) -> list[Record]:
    """All records of one greedy answer, without the prompt."""
    body = {"prompt": prompt, "temperature": 0, "echo": False, "max_new_tokens": 12, **params}
    return records_of(member.post("/worker_generate_stream", body, stream=True))


def text_of(records: list[Record]) -> str:
    assert records[-1]["error_code"] == 0, records[-1]
    return str(records[-1]["text"])


class OpenStream:
    """A long answer that is being read; the connection stays open until `close`."""

    def __init__(self, member: Member, model: str) -> None:
        body = {"model": model, "prompt": "Once upon a time", "max_new_tokens": 4000, "ignore_eos": True}
        self._response = member.post("/worker_generate_stream", body, stream=True)
        self._pieces = self._response.iter_content(chunk_size=None)
        self._decoder = RecordDecoder()

    def read_some(self) -> Record:
        """The last of the records that came with the next piece."""
        while not (records := self._decoder.feed(next(self._pieces))):
            pass
        return records[-1]

    def read_to_the_end(self) -> Record:
        return [record for piece in self._pieces for record in self._decoder.feed(piece)][-1]

    def close(self) -> None:
        self._response.close()


# -- answers -----------------------------------------------------------------------------------------------------------


def test_the_capital_of_france_through_the_controller(service: RealService) -> None:
    body = {
        "model": service.name,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
    }
    records = records_of(service.controller.post("/worker_generate_stream", body, stream=True))
    assert "Paris" in text_of(records)
    assert len(records) > 3  # it came token by token
    assert all(after["text"].startswith(before["text"]) for before, after in itertools.pairwise(records))
    assert [record["finish_reason"] for record in records] == [None] * (len(records) - 1) + ["stop"]


def test_cumulative_delta_and_single_answers_say_the_same(service: RealService) -> None:
    worker, prompt = service.workers[0], PROMPTS[0]
    expected = text_of(ask(worker, prompt))
    assert text_of(ask(worker, prompt, echo=True)) == prompt + expected
    assert "".join(record["text"] for record in ask(worker, prompt, stream_format="delta")) == expected
    answer = worker.post("/worker_generate", {"prompt": prompt, "temperature": 0, "max_new_tokens": 12}).json()
    assert (answer["text"], answer["error_code"]) == (prompt + expected, 0)


def test_thirty_two_streams_at_once_each_get_their_own_text(service: RealService) -> None:
    alone = [text_of(ask(service.workers[0], prompt, max_new_tokens=8)) for prompt in PROMPTS]
    before = [worker.health()["requests"] for worker in service.workers]
    all_at_the_door = threading.Barrier(len(PROMPTS))

    def stream(prompt: str) -> str:
        all_at_the_door.wait()
        return text_of(ask(service.controller, prompt, max_new_tokens=8, model=service.name))

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(stream, PROMPTS))
    assert together == alone
    served = [worker.health()["requests"] - count for worker, count in zip(service.workers, before, strict=True)]
    assert sum(served) == len(PROMPTS)
    assert min(served) >= len(PROMPTS) // 4  # the load was shared


def test_a_seeded_answer_does_not_depend_on_its_neighbours(service: RealService) -> None:
    params = {"temperature": 1.0, "seed": 1234, "max_new_tokens": 10}
    worker = service.workers[0]
    alone = text_of(ask(worker, PROMPTS[3], **params))
    with ThreadPoolExecutor() as pool:
        crowd = [pool.submit(ask, worker, prompt, temperature=1.0) for prompt in PROMPTS[:6]]
        assert text_of(ask(worker, PROMPTS[3], **params)) == alone
        assert all(text_of(each.result()) for each in crowd)


def test_a_stop_string_ends_the_text_before_itself(service: RealService) -> None:
    worker, prompt = service.workers[0], "1, 2, 3, 4, 5,"
    full = text_of(ask(worker, prompt, max_new_tokens=24))
    stop = full[len(full) // 2 : len(full) // 2 + 3]
    for value in (stop, ["never in there", stop]):
        last = ask(worker, prompt, max_new_tokens=24, stop=value)[-1]
        assert last["text"] == full[: full.index(stop)]
        assert last["finish_reason"] == "stop"


def test_token_limits_and_token_stops(service: RealService, smollm2: Path) -> None:
    worker, prompt = service.workers[0], PROMPTS[2]
    last = ask(worker, prompt, max_new_tokens=5, ignore_eos=True)[-1]
    assert (last["finish_reason"], last["usage"]["completion_tokens"]) == ("length", 5)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert last["usage"]["prompt_tokens"] == len(tokenizer(prompt).input_ids)
    second_token = tokenizer(last["text"]).input_ids[1]
    stopped = ask(worker, prompt, max_new_tokens=5, stop_token_ids=[second_token])[-1]
    assert (stopped["finish_reason"], stopped["usage"]["completion_tokens"]) == ("stop", 2)


# -- wrong requests ----------------------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_an_error_with_both_lengths(service: RealService) -> None:
    worker = service.workers[0]
    context = worker.post("/model_details", {}).json()["context_length"]
    prompt = "word " * (context + 100)
    tokens = worker.post("/count_token", {"prompt": prompt}).json()["count"]
    (record,) = ask(worker, prompt)
    assert record["error_code"] == 40303
    assert str(tokens) in record["text"]
    assert str(context) in record["text"]
    assert text_of(ask(worker, PROMPTS[0]))


def test_an_answer_is_clipped_to_the_room_that_the_context_has_left(service: RealService) -> None:
    worker = service.workers[0]
    context = worker.post("/model_details", {}).json()["context_length"]
    prompt = "word " * (context - 10)
    tokens = worker.post("/count_token", {"prompt": prompt}).json()["count"]
    last = ask(worker, prompt, max_new_tokens=500, ignore_eos=True)[-1]
    assert last["finish_reason"] == "length"
    assert last["usage"] == {
        "prompt_tokens": tokens,
        "completion_tokens": context - tokens,
        "total_tokens": context,
    }


@pytest.mark.parametrize(
    ("params", "code", "words"),
    [
        ({"temperature": "hot"}, 40001, "temperature must be a number, got 'hot'"),
        ({"top_p": 1.5}, 40302, "top_p must be between 0 and 1, got 1.5"),
        ({"max_new_tokens": 0}, 40302, "max_new_tokens must be between 1 and"),
        ({"images": ["aGk="]}, 40001, "images: this model reads text only"),
        ({"model": "other"}, 40301, "model 'other' is not served here"),
        ({"stop_token_ids": [10**9]}, 40302, "stop_token_ids"),
    ],
)
def test_a_wrong_parameter_is_one_record_and_others_go_on(
    service: RealService, params: dict[str, Any], code: int, words: str
) -> None:
    worker = service.workers[0]
    neighbour = OpenStream(worker, service.name)
    neighbour.read_some()
    (record,) = ask(worker, PROMPTS[0], **params)
    assert record["error_code"] == code
    assert words in record["text"]
    assert neighbour.read_some()["error_code"] == 0
    neighbour.close()


def test_an_unknown_model_at_the_controller_is_named(service: RealService) -> None:
    (record,) = ask(service.controller, PROMPTS[0], model="no-such-model")
    assert record["error_code"] == 2
    assert "no-such-model" in record["text"]
    assert service.name in record["text"]


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["worker", "controller"])
def test_a_client_that_leaves_stops_its_generation_and_frees_its_blocks(service: RealService, through: str) -> None:
    entry = service.controller if through == "controller" else service.workers[0]
    stream = OpenStream(entry, service.name)
    stream.read_some()
    (busy,) = [worker for worker in service.workers if worker.health()["num_running"] == 1]
    assert busy.health()["free_blocks"] < busy.health()["total_blocks"]
    stream.close()
    wait_until("nothing runs", lambda: busy.health()["num_running"] == 0, SOON_S)
    health = busy.health()
    assert health["free_blocks"] == health["total_blocks"]
    assert health["queue_length"] == 0
    assert health["generated_tokens"] < 4000


def test_a_worker_killed_in_mid_stream_is_an_error_record_and_the_other_takes_over(service: RealService) -> None:
    stream = OpenStream(service.controller, service.name)
    stream.read_some()
    (victim,) = [worker for worker in service.workers if worker.health()["num_running"] == 1]
    victim.server.kill()
    last = stream.read_to_the_end()
    assert last["error_code"] == 3
    assert victim.url in last["text"]
    for prompt in PROMPTS[:3]:
        assert text_of(ask(service.controller, prompt, model=service.name))


def test_workers_register_again_at_a_restarted_controller(service: RealService) -> None:
    service.controller.server.kill()
    with pytest.raises(requests.ConnectionError):
        service.controller.post("/list_models")
    direct = text_of(ask(service.workers[0], PROMPTS[0]))  # a worker needs no controller to serve
    service.start_controller()
    service.wait_registered()
    assert text_of(ask(service.controller, PROMPTS[0], model=service.name)) == direct


def test_sigterm_lets_a_workers_stream_end(service: RealService) -> None:
    worker = service.workers[1]
    body = {"prompt": PROMPTS[1], "max_new_tokens": 60, "ignore_eos": True, "temperature": 0}
    response = worker.post("/worker_generate_stream", body, stream=True)
    worker.server.process.terminate()
    last = records_of(response)[-1]
    assert (last["error_code"], last["usage"]["completion_tokens"]) == (0, 60)
    assert worker.server.process.wait(SOON_S) == 0


# -- dispatch and tools ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lottery", "shortest_queue"])
def test_both_dispatch_methods_with_workers_registered_by_hand(service: RealService, method: str) -> None:
    with Fleet() as fleet:
        controller = fleet.controller("--dispatch-method", method)
        for worker in service.workers:
            tool = [sys.executable, "-m", "tinyserve.serve.register_worker", "--controller-address", controller.url]
            subprocess.run([*tool, "--worker-name", worker.url], check=True, cwd=ROOT, timeout=60)
        wait_for_health(controller.url, lambda health: health["workers"] == 2)
        before = [worker.health()["requests"] for worker in service.workers]
        for _ in range(16):
            assert text_of(ask(controller, "Hi", max_new_tokens=1, model=service.name))
        served = [worker.health()["requests"] - count for worker, count in zip(service.workers, before, strict=True)]
        assert sum(served) == 16
        assert min(served) >= (8 if method == "shortest_queue" else 1)  # no luck: 1 in 32768 lotteries


def test_test_message_prints_an_answer(service: RealService) -> None:
    tool = [sys.executable, "-m", "tinyserve.serve.test_message", "--model-name", service.name]
    message = ["--message", "What is the capital of France?", "--max-new-tokens", "12"]
    run = subprocess.run(
        [*tool, *message, "--controller-address", service.controller.url],
        cwd=ROOT,
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert service.name in run.stdout
    assert "capital" in run.stdout


def test_chat_asks_through_the_controller(service: RealService, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--controller", service.controller.url, "--temperature", "0"]
    assert cli.main([*flags, "--message", "What is the capital of France?"]) == 0
    assert "Paris" in capsys.readouterr().out
