"""Repetition, presence and frequency penalties of a batch, in one gather and one scatter.

Only the tokens that a request has seen are touched, never the width of the vocabulary. The formulas are transformers'
(repetition, which counts the prompt too) and OpenAI's (presence and frequency, which count the output alone).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine.transfer import upload


class SeenTokens:
    """The distinct tokens that one request's penalties concern, and how often its output holds each of them."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self.params = params
        # presence and frequency do not look at the prompt
        distinct = np.unique(np.asarray(prompt_ids, dtype=np.int64)) if params.repetition_penalty != 1.0 else ()
        self._places = {int(token_id): place for place, token_id in enumerate(distinct)}
        self._ids = np.zeros(len(distinct) + 64, dtype=np.int64)
        self._ids[: len(distinct)] = distinct
        self._counts = np.zeros(len(self._ids), dtype=np.int32)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self)]

    @property
    def counts(self) -> NDArray[np.int32]:
        """How often each of `ids` occurs in the output: 0 for what only the prompt holds."""
        return self._counts[: len(self)]

    def add(self, token_id: int) -> None:
        """Counts a token of the output."""
        place = self._places.setdefault(token_id, len(self))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        self._counts[place] += 1


def has_penalties(params: SamplingParams) -> bool:
    return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0)


def penalise(logits: Tensor, rows: Sequence[int], seen: Sequence[SeenTokens], ahead: Tensor | None = None) -> None:
    """Changes fp32 logits [R, V] in place, in the given rows, each by what its own request has seen.

    Args:
        ahead: int64 [len(rows), A] on the logits' device: tokens of the output that `seen` does not hold yet, because
            the host does not know them; -1 in front where there are fewer than A.
    """
    sizes = [len(one) for one in seen]
    if not any(sizes) and ahead is None:
        return
    device = logits.device
    formula = _Formula([one.params for one in seen])
    place = np.repeat(np.arange(len(rows)), sizes)
    row_of_each = np.asarray(rows, dtype=np.int64)
    at = upload(row_of_each[place], device), upload(np.concatenate([one.ids for one in seen]), device)
    counts = upload(np.concatenate([one.counts for one in seen]).astype(np.float32), device)
    if ahead is None:
        logits[at] = formula.penalised(logits[at], counts, place)
        return
    counts += (ahead[upload(place, device)] == at[1].unsqueeze(1)).sum(dim=1)
    known = formula.penalised(logits[at], counts, place)
    _penalise_ahead(logits, upload(row_of_each, device), formula, ahead)
    logits[at] = known  # last: what is ahead and has been seen before counts with both


def _penalise_ahead(logits: Tensor, rows: Tensor, formula: "_Formula", ahead: Tensor) -> None:
    """Changes the logits of the tokens ahead as if the output held nothing else."""
    at = rows.unsqueeze(1), ahead.clamp(min=0)
    before = logits[at]
    for column in range(ahead.shape[1]):
        counts = (ahead == ahead[:, column : column + 1]).sum(dim=1).float()
        after = formula.penalised(before[:, column], counts, np.arange(len(rows)))
        # one column at a time, so that no token stands twice in a row of what is stored
        logits[rows, at[1][:, column]] = after.where(ahead[:, column] >= 0, before[:, column])


class _Formula:
    """What the parameters of some requests say."""

    def __init__(self, params: Sequence[SamplingParams]) -> None:
        self._factors = np.asarray([one.repetition_penalty for one in params], dtype=np.float32)
        self._frequency = np.asarray([one.frequency_penalty for one in params], dtype=np.float32)
        self._presence = np.asarray([one.presence_penalty for one in params], dtype=np.float32)

    def penalised(self, values: Tensor, counts: Tensor, place: NDArray[np.int64]) -> Tensor:
        """Logits [N] of tokens that stand `counts` [N] times in the output of request `place` [N] -> [N]."""
        factors, frequency, presence = (
            upload(each[place], values.device) for each in (self._factors, self._frequency, self._presence)
        )
        values = torch.where(values > 0, values / factors, values * factors)
        return values - (counts * frequency + (counts > 0) * presence)
