"""What a grammar allows: every text that comes out is in the language, and nothing is allowed that is not."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import regex
import torch
from grammars import EOS, VOCAB, allowed, schema, start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyserve.config import Grammar, SamplingParams
from tinyserve.engine.sampler import Sampled, sample
from tinyserve.engine.sampling_state import SamplingState
from tinyserve.engine.structured_output import GrammarCompiler
from tinyserve.engine.tokenizer import Tokenizer


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
        if one.token_id in tokenizer.eos_token_ids:
            return tokenizer.decode(ids), True
        ids.append(one.token_id)
        if state.is_complete:
            return tokenizer.decode(ids), True
    return tokenizer.decode(ids), False


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
    assert state.needs_result
    for _ in range(4):
        (one,) = sample(torch.zeros(1, VOCAB), [state])
        assert isinstance(one, Sampled)
        assert one.token_id == letter
    assert state.is_complete
