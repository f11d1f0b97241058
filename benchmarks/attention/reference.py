"""Attention in fp32 of some queries of a case: what every implementation's result is compared with."""

import torch
from torch import Tensor

from benchmarks.attention.problem import Cache, Problem

REQUESTS, QUERIES = 3, 16  # that are looked at, spread over all
# Relative error, more than any rounding makes: of 16 bits; of 8 bits where a peer rounds keys, values and queries anew.
WRONG = {"bfloat16": 0.03, "int8": 0.1, "fp8": 0.1}


class Reference:
    def __init__(self, problem: Problem, cache: Cache) -> None:
        case = problem.case
        rows, expected = [], []
        for request in spread(case.batch, REQUESTS):
            k, v = cache.dense(request, case.context)
            queries = spread(case.queries, QUERIES)
            positions = torch.tensor(queries, device=problem.device) + case.context - case.queries
            chosen = [request * case.queries + query for query in queries]
            rows += chosen
            expected.append(attend(problem.q[chosen].float(), k, v, positions, problem.scale))
        self._rows = rows
        self._expected = torch.cat(expected)

    def error(self, y: Tensor) -> float:
        """Of the result [T, H, D]: relative, of the rows that are looked at."""
        difference = y[self._rows].float() - self._expected
        return float(difference.norm() / self._expected.norm())


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of 0..count - 1, the first and the last among them."""
    return sorted(set(torch.linspace(0, count - 1, min(count, most)).round().int().tolist()))


def attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float) -> Tensor:
    """q [R, H, D] at `positions` [R], k and v [Hkv, L, D] -> [R, H, D], all fp32."""
    group = q.shape[1] // k.shape[0]
    heads = q.unflatten(1, (k.shape[0], group))
    scores = torch.einsum("rhgd,hld->rhgl", heads, k) * scale
    hidden = torch.arange(k.shape[1], device=q.device) > positions.unsqueeze(1)  # [R, L]
    scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    return torch.einsum("rhgl,hld->rhgd", scores.softmax(-1), v).flatten(1, 2)
