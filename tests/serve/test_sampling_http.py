"""Sampling parameters over HTTP, with a real engine on a tiny model behind the real routes."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
import tiny_model
from serve.fleet import Fleet, Member, records_of

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PROMPT = "It was the best of times"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    model = tiny_model.save(tmp_path_factory.mktemp("http") / "tiny", vocab_size=258)
    flags = ("--dtype", "float32", "--kv-cache-bytes", "4000000")
    with Fleet() as fleet:
        yield fleet.start(
            "tinyserve.serve.model_worker", "--host", "127.0.0.1", "--model-path", str(model), "--no-register", *flags
        )


def ask(worker: Member, **params: Any) -> list[dict[str, Any]]:
    body = {"prompt": PROMPT, "max_new_tokens": 8, "seed": 1, "ignore_eos": True, **params}
    return records_of(worker.post("/worker_generate_stream", body, stream=True))


def test_log_probabilities_grow_with_the_text(worker: Member) -> None:
    records = ask(worker, logprobs=3)
    assert all(record["error_code"] == 0 for record in records)
    last = records[-1]["logprobs"]
    assert [len(values) for values in last.values()] == [8] * 4
    assert all(3 <= len(top) <= 4 for top in last["top_logprobs"])
    assert all(logprob == top[token] for token, logprob, top in zip(*list(last.values())[1:], strict=True))
    assert last["text_offset"][0] == len(PROMPT)
    for record in records[:-1]:
        number = len(record["logprobs"]["tokens"])
        assert record["logprobs"] == {name: values[:number] for name, values in last.items()}
    deltas = ask(worker, logprobs=3, stream_format="delta")
    assert [token for record in deltas for token in record["logprobs"]["tokens"]] == last["tokens"]
    assert "logprobs" not in ask(worker)[-1]


def test_samples_come_with_their_index_and_each_is_what_its_seed_gives_alone(worker: Member) -> None:
    alone = [ask(worker, seed=seed)[-1]["text"] for seed in (5, 6, 7)]
    assert len(set(alone)) == 3
    records = ask(worker, seed=5, n=3)
    last = {record["index"]: record for record in records}
    assert [last[index]["text"] for index in range(3)] == alone
    assert all(record["text"].startswith(PROMPT) for record in records)
    assert records[-1]["usage"]["completion_tokens"] == 3 * 8
    body = {"prompt": PROMPT, "max_new_tokens": 8, "seed": 5, "ignore_eos": True, "n": 3, "logprobs": 0}
    whole = worker.post("/worker_generate", body).json()
    assert (whole["text"], whole["finish_reason"]) == (alone, ["length"] * 3)
    assert [len(each["tokens"]) for each in whole["logprobs"]] == [8] * 3
    assert whole["usage"]["completion_tokens"] == 3 * 8


def test_samples_share_the_keys_and_values_of_their_prompt(worker: Member) -> None:
    records = ask(worker, prompt="x" * 100, n=3)
    last = {record["index"]: record for record in records}
    assert all(last[index]["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64 for index in (1, 2))


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}},
        {"guided_json": SCHEMA},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ],
    ids=["response_format", "guided_json", "structured_outputs"],
)
def test_an_answer_in_the_form_that_was_asked_for(worker: Member, fields: dict[str, Any]) -> None:
    for seed in range(3):
        last = ask(worker, echo=False, max_new_tokens=200, seed=seed, ignore_eos=False, **fields)[-1]
        assert last["finish_reason"] == "stop"
        jsonschema.validate(json.loads(last["text"]), SCHEMA)


def test_a_choice_among_texts(worker: Member) -> None:
    texts = {ask(worker, echo=False, seed=seed, guided_choice=["yes", "no"])[-1]["text"] for seed in range(6)}
    assert texts <= {"yes", "no"}


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"guided_regex": "((("}, 40001, ["guided_regex", "unclosed group"]),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, 40001, ["guided_json", "uniqueItems"]),
        (
            {"guided_json": {"properties": {f"p{number}": {"type": "string"} for number in range(1500)}}},
            40001,
            ["guided_json", "50 ms are allowed"],
        ),
        ({"logit_bias": {"400": 1}}, 40302, ["logit_bias", "0..257", "400"]),
        ({"stop_token_ids": [400]}, 40302, ["stop_token_ids", "0..257", "400"]),
        ({"min_tokens": 9}, 40302, ["min_tokens", "max_new_tokens", "8", "9"]),
        ({"n": 99}, 40302, ["n must be", "16", "99"]),
        ({"prompt": ""}, 40001, ["prompt is empty"]),
        ({"prompt": "x" * 300}, 40303, ["300", "256"]),
        ({"seed": 2**64}, 40302, ["seed", str(2**63 - 1)]),
        ({"stop": ["x"] * 5000}, 40302, ["stop", "5000", "16"]),
        ({"top_p": "x"}, 40001, ["top_p", "a number", "x"]),
    ],
)
def test_a_mistake_is_one_record_that_names_it_and_others_go_on(
    worker: Member, fields: dict[str, Any], code: int, words: list[str]
) -> None:
    expected = ask(worker, max_new_tokens=60)[-1]["text"]
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(ask, worker, max_new_tokens=60)
        for n in (1, 2):
            (record,) = ask(worker, **{"n": n, **fields})
            assert (record["error_code"], record["finish_reason"]) == (code, "error")
            assert all(word in record["text"] for word in words), record["text"]
            assert len(record["text"]) < 500
        assert neighbour.result()[-1]["text"] == expected


def test_more_new_tokens_than_the_context_holds_are_as_many_as_fit(worker: Member) -> None:
    last = ask(worker, max_new_tokens=100_000)[-1]
    assert (last["finish_reason"], last["usage"]["total_tokens"]) == ("length", 256)


def test_a_prompt_of_special_tokens_alone_is_served(worker: Member) -> None:
    last = ask(worker, prompt="<s></s>")[-1]
    assert (last["error_code"], last["usage"]["prompt_tokens"]) == (0, 2)
