"""Finds how far to clip each group of weights: a smaller range rounds the many small weights finer.

A bound is the lowest and the highest weight that a group keeps. Pure functions. Dimensions: n rows of the weight [N, K]
at a time, groups of G, C candidates.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from awq.quantize import QuantConfig, fake_quantize, range_scale_and_zero, round_groups

GRID = 20
MAX_SHRINK = 0.5
STEPS = int(MAX_SHRINK * GRID)  # bounds of 1, 0.95 .. 0.55 times the group's own, as in llm-awq's auto_clip.py
MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))  # of the two bounds, in steps of 1/GRID
SWEEPS = 2  # of moves, after the one over all symmetric candidates; a third changes hardly anything
CHUNK = 1 << 18  # weights that are worked on at once: what belongs to them stays in the cache


def separate_bounds(weight: Tensor, gram: Tensor, config: QuantConfig) -> Tensor:
    """The symmetric bound of each group with the smallest output error of that group alone, as in llm-awq.

    The error of group g on a token is d . x_g with d = Q(clamp(w, -M, M)) - w, and its mean square over the tokens
    is d^T H_g d with H_g the group's diagonal block of H = X^T X / tokens.

    Args:
        weight: scaled weight [N, K].
        gram: H of its scaled inputs [K, K].

    Returns:
        Lowest and highest weight kept, [N, K/G, 2].
    """
    bounds = []
    for rows in _row_chunks(weight):
        groups = rows.float().view(len(rows), -1, config.group(rows.shape[1]))
        largest = groups.abs().amax(-1, keepdim=True)
        best, best_loss = largest, torch.full_like(largest, torch.inf)
        for step in range(STEPS):
            bound = largest * (1 - step / GRID)
            error = fake_quantize(groups.clamp(-bound, bound).view_as(rows), config).view_as(groups).sub_(groups)
            loss = _own_losses(error, gram)
            best = torch.where(loss < best_loss, bound, best)
            best_loss = torch.minimum(loss, best_loss)
        bounds.append(torch.cat((-best, best), -1))
    return torch.cat(bounds)


def joint_bounds(weight: Tensor, gram: Tensor, config: QuantConfig) -> Tensor:
    """The bounds with which the errors of a row's groups cancel each other best.

    The error of a row is the sum of d_g . x_g over its groups, so its mean square has cross terms d_g^T H_gh d_h, and
    inputs of a language model are strongly correlated. Coordinate descent on tr(dW H dW^T): group after group takes the
    candidate that is best beside the present errors of all others. First both bounds shrink together; then, where the
    zero is free, each moves alone, a step at a time.

    Args and result as of separate_bounds.
    """
    return torch.cat([_JointSearch(rows.float(), gram, config).bounds() for rows in _row_chunks(weight)])


class _JointSearch:
    """Coordinate descent on the bounds of a few rows [n, K]."""

    def __init__(self, rows: Tensor, gram: Tensor, config: QuantConfig) -> None:
        self._config = config
        self._gram = gram
        self._groups = rows.view(len(rows), -1, config.group(rows.shape[1]))  # [n, K/G, G]
        low, high = self._groups.aminmax(dim=-1)
        low, high = low.clamp(max=0), high.clamp(min=0)
        if not config.zero_point:
            high = torch.maximum(high, -low)
            low = -high
        self._widest = torch.stack((low, high), -1)  # [n, K/G, 2]
        self._steps = torch.zeros_like(self._widest)  # by which each bound is drawn in, in units of 1/GRID
        self._errors = self._error(self._groups, self._widest)  # Q(clamp(w)) - w at the present steps

    def bounds(self) -> Tensor:
        """[n, K/G, 2]."""
        together = [(step, step) for step in range(STEPS)]
        self._sweep(together, relative=False)
        for _ in range(SWEEPS):
            if self._config.zero_point:
                self._sweep(MOVES, relative=True)
            else:
                self._sweep(together, relative=False)
        return self._bounds(self._widest, self._steps)

    def _sweep(self, moves: Sequence[tuple[int, int]], relative: bool) -> None:
        """Every group of the rows takes its best move, from where it is or from its widest bounds."""
        offsets = self._steps.new_tensor(moves).unsqueeze(1)  # [C, 1, 2]
        every_row = torch.arange(len(self._groups), device=self._groups.device)
        size = self._groups.shape[-1]
        for g in range(self._groups.shape[1]):
            columns = slice(g * size, (g + 1) * size)
            steps = (self._steps[:, g] * relative + offsets).clamp_(0, STEPS - 1)  # [C, n, 2]
            bounds = self._bounds(self._widest[:, g], steps)
            errors = self._error(self._groups[:, g], bounds)  # [C, n, G]
            self._errors[:, g] = 0
            others = self._errors.flatten(1) @ self._gram[:, columns]  # [n, G]
            loss = torch.einsum("cng,cng->cn", (errors @ self._gram[columns, columns]).add_(others, alpha=2), errors)
            picked = loss.argmin(0)
            self._steps[:, g] = steps[picked, every_row]
            self._errors[:, g] = errors[picked, every_row]

    def _error(self, weight: Tensor, bounds: Tensor) -> Tensor:
        """Of groups [..., G] with bounds [..., 2]."""
        low, high = bounds.split(1, -1)
        scale, zero = range_scale_and_zero(low, high, self._config)
        clamped = torch.maximum(torch.minimum(weight, high), low)
        return round_groups(clamped, scale, zero, self._config).sub_(zero).mul_(scale).sub_(weight)

    @staticmethod
    def _bounds(widest: Tensor, steps: Tensor) -> Tensor:
        return widest * (1 - steps / GRID)


def _row_chunks(weight: Tensor) -> Iterator[Tensor]:
    """Rows do not depend on each other; few at a time bound the memory."""
    yield from weight.split(max(1, CHUNK // weight.shape[1]) if weight.device.type == "cpu" else len(weight))


def _own_losses(errors: Tensor, gram: Tensor) -> Tensor:
    """d^T H_g d of every group of errors [n, K/G, G], as [n, K/G, 1]."""
    size = errors.shape[-1]
    blocks = torch.stack([gram[k : k + size, k : k + size] for k in range(0, gram.shape[0], size)])
    weighted = torch.bmm(errors.transpose(0, 1), blocks).transpose(0, 1)
    return (weighted * errors).sum(-1, keepdim=True)
