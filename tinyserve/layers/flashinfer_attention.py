"""Attention of prompts by FlashInfer, which reads our cache as it is: its layout HND, pages of any size.

A plan is made on the host for each step, from what the host knows, and serves all layers that score alike. It is copied
to the GPU out of pinned memory of the wrapper that made it, without waiting, so the next step needs another wrapper.

Written from the documentation and source of FlashInfer; never run with it on a GPU.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyserve.layers.attention_library import Attend, HostLayout, Scores, Unsupported, check_scores, pinned, sent

WORKSPACE_BYTES = 128 << 20  # what its documentation recommends
HEAD_DIMS = (64, 128, 256)


@dataclass(frozen=True)
class Kind:
    """Layers with the same plan."""

    num_heads: int  # H
    num_kv_heads: int  # Hkv
    head_dim: int  # D
    dtype: torch.dtype
    scale: float
    window: int
    soft_cap: float


class Wrappers:
    """Two of FlashInfer's wrappers in turn, so that one is not planned anew before its last plan has been copied."""

    def __init__(self, module: Any, workspace: Tensor) -> None:
        self._wrappers = [module.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND") for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)] if workspace.is_cuda else None
        self._turn = 0

    def planned(self, *tables: Tensor, **settings: Any) -> Any:
        """The other wrapper, planned; a wait in name only, for a copy two steps ago."""
        self._turn ^= 1
        if self._copied is not None:
            self._copied[self._turn].synchronize()
        self._wrappers[self._turn].plan(*tables, **settings)
        if self._copied is not None:
            self._copied[self._turn].record()
        return self._wrappers[self._turn]


class FlashInferAttention:
    def __init__(self, module: Any, device: torch.device) -> None:
        self.name = f"FlashInfer {module.__version__}"
        self._module = module
        # of all wrappers, since kernels that use it run one after another
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._wrappers: dict[Kind, Wrappers] = {}

    def plan(self, host: HostLayout, query_starts: Tensor) -> Attend:
        tables = _tables(host, query_starts.device)
        planned: dict[Kind, Any] = {}

        def attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, scores: Scores) -> Tensor:
            check_scores(scores, has_window=True, has_soft_cap=True, has_alibi=False)  # it has slopes of its own only
            if q.shape[2] not in HEAD_DIMS:
                raise Unsupported(f"with heads of {q.shape[2]}")
            sizes = (q.shape[1], k_cache.shape[1], q.shape[2])
            kind = Kind(*sizes, q.dtype, scores.scale, scores.window, scores.soft_cap)
            if kind not in planned:
                planned[kind] = self._plan(kind, tables, host.block_size)
            result: Tensor = planned[kind].run(q, (k_cache, v_cache))
            return result

        return attend

    def _plan(self, kind: Kind, tables: tuple[Tensor, ...], block_size: int) -> Any:
        if kind not in self._wrappers:
            self._wrappers[kind] = Wrappers(self._module, self._workspace)
        return self._wrappers[kind].planned(
            *tables,
            num_qo_heads=kind.num_heads,
            num_kv_heads=kind.num_kv_heads,
            head_dim_qk=kind.head_dim,
            page_size=block_size,
            causal=True,
            sm_scale=kind.scale,
            window_left=kind.window - 1,  # keys before the query's own; -1: all
            logits_soft_cap=kind.soft_cap,
            q_data_type=kind.dtype,
            kv_data_type=kind.dtype,
        )


def _tables(host: HostLayout, device: torch.device) -> tuple[Tensor, ...]:
    """Starts of queries [B + 1], starts of pages [B + 1], pages, tokens of the last page [B], all int32.

    The pages lie on the device; of the others the plan is made, which reads them on the host and copies them itself.
    """
    counts = -(-host.context_lens // host.block_size)  # [B], pages of each request
    starts = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    is_used = np.arange(host.block_tables.shape[1]) < counts[:, None]
    last = (host.context_lens - 1) % host.block_size + 1
    pages = sent(host.block_tables[is_used], device)
    query_starts, page_starts, last_tokens = (pinned(x, device) for x in (host.query_starts, starts, last))
    return query_starts, page_starts, pages, last_tokens


def load_flashinfer(device: torch.device) -> FlashInferAttention:
    """Raises ImportError."""
    import flashinfer

    return FlashInferAttention(flashinfer, device)
