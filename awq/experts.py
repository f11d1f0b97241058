"""Experts as separate Linears, each seen by the search and named as in the checkpoint.

transformers keeps the experts of a block as one tensor per projection and joins them when it loads. Here they are taken
apart again: same function, same router. Knows no model class: what it takes apart is recognised by its parameters.
"""

import torch
from torch import Tensor, nn


class SeparateExperts(nn.ModuleList):
    """In place of transformers' module of fused experts; called by the same router in the same way.

    Args:
        fused: holds gate_up_proj [E, 2I, C] and down_proj [E, C, I], and the activation between them.
        gate, up, down: names of an expert's Linears in the checkpoint.
    """

    def __init__(self, fused: nn.Module, gate: str, up: str, down: str) -> None:
        count, channels, inner = fused.get_parameter("down_proj").shape
        sizes = {gate: (channels, inner), up: (channels, inner), down: (inner, channels)}
        super().__init__(
            nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()}) for _ in range(count)
        )
        self._names = gate, up, down
        self._activation: nn.Module = fused.get_submodule("act_fn")

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs.

        Args:
            hidden: [tokens, C].
            chosen: int64 [tokens, k], experts of each token; E means none.
            weights: [tokens, k].
        """
        output = torch.zeros_like(hidden)
        for index, expert in enumerate(self):
            token, place = torch.where(chosen == index)
            if len(token):
                gate, up, down = (expert.get_submodule(name) for name in self._names)
                x = hidden[token]
                result = down(self._activation(gate(x)) * up(x)) * weights[token, place, None]
                output.index_add_(0, token, result.to(output.dtype))
        return output


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds gated experts as one tensor per projection, in the order that SeparateExperts knows."""
    parameters = dict(module.named_parameters(recurse=False))
    return (
        parameters.keys() == {"gate_up_proj", "down_proj"}
        and all(parameter.dim() == 3 for parameter in parameters.values())
        and getattr(module, "is_concatenated", False)
        and not getattr(module, "is_transposed", False)
        and hasattr(module, "act_fn")
    )
