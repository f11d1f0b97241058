"""The embedding of tokens: rows of a matrix that may be the output layer's too, in 16 or 8 bits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tinyserve import ops
from tinyserve.layers.linear import Linear, LinearLayer, W8A8Linear


@dataclass(frozen=True, eq=False)
class Embedding:
    weight: Tensor  # [V, C]

    def __call__(self, token_ids: Tensor) -> Tensor:
        """int [T] -> [T, C]."""
        return ops.embedding(token_ids.int(), self.weight)

    def as_output(self) -> LinearLayer:
        """The same matrix as the output layer."""
        return Linear(self.weight)


@dataclass(frozen=True, eq=False)
class W8Embedding:
    """Shares the 8-bit weight [V, C] of the output layer, so that it is in memory once."""

    output: W8A8Linear
    dtype: torch.dtype  # of the activations

    def __call__(self, token_ids: Tensor) -> Tensor:
        """int [T] -> [T, C]."""
        return ops.w8_embedding(token_ids.int(), self.output.weight, self.dtype)

    def as_output(self) -> LinearLayer:
        return self.output
