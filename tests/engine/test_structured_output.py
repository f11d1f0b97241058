"""Grammars: every output is in the language, no mask allows what is not, a bad grammar is its own request's error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import regex
import tiny_model
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_engine import run

from tinyserve.config import Grammar, SamplingParams
from tinyserve.engine.draw import SamplingError
from tinyserve.engine.engine import Engine
from tinyserve.engine.generator import RequestError
from tinyserve.engine.sampler import Sampled, SamplingState, sample
from tinyserve.engine.structured_output import Constraint, GrammarCompiler, GrammarError, MaskThread, forbid
from tinyserve.engine.tokenizer import Tokenizer

MakeEngine = Callable[..., Engine]
VOCAB = 320  # more than the 258 of the byte tokenizer, as padded embeddings have it
EOS = 257


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    tiny_model.save_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def letters(bytes_tokenizer: Tokenizer) -> GrammarCompiler:
    """For a vocabulary of single bytes."""
    return GrammarCompiler(bytes_tokenizer, VOCAB)


@pytest.fixture(scope="module")
def words(tokenizer: Tokenizer) -> GrammarCompiler:
    """For a real vocabulary."""
    return GrammarCompiler(tokenizer, 49152)


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def start(compiler: GrammarCompiler, grammar: Grammar, **params: Any) -> Constraint:
    return compiler.compile(grammar, SamplingParams(**params))


def allowed(constraint: Constraint, vocab_size: int = VOCAB) -> set[int]:
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    assert not bits[vocab_size:].any()
    return set(np.flatnonzero(bits).tolist())


def generate(
    compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, seed: int, vocab_size: int, limit: int = 400
) -> tuple[str, bool]:
    """A text from random logits, and whether it came to its end within `limit` tokens."""
    params = SamplingParams(seed=seed, grammar=grammar)
    constraint = compiler.compile(grammar, params)
    state = SamplingState(params, [1], 0, tokenizer.eos_token_ids, constraint)
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for _ in range(limit):
        (one,) = sample(torch.randn(1, vocab_size, generator=generator) * 2, [state])
        assert isinstance(one, Sampled), one
        state.add(one.token_id)
        if one.token_id in tokenizer.eos_token_ids:
            return tokenizer.decode(ids), True
        ids.append(one.token_id)
        if state.is_complete:
            return tokenizer.decode(ids), True
    return tokenizer.decode(ids), False


# -- the language ------------------------------------------------------------------------------------------------------

SCALARS = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -5, "maximum": 1000},
        {"type": "string", "maxLength": 6},
        {"type": "string", "pattern": "^[a-f]{2,4}$"},
        {"type": "string", "format": "date"},
        {"enum": ["red", "green", 7, None]},
        {"const": 'a "quoted" \\ word'},
    ]
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.lists(st.text("abcäß_ ", min_size=1, max_size=5), min_size=1, max_size=3, unique=True)
    return st.builds(
        lambda keys, values, num_required: {
            "type": "object",
            "properties": dict(zip(keys, values, strict=False)),
            "required": keys[:num_required],
            "additionalProperties": False,
        },
        names,
        st.lists(inner, min_size=3, max_size=3),
        st.integers(0, 3),
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        _objects(inner),
        st.builds(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 3}, inner),
        st.builds(lambda first, second: {"anyOf": [first, second]}, inner, inner),
    ),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEMAS, st.integers(0, 1000))
def test_every_output_under_a_schema_parses_validates_and_is_compact(
    words: GrammarCompiler, tokenizer: Tokenizer, value: Any, seed: int
) -> None:
    text, ended = generate(words, tokenizer, schema(value), seed, 49152)
    assert ended, text
    jsonschema.validate(json.loads(text), value)
    outside_strings = regex.sub(r'"(\\.|[^"\\])*"', "", text)
    assert not regex.search(r"\s", outside_strings), text


REGEXES = (
    r"[a-z]{2,5}(-[0-9]+){0,2}",
    r"(foo|foobar|bar)+!",
    r"\(\d{3}\) \d{3}-\d{4}",
    r"(a|ab)(c|bcd)(d*)",
    r"[^\"\\]{0,3}\.",
)


@pytest.mark.parametrize("pattern", REGEXES)
def test_a_mask_allows_exactly_what_can_still_become_a_match(letters: GrammarCompiler, pattern: str) -> None:
    """Every byte is tried at every place, against another implementation's partial matches."""
    constraint = start(letters, Grammar("regex", pattern))
    choices = np.random.default_rng(0)
    prefix = ""
    for _ in range(12):
        found = allowed(constraint)
        # Beyond ASCII a byte alone is no character, so `regex` has no opinion.
        spelled = {byte: letters._tokenizer.encode(chr(byte))[0] for byte in range(128)}
        expected = {
            token_id
            for byte, token_id in spelled.items()
            if regex.fullmatch(pattern, prefix + chr(byte), regex.ASCII, partial=True)
        }
        assert found & set(spelled.values()) == expected
        assert (EOS in found) == bool(regex.fullmatch(pattern, prefix, regex.ASCII))
        continuing = sorted(expected)
        if not continuing:
            break
        token_id = int(choices.choice(continuing))
        constraint.accept(token_id)
        prefix += letters._tokenizer.decode([token_id])
        if constraint.is_complete:
            break


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ('start: "x" (" " NAME)+\nNAME: /[a-z]{1,4}/', r"x( [a-z]{1,4})+"),
        ('root ::= "yes" | "no" " "? digit{2}\ndigit ::= [0-9]', r"yes|no ?[0-9]{2}"),
    ],
    ids=["Lark", "GBNF"],
)
def test_a_grammar_in_either_notation(words: GrammarCompiler, tokenizer: Tokenizer, text: str, pattern: str) -> None:
    for seed in range(3):
        output, ended = generate(words, tokenizer, Grammar("grammar", text), seed, 49152)
        assert regex.fullmatch(pattern, output, partial=not ended), output


def test_special_tokens_are_no_text(words: GrammarCompiler, tokenizer: Tokenizer) -> None:
    constraint = start(words, Grammar("regex", r"(.|\n)*"))
    assert allowed(constraint, 49152) & tokenizer.special_ids <= tokenizer.eos_token_ids


def test_whitespace_comes_only_where_the_schema_itself_asks(letters: GrammarCompiler) -> None:
    blank, brace = letters._tokenizer.encode(" ")[0], letters._tokenizer.encode("{")[0]
    for value, expected in (({}, False), ({"x-guidance": {"whitespace_flexible": True}}, True)):
        constraint = start(letters, schema({"type": "object", **value}))
        constraint.accept(brace)
        assert (blank in allowed(constraint)) == expected


# -- beside the other parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "num_tokens", "ends"),
    [({}, 0, True), ({"min_tokens": 2}, 1, False), ({"min_tokens": 2}, 2, True), ({"ignore_eos": True}, 3, False)],
)
def test_an_end_is_kept_away_while_something_else_can_follow(
    letters: GrammarCompiler, params: dict[str, Any], num_tokens: int, ends: bool
) -> None:
    constraint = start(letters, Grammar("regex", "a*"), **params)
    letter = letters._tokenizer.encode("a")[0]
    for _ in range(num_tokens):
        constraint.accept(letter)
    assert allowed(constraint) == ({letter, EOS} if ends else {letter})


def test_the_grammar_ends_the_text_before_min_tokens(letters: GrammarCompiler) -> None:
    constraint = start(letters, Grammar("regex", "ab?"), min_tokens=5, ignore_eos=True)
    constraint.accept(letters._tokenizer.encode("a")[0])
    assert allowed(constraint) == {letters._tokenizer.encode("b")[0]}
    constraint.accept(letters._tokenizer.encode("b")[0])
    assert constraint.is_complete
    assert allowed(start(letters, Grammar("regex", "a{0}"), min_tokens=5)) == {EOS}


def test_no_bias_or_penalty_overrules_the_grammar(letters: GrammarCompiler) -> None:
    letter, other = (letters._tokenizer.encode(text)[0] for text in "ab")
    grammar = Grammar("regex", "aaaa")
    bias = ((letter, -100.0), (other, 100.0))
    params = SamplingParams(grammar=grammar, logit_bias=bias, frequency_penalty=2.0, temperature=2.0, min_tokens=9)
    state = SamplingState(params, [], 0, {EOS}, letters.compile(grammar, params))
    for _ in range(4):
        (one,) = sample(torch.zeros(1, VOCAB), [state])
        assert isinstance(one, Sampled)
        assert one.token_id == letter
        state.add(letter)
    assert state.is_complete


def test_masks_of_a_batch_are_applied_to_their_rows(letters: GrammarCompiler) -> None:
    constraints = [start(letters, Grammar("regex", pattern)) for pattern in ("[ab]", "[x-z]+")]
    logits = torch.zeros(3, VOCAB)
    logits[2, 7] = torch.nan
    forbid(logits, [0, 2], [constraint.mask() for constraint in constraints])
    assert torch.equal(logits[1], torch.zeros(VOCAB))
    for row, constraint in zip((0, 2), constraints, strict=True):
        assert set(torch.nonzero(logits[row] == 0).flatten().tolist()) == allowed(constraint)
    assert torch.isnan(logits[2, 7])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_masks_filled_by_the_thread_are_those_filled_at_once(letters: GrammarCompiler, num_threads: int) -> None:
    thread = MaskThread(num_threads)
    pairs = [[start(letters, Grammar("regex", pattern)) for _ in range(2)] for pattern in REGEXES]
    for _ in range(2):
        thread.start([first for first, _ in pairs])
        for first, second in pairs:
            assert np.array_equal(first.mask(), second.mask())
            token_id = min(allowed(first))
            first.accept(token_id)
            second.accept(token_id)


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
        try:
            state.add(one.token_id)
        except SamplingError:
            break


def test_the_tokenizer_of_another_library_is_refused_by_name(bytes_tokenizer: Tokenizer, tmp_path: Path) -> None:
    slow = Tokenizer.__new__(Tokenizer)
    slow.__dict__.update(bytes_tokenizer.__dict__ | {"_fast": None})
    with pytest.raises(GrammarError, match="not one of the Rust library"):
        start(GrammarCompiler(slow, VOCAB), Grammar("regex", "a"))


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
