"""The random inputs of one case, the same for every implementation: queries, and paged caches to rotate through."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.attention.case import Case

BLOCK_SIZE = 32  # tokens, as in the engine
MAX_CODE = {"int8": 127.0, "fp8": 448.0}
STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "bfloat16": torch.bfloat16}
CHUNK = 4096  # blocks that are filled at once: bounds what is needed beside the cache


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values of one layer, as tinyserve's layers have them."""

    k: Tensor  # [blocks, Hkv, S, D]
    v: Tensor
    tables: Tensor  # int32 [B, blocks of a request], no block twice, in no order
    k_scales: Tensor | None = None  # fp32 [blocks, Hkv, S], of 8 bits
    v_scales: Tensor | None = None

    def clone(self) -> "Cache":
        tensors = {name: tensor.clone() for name, tensor in vars(self).items() if tensor is not None}
        return replace(self, **tensors)

    def dense(self, request: int, context: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Keys and values [Hkv, context, D] of one request, multiplied with their scales."""
        blocks = self.tables[request].long()
        return _dense(self.k, self.k_scales, blocks, context, dtype), _dense(
            self.v, self.v_scales, blocks, context, dtype
        )


def _dense(part: Tensor, scales: Tensor | None, blocks: Tensor, context: int, dtype: torch.dtype) -> Tensor:
    rows = part[blocks].to(torch.float32 if scales is not None else dtype)
    if scales is not None:
        rows = (rows * scales[blocks].unsqueeze(-1)).to(dtype)
    return rows.transpose(0, 1).flatten(1, 2)[:, :context]


@dataclass(frozen=True, eq=False)
class Problem:
    case: Case
    q: Tensor  # [T, H, D]
    query_starts: Tensor  # int32 [B + 1]
    context_lens: Tensor  # int32 [B]

    @property
    def device(self) -> torch.device:
        return self.q.device

    @property
    def scale(self) -> float:
        """On the scores."""
        return float(self.case.heads.head_dim**-0.5)

    @classmethod
    def random(cls, case: Case, device: str) -> "Problem":
        generator = torch.Generator(device).manual_seed(case.tokens)
        shape = (case.tokens, case.heads.num_heads, case.heads.head_dim)
        q = torch.randn(shape, device=device, generator=generator).to(getattr(torch, case.dtype))
        starts = torch.arange(0, case.tokens + 1, case.queries, dtype=torch.int32, device=device)
        lens = torch.full((case.batch,), case.context, dtype=torch.int32, device=device)
        return cls(case, q, starts, lens)

    def cache(self) -> Cache:
        """The same one at every call for a device."""
        case, device = self.case, self.device
        generator = torch.Generator(device).manual_seed(case.context)
        blocks_each = -(-case.context // BLOCK_SIZE)
        count = case.batch * blocks_each
        order = torch.randperm(count, generator=generator, device=device).int()
        shape = (count, case.heads.num_kv_heads, BLOCK_SIZE, case.heads.head_dim)
        k, k_scales = _random(shape, case.cache, generator)
        v, v_scales = _random(shape, case.cache, generator)
        return Cache(k, v, order.view(case.batch, blocks_each), k_scales, v_scales)


def _random(shape: tuple[int, int, int, int], stored: str, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Normal numbers, and their scales where they are stored in 8 bits."""
    device = generator.device
    out = torch.empty(shape, dtype=STORED[stored], device=device)
    scales = torch.empty(shape[:3], device=device) if stored in MAX_CODE else None
    for start in range(0, shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        numbers = torch.randn(out[part].shape, device=device, generator=generator)
        if scales is not None:
            scales[part] = numbers.abs().amax(-1) / MAX_CODE[stored]
            numbers /= scales[part].unsqueeze(-1)
            numbers = numbers.round_() if stored == "int8" else numbers
        out[part] = numbers.to(out.dtype)
    return out, scales
