"""What the ops of fallback.py refuse: shapes, dtypes and indices that do not fit, in the words of the compiled ops.

Every function raises ValueError, naming the tensor, what came and what is allowed. It computes nothing.
"""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def check_float(name: str, t: Tensor) -> None:
    if t.dtype not in FLOATS:
        raise ValueError(f"{name} must be float16, bfloat16 or float32, got {t.dtype}")


def check_same_dtype(name: str, t: Tensor, x: Tensor) -> None:
    if t.dtype != x.dtype:
        raise ValueError(f"{name} must be {x.dtype}, got {t.dtype}")


def check_rows(name: str, t: Tensor, width: int) -> None:
    check_float(name, t)
    if t.dim() != 2 or t.shape[1] != width:
        raise ValueError(f"{name} must be [{t.shape[0] if t.dim() else 'rows'}, {width}], got {list(t.shape)}")


def check_int32(name: str, t: Tensor, shape: list[int]) -> None:
    if t.dtype != torch.int32:
        raise ValueError(f"{name} must be torch.int32, got {t.dtype}")
    if list(t.shape) != shape:
        raise ValueError(f"{name} must be {shape}, got {list(t.shape)}")


def check_range(name: str, t: Tensor, low: int, end: int) -> None:
    wrong = t[(t < low) | (t >= end)]
    if wrong.numel():
        raise ValueError(f"{name} must be in {low}..{end - 1}, got {int(wrong[0])}")


def check_codes(codes: Tensor, scales: Tensor, zeros: Tensor) -> None:
    check_float("scales", scales)
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise ValueError(f"codes must be uint8 [N, K], got {codes.dtype} {list(codes.shape)}")
    n, k = codes.shape
    groups = scales.shape[-1]
    if scales.shape != (n, groups) or groups == 0 or k % groups or k % 2:
        raise ValueError(f"scales must be [{n}, K/G] with G dividing K={k}, got {list(scales.shape)}")
    if zeros.dtype != torch.uint8 or zeros.shape != scales.shape:
        raise ValueError(f"zeros must be uint8 {list(scales.shape)}, got {zeros.dtype} {list(zeros.shape)}")


def check_packed(qweight: Tensor, qparams: Tensor, n: int, k: int, group_size: int) -> None:
    for name, t, shape in [("qweight", qweight, [n, k // 2]), ("qparams", qparams, [n, k // group_size, 2])]:
        if list(t.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {list(t.shape)}")


def check_caches(
    k_cache: Tensor, v_cache: Tensor, k_scales: Tensor | None, v_scales: Tensor | None, like: Tensor
) -> tuple[int, int, int, int]:
    """The sizes of a cache, which is of the dtype of the activations `like`, or int8 or float8_e4m3fn with scales."""
    check_float("activations", like)
    if (k_scales is None) != (v_scales is None):
        raise ValueError("k_scales and v_scales must come together")
    dtype = like.dtype if k_scales is None else torch.int8
    if k_scales is not None and k_cache.dtype == torch.float8_e4m3fn:
        dtype = torch.float8_e4m3fn
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {cache.dtype}")
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        if scales is not None and (scales.dtype != torch.float32 or scales.shape != k_cache.shape[:3]):
            expected = f"torch.float32 {list(k_cache.shape[:3])}"
            raise ValueError(f"{name} must be {expected}, got {scales.dtype} {list(scales.shape)}")
    if k_cache.dim() != 4:
        raise ValueError(f"k_cache must be [blocks, Hkv, S, D], got {list(k_cache.shape)}")
    if v_cache.shape != k_cache.shape:
        raise ValueError(f"v_cache must be {list(k_cache.shape)}, got {list(v_cache.shape)}")
    num_blocks, kv_heads, block_size, head_dim = k_cache.shape
    return num_blocks, kv_heads, block_size, head_dim


def check_attention(
    q: Tensor, k_cache: Tensor, block_tables: Tensor, query_starts: Tensor, context_lens: Tensor
) -> list[tuple[int, int, int]]:
    """Each request's first query row, the row after its last and its context length, once all of them are sound."""
    num_blocks, kv_heads, block_size, head_dim = k_cache.shape
    if q.dim() != 3 or q.shape[2] != head_dim or q.shape[1] % kv_heads:
        raise ValueError(f"q must be [T, H, {head_dim}] with H a multiple of {kv_heads}, got {list(q.shape)}")
    batch = context_lens.shape[0]
    max_blocks = block_tables.shape[-1]
    check_int32("context_lens", context_lens, [batch])
    check_int32("block_tables", block_tables, [batch, max_blocks])
    check_int32("query_starts", query_starts, [batch + 1])
    starts, contexts = query_starts.tolist(), context_lens.tolist()
    if starts[0] != 0 or starts[-1] != q.shape[0]:
        raise ValueError(f"query_starts must run from 0 to T={q.shape[0]}, got {starts[0]}..{starts[-1]}")
    for request, context_len in enumerate(contexts):
        query_len = starts[request + 1] - starts[request]
        if query_len < 0:
            raise ValueError(f"query_starts must not fall, got {starts[request]} then {starts[request + 1]}")
        if not query_len <= context_len <= max_blocks * block_size:
            allowed = f"{query_len}..{max_blocks * block_size}"
            raise ValueError(f"context_lens[{request}] must be in {allowed}, got {context_len}")
        if query_len:
            check_range(
                f"block_tables[{request}]", block_tables[request, : -(-context_len // block_size)], 0, num_blocks
            )
    return list(zip(starts[:-1], starts[1:], contexts, strict=True))


def check_scores(q: Tensor, window: int, soft_cap: float, alibi_slopes: Tensor | None) -> None:
    for name, value in (("window", window), ("soft_cap", soft_cap)):
        if value < 0:
            raise ValueError(f"{name} must be 0 (none) or positive, got {value}")
    if alibi_slopes is not None and (alibi_slopes.dtype != torch.float32 or alibi_slopes.shape != q.shape[1:2]):
        expected = f"torch.float32 {list(q.shape[1:2])}"
        raise ValueError(f"alibi_slopes must be {expected}, got {alibi_slopes.dtype} {list(alibi_slopes.shape)}")


def check_sampling(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
) -> None:
    check_float("logits", logits)
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [R, V], got {list(logits.shape)}")
    rows = [logits.shape[0]]
    check_int32("top_k", top_k, rows)
    for name, each in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p), ("uniform", uniform)):
        dtype = torch.float64 if name == "uniform" else torch.float32
        if each.dtype != dtype or list(each.shape) != rows:
            raise ValueError(f"{name} must be {dtype} {rows}, got {each.dtype} {list(each.shape)}")
