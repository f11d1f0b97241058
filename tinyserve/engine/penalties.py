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


def penalise(logits: Tensor, rows: Sequence[int], seen: Sequence[SeenTokens]) -> None:
    """Changes fp32 logits [R, V] in place, in the given rows, each by what its own request has seen."""
    sizes = [len(one) for one in seen]
    if not any(sizes):
        return
    counts = np.concatenate([one.counts for one in seen]).astype(np.float32)

    def spread(values: Sequence[float]) -> NDArray[np.float32]:
        return np.repeat(np.asarray(values, dtype=np.float32), sizes)

    offsets = counts * spread([one.params.frequency_penalty for one in seen])
    offsets += (counts > 0) * spread([one.params.presence_penalty for one in seen])
    place = (
        torch.from_numpy(np.repeat(np.asarray(rows, dtype=np.int64), sizes)).to(logits.device),
        torch.from_numpy(np.concatenate([one.ids for one in seen])).to(logits.device),
    )
    factors = torch.from_numpy(spread([one.params.repetition_penalty for one in seen])).to(logits.device)
    values = logits[place]
    values = torch.where(values > 0, values / factors, values * factors)
    logits[place] = values - torch.from_numpy(offsets).to(logits.device)
