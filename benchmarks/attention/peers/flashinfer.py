"""FlashInfer, where it is installed or its wheel and what it needs are in the folder: compiled at first use.

Plans are made beforehand, as an engine makes them once for all layers of a step.
"""

from typing import Any

import torch

from benchmarks.attention.peers.fa3 import FP8, rescaled
from benchmarks.attention.peers.peer import Attend
from benchmarks.attention.problem import BLOCK_SIZE, Cache, Problem
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Unavailable

WORKSPACE_BYTES = 128 << 20
TENSOR_CORE_GROUP = 4  # query heads of a key head from which on its decoding uses them


class FlashInfer:
    name = "flashinfer"

    def __init__(self, folder: PeerFolder) -> None:
        try:
            import flashinfer
        except ImportError:
            folder.use_wheel("flashinfer_python")
            import flashinfer
        self._module: Any = flashinfer
        self.version = f"flashinfer {flashinfer.__version__}"
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        case, heads = problem.case, problem.case.heads
        if case.cache == "int8":
            raise Unavailable("has no cache of int8")
        pages = (cache.k, cache.v)  # [pages, Hkv, S, D]: its layout HND
        if case.cache == "fp8":
            pages = (rescaled(cache.k, cache.k_scales), rescaled(cache.v, cache.v_scales))
        each = cache.tables.shape[1]
        starts = torch.arange(0, case.batch * each + 1, each, dtype=torch.int32, device=problem.device)
        last = torch.full_like(problem.context_lens, (case.context - 1) % BLOCK_SIZE + 1)
        table = (starts, cache.tables.flatten(), last)
        sizes = (heads.num_heads, heads.num_kv_heads, heads.head_dim, BLOCK_SIZE)
        types = {"q_data_type": problem.q.dtype, "kv_data_type": FP8 if case.cache == "fp8" else problem.q.dtype}
        if case.is_decode:
            uses_tensor_cores = heads.num_heads >= TENSOR_CORE_GROUP * heads.num_kv_heads
            wrapper = self._module.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace, "HND", use_tensor_cores=uses_tensor_cores
            )
            wrapper.plan(*table, *sizes, sm_scale=problem.scale, **types)
        else:
            wrapper = self._module.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "HND")
            wrapper.plan(problem.query_starts, *table, *sizes, causal=True, sm_scale=problem.scale, **types)
        return lambda: wrapper.run(problem.q, pages)
