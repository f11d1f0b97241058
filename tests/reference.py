"""What every op must compute, in fp64 and in the plainest words. The tests' only oracle.

Written from the definitions: nothing is shared with the kernels, their fallback or the packed layouts. Results are fp64
and new tensors; nothing is changed in place.
"""

import torch
from torch import Tensor


def relative_error(out: Tensor, expected: Tensor) -> float:
    """||out - expected|| / ||expected|| over all elements; not a number where `out` holds one."""
    norm = expected.double().norm()
    distance = (out.double() - expected.double()).norm()
    return float(distance / norm) if norm > 0 else float(distance)


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """codes [N, K], scales and zeros [N, K/G] -> weight [N, K]."""
    group_size = codes.shape[1] // scales.shape[1]
    weight = torch.empty(codes.shape, dtype=torch.float64)
    for group in range(scales.shape[1]):
        columns = slice(group * group_size, (group + 1) * group_size)
        weight[:, columns] = (codes[:, columns].double() - zeros[:, [group]].double()) * scales[:, [group]].double()
    return weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K], weight [N, K], bias [N] -> [M, N]."""
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()


def w4a16_linear(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] by the weight that codes, scales and zeros stand for -> [M, N]."""
    return linear(x, dequantize(codes, scales, zeros), bias)


def silu_mul_of_tiles(product: Tensor) -> Tensor:
    """product [M, N], of every 16 columns 8 of the gate and then 8 of the up projection -> [M, N/2]."""
    tiles = product.view(len(product), -1, 2, 8)
    return silu_mul(tiles.transpose(1, 2).reshape(product.shape))


def int8_rows(x: Tensor, group: int) -> Tensor:
    """x [M, K] rounded to 127 steps of the largest |x| of each group of a row."""
    groups = x.double().view(x.shape[0], -1, group)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (groups / scale).round() * scale, 0).view(x.shape)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, C], weight [C] -> [T, C]."""
    rows = x.double()
    return rows / (rows.pow(2).mean(1, keepdim=True) + eps).sqrt() * weight.double()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """x [T, C], weight and bias [C] -> [T, C]."""
    rows = x.double()
    rows = rows - rows.mean(1, keepdim=True)
    normed = rows / (rows.pow(2).mean(1, keepdim=True) + eps).sqrt() * weight.double()
    return normed if bias is None else normed + bias.double()


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2*I] -> [T, I]."""
    size = gate_up.shape[1] // 2
    gate, up = gate_up[:, :size].double(), gate_up[:, size:].double()
    return gate / (1 + torch.exp(-gate)) * up


def rotate(head: Tensor, cos_sin: Tensor) -> Tensor:
    """One head [D] turned by one row of cosines and sines [R]: pairs (i, i + R/2), the rest as it was."""
    half = cos_sin.shape[0] // 2
    turned = head.double().clone()
    for i in range(half):
        cos, sin = cos_sin[i].double(), cos_sin[half + i].double()
        a, b = head[i].double(), head[half + i].double()
        turned[i] = a * cos - b * sin
        turned[half + i] = b * cos + a * sin
    return turned


def rope_kv_write(
    qkv: Tensor, positions: Tensor, cos_sin: Tensor, slots: Tensor, k_cache: Tensor, v_cache: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The rotated queries [T, H, D] and both caches as they are afterwards, [blocks, Hkv, S, D]."""
    _, kv_heads, block_size, head_dim = k_cache.shape
    heads = qkv.reshape(qkv.shape[0], -1, head_dim)
    queries = torch.empty(qkv.shape[0], num_heads, head_dim, dtype=torch.float64)
    keys, values = k_cache.double(), v_cache.double()
    for token in range(qkv.shape[0]):
        turn = cos_sin[int(positions[token])]
        for head in range(num_heads):
            queries[token, head] = rotate(heads[token, head], turn)
        slot = int(slots[token])
        if slot == -1:
            continue
        for head in range(kv_heads):
            keys[slot // block_size, head, slot % block_size] = rotate(heads[token, num_heads + head], turn)
            values[slot // block_size, head, slot % block_size] = heads[token, num_heads + kv_heads + head].double()
    return queries, keys, values


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """q [T, H, D] -> [T, H, D]; see tinyserve.ops.paged_attention for the other arguments."""
    _, kv_heads, block_size, _ = k_cache.shape
    out = torch.empty(q.shape, dtype=torch.float64)
    group = q.shape[1] // kv_heads
    for request in range(context_lens.shape[0]):
        first, last = int(query_starts[request]), int(query_starts[request + 1])
        context_len = int(context_lens[request])
        blocks = [int(block_tables[request, i // block_size]) for i in range(context_len)]
        offsets = [i % block_size for i in range(context_len)]
        keys = k_cache[blocks, :, offsets].double()  # [context, Hkv, D]
        values = v_cache[blocks, :, offsets].double()
        for row in range(first, last):
            position = context_len - (last - first) + (row - first)
            seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
            for head in range(q.shape[1]):
                scores = keys[seen, head // group] @ q[row, head].double() * scale
                if soft_cap:
                    scores = soft_cap * torch.tanh(scores / soft_cap)
                if alibi_slopes is not None:
                    scores += alibi_slopes[head].double() * (torch.arange(seen.start, seen.stop) - position)
                out[row, head] = torch.softmax(scores, dim=0) @ values[seen, head // group]
    return out


def sampling_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Of one row of logits [V], with which probability each token is drawn [V]."""
    scores = logits.double() / temperature
    order = scores.argsort(descending=True, stable=True)  # of equal ones the first
    if top_k > 0:
        order = order[:top_k]
    weights = (scores - scores.max()).exp()
    before = weights[order].cumsum(0) - weights[order]
    stays = before < top_p * weights[order].sum() if top_p < 1 else torch.ones_like(before, dtype=torch.bool)
    kept = torch.zeros_like(weights)
    kept[order[stays]] = weights[order[stays]]
    kept[weights < min_p] = 0  # the largest weight is 1
    return kept / kept.sum()
