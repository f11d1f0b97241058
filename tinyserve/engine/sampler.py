"""Chooses the next token of each request from its row of logits.

The order is that of transformers: penalties, temperature, top_k, top_p, min_p. Every request draws from its own random
generator, one number per token, so its tokens do not depend on what runs beside it. It knows no text and no stopping.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from tinyserve.config import SamplingParams

# Truncated sampling looks at the most likely tokens only, at more of them where they hold too little of the mass.
CANDIDATES = (256, 8192)
BLOCK = 256  # of a wide row's columns: one sum for each, then one block's columns are looked at


class SamplingError(ValueError):
    """One request's logits cannot be sampled from."""


class SamplingState:
    """What one request remembers between tokens.

    Args:
        params: the request's.
        prompt_ids: for the repetition penalty, which counts the prompt.
        vocab_size: V.
        seed: used where the parameters have none.
        device: of the logits.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int, seed: int, device: torch.device
    ) -> None:
        self.params = params
        self._random = random.Random(seed if params.seed is None else params.seed)
        self._counts: Tensor | None = None  # int32 [V], of the output
        self._seen: Tensor | None = None  # bool [V], in prompt or output
        if params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0:
            self._counts = torch.zeros(vocab_size, dtype=torch.int32, device=device)
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(list(set(prompt_ids)), dtype=torch.int64, device=device)] = True

    @property
    def has_penalties(self) -> bool:
        return self._counts is not None

    def draw(self) -> float:
        """The next number in [0, 1)."""
        return self._random.random()

    def add(self, token_id: int) -> None:
        """Remembers a token of the output."""
        if self._counts is not None and self._seen is not None:
            self._counts[token_id] += 1
            self._seen[token_id] = True

    def penalise(self, logits: Tensor) -> None:
        """Changes one row of logits [V] in place."""
        if self._counts is None or self._seen is None:
            return
        params = self.params
        if params.repetition_penalty != 1.0:
            penalty = params.repetition_penalty
            changed = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits.copy_(torch.where(self._seen, changed, logits))
        if params.frequency_penalty:
            logits -= params.frequency_penalty * self._counts
        if params.presence_penalty:
            logits -= params.presence_penalty * (self._counts > 0)


def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[int | SamplingError]:
    """One token per row.

    Args:
        logits: [R, V].
        states: R of them.

    Returns:
        Token ids; an error for a row that holds NaN or infinity, which does not touch the others.
    """
    if any(state.has_penalties for state in states):
        logits = logits.to(torch.float32, copy=True)
        for row, state in zip(logits, states, strict=True):
            state.penalise(row)
    best, greedy_ids = logits.max(dim=-1)  # NaN, where there is one, counts as the largest
    finite: list[bool] = torch.isfinite(best).tolist()
    tokens: list[int | SamplingError] = list(greedy_ids.tolist())
    drawing = [row for row, state in enumerate(states) if finite[row] and not state.params.greedy]
    if drawing:
        for row, token in zip(
            drawing, _draw(_rows(logits, drawing).float(), [states[row] for row in drawing]), strict=True
        ):
            tokens[row] = token
    for row, ok in enumerate(finite):
        if not ok:
            tokens[row] = SamplingError("the model's output is not finite")
    return tokens


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _draw(logits: Tensor, states: Sequence[SamplingState]) -> list[int]:
    """fp32 logits [R, V] -> R token ids, drawn."""
    probabilities = torch.softmax(logits / _column([state.params.temperature for state in states], logits), dim=-1)
    draws = torch.tensor([state.draw() for state in states], dtype=torch.float64, device=logits.device).unsqueeze(1)
    tokens = [0] * len(states)
    open_rows = [row for row, state in enumerate(states) if not _truncates(state.params)]
    if open_rows:
        _assign(tokens, open_rows, _pick(_rows(probabilities, open_rows), draws[open_rows]))
    cut_rows = [row for row, state in enumerate(states) if _truncates(state.params)]
    for size in (*CANDIDATES, logits.shape[1]):
        if not cut_rows:
            break
        size = min(size, logits.shape[1])
        params = [states[row].params for row in cut_rows]
        token_ids, kept, needs_more = _truncate(_rows(probabilities, cut_rows), params, size)
        columns = _pick(kept, draws[cut_rows])
        _assign(tokens, cut_rows, token_ids.gather(1, columns.unsqueeze(1)).squeeze(1))
        cut_rows = [row for row, more in zip(cut_rows, needs_more, strict=True) if more]
    return tokens


def _rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Those rows, without a copy when they are all; indexing copies a vocabulary for each."""
    return values if len(rows) == values.shape[0] else values[rows]


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
