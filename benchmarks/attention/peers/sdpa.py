"""torch's own attention, over keys and values that lie together, as its cache would have them: no pages, 16 bits.

Two ways in: scaled_dot_product_attention, padded, and varlen_attn (FlashAttention-2) for prefill.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention.peers.peer import Attend
from benchmarks.attention.problem import Cache, Problem
from benchmarks.kernels.peers.peer import Unavailable


class Sdpa:
    name = "sdpa"

    def __init__(self) -> None:
        self.version = f"torch {torch.__version__}"

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        case = problem.case
        k, v = gathered(problem, cache)  # [B, L, Hkv, D]
        k, v = (part.transpose(1, 2).contiguous() for part in (k, v))
        q = problem.q.unflatten(0, (case.batch, case.queries)).transpose(1, 2)
        is_first = case.queries == case.context
        mask = None if case.is_decode or is_first else causal_lower_right(case.queries, case.context)
        grouped = case.heads.num_heads != case.heads.num_kv_heads

        def work() -> Tensor:
            y = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=is_first and not case.is_decode, scale=problem.scale,
                enable_gqa=grouped,
            )  # fmt: skip
            return y.transpose(1, 2).flatten(0, 1)

        return work


class Varlen:
    name = "varlen"

    def __init__(self) -> None:
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError as error:
            raise Unavailable(f"torch {torch.__version__} has no varlen_attn") from error
        self.version = f"torch {torch.__version__}"
        self._attend: Any = varlen_attn  # its arguments differ by version
        self._knows_groups = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        case = problem.case
        if case.is_decode:
            raise Unavailable("is for prefill")
        k, v = (part.flatten(0, 1) for part in gathered(problem, cache))
        ends = torch.arange(0, len(k) + 1, case.context, dtype=torch.int32, device=problem.device)
        groups = {"enable_gqa": True} if self._knows_groups else {}
        sizes = (problem.query_starts, ends, case.queries, case.context)
        return lambda: self._attend(
            problem.q, k, v, *sizes, scale=problem.scale, window_size=(-1, 0), **groups
        )  # causal: no keys to the right


def gathered(problem: Problem, cache: Cache) -> tuple[Tensor, Tensor]:
    """Both [B, L, Hkv, D]."""
    case = problem.case
    if case.cache != "bfloat16":
        raise Unavailable("has no cache of 8 bits")
    each = [cache.dense(request, case.context, problem.q.dtype) for request in range(case.batch)]
    k, v = (torch.stack([kv[part].transpose(0, 1) for kv in each]) for part in (0, 1))
    return k, v
