"""Chooses the next token of each request from its row of logits.

First the logits of the rows that ask for it are changed: penalties.py, bias.py and masks.py, in this order, so that a
grammar has the last word. Then tokens are drawn (draw.py), and log probabilities looked up (logprobs.py). Rows that
need nothing pay nothing. Every request draws from its own random generator, one number per token, so its tokens do not
depend on what runs beside it.

On a GPU `launch` waits for nothing: its tokens can feed the next step, and be followed by another launch, before anyone
has read them. What a request remembers of a token that is not known yet is on the device (`SamplingState.ahead`). It
knows no text and no stopping.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinyserve.engine.bias import add_bias
from tinyserve.engine.constraint import Mask
from tinyserve.engine.draw import SamplingError, choose, take
from tinyserve.engine.logprobs import Likelihoods, Logprobs, look_up
from tinyserve.engine.masks import forbid
from tinyserve.engine.penalties import penalise
from tinyserve.engine.sampling_state import SamplingState
from tinyserve.engine.transfer import Download, upload

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampled:
    token_id: int
    logprobs: Logprobs | None = None  # where the request asks for them


class Launched:
    """One token per row, which the device has been told to choose.

    Its requests may be launched again at once, but for those that need the result. The results of launches are asked
    for in their order; one that nobody asks for any more, because its requests have ended, is dropped.

    Attributes:
        tokens: int32 [R] on the logits' device, to be used without waiting; -1 where there will be an error.
    """

    def __init__(
        self,
        tokens: Tensor,
        states: Sequence[SamplingState],
        errors: Mapping[int, SamplingError],
        likelihoods: Likelihoods | None,
    ) -> None:
        self.tokens = tokens
        self._states = states
        self._errors = errors
        self._likelihoods = likelihoods
        self._download = Download(tokens, *(likelihoods.tensors if likelihoods is not None else ()))
        for row, state in enumerate(states):
            state.ahead.append((tokens, row))

    def result(self) -> list[Sampled | SamplingError]:
        """Waits for the tokens and adds them to their states. To be called once.

        Returns:
            For each row its token, or why there is none: its logits hold NaN or infinity, or its grammar became too
            complex or cannot go on behind it. An error does not touch the other rows.
        """
        tokens, *looked_up = self._download.wait()
        logprobs = self._likelihoods.read(looked_up) if self._likelihoods is not None else {}
        return [self._take(row, token_id, logprobs.get(row)) for row, token_id in enumerate(tokens.tolist())]

    def _take(self, row: int, token_id: int, logprobs: Logprobs | None) -> Sampled | SamplingError:
        state = self._states[row]
        del state.ahead[0]
        if row in self._errors:
            return self._errors[row]
        if token_id < 0:
            return SamplingError("the model's output is not finite")
        try:
            state.add(token_id)
        except SamplingError as error:
            return error
        except Exception as error:
            _log.exception("a request's token was not taken")
            return SamplingError(f"{type(error).__name__}: {error}")
        return Sampled(token_id, logprobs)


def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[Sampled | SamplingError]:
    """What `launch` launches, waited for."""
    return launch(logits, states).result()


def launch(logits: Tensor, states: Sequence[SamplingState]) -> Launched:
    """Has one token chosen per row.

    Args:
        logits: [R, V]; not changed.
        states: R of them; where one needs the result of a launch, that is known.
    """
    errors: dict[int, SamplingError] = {}
    masks: dict[int, Mask] = {}
    for row, state in enumerate(states):
        if state.constraint is not None:
            assert not state.ahead, "a grammar needs the token before"
            try:
                masks[row] = state.constraint.mask()
            except SamplingError as error:
                errors[row] = error
    changed = [row for row, state in enumerate(states) if state.changes_logits and row not in errors]
    plain = [row for row, state in enumerate(states) if not state.changes_logits]
    # Both before the first draw: a request whose change fails must not cost the others a number.
    parts = [(changed, _changed(logits, changed, states, masks))] if changed else []
    parts += [(plain, take(logits, plain))] if plain else []
    drawn = [
        (rows, choose(part, [states[row].params for row in rows], [states[row].draw() for row in rows]))
        for rows, part in parts
    ]
    tokens = _joined(drawn, len(states), logits.device)
    return Launched(tokens, states, errors, _likelihoods(logits, states, tokens, errors))


def _joined(parts: Sequence[tuple[Sequence[int], Tensor]], num_rows: int, device: torch.device) -> Tensor:
    """Tokens of some rows each -> [R], -1 in the others."""
    if len(parts) == 1 and len(parts[0][0]) == num_rows:
        return parts[0][1]
    tokens = torch.full((num_rows,), -1, dtype=torch.int32, device=device)
    for rows, part in parts:
        tokens.index_copy_(0, upload(np.asarray(rows, dtype=np.int64), device), part)
    return tokens


def _changed(logits: Tensor, rows: Sequence[int], states: Sequence[SamplingState], masks: Mapping[int, Mask]) -> Tensor:
    """A copy of those rows of [R, V] in fp32, with what their requests have asked for done to it."""
    logits = take(logits, rows).to(torch.float32, copy=len(rows) == logits.shape[0])  # otherwise take has copied
    each = [states[row] for row in rows]
    seen = [(place, state, state.seen) for place, state in enumerate(each) if state.seen is not None]
    if seen:
        ahead = _ahead([state for _, state, _ in seen], logits.device)
        penalise(logits, [place for place, _, _ in seen], [one for _, _, one in seen], ahead)
    biases = [
        (place, state.bias.at(state.num_output_tokens + len(state.ahead)))
        for place, state in enumerate(each)
        if state.bias is not None
    ]
    if biases:
        add_bias(logits, [place for place, _ in biases], [bias for _, bias in biases])
    allowed = [(place, masks[row]) for place, row in enumerate(rows) if row in masks]
    if allowed:
        forbid(logits, [place for place, _ in allowed], [mask for _, mask in allowed])
    return logits


def _ahead(states: Sequence[SamplingState], device: torch.device) -> Tensor | None:
    """The tokens that each state does not know yet, int64 [states, A], -1 in front where one has fewer than A."""
    width = max(len(state.ahead) for state in states)
    if width == 0:
        return None
    launched = {id(tokens): tokens for state in states for tokens, _ in state.ahead}
    starts, end = {}, 1  # behind a -1
    for key, tokens in launched.items():
        starts[key], end = end, end + len(tokens)
    places = np.zeros((len(states), width), dtype=np.int64)
    for index, state in enumerate(states):
        for column, (tokens, row) in enumerate(state.ahead, width - len(state.ahead)):
            places[index, column] = starts[id(tokens)] + row
    none = torch.full((1,), -1, dtype=torch.int32, device=device)
    return torch.cat([none, *launched.values()]).long()[upload(places, device)]


def _likelihoods(
    logits: Tensor, states: Sequence[SamplingState], tokens: Tensor, errors: Mapping[int, SamplingError]
) -> Likelihoods | None:
    """Of those rows that ask for log probabilities and will have a token, as far as is known."""
    asked = [
        (row, number)
        for row, state in enumerate(states)
        if row not in errors and (number := state.params.logprobs) is not None
    ]
    if not asked:
        return None
    return look_up(logits, [row for row, _ in asked], tokens, [number for _, number in asked])
