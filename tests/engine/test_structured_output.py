"""Grammars that compile or do not, and requests with a grammar in the whole engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import regex
import torch
from grammars import EOS, VOCAB, allowed, schema, start
from run_engine import run

from tinyserve.config import Grammar, SamplingParams
from tinyserve.engine.draw import SamplingError
from tinyserve.engine.engine import Engine
from tinyserve.engine.generator import RequestError
from tinyserve.engine.sampler import Sampled, sample
from tinyserve.engine.sampling_state import SamplingState
from tinyserve.engine.structured_output import GrammarCompiler, GrammarError
from tinyserve.engine.tokenizer import Tokenizer

MakeEngine = Callable[..., Engine]


# -- bad grammars ------------------------------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}, "required": ["a"]}
    return value


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("json_schema", "{", "guided_json"), "guided_json cannot be used: .*EOF"),
        (Grammar("json_schema", "5"), "grammar cannot be used"),
        (schema({"type": "nonsense"}), "Invalid type: nonsense"),
        (schema({"type": "array", "uniqueItems": True}), "Unimplemented keys: .*uniqueItems"),
        (schema({"$ref": "http://127.0.0.1:1/schema"}), "Default retriever does not fetch"),
        (schema({"type": "integer", "minimum": 5, "maximum": 2}), "minimum .* greater than maximum"),
        (schema(nested(100)), "recursion limit"),
        (Grammar("regex", "((("), "unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("grammar", "start: foo"), "unknown name"),
        (Grammar("grammar", "root ::= " + "(" * 20_000), "grammar cannot be used"),
        (Grammar("grammar", "hello"), "grammar cannot be used"),
    ],
)
def test_a_grammar_that_cannot_compile_says_why(letters: GrammarCompiler, grammar: Grammar, message: str) -> None:
    with pytest.raises(GrammarError, match=message) as caught:
        start(letters, grammar)
    assert len(str(caught.value)) < 400


def test_a_grammar_that_takes_too_long_is_refused(letters: GrammarCompiler) -> None:
    properties = {f"p{index}": {"type": "string"} for index in range(2000)}
    with pytest.raises(GrammarError, match=r"takes \d+ ms to compile; 50 ms are allowed"):
        start(letters, schema({"type": "object", "properties": properties}))


@pytest.mark.parametrize(
    "pattern", ["(x{1,1000}y{1,1000}){1,1000}", "^(a{1,200}){1,200}$", "(.*a.{0,50}b){1,50}c", "(.{0,200}a){1,200}"]
)
def test_a_bomb_ends_its_own_request_at_worst(words: GrammarCompiler, tokenizer: Tokenizer, pattern: str) -> None:
    state = SamplingState(SamplingParams(), [], 0, (), start(words, Grammar("regex", pattern)))
    plain = SamplingState(SamplingParams(temperature=0.0), [], 0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        logits = torch.randn(1, 49152, generator=generator).repeat(2, 1)
        one, other = sample(logits, [state, plain])
        assert other == Sampled(int(logits[1].argmax()))
        if isinstance(one, SamplingError):
            assert "the grammar" in str(one)
            assert len(str(one)) < 400
            break


def test_the_tokenizer_of_another_library_is_refused_by_name(bytes_tokenizer: Tokenizer, tmp_path: Path) -> None:
    slow = Tokenizer.__new__(Tokenizer)
    slow.__dict__.update(bytes_tokenizer.__dict__ | {"_fast": None})
    with pytest.raises(GrammarError, match="not one of the Rust library"):
        start(GrammarCompiler(slow, VOCAB), Grammar("regex", "a"))


def test_an_end_beyond_the_model_s_vocabulary_is_left_out(bytes_tokenizer: Tokenizer) -> None:
    generous = Tokenizer.__new__(Tokenizer)
    generous.__dict__.update(bytes_tokenizer.__dict__ | {"eos_token_ids": frozenset({EOS, 50_000})})
    constraint = start(GrammarCompiler(generous, VOCAB), Grammar("regex", "a*"))
    assert EOS in allowed(constraint)


# -- the engine --------------------------------------------------------------------------------------------------------


def test_constrained_and_free_requests_run_side_by_side(make_engine: MakeEngine) -> None:
    person = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "maximum": 200}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    grammars = [schema(person), None, Grammar("regex", r"[a-z]{20,30}\."), None, schema({"enum": ["yes", "no"]})]
    params = [
        SamplingParams(max_new_tokens=60, temperature=1.0, seed=seed, ignore_eos=grammar is None, grammar=grammar)
        for seed, grammar in enumerate(grammars)
    ]
    engine = make_engine()
    results = run(engine, [[5, 6, 7]] * len(params), params)
    jsonschema.validate(json.loads(results[0].text), person)
    assert regex.fullmatch(r"[a-z]{20,30}\.", results[2].text)
    assert json.loads(results[4].text) in ("yes", "no")
    assert [result.finish_reason for result in results] == ["stop", "length", "stop", "length", "stop"]
    for index in (1, 3):
        assert run(make_engine(), [[5, 6, 7]], params[index])[0].token_ids == results[index].token_ids
    # In a small cache, requests are preempted and their masks come late; nothing changes.
    again = run(make_engine(num_blocks=12), [[5, 6, 7]] * len(params), params)
    assert [result.text for result in again] == [result.text for result in results]


def test_tokens_run_out_before_the_document_ends(make_engine: MakeEngine) -> None:
    params = SamplingParams(max_new_tokens=5, seed=0, grammar=schema({"type": "string", "minLength": 200}))
    (result,) = run(make_engine(), [[5]], params)
    assert (result.finish_reason, len(result.token_ids), result.text[0]) == ("length", 5, '"')


def test_a_stop_string_ends_a_document_too(make_engine: MakeEngine) -> None:
    params = SamplingParams(max_new_tokens=50, seed=0, stop=("zzz",), grammar=Grammar("regex", "aaazzzbbb"))
    (result,) = run(make_engine(), [[5]], params)
    assert (result.finish_reason, result.text) == ("stop", "aaa")


def test_a_grammar_that_grows_too_complex_ends_its_request_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    bomb = SamplingParams(max_new_tokens=60, seed=1, grammar=Grammar("regex", "(.*a.{0,50}b){1,50}c"))
    plain = SamplingParams(max_new_tokens=60, temperature=0.0, ignore_eos=True)
    ids = [engine.add(engine.prepare([5, 6], params)) for params in (bomb, plain)]
    last: dict[int, Any] = {}
    tokens: list[int] = []
    while engine.has_work:
        for output in engine.step():
            last[output.request_id] = output.chunk
            if output.request_id == ids[1]:
                tokens += output.chunk.token_ids
    assert last[ids[0]].finish_reason == "error"
    assert "the grammar" in last[ids[0]].error
    assert tokens == run(make_engine(), [[5, 6]], plain)[0].token_ids


def test_the_engine_refuses_what_cannot_compile_before_any_work(make_engine: MakeEngine) -> None:
    engine = make_engine()
    params = SamplingParams(grammar=Grammar("regex", "((", "guided_regex"))
    with pytest.raises(RequestError, match="guided_regex cannot be used") as caught:
        engine.prepare("hello", params)
    assert caught.value.code == 40001
    assert not engine.has_work
