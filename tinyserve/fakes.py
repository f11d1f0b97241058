"""What each compiled op returns, in shape and dtype, without computing it: for torch.compile and for shape propagation.

Knows the packed layouts' sizes (csrc/ops/packed.h) and nothing else. A new op has an entry here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Fake = Callable[..., Any]

_FAKES: dict[str, Fake] = {}  # by the op's full name


def _fake(name: str) -> Callable[[Fake], Fake]:
    def keep(function: Fake) -> Fake:
        _FAKES[name] = function
        return function

    return keep


def register() -> None:
    """Once, when the library that defines the ops is loaded."""
    for name, function in _FAKES.items():
        torch.library.register_fake(name, function)


@_fake("tinyserve::w4a16_pack")
def _(codes: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    (n, k), groups = codes.shape, scales.shape[1]
    if codes.is_cuda:
        blocks_n, blocks_k, group_size = (n + 63) // 64, (k + 63) // 64, k // groups
        sixteen_bits = (d for d in (dtype, scales.dtype) if d in (torch.float16, torch.bfloat16))
        padded_groups = (blocks_k * 64 + group_size - 1) // group_size
        kept = next(sixteen_bits, torch.float16)
        qweight = codes.new_empty(blocks_n, blocks_k, 4, 32, 4, dtype=torch.int32)
        return qweight, codes.new_empty(blocks_n, padded_groups, 4, 8, 2, 2, dtype=kept)
    tiles, param_bytes = (n + 31) // 32, 96 if scales.dtype == torch.float16 else 160
    return codes.new_empty(tiles, k // 8, 32, dtype=torch.int32), codes.new_empty(tiles, groups, param_bytes)


@_fake("tinyserve::w4a16_dequantize")
def _(qweight: Tensor, qparams: Tensor, n: int, k: int, group_size: int, dtype: torch.dtype) -> Tensor:
    return qweight.new_empty(n, k, dtype=dtype)


@_fake("tinyserve::w4a16_gemv")
def _(
    x: Tensor,
    qweight: Tensor,
    qparams: Tensor,
    bias: Tensor | None,
    n: int,
    k: int,
    group_size: int,
    residual: Tensor | None = None,
    silu_mul: bool = False,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    return x.new_empty(x.shape[0], n // 2 if silu_mul else n)


@_fake("tinyserve::w4a16_gemm")
def _(
    x: Tensor,
    qweight: Tensor,
    qparams: Tensor,
    bias: Tensor | None,
    n: int,
    k: int,
    group_size: int,
    residual: Tensor | None = None,
    silu_mul: bool = False,
    config: int = -1,
) -> Tensor:
    return x.new_empty(x.shape[0], n // 2 if silu_mul else n)


@_fake("tinyserve::w4a8_linear")
def _(x: Tensor, qweight: Tensor, qparams: Tensor, bias: Tensor | None, n: int, k: int, group_size: int) -> Tensor:
    return x.new_empty(x.shape[0], n)


@_fake("tinyserve::w8_pack")
def _(weight: Tensor) -> tuple[Tensor, Tensor]:
    tiles, k = (weight.shape[0] + 31) // 32, weight.shape[1]
    scales = weight.new_empty(tiles, k // (64 if k % 64 == 0 else 32), 32, dtype=torch.float32)
    return weight.new_empty(tiles, k // 8, 2, 32, dtype=torch.int32), scales


@_fake("tinyserve::embedding")
def _(rows: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(rows.shape[0], weight.shape[1])


@_fake("tinyserve::w8_embedding")
def _(rows: Tensor, qweight: Tensor, scales: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    return qweight.new_empty(rows.shape[0], qweight.shape[1] * 8, dtype=dtype)


@_fake("tinyserve::w8a8_linear")
def _(x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, n: int) -> Tensor:
    return x.new_empty(x.shape[0], n)


@_fake("tinyserve::linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@_fake("tinyserve::rms_norm")
def _(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    return torch.empty_like(x)


@_fake("tinyserve::silu_mul")
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@_fake("tinyserve::rope_kv_write")
def _(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_heads: int,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], num_heads, k_cache.shape[3])


@_fake("tinyserve::paged_attention")
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(q)


@_fake("tinyserve::rope_paged_attention")
def _(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    num_heads: int,
    scale: float,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], num_heads, k_cache.shape[3])


@_fake("tinyserve::layer_norm")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None) -> Tensor:
    return torch.empty_like(x)


@_fake("tinyserve::sample")
def _(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int32)
