"""FlashAttention-3, from vLLM's library: paged caches read where they lie; keys of 8 bits with queries of 8 bits.

Its plan of a decode step (scheduler_metadata) is made beforehand, as vLLM makes it once for all layers of a step.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.peers.peer import Attend
from benchmarks.attention.problem import BLOCK_SIZE, Cache, Problem
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Unavailable

LIBRARY = "vllm_fa3"
FP8 = torch.float8_e4m3fn


class FlashAttention3:
    name = "fa3"
    version = "FlashAttention-3, vLLM's library"

    def __init__(self, folder: PeerFolder) -> None:
        try:
            torch.ops.load_library(folder.library(LIBRARY))
        except OSError as error:
            raise Unavailable(f"{LIBRARY} does not load: {error.__cause__ or error}") from error
        self._forward, self._plan = op("fwd"), op("get_scheduler_metadata")

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        case = problem.case
        if case.cache == "int8":
            raise Unavailable("has no cache of int8")
        heads = case.heads
        q, k, v = problem.q, cache.k, cache.v
        scales: dict[str, Tensor] = {}
        if case.cache == "fp8":  # one scale for a request and head, here 1: with scales of rows it cannot do anything
            q, k, v = q.to(FP8), rescaled(cache.k, cache.k_scales), rescaled(cache.v, cache.v_scales)
            one = torch.ones(case.batch, heads.num_kv_heads, device=q.device)
            scales = dict.fromkeys(("q_descale", "k_descale", "v_descale"), one)
        sizes = {"max_seqlen_q": case.queries, "max_seqlen_k": case.context, "seqused_k": problem.context_lens}
        common = {"is_causal": True, "window_size_left": -1, "window_size_right": -1, "num_splits": 0, "sm_margin": 0}
        plan = None
        if case.is_decode:
            plan = call(
                self._plan,
                batch_size=case.batch, num_heads=heads.num_heads, num_heads_k=heads.num_kv_heads,
                headdim=heads.head_dim, headdim_v=heads.head_dim, qkv_dtype=q.dtype, page_size=BLOCK_SIZE,
                max_seqlen_k_new=0, has_softcap=False, cu_seqlens_q=problem.query_starts, **sizes, **common,
            )  # fmt: skip
        out = torch.empty_like(problem.q)
        pages = {"q": q, "k": k.transpose(1, 2), "v": v.transpose(1, 2), "page_table": cache.tables}
        work = {
            **pages, **sizes, **common, **scales, "cu_seqlens_q": problem.query_starts, "out": out,
            "softmax_scale": problem.scale, "softcap": 0.0, "is_rotary_interleaved": True, "scheduler_metadata": plan,
            "cp_world_size": 1, "cp_rank": 0,
        }  # fmt: skip
        return lambda: call(self._forward, **work)[0]


def op(name: str) -> Any:
    try:
        return getattr(torch.ops._vllm_fa3_C, name).default
    except AttributeError as error:
        raise Unavailable(f"{LIBRARY} has no {name}") from error


def call(function: Any, **given: Any) -> Any:
    """By the names of its schema, which has no defaults: what is not given is None."""
    names = [argument.name for argument in function._schema.arguments]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise Unavailable(f"{function} has no argument {', '.join(unknown)}: another version")
    return function(*(given.get(name) for name in names))


def rescaled(part: Tensor, scales: Tensor | None) -> Tensor:
    """The same numbers in e4m3 without scales."""
    assert scales is not None
    return (part.to(torch.bfloat16) * scales.unsqueeze(-1)).to(FP8)
