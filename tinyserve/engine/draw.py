"""Draws one column of each row of logits: greedy, or by temperature, top_k, top_p and min_p in transformers' order.

Rows are drawn together, each with a number from its own request: on a GPU by ops.sample, which waits for nothing, on a
CPU here. It knows no requests: what was seen before, what a
grammar allows and what is forbidden has already been written into the logits.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tinyserve import ops
from tinyserve.config import SamplingParams
from tinyserve.engine.transfer import upload

# Truncated sampling on a CPU looks at the most likely tokens only, at more where they hold too little of the mass.
CANDIDATES = (256, 8192)
BLOCK = 256  # of a wide row's columns: one sum for each, then one block's columns are looked at


class SamplingError(ValueError):
    """One request's next token cannot be chosen."""


def choose(logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]) -> Tensor:
    """One token per row.

    Args:
        logits: [R, V], any float type.
        params: R of them.
        numbers: R of them in [0, 1); greedy rows need none.

    Returns:
        int32 [R] token ids; -1 in a row whose largest logit is NaN or infinite.
    """
    if ops.can_sample(logits.device):
        return ops.sample(logits.contiguous(), *_uploaded(params, numbers, logits.device))
    best, greedy_ids = logits.max(dim=-1)  # NaN, where there is one, counts as the largest
    finite: list[bool] = torch.isfinite(best).tolist()
    tokens: list[int] = greedy_ids.tolist()
    drawing = [row for row, each in enumerate(params) if finite[row] and not each.greedy]
    if drawing:
        drawn = _draw(
            take(logits, drawing).float(), [params[row] for row in drawing], [numbers[row] for row in drawing]
        )
        for row, token in zip(drawing, drawn, strict=True):
            tokens[row] = token
    return torch.tensor([token if ok else -1 for token, ok in zip(tokens, finite, strict=True)], dtype=torch.int32)


def _uploaded(params: Sequence[SamplingParams], numbers: Sequence[float], device: torch.device) -> tuple[Tensor, ...]:
    """What ops.sample asks about each row: temperature, top_k, top_p, min_p and the number, brought there at once."""
    size = len(params)
    packed = np.empty(24 * size, dtype=np.uint8)  # first the widest, so that all lie on multiples of their size
    doubles, floats, integers = (slice(begin * size, end * size) for begin, end in ((0, 8), (8, 20), (20, 24)))
    packed[doubles].view(np.float64)[:] = numbers
    packed[floats].view(np.float32).reshape(3, size)[:] = (
        [0.0 if each.greedy else each.temperature for each in params],
        [each.top_p for each in params],
        [each.min_p for each in params],
    )
    packed[integers].view(np.int32)[:] = [each.top_k for each in params]
    there = upload(packed, device)
    temperature, top_p, min_p = there[floats].view(torch.float32).view(3, size)
    return temperature, there[integers].view(torch.int32), top_p, min_p, there[doubles].view(torch.float64)


def take(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Those rows, without a copy when they are all, which come in their order; waits for nothing."""
    if len(rows) == values.shape[0]:
        return values
    return values.index_select(0, upload(np.asarray(rows, dtype=np.int64), values.device))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _draw(logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]) -> list[int]:
    """fp32 logits [R, V] and a number in [0, 1) for each row -> R token ids."""
    probabilities = torch.softmax(logits / _column([each.temperature for each in params], logits), dim=-1)
    draws = torch.tensor(numbers, dtype=torch.float64, device=logits.device).unsqueeze(1)
    tokens = [0] * len(params)
    open_rows = [row for row, each in enumerate(params) if not _truncates(each)]
    if open_rows:
        _assign(tokens, open_rows, _pick(take(probabilities, open_rows), draws[open_rows]))
    cut_rows = [row for row, each in enumerate(params) if _truncates(each)]
    for size in (*CANDIDATES, logits.shape[1]):
        if not cut_rows:
            break
        size = min(size, logits.shape[1])
        token_ids, kept, needs_more = _truncate(take(probabilities, cut_rows), [params[row] for row in cut_rows], size)
        columns = _pick(kept, draws[cut_rows])
        _assign(tokens, cut_rows, token_ids.gather(1, columns.unsqueeze(1)).squeeze(1))
        cut_rows = [row for row, more in zip(cut_rows, needs_more, strict=True) if more]
    return tokens


def _assign(tokens: list[int], rows: Sequence[int], values: Tensor) -> None:
    for row, token in zip(rows, values.tolist(), strict=True):
        tokens[row] = token


def _truncates(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _truncate(
    probabilities: Tensor, params: Sequence[SamplingParams], size: int
) -> tuple[Tensor, Tensor, Sequence[bool]]:
    """Keeps top_k, top_p and min_p of each row [R, V], looking at the `size` most likely tokens.

    Returns:
        Those tokens [R, size], most likely first; their probabilities, 0 where cut; which rows need more of them.
    """
    vocab_size = probabilities.shape[1]
    kept, token_ids = probabilities.topk(size, dim=-1)
    ranks = torch.arange(size, device=kept.device)
    top_k = [param.top_k if param.top_k > 0 else vocab_size for param in params]
    limits = torch.tensor(top_k, device=kept.device).unsqueeze(1)
    kept = kept.masked_fill(ranks >= limits, 0.0)
    # top_p is a share of what top_k has left
    total = torch.where(limits >= vocab_size, probabilities.sum(-1, keepdim=True), kept.sum(-1, keepdim=True))
    before = kept.cumsum(dim=-1) - kept  # mass of the more likely tokens: the one that crosses top_p stays
    top_p = _column([param.top_p for param in params], kept)
    floor = _column([param.min_p for param in params], kept) * kept[:, :1]
    result = kept.masked_fill((before >= top_p * total) & (ranks > 0), 0.0).masked_fill(kept < floor, 0.0)
    if size == vocab_size:
        return token_ids, result, [False] * len(params)
    # a row is complete when its last candidate is cut: every less likely token would be cut as well
    needs_more = (result[:, -1] > 0) & (limits[:, 0] > size)
    return token_ids, result, needs_more.tolist()


def _pick(weights: Tensor, draws: Tensor) -> Tensor:
    """Inverse of the cumulative distribution: weights [R, C] (any sum), draws fp64 [R, 1] in [0, 1) -> columns [R]."""
    rows, columns = weights.shape
    if columns <= 4 * BLOCK:
        cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
        return _search(cumulative, draws * cumulative[:, -1:])[:, 0]
    blocks = torch.nn.functional.pad(weights, (0, -columns % BLOCK)).view(rows, -1, BLOCK)
    sums = blocks.sum(dim=-1).double()
    cumulative = sums.cumsum(dim=-1)
    target = draws * cumulative[:, -1:]
    block = _search(cumulative, target)
    inside = target - (cumulative - sums).gather(1, block)
    chosen = blocks[torch.arange(rows, device=blocks.device), block[:, 0]]
    return (block * BLOCK + _search(chosen.cumsum(dim=-1, dtype=torch.float64), inside))[:, 0]


def _search(cumulative: Tensor, target: Tensor) -> Tensor:
    """First column whose cumulative weight [R, C] exceeds target [R, 1] -> [R, 1]; never one without any weight."""
    column = torch.searchsorted(cumulative, target.clamp(min=0.0), right=True)
    # rounding may carry the target up to the total itself: then the last column with any weight
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(column, last)
