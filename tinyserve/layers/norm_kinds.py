"""Which of our norms computes what a module of transformers does: found by what it holds and what it gives.

A norm holds a weight [C], perhaps a bias [C], and an epsilon. Which formula it is, its class' name does not say (Gemma
multiplies by 1 + weight): a copy with random weights is run, and the first formula of KINDS that gives the same is it.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyserve.layers.norm import LayerNorm, RMSNorm

EPSILONS = ("variance_epsilon", "eps", "epsilon")  # attributes that hold it
PARAMETERS = ({"weight"}, {"weight", "bias"})
TOLERANCE = 1e-4


@dataclass(frozen=True)
class NormKind:
    """y = (x - mean) / sqrt(variance + eps) * (weight + offset) + bias, or the same without the mean."""

    has_mean: bool  # taken away
    offset: float

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """In plain torch: x [T, C] -> [T, C]."""
        scale = weight + self.offset
        if self.has_mean:
            return F.layer_norm(x, scale.shape, scale, bias, eps)
        normed = F.rms_norm(x, scale.shape, scale, eps)
        return normed if bias is None else normed + bias

    def make(self, weight: Tensor, bias: Tensor | None, eps: float) -> RMSNorm | LayerNorm:
        """The layer; an offset is added in fp32 and rounded once, as if the checkpoint had stored the sum."""
        scale = (weight.float() + self.offset).to(weight.dtype) if self.offset else weight
        return LayerNorm(scale, bias, eps) if self.has_mean else RMSNorm(scale, eps)


KINDS = tuple(NormKind(has_mean, offset) for has_mean in (False, True) for offset in (0.0, 1.0))


def read_norm(module: nn.Module) -> RMSNorm | LayerNorm | None:
    """Our layer with a module's weights, or None where the module is no norm of these kinds."""
    parameters = dict(module.named_parameters(recurse=False))
    eps = next((value for name in EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
    if eps is None or parameters.keys() not in PARAMETERS or any(module.children()):
        return None
    if any(parameter.dim() != 1 for parameter in parameters.values()):
        return None
    weight, bias = (None if (p := parameters.get(name)) is None else p.detach() for name in ("weight", "bias"))
    kind = _kind(module, eps)
    return None if kind is None or weight is None else kind.make(weight, bias, eps)


@torch.no_grad()
def _kind(module: nn.Module, eps: float) -> NormKind | None:
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(module).to_empty(device="cpu").float()
    for parameter in twin.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    weight, bias = twin.get_parameter("weight"), dict(twin.named_parameters()).get("bias")
    x = torch.randn(3, len(weight), generator=generator) + 0.5
    try:
        y = twin(x)
    except TypeError:  # it wants more than x
        return None
    for kind in KINDS if isinstance(y, Tensor) and y.shape == x.shape else ():
        if not (bias is not None and not kind.has_mean) and torch.allclose(
            y, kind.reference(x, weight, bias, eps), rtol=TOLERANCE, atol=TOLERANCE
        ):
            return kind
    return None
