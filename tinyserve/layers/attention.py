"""Self-attention over the paged KV cache, and the tensors that tell it where everything lies.

Which blocks a request owns is decided by the engine; here they are only numbers in a table.
"""

from dataclasses import dataclass, field

from torch import Tensor

from tinyserve import ops
from tinyserve.layers.attention_library import MayAttend, Scores
from tinyserve.layers.linear import LinearLayer
from tinyserve.layers.norm import RMSNorm
from tinyserve.layers.residual import ResidualStream


@dataclass(frozen=True, eq=False)
class BatchLayout:
    """One flat batch: T tokens of B requests one after another, each with at least one. S is the block size."""

    positions: Tensor  # int32 [T], in the token's own request
    slots: Tensor  # int32 [T], block * S + offset where the token's key and value go; -1: nowhere
    block_tables: Tensor  # int32 [B, max_blocks]
    query_starts: Tensor  # int32 [B + 1], first token of each request in the flat batch
    context_lens: Tensor  # int32 [B], tokens in the cache after this step
    # tried before the own kernel, in a step with prompts; see attention_library.py
    library: MayAttend | None = field(default=None, kw_only=True)

    @property
    def decodes(self) -> bool:
        """Whether every request has one token."""
        return self.positions.shape == self.context_lens.shape


@dataclass(frozen=True, eq=False)
class LayerCache:
    """Keys and values of one layer, both [num_blocks, Hkv, S, D]; of int8 where there are scales."""

    k: Tensor
    v: Tensor
    k_scales: Tensor | None = None  # fp32 [num_blocks, Hkv, S]
    v_scales: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Attention:
    qkv: LinearLayer  # [(H + 2 Hkv) D, C]: query rows, key rows, value rows
    out: LinearLayer  # [C, H D]
    cos_sin: Tensor  # fp32 [P, R], see rope.py
    num_heads: int
    scale: float  # 1 / sqrt(D)
    window: int = 0  # keys that a query sees, its own included; 0: all
    soft_cap: float = 0.0  # a score becomes soft_cap * tanh(score / soft_cap); 0: it stays
    alibi_slopes: Tensor | None = None  # fp32 [H], what a score gains for each position that the key is ahead

    def __call__(self, stream: ResidualStream, norm: RMSNorm, layout: BatchLayout, cache: LayerCache) -> None:
        """Adds the attention of norm(stream) to the stream, and writes the tokens' keys and values into `cache`."""
        stream.add(self.out, self.attend(stream.through(norm, self.qkv), layout, cache))

    def attend(self, qkv: Tensor, layout: BatchLayout, cache: LayerCache) -> Tensor:
        """What lies between the two linear layers: qkv [T, (H + 2 Hkv) D] -> [T, H D]."""
        turned = (qkv, layout.positions, self.cos_sin, layout.slots, cache.k, cache.v)
        scales = (cache.k_scales, cache.v_scales)
        window, soft_cap, slopes = self.window, self.soft_cap, self.alibi_slopes
        if layout.decodes:
            lengths = (layout.block_tables, layout.query_starts, layout.context_lens)
            context = ops.rope_paged_attention(
                *turned, *lengths, self.num_heads, self.scale, *scales, window, soft_cap, slopes
            )
        else:
            q = ops.rope_kv_write(*turned, self.num_heads, *scales)
            context = attend_cached(q, layout, cache, Scores(self.scale, window, soft_cap, slopes))
        return context.flatten(1)


def attend_cached(q: Tensor, layout: BatchLayout, cache: LayerCache, scores: Scores) -> Tensor:
    """Rotated queries [T, H, D] over keys and values that are all in the cache -> [T, H, D]."""
    context = None if layout.library is None else layout.library(q, cache.k, cache.v, scores)
    if context is not None:
        return context
    return ops.paged_attention(
        q,
        cache.k,
        cache.v,
        layout.block_tables,
        layout.query_starts,
        layout.context_lens,
        scores.scale,
        cache.k_scales,
        cache.v_scales,
        scores.window,
        scores.soft_cap,
        scores.alibi_slopes,
    )
