"""Chooses the next token of each request from its row of logits.

First the logits of the rows that ask for it are changed (penalties.py, bias.py), then tokens are drawn (draw.py), and
log probabilities are looked up (logprobs.py); rows that need nothing pay nothing. Every request draws from its own
random generator, one number per token, so its tokens do not depend on what runs beside it. It knows no text and no
stopping.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine.bias import TokenBias, add_bias
from tinyserve.engine.draw import choose, take
from tinyserve.engine.logprobs import Logprobs, logprobs_of
from tinyserve.engine.penalties import SeenTokens, has_penalties, penalise


class SamplingError(ValueError):
    """One request's logits cannot be sampled from."""


@dataclass(frozen=True)
class Sampled:
    token_id: int
    logprobs: Logprobs | None = None  # where the request asks for them


class SamplingState:
    """What one request remembers between tokens.

    Args:
        params: the request's.
        prompt_ids: for the repetition penalty, which counts the prompt.
        seed: used where the parameters have none.
        end_ids: tokens that end the text, which `min_tokens` keeps away.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], seed: int, end_ids: Collection[int] = ()
    ) -> None:
        self.params = params
        self.num_output_tokens = 0
        self.seen = SeenTokens(params, prompt_ids) if has_penalties(params) else None
        self.bias = TokenBias(params, end_ids) if params.logit_bias or params.min_tokens else None
        self._random = random.Random(seed if params.seed is None else params.seed)

    @property
    def changes_logits(self) -> bool:
        return self.seen is not None or self.bias is not None

    def draw(self) -> float:
        """The next number in [0, 1)."""
        return self._random.random()

    def add(self, token_id: int) -> None:
        """Remembers a token of the output."""
        self.num_output_tokens += 1
        if self.seen is not None:
            self.seen.add(token_id)


def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[Sampled | SamplingError]:
    """One token per row.

    Args:
        logits: [R, V]; not changed.
        states: R of them.

    Returns:
        For each row its token; an error where it holds NaN or infinity, which does not touch the others.
    """
    tokens: list[int | None] = [None] * len(states)
    changed = [row for row, state in enumerate(states) if state.changes_logits]
    plain = [row for row, state in enumerate(states) if not state.changes_logits]
    # Both before the first draw: a request whose change fails must not cost the others a number.
    parts = [(changed, _changed(logits, changed, states))] if changed else []
    parts += [(plain, take(logits, plain))] if plain else []
    for rows, part in parts:
        chosen = choose(part, [states[row].params for row in rows], [states[row].draw for row in rows])
        for row, token in zip(rows, chosen, strict=True):
            tokens[row] = token
    logprobs = _logprobs(logits, states, tokens)
    return [
        SamplingError("the model's output is not finite") if token is None else Sampled(token, logprobs.get(row))
        for row, token in enumerate(tokens)
    ]


def _changed(logits: Tensor, rows: Sequence[int], states: Sequence[SamplingState]) -> Tensor:
    """A copy of those rows of [R, V] in fp32, with what their requests have asked for done to it."""
    logits = take(logits, rows).to(torch.float32, copy=len(rows) == logits.shape[0])  # otherwise take has copied
    each = [states[row] for row in rows]
    seen = [(row, state.seen) for row, state in enumerate(each) if state.seen is not None]
    if seen:
        penalise(logits, [row for row, _ in seen], [one for _, one in seen])
    biases = [(row, state.bias.at(state.num_output_tokens)) for row, state in enumerate(each) if state.bias]
    if biases:
        add_bias(logits, [row for row, _ in biases], [bias for _, bias in biases])
    return logits


def _logprobs(logits: Tensor, states: Sequence[SamplingState], tokens: Sequence[int | None]) -> dict[int, Logprobs]:
    """Row -> log probabilities, of those rows that ask for them and have a token."""
    asked = [
        (row, token, state.params.logprobs)
        for row, (state, token) in enumerate(zip(states, tokens, strict=True))
        if token is not None and state.params.logprobs is not None
    ]
    if not asked:
        return {}
    rows, chosen, numbers = zip(*asked, strict=True)
    return dict(zip(rows, logprobs_of(logits, rows, chosen, numbers), strict=True))
