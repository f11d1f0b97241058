"""Typed Python face of every compiled op; the only module that loads the kernel libraries.

An op runs the compiled kernel of the tensor's device; where there is none it runs tinyserve/fallback.py, and the log
says so once. A packed weight belongs to the device it was packed on. Knows shapes and dtypes, no model.
"""

import contextlib
import functools
import importlib
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyserve import fakes, fallback
from tinyserve.gemm_table import GemmTable, read_table, table_path

GEMV_MAX_ROWS = 8  # kGemvMaxRows in csrc/kernels.h
MAX_VOCAB = 1 << 18  # kMaxVocab there
GROUP_SIZES = (32, 64, 128)  # and K itself

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight [n, k] in the layout of one backend; only the ops know what the tensors hold."""

    qweight: Tensor
    qparams: Tensor
    n: int
    k: int
    group_size: int

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the kernels multiply activations of this dtype: on CUDA that one alone that it is packed for."""
        return self.qparams.dtype not in (torch.float16, torch.bfloat16) or self.qparams.dtype == dtype


def w4a16_pack(codes: Tensor, scales: Tensor, zeros: Tensor, *, dtype: torch.dtype | None = None) -> PackedWeight:
    """Brings a quantized weight into the layout that the kernels of its device read.

    Args:
        codes: uint8 [N, K], each 0..15.
        scales: float [N, K/G], G in GROUP_SIZES or K, a multiple of 32.
        zeros: uint8 [N, K/G]; on CUDA up to 63.
        dtype: of the activations. CUDA keeps the scales in it where it has 16 bits, else in their own, else in fp16;
            the CPU's layout serves all.

    Raises:
        RuntimeError: a shape, dtype, group size, code or zero is not allowed, or on CUDA a scale is not finite in the
            dtype that it is kept in.
    """
    qweight, qparams = _kernel("w4a16_pack", codes.device.type)(codes, scales, zeros, dtype)
    n, k = codes.shape
    return PackedWeight(qweight, qparams, n, k, k // scales.shape[1])


def w4a16_join(weights: Sequence[PackedWeight]) -> PackedWeight | None:
    """The rows of all, one below the other; None where that takes packing anew: a weight ends within a tile of rows."""
    first = weights[0]
    rows = {2: 1, 3: 32, 5: 64}[first.qweight.dim()]  # of a tile: the fallback's layout, a CPU's, CUDA's
    if len({(weight.k, weight.group_size, weight.qparams.dtype) for weight in weights}) > 1:
        return None
    if any(weight.n % rows for weight in weights[:-1]):
        return None
    qweight, qparams = (torch.cat([getattr(w, part) for w in weights]) for part in ("qweight", "qparams"))
    return PackedWeight(qweight, qparams, sum(weight.n for weight in weights), first.k, first.group_size)


def w4a16_dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """(code - zero) * scale -> [N, K] of the given dtype, rounded once."""
    kernel = _kernel("w4a16_dequantize", weight.qweight.device.type)
    result: Tensor = kernel(weight.qweight, weight.qparams, weight.n, weight.k, weight.group_size, dtype)
    return result


def w4a16_gemv(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    silu_mul: bool = False,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """As w4a16_gemm, for x [M, K] of up to GEMV_MAX_ROWS rows.

    Args:
        norm_weight: [K]; not x is multiplied but rms_norm(x, norm_weight, eps). On CUDA the same kernel computes it,
            and reads norm_weight before earlier kernels are done; only rows that are too long for its shared memory
            go through rms_norm's kernel first.
    """
    kernel = _kernel("w4a16_gemv", x.device.type)
    sizes = weight.n, weight.k, weight.group_size
    result: Tensor = kernel(x, weight.qweight, weight.qparams, bias, *sizes, residual, silu_mul, norm_weight, eps)
    return result


def w4a16_gemm(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    silu_mul: bool = False,
    config: int = -1,
) -> Tensor:
    """x [M, K] times the packed weight [N, K] transposed, plus bias [N], plus residual [M, N] -> [M, N].

    Args:
        silu_mul: the weight's rows (and the bias) come in tiles of 16, 8 of the gate projection and then 8 of the up
            projection; the result is silu(gate) * up, plus residual, [M, N/2].
        config: one of w4a16_gemm_configs' tile configurations; -1: the one that suits the shape, from the measured
            table that TINYSERVE_GEMM_TABLE names or else by the sizes.
    """
    if config == -1 and x.is_cuda and (table := _gemm_table(x.get_device())):
        config = table.config(x.shape[0], weight.n, weight.k)
    kernel = _kernel("w4a16_gemm", x.device.type)
    sizes = weight.n, weight.k, weight.group_size
    result: Tensor = kernel(x, weight.qweight, weight.qparams, bias, *sizes, residual, silu_mul, config)
    return result


def w4a16_gemm_configs(device: str | torch.device) -> dict[str, int]:
    """The tile configurations of w4a16_gemm that run on a device, by name; none on a CPU."""
    lines = _kernel("w4a16_gemm_configs", torch.device(device).type)(torch.empty(0, device=device)).splitlines()
    return {name: int(index) for index, name in (line.split() for line in lines)}


@functools.cache
def _gemm_table(device: int) -> GemmTable | None:
    path = table_path()
    if path is None:
        return None
    return read_table(path, torch.cuda.get_device_name(device), w4a16_gemm_configs(f"cuda:{device}"))


def w4a16_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    silu_mul: bool = False,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """As w4a16_gemv for x [..., K] of any number of rows and residual [..., N], by the op that suits that number."""
    if x.dim() != 2:
        rows = None if residual is None else residual.reshape(-1, residual.shape[-1])
        y = w4a16_linear(x.reshape(-1, weight.k), weight, bias, rows, silu_mul, norm_weight, eps)
        return y.view(*x.shape[:-1], y.shape[-1])
    is_taken = weight.takes(x.dtype)
    if is_taken and x.shape[0] <= GEMV_MAX_ROWS:
        return w4a16_gemv(x, weight, bias, residual, silu_mul, norm_weight, eps)
    x = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    return (w4a16_gemm if is_taken else _dequantized_linear)(x, weight, bias, residual, silu_mul)


def w4a16_fuses(device: str | torch.device) -> bool:
    """Whether a product on this device takes what stands around it in a model, norm, SiLU and residual.

    So do the kernels for tensor cores, those that have configurations. Elsewhere each of these is work of its own, and
    there are better ways to share it out.
    """
    return bool(w4a16_gemm_configs(device))


def _dequantized_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, residual: Tensor | None, silu_mul: bool
) -> Tensor:
    """What has no kernel: the whole weight in x's dtype, and torch's product."""
    _say_once(f"w4a16_linear has no kernel for {x.dtype} and a weight packed for {weight.qparams.dtype}: dequantized")
    y = fallback.linear(x, w4a16_dequantize(weight, x.dtype), bias)
    return fallback.w4a16_epilogue(y, residual, silu_mul).to(x.dtype)


@functools.cache
def _say_once(message: str) -> None:
    _log.warning(message)


def w4a8_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x [M, K] rounded to int8 in groups of a row, times the packed weight transposed, plus bias [N].

    Groups of x are 128, 64 or 32 long, the first that divides the weight's.

    Returns:
        [M, N]. Inside a group all is integer arithmetic, several times faster on a CPU than w4a16_linear.
    """
    kernel = _kernel("w4a8_linear", x.device.type)
    result: Tensor = kernel(x, weight.qweight, weight.qparams, bias, weight.n, weight.k, weight.group_size)
    return result


@dataclass(frozen=True)
class PackedWeight8:
    """A weight [n, k] in 8 bits with fp32 scales, in the layout of one backend; only the ops know what is in it."""

    qweight: Tensor
    scales: Tensor
    n: int
    k: int


def w8_pack(weight: Tensor) -> PackedWeight8:
    """Rounds weight [N, K] to 8 bits in groups of 64 (of 32 where 64 does not divide K) of a row.

    Raises:
        RuntimeError: K is no multiple of 32, or the dtype is not a float's.
    """
    return PackedWeight8(*_kernel("w8_pack", weight.device.type)(weight), *weight.shape)


def embedding(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows int32 [T] of weight [V, C] -> [T, C]."""
    if rows.device.type != "cpu":
        return torch.nn.functional.embedding(rows, weight)
    result: Tensor = _kernel("embedding", "cpu")(rows, weight)
    return result


def w8_embedding(rows: Tensor, weight: PackedWeight8, dtype: torch.dtype) -> Tensor:
    """Rows int32 [T] of the 8-bit weight [N, K] -> [T, K] in `dtype`."""
    kernel = _kernel("w8_embedding", rows.device.type)
    result: Tensor = kernel(rows, weight.qweight, weight.scales, weight.n, dtype)
    return result


def w8a8_linear(x: Tensor, weight: PackedWeight8, bias: Tensor | None = None) -> Tensor:
    """x [M, K], rounded as in w4a8_linear, times the 8-bit weight [N, K] transposed, plus bias [N] -> [M, N]."""
    result: Tensor = _kernel("w8a8_linear", x.device.type)(x, weight.qweight, weight.scales, bias, weight.n)
    return result


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times weight [N, K] transposed, plus bias [N], all of one dtype -> [M, N]; sums in fp32."""
    if x.is_cuda:  # cuBLAS is the kernel for weights of 16 bits there
        return fallback.linear(x, weight, bias)
    result: Tensor = _kernel("linear", x.device.type)(x, weight, bias)
    return result


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """x [T, C] over its root mean square, times weight [C] -> [T, C].

    With `residual` [T, C], that becomes residual + x, rounded to its dtype, in place, and its norm is returned.
    """
    result: Tensor = _kernel("rms_norm", x.device.type)(x, weight, eps, residual)
    return result


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2 * I] -> silu(first half) * second half, [T, I]."""
    result: Tensor = _kernel("silu_mul", gate_up.device.type)(gate_up)
    return result


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
    """Rotates queries and keys by their positions and writes keys and values into the paged cache, in place.

    The first R elements of a head turn in pairs (i, i + R/2), as in Llama's rotate_half; the rest stay.

    Args:
        qkv: [T, (H + 2 * Hkv) * D].
        positions: int32 [T], rows of cos_sin.
        cos_sin: fp32 [P, R], R <= D: cosines in the first half of a row, sines in the second; R 0 turns nothing.
        slots: int32 [T], block * S + offset; -1 where nothing is to be written.
        k_cache, v_cache: [blocks, Hkv, S, D], int8 (on a GPU also float8_e4m3fn) where there are scales.
        num_heads: H.
        k_scales, v_scales: fp32 [blocks, Hkv, S]: a head's largest |element| over 127 (448).

    Returns:
        The rotated queries [T, H, D].
    """
    kernel = _kernel("rope_kv_write", qkv.device.type)
    result: Tensor = kernel(qkv, positions, cos_sin, slots, k_cache, v_cache, num_heads, k_scales, v_scales)
    return result


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

    Query i of request b sits at position context_lens[b] - q_len + i and sees the keys up to that position; query head
    h reads key head h // (H / Hkv). On a GPU the caller answers for the tables' contents: they are not looked at.

    Args:
        q: [T, H, D], the queries of all requests one after another.
        k_cache, v_cache: [blocks, Hkv, S, D], int8 (on a GPU also float8_e4m3fn) where there are scales.
        block_tables: int32 [B, max_blocks], the blocks of each request in the order of their positions.
        query_starts: int32 [B + 1], request b's queries are rows query_starts[b] .. query_starts[b + 1] - 1.
        context_lens: int32 [B], keys of each request, its queries' own included; on a GPU 0 for padding, whose rows
            of the result are not written.
        scale: factor on the scores, commonly D ** -0.5.
        k_scales, v_scales: fp32 [blocks, Hkv, S], what the elements of a head are multiplied with.
        window: keys that a query sees, its own included; 0: all.
        soft_cap: a score becomes soft_cap * tanh(score / soft_cap); 0: it stays.
        alibi_slopes: fp32 [H]; a score gains slope * (the key's position - the query's).

    Returns:
        [T, H, D].
    """
    if _has_no_attention_kernel(q, k_cache):
        kernel = _slower("paged_attention", "of float32, or of 8 bits and heads of no multiple of 16, on a GPU")
    else:
        kernel = _kernel("paged_attention", q.device.type)
    cache = (k_cache, v_cache, block_tables, query_starts, context_lens)
    result: Tensor = kernel(q, *cache, scale, k_scales, v_scales, window, soft_cap, alibi_slopes)
    return result


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None) -> Tensor:
    """x [T, C] less its mean, over the root of its variance plus eps, times weight [C], plus bias [C] -> [T, C].

    With `residual` [T, C], that becomes residual + x, rounded to its dtype, in place, and its norm is returned. The
    variance is that of what is left without the mean, so that rows far from zero lose nothing.
    """
    result: Tensor = _kernel("layer_norm", x.device.type)(x, weight, bias, eps, residual)
    return result


def can_sample(device: torch.device) -> bool:
    """Whether tokens are to be drawn there by `sample`; on a CPU torch's own functions are as good."""
    return device.type != "cpu"


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """A token for each row, without waiting for the device: the likeliest, or drawn from softmax(logits / temperature).

    Drawn from what is left of the top_k likeliest by top_p, a share of their mass (the token with which it is reached
    stays), and by min_p, a share of the likeliest one's probability. Equal logits are ranked by their index, the lower
    first. The token is the one that `uniform` falls on where those that are left lie side by side in the vocabulary's
    order.

    Args:
        logits: [R, V]; a kernel takes V up to MAX_VOCAB.
        temperature: fp32 [R]; below 1e-3 the likeliest token is taken.
        top_k: int32 [R]; 1: the likeliest token; 0 and less, V and more: all.
        top_p: fp32 [R] in 0..1; below 1e-8: the likeliest token.
        min_p: fp32 [R] in 0..1.
        uniform: fp64 [R] in [0, 1).

    Returns:
        int32 [R]; -1 where the largest logit is infinite or one is NaN.
    """
    is_wide = logits.dim() == 2 and logits.shape[1] > MAX_VOCAB
    kernel = _slower("sample", f"of more than {MAX_VOCAB} tokens") if is_wide else _kernel("sample", logits.device.type)
    result: Tensor = kernel(logits, temperature, top_k, top_p, min_p, uniform)
    return result


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
    """rope_kv_write and then paged_attention of requests that have one query each; on a GPU one kernel.

    A token without a slot sees its own key, which is not kept, on a GPU; what it gets elsewhere depends on what lies
    where its key would. It is meant for the padding of a batch, whose results nobody reads.

    Args:
        qkv: [T, (H + 2 * Hkv) * D].
        query_starts: int32 [B + 1], 0 or 1 queries of each request.
        others: as in rope_kv_write and paged_attention. A token's slot is where its request's table has its position,
            the last one of the context.

    Returns:
        [T, H, D].
    """
    turned = (qkv, positions, cos_sin, slots, k_cache, v_cache)
    cache = (k_cache, v_cache, block_tables, query_starts, context_lens)
    scales = (k_scales, v_scales)
    if _has_no_attention_kernel(qkv, k_cache):
        q = rope_kv_write(*turned, num_heads, *scales)
        return paged_attention(q, *cache, scale, *scales, window, soft_cap, alibi_slopes)
    kernel = _kernel("rope_paged_attention", qkv.device.type)
    result: Tensor = kernel(*turned, *cache[2:], num_heads, scale, *scales, window, soft_cap, alibi_slopes)
    return result


def _has_no_attention_kernel(like: Tensor, cache: Tensor) -> bool:
    """Whether the compiled ops refuse activations and a cache like these."""
    return like.is_cuda and (like.dtype == torch.float32 or (cache.itemsize == 1 and cache.shape[-1] % 16 != 0))


def build_info() -> dict[str, Any]:
    """How the kernels were built and which run here.

    Returns:
        version, compiler, cpu_isas and cuda_archs (both as compiled), cpu_isa (in use; None: the fallback).
    """
    info: dict[str, Any] = {"version": None, "compiler": None, "cpu_isas": [], "cuda_archs": [], "cpu_isa": None}
    if _load("_cpu"):
        info |= importlib.import_module("tinyserve._host").build_info()
        info["cpu_isa"] = torch.ops.tinyserve.cpu_isa()
    return info


def use_cpu_isa(name: str) -> None:
    """Makes the CPU kernels of another instruction set run, one of build_info()["cpu_isas"] that this machine has."""
    torch.ops.tinyserve.cpu_isa(name)


@dataclass(frozen=True)
class KernelTime:
    name: str
    calls: int
    seconds: float  # of all calls


@contextlib.contextmanager
def profile_cpu() -> Iterator[list[KernelTime]]:
    """Yields a list that holds, once the block has ended, what each CPU kernel took in it."""
    times: list[KernelTime] = []
    torch.ops.tinyserve.cpu_profile(True)
    try:
        yield times
    finally:
        fields = [line.split() for line in torch.ops.tinyserve.cpu_profile(False).splitlines()]
        times += [KernelTime(name, int(calls), int(nanoseconds) / 1e9) for name, calls, nanoseconds in fields]


def can_record(device: torch.device) -> bool:
    """Whether a Tape can hold what these ops do on `device`."""
    return device.type == "cpu" and _load("_cpu")


class Tape:
    """The CPU kernel calls of one piece of work, to be made again without what Python and torch add to each.

    The work must compute with the ops of this module alone, and always on the same input tensors: between two replays
    only their contents change. Its result is the same tensor each time.

    Args:
        work: what to do, once now.
        memory: uint8 [bytes], where intermediate tensors and the result lie; what it has no room for lies elsewhere.
            Tapes may share it, if nobody needs the result of one when another runs.
    """

    def __init__(self, work: Callable[[], Tensor], memory: Tensor) -> None:
        torch.ops.tinyserve.tape_start(memory)
        try:
            self.result = work()
        finally:
            self._number: int = torch.ops.tinyserve.tape_end()
            weakref.finalize(self, torch.ops.tinyserve.tape_drop, self._number)

    def replay(self) -> Tensor:
        """Does the work again; returns its result, in the memory of the one before."""
        torch.ops.tinyserve.tape_replay(self._number)
        return self.result


@functools.cache
def _load(library: str) -> bool:
    """Loads tinyserve/_cpu or _cuda; says why where that fails."""
    paths = sorted(Path(__file__).parent.glob(f"{library}.*.so"))
    if not paths:
        return False
    try:
        torch.ops.load_library(paths[0])
    except OSError as error:
        _log.error("%s does not load, its ops run the PyTorch fallback: %s", paths[0], error.__cause__ or error)
        return False
    return True


@functools.cache
def _kernel(name: str, device: str) -> Callable[..., Any]:
    """The compiled op where it has a kernel for `device`, else the fallback of the same name and arguments."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    if key and _load("_cpu") and torch._C._dispatch_has_kernel_for_dispatch_key(f"tinyserve::{name}", key):
        return getattr(torch.ops.tinyserve, name).default  # type: ignore[no-any-return]
    _log.warning("%s has no compiled kernel for %s: the slower PyTorch fallback runs", name, device)
    return getattr(fallback, name)  # type: ignore[no-any-return]


@functools.cache
def _slower(name: str, case: str) -> Callable[..., Any]:
    """The fallback, for a case that the compiled op refuses."""
    _log.warning("%s has no compiled kernel %s: the slower PyTorch fallback runs", name, case)
    return getattr(fallback, name)  # type: ignore[no-any-return]


if _load("_cpu"):
    fakes.register()
    if torch.cuda.is_available():
        _load("_cuda")
