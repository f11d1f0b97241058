"""From the vision tower's features to the language model's embeddings: LLaVA's `mm_projector`.

It decides how many layers a projector has; a GELU stands between each two. Knows no images.
"""

import re
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tinyserve.layers.linear import LinearLayer
from tinyserve.models.weights import WeightReader

NAME = "mm_projector"
TYPES = "linear, mlpNx_gelu with N from 1 to 9, identity"


@dataclass(frozen=True, eq=False)
class Projector:
    layers: tuple[LinearLayer, ...]  # none: identity

    def __call__(self, features: Tensor) -> Tensor:
        """features [T, Cv] -> [T, C]."""
        for index, layer in enumerate(self.layers):
            features = layer(F.gelu(features) if index else features)
        return features


def modules(kind: object) -> tuple[str, ...]:
    """The names of the layers of a `mm_projector_type`, in order.

    Raises:
        ValueError: there is no such type.
    """
    if kind == "identity":
        return ()
    if kind == "linear":
        return (NAME,)
    mlp = re.fullmatch(r"mlp([1-9])x_gelu", str(kind))
    if mlp is None:
        raise ValueError(f"config.json: mm_projector_type must be one of {TYPES}, got {kind!r}")
    return tuple(f"{NAME}.{2 * index}" for index in range(int(mlp[1])))  # between them stand the activations


def read_projector(names: tuple[str, ...], weights: WeightReader, in_features: int, out_features: int) -> Projector:
    """Reads the layers `names`, the first from the tower's width, all to the language model's.

    Raises:
        ValueError: a tensor is missing or has another shape, or identity would join different widths.
    """
    if not names and in_features != out_features:
        raise ValueError(
            f"config.json: mm_projector_type identity needs a vision tower as wide as the language model's "
            f"{out_features}, got {in_features}"
        )
    widths = [in_features, *(out_features for _ in names)]
    return Projector(
        tuple(weights.linear({name: out_features}, width) for name, width in zip(names, widths, strict=False))
    )
