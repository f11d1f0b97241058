"""Runs every CUDA kernel once on small, ragged shapes and compares with the CPU's: what compute-sanitizer watches.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python3 -m benchmarks.sanitized_kernels

Without torch's memory pool every tensor ends where its memory does, so that a read past it is seen. Ops without a CUDA
kernel are named and left out. Ends with 1 where a result is wrong.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinyserve import fallback, ops

DTYPES = (torch.float16, torch.bfloat16)
TOLERANCE = 0.03  # relative: two backends that round at different places
WEIGHTS = ((96, 192, 64), (200, 320, 32), (64, 256, 256))  # N, K, G
ROWS = (1, 5, 8, 9, 40, 130)

Work = Callable[[str], Tensor]  # the result of the same input on a device


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def multiply(n: int, k: int, group_size: int, rows: int, dtype: torch.dtype, config: str | None) -> Work:
    codes = (random(n, k) * 4 + 8).clamp(0, 15).to(torch.uint8)
    zeros = (random(n, k // group_size) + 8).clamp(0, 15).to(torch.uint8)
    scales = (random(n, k // group_size).abs() * 0.01 + 0.01).to(dtype)
    x, bias = random(rows, k).to(dtype), random(n).to(dtype)

    def work(device: str) -> Tensor:
        weight = ops.w4a16_pack(codes.to(device), scales.to(device), zeros.to(device))
        if config is None or device == "cpu":
            return ops.w4a16_linear(x.to(device), weight, bias.to(device))
        number = ops.w4a16_gemm_configs(device)[config]
        return ops.w4a16_gemm(x.to(device), weight, bias.to(device), config=number)

    return work


def rms_norm(channels: int, dtype: torch.dtype) -> Work:
    x, residual, weight = (random(*shape).to(dtype) for shape in ((3, channels), (3, channels), (channels,)))
    return lambda device: ops.rms_norm(x.to(device), weight.to(device), 1e-5, residual.to(device, copy=True))


def layer_norm(channels: int, dtype: torch.dtype) -> Work:
    x, residual, weight, bias = (random(*shape).to(dtype) for shape in ((3, channels),) * 2 + ((channels,),) * 2)

    def work(device: str) -> Tensor:
        given = (x.to(device), weight.to(device), bias.to(device))
        return ops.layer_norm(*given, 1e-5, residual.to(device, copy=True))

    return work


def silu_mul(size: int, dtype: torch.dtype) -> Work:
    gate_up = random(3, 2 * size).to(dtype)
    return lambda device: ops.silu_mul(gate_up.to(device))


def sample(vocab_size: int, dtype: torch.dtype) -> Work:
    """Rows without and with each cut, one greedy and one that is not finite; numbers far from any token's edge."""
    logits = (random(6, vocab_size) * 3).round().to(dtype)
    logits[5, vocab_size // 2] = torch.nan
    temperature = torch.tensor([1.0, 0.7, 1.5, 0.9, 0.0, 1.0])
    top_k = torch.tensor([-1, 5, 0, 40, -1, 7], dtype=torch.int32)
    top_p, min_p = torch.tensor([1.0, 0.8, 0.5, 1.0, 1.0, 0.9]), torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0, 0.0])
    uniform = torch.tensor([0.3, 0.7, 0.45, 0.6, 0.0, 0.5], dtype=torch.float64)
    each = (logits, temperature, top_k, top_p, min_p, uniform)
    return lambda device: ops.sample(*(tensor.to(device) for tensor in each))


class Cache:
    """Three requests over a cache of 16-token blocks: a first prefill, one behind a prefix, a decode step."""

    heads, kv_heads, head_dim = 6, 2, 64
    queries, contexts = (20, 7, 1), (20, 30, 300)

    def __init__(self, dtype: torch.dtype) -> None:
        tokens, blocks = sum(self.queries), 32
        self.qkv = random(tokens, (self.heads + 2 * self.kv_heads) * self.head_dim).to(dtype)
        self.q = random(tokens, self.heads, self.head_dim).to(dtype)
        self.keys = random(blocks, self.kv_heads, 16, self.head_dim).to(dtype)
        self.values = random(blocks + 1, self.kv_heads, 16, self.head_dim)[1:].to(dtype)
        angles = random(512, self.head_dim // 2)
        self.cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
        self.slots = torch.randperm(blocks * 16, generator=torch.Generator().manual_seed(1))[:tokens].int()
        self.tables = torch.arange(3 * 20).int().view(3, 20) % blocks
        self.starts = torch.tensor([0, *self.queries]).cumsum(0).int()

    def write(self, device: str) -> Tensor:
        keys, values = (cache.to(device, copy=True) for cache in (self.keys, self.values))
        qkv, slots, cos_sin = (tensor.to(device) for tensor in (self.qkv, self.slots, self.cos_sin))
        q = ops.rope_kv_write(qkv, slots, cos_sin, slots, keys, values, self.heads)  # any positions will do
        return torch.cat([q.flatten(), keys.flatten(), values.flatten()])

    def attend_in_8_bits(self, stored: torch.dtype, device: str) -> Tensor:
        """With a window, capped scores and ALiBi as well."""
        largest = 127 if stored == torch.int8 else torch.finfo(stored).max
        scales = [cache.float().abs().amax(-1) / largest for cache in (self.keys, self.values)]
        codes = [
            (cache.float() / scale.unsqueeze(-1)).to(stored)
            for cache, scale in zip((self.keys, self.values), scales, strict=True)
        ]
        q, keys, values, tables, starts = (t.to(device) for t in (self.q, *codes, self.tables, self.starts))
        contexts, slopes = (
            torch.tensor(self.contexts).int().to(device),
            torch.linspace(0.01, 0.1, self.heads).to(device),
        )
        is_known = device != "cpu" or stored == torch.int8  # the CPU's kernels know no other 8 bits
        attention = ops.paged_attention if is_known else fallback.paged_attention
        lengths, all_scales = (tables, starts, contexts), (scales[0].to(device), scales[1].to(device))
        return attention(q, keys, values, *lengths, self.head_dim**-0.5, *all_scales, 50, 20.0, slopes)

    def attend(self, device: str) -> Tensor:
        q, keys, values, tables = (tensor.to(device) for tensor in (self.q, self.keys, self.values, self.tables))
        starts, contexts = self.starts.to(device), torch.tensor(self.contexts).int().to(device)
        return ops.paged_attention(q, keys, values, tables, starts, contexts, self.head_dim**-0.5)

    def decode(self, device: str) -> Tensor:
        """One more token of each request, the last one's in a slot of its own; the others are padding."""
        keys, values = (cache.to(device, copy=True) for cache in (self.keys, self.values))
        contexts = torch.tensor(self.contexts).int()
        place = int(self.tables[2, (self.contexts[2] - 1) // 16]) * 16 + (self.contexts[2] - 1) % 16
        slots = torch.tensor([-1, -1, place]).int()
        qkv, positions, cos_sin = (tensor.to(device) for tensor in (self.qkv[:3], contexts - 1, self.cos_sin))
        tables, starts = self.tables.to(device), torch.arange(4).int().to(device)
        turned = (qkv, positions, cos_sin, slots.to(device), keys, values)
        lengths = (tables, starts, contexts.to(device))
        out = ops.rope_paged_attention(*turned, *lengths, self.heads, self.head_dim**-0.5)
        return torch.cat([out[2].flatten(), keys.flatten(), values.flatten()])


def works() -> Iterator[tuple[str, str, Work]]:
    """The op, which case of it, and the work."""
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for channels in (8, 200, 4096, 4100):
            yield "rms_norm", f"{channels} {name}", rms_norm(channels, dtype)
            yield "layer_norm", f"{channels} {name}", layer_norm(channels, dtype)
        for size in (8, 36, 4096):
            yield "silu_mul", f"{size} {name}", silu_mul(size, dtype)
        for vocab_size in (8, 1000, 4999):
            yield "sample", f"{vocab_size} {name}", sample(vocab_size, dtype)
        cache = Cache(dtype)
        for stored in (torch.int8, torch.float8_e4m3fn):
            yield "paged_attention", f"{name} {stored}", partial(cache.attend_in_8_bits, stored)
        yield "rope_kv_write", name, cache.write
        yield "paged_attention", name, cache.attend
        yield "rope_paged_attention", name, cache.decode
        for n, k, group_size in WEIGHTS:
            for rows in ROWS:
                case = f"{n}x{k} g{group_size} M={rows} {name}"
                yield (
                    "w4a16_gemv" if rows <= ops.GEMV_MAX_ROWS else "w4a16_gemm",
                    case,
                    multiply(n, k, group_size, rows, dtype, None),
                )


def config_works(device: str) -> Iterator[tuple[str, str, Work]]:
    """Every tile configuration of w4a16_gemm, on a shape that no tile divides."""
    for config in ops.w4a16_gemm_configs(device):
        for dtype in DTYPES:
            yield "w4a16_gemm", f"{config} {dtype}", multiply(200, 320, 64, 70, dtype, config)


def is_compiled(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"tinyserve::{op}", "CUDA")


def check(op: str, case: str, work: Work) -> bool:
    expected = work("cpu").double()
    try:
        out = work("cuda").cpu().double()
    except RuntimeError as failure:
        print(f"ERROR {op} {case}: {failure}", flush=True)
        return False
    error = float((out - expected).norm() / expected.norm())
    fine = out.shape == expected.shape and error <= TOLERANCE  # false of NaN
    print(f"{'ok   ' if fine else 'WRONG'} {op} {case}: relative error {error:.1e}", flush=True)
    return fine


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("sanitized_kernels needs a GPU and a build of torch for it")
    todo: list[Any] = list(works())
    missing = sorted({op for op, _, _ in todo if not is_compiled(op)})
    print(f"no CUDA kernel of: {', '.join(missing) or 'none'}", flush=True)
    if is_compiled("w4a16_gemm"):
        todo += config_works("cuda")
    fine = [check(*work) for work in todo if work[0] not in missing]
    print(f"{sum(fine)} of {len(fine)} results right")
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
