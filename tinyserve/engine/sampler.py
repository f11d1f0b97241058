"""Chooses the next token of each request from its row of logits.

First the logits of the rows that ask for it are changed: penalties.py, bias.py and masks.py, in this order, so that a
grammar has the last word. Then tokens are drawn (draw.py), and log probabilities looked up (logprobs.py). Rows that
need nothing pay nothing. Every request draws from its own random generator, one number per token, so its tokens do not
depend on what runs beside it. It knows no text and no stopping.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine.bias import TokenBias, add_bias
from tinyserve.engine.constraint import Constraint, Mask
from tinyserve.engine.draw import SamplingError, choose, take
from tinyserve.engine.logprobs import Logprobs, logprobs_of
from tinyserve.engine.masks import forbid
from tinyserve.engine.penalties import SeenTokens, has_penalties, penalise


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
        constraint: the request's grammar; it knows about ends and `min_tokens` itself.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        seed: int,
        end_ids: Collection[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.num_output_tokens = 0
        self.seen = SeenTokens(params, prompt_ids) if has_penalties(params) else None
        held_ids = end_ids if params.min_tokens and constraint is None else ()
        self.bias = TokenBias(params, held_ids) if params.logit_bias or held_ids else None
        self.constraint = constraint
        self._random = random.Random(seed if params.seed is None else params.seed)

    @property
    def changes_logits(self) -> bool:
        return self.seen is not None or self.bias is not None or self.constraint is not None

    @property
    def is_complete(self) -> bool:
        """The grammar allows nothing more."""
        return self.constraint is not None and self.constraint.is_complete

    def draw(self) -> float:
        """The next number in [0, 1)."""
        return self._random.random()

    def add(self, token_id: int) -> None:
        """Remembers a token of the output. Raises SamplingError when the grammar cannot go on."""
        self.num_output_tokens += 1
        if self.constraint is not None:
            self.constraint.accept(token_id)
        if self.seen is not None:
            self.seen.add(token_id)


def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[Sampled | SamplingError]:
    """One token per row.

    Args:
        logits: [R, V]; not changed.
        states: R of them.

    Returns:
        For each row its token, or why there is none: it holds NaN or infinity, or its grammar became too complex. An
        error does not touch the other rows.
    """
    results: dict[int, int | SamplingError] = {}
    masks: dict[int, Mask] = {}
    for row, state in enumerate(states):
        if state.constraint is not None:
            try:
                masks[row] = state.constraint.mask()
            except SamplingError as error:
                results[row] = error
    changed = [row for row, state in enumerate(states) if state.changes_logits and row not in results]
    plain = [row for row, state in enumerate(states) if not state.changes_logits]
    # Both before the first draw: a request whose change fails must not cost the others a number.
    parts = [(changed, _changed(logits, changed, states, masks))] if changed else []
    parts += [(plain, take(logits, plain))] if plain else []
    for rows, part in parts:
        chosen = choose(part, [states[row].params for row in rows], [states[row].draw for row in rows])
        results.update(zip(rows, chosen, strict=True))
    logprobs = _logprobs(logits, states, results)
    ordered = [results[row] for row in range(len(states))]
    return [
        result if isinstance(result, SamplingError) else Sampled(result, logprobs.get(row))
        for row, result in enumerate(ordered)
    ]


def _changed(logits: Tensor, rows: Sequence[int], states: Sequence[SamplingState], masks: Mapping[int, Mask]) -> Tensor:
    """A copy of those rows of [R, V] in fp32, with what their requests have asked for done to it."""
    logits = take(logits, rows).to(torch.float32, copy=len(rows) == logits.shape[0])  # otherwise take has copied
    each = [states[row] for row in rows]
    seen = [(place, state.seen) for place, state in enumerate(each) if state.seen is not None]
    if seen:
        penalise(logits, [place for place, _ in seen], [one for _, one in seen])
    biases = [(place, state.bias.at(state.num_output_tokens)) for place, state in enumerate(each) if state.bias]
    if biases:
        add_bias(logits, [place for place, _ in biases], [bias for _, bias in biases])
    allowed = [(place, masks[row]) for place, row in enumerate(rows) if row in masks]
    if allowed:
        forbid(logits, [place for place, _ in allowed], [mask for _, mask in allowed])
    return logits


def _logprobs(
    logits: Tensor, states: Sequence[SamplingState], results: Mapping[int, int | SamplingError]
) -> dict[int, Logprobs]:
    """Row -> log probabilities, of those rows that ask for them and have a token."""
    asked = [
        (row, result, number)
        for row, result in results.items()
        if not isinstance(result, SamplingError) and (number := states[row].params.logprobs) is not None
    ]
    if not asked:
        return {}
    rows, chosen, numbers = zip(*asked, strict=True)
    return dict(zip(rows, logprobs_of(logits, rows, chosen, numbers), strict=True))
