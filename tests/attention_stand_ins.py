"""Other people's attention functions in plain PyTorch: their documented arguments and results, for any device.

They stand in for libraries that need a GPU, so that what calls them can be tested without one. Each asserts what the
real one demands of its arguments. flash-attn 2 and FlashInfer as documented, torch's varlen_attn as in 2.13.
"""

import sys
import types
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen


def attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: tuple[int, int] = (-1, -1),
    soft_cap: float = 0.0,
    slopes: Tensor | None = None,
) -> Tensor:
    """One request: q [Tq, H, D], k and v [Tk, Hkv, D]; query i is aligned with key i + Tk - Tq, window inclusive."""
    group = q.shape[1] // k.shape[1]
    k, v = (part.double().repeat_interleave(group, dim=1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    ahead = torch.arange(len(k)) - (torch.arange(len(q)) + len(k) - len(q)).unsqueeze(1)
    if slopes is not None:
        scores = scores - slopes.double()[:, None, None] * ahead.abs()
    left, right = window
    seen = torch.ones_like(ahead, dtype=torch.bool)
    seen &= (ahead <= right) if right >= 0 else True
    seen &= (ahead >= -left) if left >= 0 else True
    probabilities = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", probabilities, v).to(q.dtype)


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Tensor,
    k_starts: Tensor,
    sizes: tuple[int, int],
    **scores: Any,
) -> Tensor:
    """Requests one after another, as the varlen functions take them; checks what those rely on."""
    assert q_starts.dtype == k_starts.dtype == torch.int32
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    assert q.dtype == k.dtype == v.dtype
    assert sizes == (int(q_starts.diff().max()), int(k_starts.diff().max()))
    assert (len(q), len(k)) == (int(q_starts[-1]), int(k_starts[-1]))
    parts = [
        attend_rows(q[q_first:q_last], k[k_first:k_last], v[k_first:k_last], **scores)
        for q_first, q_last, k_first, k_last in zip(
            q_starts[:-1].tolist(), q_starts[1:].tolist(), k_starts[:-1].tolist(), k_starts[1:].tolist(), strict=True
        )
    ]
    return torch.cat(parts)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    assert block_table is None, "pages of a multiple of 256 tokens only"
    window = (window_size[0], 0) if causal else window_size
    scale = softmax_scale if softmax_scale is not None else q.shape[-1] ** -0.5
    sizes = (max_seqlen_q, max_seqlen_k)
    scores = {"scale": scale, "window": window, "soft_cap": softcap, "slopes": alibi_slopes}
    return attend_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, sizes, **scores)


def flash_attn_varlen_func_2_3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    return_attn_probs: bool = False,
) -> Tensor:
    """Of flash-attn 2.3, which knows windows but neither ALiBi nor soft caps."""
    packed = (q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return flash_attn_varlen_func(*packed, softmax_scale=softmax_scale, causal=causal, window_size=window_size)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    assert seqused_k is None
    assert block_table is None
    assert cu_seq_k is not None
    assert enable_gqa or query.shape[1] == key.shape[1]
    scale = scale if scale is not None else query.shape[-1] ** -0.5
    return attend_packed(query, key, value, cu_seq_q, cu_seq_k, (max_q, max_k), scale=scale, window=window_size)


class BatchPrefillWithPagedKVCacheWrapper:
    """FlashInfer's, of the layout HND."""

    plans = 0  # made by all of them

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert kv_layout == "HND"
        assert float_workspace_buffer.dtype == torch.uint8

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        tables = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(table.dtype == torch.int32 for table in tables)
        assert len(paged_kv_indices) == int(paged_kv_indptr[-1])
        assert 1 <= int(paged_kv_last_page_len.min()) <= int(paged_kv_last_page_len.max()) <= page_size
        assert q_data_type == kv_data_type
        BatchPrefillWithPagedKVCacheWrapper.plans += 1
        self._tables = [table.tolist() for table in tables]
        self._sizes = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        scale = sm_scale if sm_scale is not None else head_dim_qk**-0.5
        window = (window_left, 0 if causal else -1)
        self._scores: dict[str, Any] = {"scale": scale, "window": window, "soft_cap": logits_soft_cap or 0.0}

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        k_cache, v_cache = paged_kv_cache
        assert self._sizes == (q.shape[1], k_cache.shape[1], q.shape[2], k_cache.shape[2])
        queries, pages, indices, last = self._tables
        assert len(q) == queries[-1]
        parts = []
        for request, num_last in enumerate(last):
            mine = indices[pages[request] : pages[request + 1]]
            num_keys = (len(mine) - 1) * k_cache.shape[2] + num_last
            k, v = (cache[mine].transpose(1, 2).flatten(0, 1)[:num_keys] for cache in (k_cache, v_cache))
            parts.append(attend_rows(q[queries[request] : queries[request + 1]], k, v, **self._scores))
        return torch.cat(parts)


def install(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    """Only these of attention_registry.LIBRARIES can be imported from now on."""
    modules: dict[str, Any] = {
        "flash-attn": ("flash_attn", {"flash_attn_varlen_func": flash_attn_varlen_func}),
        "flashinfer": ("flashinfer", {"BatchPrefillWithPagedKVCacheWrapper": BatchPrefillWithPagedKVCacheWrapper}),
    }
    for name, (module_name, members) in modules.items():
        module = types.ModuleType(module_name)
        module.__dict__.update(members, __version__="0")
        monkeypatch.setitem(sys.modules, module_name, module if name in names else None)  # type: ignore[arg-type]
    if "torch.nn.attention.varlen" in names:
        monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    else:
        monkeypatch.delattr(torch.nn.attention, "varlen")
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)  # type: ignore[arg-type]
