"""Finds how far to clip each group of weights: a smaller range rounds the many small weights finer.

The candidates are llm-awq's (auto_clip.py): bounds of 1, 0.95 .. 0.55 times the largest |w| of the group. Pure
functions.
"""

import torch
from torch import Tensor

from awq.quantize import QuantConfig, fake_quantize

GRID = 20
MAX_SHRINK = 0.5


def diagonal_blocks(gram: Tensor, group: int) -> Tensor:
    """The G x G blocks on the diagonal of H [K, K], as [K/G, G, G]."""
    count = gram.shape[0] // group
    return torch.stack([gram[i * group : (i + 1) * group, i * group : (i + 1) * group] for i in range(count)])


def best_bounds(weight: Tensor, gram: Tensor, config: QuantConfig) -> Tensor:
    """The bound of each group of weights with the smallest output error.

    Like llm-awq, each group is judged alone: its error on a token is d . x_g with d = Q(clamp(w, -M, M)) - w, and the
    mean of its square over the tokens is d^T H_g d with H_g the group's diagonal block of H = X^T X / tokens.

    Args:
        weight: scaled weight [N, K].
        gram: H [K, K] of the scaled inputs.

    Returns:
        [N, K/G, 1].
    """
    n, k = weight.shape
    group = config.group(k)
    blocks = diagonal_blocks(gram, group)
    # [K/G, N, G]: one matrix product per group then gives the errors of all N rows.
    groups = weight.view(n, k // group, group).transpose(0, 1).contiguous()
    rows = QuantConfig(config.bits, -1, config.zero_point)
    largest = groups.abs().amax(-1, keepdim=True)
    best = largest
    best_error = torch.full_like(largest, torch.inf)
    for step in range(int(MAX_SHRINK * GRID)):
        bound = largest * (1 - step / GRID)
        clamped = groups.clamp(-bound, bound).view(-1, group)
        error = fake_quantize(clamped, rows).view_as(groups).sub_(groups)
        loss = torch.bmm(error, blocks).mul_(error).sum(-1, keepdim=True)
        better = loss < best_error
        best_error = torch.where(better, loss, best_error)
        best = torch.where(better, bound, best)
    return best.transpose(0, 1).contiguous()
