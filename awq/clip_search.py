"""Finds how far to clip each group of weights: a smaller range rounds the many small weights finer.

The candidates are llm-awq's (auto_clip.py): bounds of 1, 0.95 .. 0.55 times the largest |w| of the group. Pure
functions. Dimensions: n rows of the weight [N, K] at a time, groups of G, C candidates.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from awq.quantize import QuantConfig, fake_quantize

GRID = 20
MAX_SHRINK = 0.5
SWEEPS = 2  # over the groups of a row; a third one changes hardly anything
CHUNK = 1 << 20  # weights whose candidates are in memory at once: C times that


def separate_bounds(weight: Tensor, gram: Tensor, config: QuantConfig) -> Tensor:
    """The bound of each group of weights with the smallest output error of that group alone, as in llm-awq.

    The error of group g on a token is d . x_g with d = Q(clamp(w, -M, M)) - w, and its mean square over the tokens
    is d^T H_g d with H_g the group's diagonal block of H = X^T X / tokens.

    Args:
        weight: scaled weight [N, K].
        gram: H [K, K] of the scaled inputs.

    Returns:
        [N, K/G, 1].
    """
    bounds = []
    for rows in _row_chunks(weight):
        errors = _candidate_errors(rows, config)
        bounds.append(_bounds(rows, _own_losses(errors, gram).argmin(0), config))
    return torch.cat(bounds)


def joint_bounds(weight: Tensor, gram: Tensor, config: QuantConfig) -> Tensor:
    """The bounds with which the errors of a row's groups cancel each other best.

    The error of a row is the sum of d_g . x_g over its groups, so its mean square has cross terms d_g^T H_gh d_h, and
    inputs of a language model are strongly correlated. Coordinate descent on tr(dW H dW^T): group after group takes the
    candidate that is best beside the present errors of all others.

    Args and result as of separate_bounds.
    """
    bounds = []
    for rows in _row_chunks(weight):
        errors = _candidate_errors(rows, config)
        own = _own_losses(errors, gram)
        n, count, group = errors.shape[1:]
        picked = torch.zeros(n, count, dtype=torch.long, device=rows.device)
        present = torch.zeros_like(rows)
        every_row = torch.arange(n, device=rows.device)
        for _ in range(SWEEPS):
            for g in range(count):
                columns = slice(g * group, (g + 1) * group)
                present[:, columns] = 0
                cross = present @ gram[:, columns]  # [n, G]
                loss = own[:, :, g] + 2 * (errors[:, :, g] * cross).sum(-1)
                picked[:, g] = loss.argmin(0)
                present[:, columns] = errors[picked[:, g], every_row, g]
        bounds.append(_bounds(rows, picked, config))
    return torch.cat(bounds)


def _row_chunks(weight: Tensor) -> Iterator[Tensor]:
    """Rows do not depend on each other; few at a time bound the memory."""
    yield from weight.split(max(1, CHUNK // weight.shape[1]))


def _shrinkages() -> list[float]:
    return [1 - step / GRID for step in range(int(MAX_SHRINK * GRID))]


def _largest(rows: Tensor, config: QuantConfig) -> Tensor:
    """max |w| of each group of rows [n, K], as [n, K/G, 1]."""
    return rows.view(len(rows), -1, config.group(rows.shape[1])).abs().amax(-1, keepdim=True)


def _bounds(rows: Tensor, picked: Tensor, config: QuantConfig) -> Tensor:
    """The bounds [n, K/G, 1] of the candidates [n, K/G]."""
    factors = torch.tensor(_shrinkages(), device=rows.device)
    return _largest(rows, config) * factors[picked].unsqueeze(-1)


def _candidate_errors(rows: Tensor, config: QuantConfig) -> Tensor:
    """d of every candidate, [C, n, K/G, G], for weights [n, K]."""
    largest = _largest(rows, config)
    groups = rows.view(len(rows), largest.shape[1], -1)
    errors = []
    for factor in _shrinkages():
        bound = largest * factor
        clamped = groups.clamp(-bound, bound).view_as(rows)
        errors.append(fake_quantize(clamped, config).view_as(groups).sub_(groups))
    return torch.stack(errors)


def _own_losses(errors: Tensor, gram: Tensor) -> Tensor:
    """d^T H_g d of every candidate, [C, n, K/G]."""
    group = errors.shape[-1]
    losses = []
    for g in range(errors.shape[2]):
        columns = slice(g * group, (g + 1) * group)
        part = errors[:, :, g]
        losses.append((part @ gram[columns, columns]).mul_(part).sum(-1))
    return torch.stack(losses, -1)
