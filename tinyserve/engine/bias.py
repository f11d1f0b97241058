"""What is added to the logits of single tokens: a request's logit_bias, and minus infinity to an end that is too early.

One scatter for the whole batch.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine.transfer import upload


class TokenBias:
    """Args: end_ids: tokens that must not be drawn before `min_tokens` others."""

    def __init__(self, params: SamplingParams, end_ids: Collection[int]) -> None:
        late = dict(params.logit_bias)
        early = late | dict.fromkeys(end_ids, -np.inf)
        self._min_tokens = params.min_tokens if end_ids else 0
        self._early, self._late = _arrays(early), _arrays(late)

    def at(self, num_output_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Token ids, and what is added to each, for the token that follows so many."""
        return self._early if num_output_tokens < self._min_tokens else self._late


def _arrays(bias: dict[int, float]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.fromiter(bias.keys(), np.int64, len(bias)), np.fromiter(bias.values(), np.float32, len(bias))


def add_bias(
    logits: Tensor, rows: Sequence[int], biases: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> None:
    """Changes fp32 logits [R, V] in place, in the given rows, each by its own `TokenBias.at`."""
    row_of_each = np.repeat(np.asarray(rows, dtype=np.int64), [len(ids) for ids, _ in biases])
    place = (
        upload(row_of_each, logits.device),
        upload(np.concatenate([ids for ids, _ in biases]), logits.device),
    )
    logits[place] += upload(np.concatenate([values for _, values in biases]), logits.device)
