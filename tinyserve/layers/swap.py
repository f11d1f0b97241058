"""Replaces modules of a loaded transformers model by ours, in place: linear layers, norms.

What a module is, is found by what it holds and what it computes, not by the name of its class.
"""

from typing import TypeGuard

from torch import nn

from tinyserve.layers.modules import QuantNorm
from tinyserve.layers.norm_kinds import read_norm


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes x @ W^T + bias and nothing else; classes made from nn.Linear may do more."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def swap_norms(model: nn.Module) -> list[str]:
    """Replaces every norm that norm_kinds.py knows; returns their names."""
    norms = {name: norm for name, module in model.named_modules() if (norm := read_norm(module)) is not None}
    for name, norm in norms.items():
        model.set_submodule(name, QuantNorm(norm))
    return list(norms)


def make_quant_norm(model: nn.Module) -> list[str]:
    """Replaces the norms of a model, on whatever device and in whatever dtype its weights are.

    Returns:
        The names of the modules replaced.

    Raises:
        ValueError: none was found.
    """
    names = swap_norms(model)
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no norm that is known: a module with a weight [C], an epsilon and the formula "
            "of RMSNorm or LayerNorm, its weight as it is or plus 1"
        )
    return names
