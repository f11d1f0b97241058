"""tinyserve's own attention: the op alone, and with the rotation and the cache's update before it, as a layer has them.

The rotation turns by no angle and the new tokens' keys and values are those that the cache holds already, so that the
result and the cache stay the same at every call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.attention.peers.peer import Attend
from benchmarks.attention.problem import BLOCK_SIZE, Cache, Problem
from benchmarks.kernels.peers.peer import Unavailable
from tinyserve import ops


def require(op_names: Sequence[str], device: str) -> str:
    """The version; raises Unavailable where an op is not compiled for the device."""
    for op in op_names:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"tinyserve::{op}", device.upper()):
            raise Unavailable(f"tinyserve::{op} is not compiled for {device}")
    return str(ops.build_info()["version"])


class PagedAttention:
    name = "tinyserve"

    def __init__(self, device: str) -> None:
        self.version = require(["paged_attention"], device)

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        return lambda: attend(problem.q, problem, cache)


class TwoOps:
    """rope_kv_write, then paged_attention."""

    name = "two-ops"

    def __init__(self, device: str) -> None:
        self.version = require(["rope_kv_write", "paged_attention"], device)

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        step = NewTokens(problem, cache)
        num_heads = problem.case.heads.num_heads

        def work() -> Tensor:
            q = ops.rope_kv_write(
                step.qkv, step.positions, step.cos_sin, step.slots, cache.k, cache.v, num_heads,
                cache.k_scales, cache.v_scales,
            )  # fmt: skip
            return attend(q, problem, cache)

        return work


class Fused:
    """Both in one op, of a decode step."""

    name = "fused"

    def __init__(self, device: str) -> None:
        self.version = require(["rope_paged_attention"], device)

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        if not problem.case.is_decode:
            raise Unavailable("is for decoding")
        step = NewTokens(problem, cache)
        num_heads = problem.case.heads.num_heads
        return lambda: ops.rope_paged_attention(
            step.qkv, step.positions, step.cos_sin, step.slots, cache.k, cache.v, cache.tables, problem.query_starts,
            problem.context_lens, num_heads, problem.scale, cache.k_scales, cache.v_scales,
        )  # fmt: skip


class NewTokens:
    """What the ops before attention read: the new tokens' queries, keys and values, and where they stand."""

    def __init__(self, problem: Problem, cache: Cache) -> None:
        case, device = problem.case, problem.device
        first = case.context - case.queries
        new = torch.arange(first, case.context, device=device)
        self.positions = new.int().repeat(case.batch)
        blocks = cache.tables[:, (new // BLOCK_SIZE)].long()  # [B, queries]
        slots = blocks * BLOCK_SIZE + new % BLOCK_SIZE
        self.slots = slots.flatten().int()
        half = case.heads.head_dim // 2
        ones, zeros = (make(case.context, half, device=device) for make in (torch.ones, torch.zeros))
        self.cos_sin = torch.cat([ones, zeros], dim=1)
        dense = [cache.dense(request, case.context, problem.q.dtype) for request in range(case.batch)]
        k, v = (torch.cat([kv[part][:, first:].transpose(0, 1) for kv in dense]) for part in (0, 1))
        self.qkv = torch.cat([problem.q, k, v], dim=1).flatten(1)  # [T, (H + 2 Hkv) D]


def attend(q: Tensor, problem: Problem, cache: Cache) -> Tensor:
    return ops.paged_attention(
        q, cache.k, cache.v, cache.tables, problem.query_starts, problem.context_lens, problem.scale,
        cache.k_scales, cache.v_scales,
    )  # fmt: skip
