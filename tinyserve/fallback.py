"""Every op in plain PyTorch, for any device, used where no compiled kernel exists.

Takes the arguments of the compiled ops and gives their results to rounding: sums in fp32, one rounding at the end.
Correct and unhurried: nothing here is tuned. It does not know the compiled libraries; ops.py chooses between them and
this. Its packed weight is the plain one: qweight uint8 [N, K/2], element k in the low half of byte k/2 where k is even,
in the high half where it is odd; qparams fp32 [N, K/G, 2] holding scale and zero of each group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyserve.fallback_checks import (
    check_attention,
    check_caches,
    check_codes,
    check_float,
    check_int32,
    check_packed,
    check_range,
    check_rows,
    check_same_dtype,
    check_sampling,
    check_scores,
)

LOG2_E = 1.4426950408889634


def w4a16_pack(codes: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Packs a quantized weight for w4a16_gemv and w4a16_gemm.

    Args:
        codes: uint8 [N, K], values 0..15, K even.
        scales: float [N, K/G].
        zeros: uint8 [N, K/G].
        dtype: of the activations; the layout serves all.

    Returns:
        qweight uint8 [N, K/2] and qparams fp32 [N, K/G, 2].

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    check_codes(codes, scales, zeros)
    qweight = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return qweight, torch.stack([scales.float(), zeros.float()], dim=-1)


def w4a16_dequantize(
    qweight: Tensor, qparams: Tensor, n: int, k: int, group_size: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The weight [n, k] that the packed pair stands for: (code - zero) * scale."""
    check_packed(qweight, qparams, n, k, group_size)
    codes = torch.stack([qweight & 0xF, qweight >> 4], dim=-1).view(n, -1, group_size).float()
    scale, zero = qparams[..., :1], qparams[..., 1:]
    return ((codes - zero) * scale).view(n, k).to(dtype)


def w4a16_gemm(
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
    """x [M, k] times the packed weight [n, k] transposed, plus bias [n], plus residual [M, n] -> [M, n] in x's dtype.

    With `silu_mul`, of every 16 columns the first 8 are gates of the last 8: silu(gate) * up, plus residual, [M, n/2].
    """
    check_rows("x", x, k)
    if config != -1:
        raise ValueError(f"the PyTorch fallback has no configurations, got config={config}")
    weight = w4a16_dequantize(qweight, qparams, n, k, group_size)
    y = F.linear(x.float(), weight, None if bias is None else bias.float())
    return w4a16_epilogue(y, residual, silu_mul).to(x.dtype)


def w4a16_gemv(
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
    """The same as w4a16_gemm, with `norm_weight` [k] of the RMSNorm of x."""
    x = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    return w4a16_gemm(x, qweight, qparams, bias, n, k, group_size, residual, silu_mul)


def w4a16_epilogue(y: Tensor, residual: Tensor | None, silu_mul: bool) -> Tensor:
    """What w4a16_gemm makes of the product and bias [M, n], in fp32."""
    if silu_mul:
        gate, up = y.float().unflatten(1, (-1, 2, 8)).unbind(2)
        y = (F.silu(gate) * up).flatten(1)
    return y if residual is None else y + residual.float()


def w4a16_gemm_configs(like: Tensor) -> str:
    """No configurations."""
    return ""


def w4a8_linear(
    x: Tensor, qweight: Tensor, qparams: Tensor, bias: Tensor | None, n: int, k: int, group_size: int
) -> Tensor:
    """As w4a16_gemm, with x rounded to int8 in groups of 128, 64 or 32, the first that divides the weight's."""
    check_rows("x", x, k)
    rounded = _round_rows(x, next(size for size in (128, 64, 32) if group_size % size == 0))[0]
    return w4a16_gemm(rounded, qweight, qparams, bias, n, k, group_size).to(x.dtype)


def w8_pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] as int8 [N, K] and fp32 scales [N, K/G], G = 64 where that divides K, else 32."""
    if weight.dim() != 2 or weight.shape[1] % 32:
        raise ValueError(f"weight must be [N, K] with K a multiple of 32, got {list(weight.shape)}")
    rounded, scales = _round_rows(weight, 64 if weight.shape[1] % 64 == 0 else 32)
    per_element = scales.repeat_interleave(weight.shape[1] // scales.shape[1], 1)
    return torch.where(per_element > 0, rounded / per_element, 0).round().to(torch.int8), scales


def embedding(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows int [T] of weight [V, C] -> [T, C]."""
    return F.embedding(rows, weight)


def w8_embedding(rows: Tensor, qweight: Tensor, scales: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """Rows int [T] of the 8-bit weight [n, K] -> [T, K]."""
    steps = scales[rows].repeat_interleave(qweight.shape[1] // scales.shape[1], 1)
    return (qweight[rows].float() * steps).to(dtype)


def w8a8_linear(x: Tensor, qweight: Tensor, scales: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """x [M, K] rounded like the weight, times the 8-bit weight [n, K] transposed, plus bias [n] -> [M, n]."""
    check_rows("x", x, qweight.shape[1])
    group = x.shape[1] // scales.shape[1]
    weight = qweight.float() * scales.repeat_interleave(group, 1)
    y = F.linear(_round_rows(x, group)[0], weight, None if bias is None else bias.float())
    return y.to(x.dtype)


def _round_rows(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """x [M, K] rounded to 127 steps of the largest |x| of each group of a row, in fp32, and the steps [M, K/G]."""
    groups = x.float().view(x.shape[0], -1, group)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    rounded = torch.where(scale > 0, (groups * (1 / scale)).round() * scale, scale)  # NaN stays NaN
    return rounded.view(x.shape), scale.squeeze(-1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times weight [N, K] transposed, plus bias [N] -> [M, N]; one dtype for all."""
    check_rows("x", x, weight.shape[1])
    check_same_dtype("weight", weight, x)
    if x.is_cuda:  # cuBLAS sums 16-bit products in fp32 itself
        return F.linear(x, weight, bias)
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """x [T, C] over its root mean square, times weight [C]; with residual [T, C], adds x to it in place, norms that."""
    rows = _norm_rows(x, weight, residual)
    scale = torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + eps)
    return (rows * scale * weight.float()).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None) -> Tensor:
    """x [T, C] less its mean, over its standard deviation, times weight [C], plus bias [C]; residual as in rms_norm."""
    if bias is not None:
        check_same_dtype("bias", bias, x)
    rows = _norm_rows(x, weight, residual)
    rows = rows - rows.mean(dim=-1, keepdim=True)
    rows = rows - rows.mean(dim=-1, keepdim=True)  # what rounding has left of a large mean
    normed = rows * torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + eps) * weight.float()
    return (normed if bias is None else normed + bias.float()).to(x.dtype)


def _norm_rows(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    """What a norm is of, in fp32: x [T, C], or the residual to which it has been added in place."""
    check_rows("x", x, weight.shape[0])
    check_same_dtype("weight", weight, x)
    if residual is not None:
        if residual.shape != x.shape:
            raise ValueError(f"residual must be {list(x.shape)}, got {list(residual.shape)}")
        check_same_dtype("residual", residual, x)
        x = residual.add_(x)
    return x.float()


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2*I] -> silu(first half) * second half, [T, I]."""
    check_float("gate_up", gate_up)
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [T, 2*I], got {list(gate_up.shape)}")
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def rope_kv_write(
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
    """Rotates queries and keys by their positions and puts keys and values into the paged cache.

    The first R elements of a head turn in pairs (i, i + R/2), as in Llama's rotate_half; the rest stay.

    Args:
        qkv: [T, (H + 2*Hkv) * D].
        positions: int32 [T].
        cos_sin: fp32 [P, R], R <= D: cosines in the first half of a row, sines in the second.
        slots: int32 [T], block * S + offset; -1 where nothing is to be written.
        k_cache, v_cache: [blocks, Hkv, S, D], int8 or float8_e4m3fn where there are scales, written in place.
        num_heads: H.
        k_scales, v_scales: fp32 [blocks, Hkv, S], written in place: a head's largest |element| over 127 or 448.

    Returns:
        The rotated queries [T, H, D].

    Raises:
        ValueError: a shape, dtype, position or slot does not fit.
    """
    tokens = qkv.shape[0]
    num_blocks, kv_heads, block_size, head_dim = check_caches(k_cache, v_cache, k_scales, v_scales, qkv)
    check_rows("qkv", qkv, (num_heads + 2 * kv_heads) * head_dim)
    check_int32("positions", positions, [tokens])
    check_int32("slots", slots, [tokens])
    num_positions, rotary_dim = cos_sin.shape
    if rotary_dim % 2 or rotary_dim > head_dim or cos_sin.dtype != torch.float32:
        expected = f"float32 [P, R], R even and at most {head_dim}"
        raise ValueError(f"cos_sin must be {expected}, got {cos_sin.dtype} {list(cos_sin.shape)}")
    check_range("positions", positions, 0, num_positions)
    check_range("slots", slots, -1, num_blocks * block_size)

    q, k, v = qkv.view(tokens, -1, head_dim).split([num_heads, kv_heads, kv_heads], dim=1)
    cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)  # [T, 1, R/2]
    written = slots >= 0
    block, offset = slots[written].long() // block_size, slots[written].long() % block_size
    if k_scales is None or v_scales is None:
        k_cache[block, :, offset] = _rotate(k, cos, sin)[written]
        v_cache[block, :, offset] = v[written]
    else:
        heads = _rotate(k[written].float(), cos[written], sin[written]), v[written].float()
        for head, cache, scales in zip(heads, (k_cache, v_cache), (k_scales, v_scales), strict=True):
            cache[block, :, offset], scales[block, :, offset] = _rounded(head, cache.dtype)
    return _rotate(q, cos, sin)


def paged_attention(
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
    """Causal attention of a flat batch of requests over the paged cache; prefill and decode may mix.

    Query i of request b sits at position context_lens[b] - q_len + i and sees the keys up to that position.

    Args:
        q: [T, H, D], the queries of all requests one after another.
        k_cache, v_cache: [blocks, Hkv, S, D], Hkv dividing H: query head h reads key head h // (H / Hkv).
        block_tables: int32 [B, max_blocks], the blocks of each request in the order of their positions.
        query_starts: int32 [B + 1], request b's queries are rows query_starts[b] .. query_starts[b + 1].
        context_lens: int32 [B], keys of each request, those of its queries included.
        scale: factor on the scores, commonly D ** -0.5.
        k_scales, v_scales: fp32 [blocks, Hkv, S], of a cache of 8 bits.
        window: keys that a query sees, its own included; 0: all.
        soft_cap: a score becomes soft_cap * tanh(score / soft_cap); 0: it stays.
        alibi_slopes: fp32 [H], what a score gains for each position that the key is ahead of the query (it is behind).

    Returns:
        [T, H, D].

    Raises:
        ValueError: a shape or dtype does not fit, or the tables lead outside the cache.
    """
    check_caches(k_cache, v_cache, k_scales, v_scales, q)
    lengths = check_attention(q, k_cache, block_tables, query_starts, context_lens)
    check_scores(q, window, soft_cap, alibi_slopes)
    _, kv_heads, block_size, head_dim = k_cache.shape
    out = torch.empty_like(q)
    for request, (first, last, context_len) in enumerate(lengths):
        if first == last:
            continue
        blocks = block_tables[request, : -(-context_len // block_size)].long()
        keys, values = (  # [Hkv, context, D]
            _in_floats(cache, scales, blocks).transpose(0, 1).reshape(kv_heads, -1, head_dim)[:, :context_len]
            for cache, scales in ((k_cache, k_scales), (v_cache, v_scales))
        )
        query_positions = torch.arange(context_len - (last - first), context_len, device=q.device)
        ahead = torch.arange(context_len, device=q.device) - query_positions[:, None]  # [queries, context]
        visible = ahead <= 0 if window == 0 else (ahead <= 0) & (ahead > -window)
        queries = q[first:last].float().transpose(0, 1)  # [H, queries, D]
        if soft_cap > 0 or alibi_slopes is not None:
            bias = None if alibi_slopes is None else alibi_slopes[:, None, None] * ahead
            attended = _attend(queries, keys, values, scale, soft_cap, bias, visible)
        else:
            attended = F.scaled_dot_product_attention(
                queries[None], keys[None], values[None], attn_mask=visible, scale=scale, enable_gqa=True
            )[0]
        out[first:last] = attended.transpose(0, 1).to(q.dtype)
    return out


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """One token of each row [R, V] -> int32 [R]; see ops.sample. It sorts, and waits for no device."""
    check_sampling(logits, temperature, top_k, top_p, min_p, uniform)
    values, token_ids = logits.float().sort(dim=-1, descending=True, stable=True)  # NaN first
    temperature, top_p, min_p = (each.unsqueeze(1) for each in (temperature, top_p, min_p))
    limits = top_k.unsqueeze(1)
    best = values[:, :1]
    weights = torch.exp2(((values - best) * (LOG2_E / temperature.clamp(min=1e-3))).double())
    ranks = torch.arange(values.shape[1], device=values.device)
    weights = weights.where((ranks < limits) | (limits <= 0), 0)
    before = weights.cumsum(dim=-1) - weights
    kept = (before < top_p * weights.sum(dim=-1, keepdim=True)) | (top_p >= 1) | (ranks == 0)
    weights = weights.where(kept & (weights >= min_p), 0)
    cumulative = torch.zeros_like(weights).scatter_(1, token_ids, weights).cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    last = torch.searchsorted(cumulative, total)  # where rounding carries the target up to the total itself
    drawn = torch.minimum(torch.searchsorted(cumulative, uniform.unsqueeze(1) * total, right=True), last)
    is_greedy = (temperature < 1e-3) | (limits == 1) | (top_p < 1e-8)
    chosen = torch.where(is_greedy, token_ids[:, :1], drawn)
    return torch.where(torch.isfinite(best), chosen, -1)[:, 0].int()


def rope_paged_attention(
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
    """rope_kv_write and then paged_attention, of which see the arguments; query_starts: at most one query a request."""
    q = rope_kv_write(qkv, positions, cos_sin, slots, k_cache, v_cache, num_heads, k_scales, v_scales)
    lengths, scores = (block_tables, query_starts, context_lens), (window, soft_cap, alibi_slopes)
    return paged_attention(q, k_cache, v_cache, *lengths, scale, k_scales, v_scales, *scores)


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    soft_cap: float,
    bias: Tensor | None,
    visible: Tensor,
) -> Tensor:
    """queries [H, Q, D] over keys and values [Hkv, C, D] -> [H, Q, D], with what torch's own attention cannot do."""
    group = queries.shape[0] // keys.shape[0]
    scores = queries @ keys.repeat_interleave(group, 0).transpose(1, 2) * scale
    if soft_cap > 0:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return weights @ values.repeat_interleave(group, 0)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D] with its first R elements turned by cos and sin [T, 1, R/2]."""
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = [first.float() * cos - second.float() * sin, second.float() * cos + first.float() * sin]
    return torch.cat([*(t.to(x.dtype) for t in turned), rest], dim=-1)


def _rounded(heads: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """fp32 heads [T, Hkv, D] in 8 bits, and the scale of each [T, Hkv]: NaN where an element is not finite."""
    largest = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
    scales = heads.abs().amax(-1) / largest + (heads * 0).sum(-1)
    codes = (heads / scales.where(scales > 0, 1)[..., None]).nan_to_num()
    return (codes if dtype.is_floating_point else codes.round()).clamp(-largest, largest).to(dtype), scales


def _in_floats(cache: Tensor, scales: Tensor | None, blocks: Tensor) -> Tensor:
    """Some blocks of a cache, [blocks, Hkv, S, D] in fp32."""
    values = cache[blocks].float()
    return values if scales is None else values * scales[blocks][..., None]
