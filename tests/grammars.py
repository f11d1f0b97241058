"""Short ways to begin a grammar and to see what it allows."""

import json
from typing import Any

import numpy as np

from tinyserve.config import Grammar, SamplingParams
from tinyserve.engine.constraint import Constraint
from tinyserve.engine.structured_output import GrammarCompiler

VOCAB = 320  # more than the 258 of the byte tokenizer, as padded embeddings have it
EOS = 257


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def start(compiler: GrammarCompiler, grammar: Grammar, **params: Any) -> Constraint:
    return compiler.compile(grammar, SamplingParams(**params))


def allowed(constraint: Constraint, vocab_size: int = VOCAB) -> set[int]:
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    assert not bits[vocab_size:].any()
    return set(np.flatnonzero(bits).tolist())
