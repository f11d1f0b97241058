"""What swap.py asks of a module before it replaces it: which of our layers it is, and whether both compute the same."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from tinyserve.layers.joined import joined
from tinyserve.layers.linear import Linear, LinearLayer
from tinyserve.layers.modules import QuantLinear

# Of the largest output: what the order of a product's sums may change.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes x @ W^T + bias and nothing else; classes made from nn.Linear may do more."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def own_layer(module: nn.Module | None) -> LinearLayer | None:
    """The linear layer that a module is, in 16 or 4 bits."""
    if isinstance(module, QuantLinear):
        return module.layer
    if module is not None and is_linear(module):
        return Linear(module.weight.detach(), None if module.bias is None else module.bias.detach())
    return None


def own_layers(module: nn.Module, inputs: tuple[str, ...], output: str) -> tuple[LinearLayer, LinearLayer] | None:
    """The children of these names as layers, the inputs joined; None where one is missing."""
    children = dict(module.named_children())
    layers = [layer for name in inputs if (layer := own_layer(children.get(name))) is not None]
    last = own_layer(children.get(output))
    return None if last is None or len(layers) < len(inputs) else (joined(layers), last)


def probe(like: Tensor, tokens: int, channels: int) -> Tensor:
    """A random input [1, tokens, channels] of the dtype and on the device of `like`."""
    return torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(0)).to(like)


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results are the same but for rounding."""
    if ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= TOLERANCE[theirs.dtype] * theirs.abs().max())
