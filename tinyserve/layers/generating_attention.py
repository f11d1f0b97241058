"""Attention for transformers' generate: one product for queries, keys and values, and a paged cache that it owns.

The cache of a layer takes the place of transformers' own in the cache object of a call, so that every call has its
own, and all of generate (lengths, beams, cropping) finds what it expects. All sequences of a batch are of one length.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from tinyserve import ops
from tinyserve.layers.linear import LinearLayer
from tinyserve.layers.modules import rows_of

BLOCK_SIZE = 32


class PagedLayer(DynamicLayer):
    """One layer's keys and values [B, blocks, Hkv, S, D]: a sequence's blocks lie one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0  # tokens of each sequence

    def reserve(self, batch: int, tokens: int, heads: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Makes room for `tokens` more of each sequence; where there is none, the cache doubles.

        Returns:
            Keys and values as the ops take them, [B * blocks, Hkv, S, D].
        """
        keys, values = self.keys, self.values
        if keys is None or values is None:
            self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
            keys = values = like.new_zeros(batch, 0, heads, BLOCK_SIZE, head_dim)
        blocks = keys.shape[1]
        wanted = -(-(self.length + tokens) // BLOCK_SIZE)
        if wanted > blocks:
            more = keys.new_zeros(batch, max(wanted, 2 * blocks) - blocks, heads, BLOCK_SIZE, head_dim)
            keys, values = torch.cat([keys, more], 1), torch.cat([values, more], 1)
        self.keys, self.values = keys, values
        return keys.flatten(0, 1), values.flatten(0, 1)

    def get_seq_length(self) -> int:
        return self.length

    def reset(self) -> None:
        super().reset()
        self.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= abs(tokens_to_remove)


class GeneratingAttention(nn.Module):
    """In place of a transformers model's attention module.

    Args:
        qkv: [(H + 2 Hkv) D, C]: query rows, key rows, value rows.
        out: [C, H D].
        num_kv_heads, head_dim: Hkv and D.
        scale, window, soft_cap: as of ops.paged_attention.
        layer_index: in the cache object.
    """

    def __init__(
        self,
        qkv: LinearLayer,
        out: LinearLayer,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        window: int,
        soft_cap: float,
        layer_index: int,
    ) -> None:
        super().__init__()
        self.qkv, self.out = qkv, out
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.num_heads = qkv.out_features // head_dim - 2 * num_kv_heads
        self.scale, self.window, self.soft_cap = scale, window, soft_cap
        self.layer_idx = layer_index

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [B, L, C] -> [B, L, C], over the past's keys too; cosines and sines [1 or B, L, R]."""
        batch, length, _channels = hidden_states.shape
        cache = PagedLayer() if past_key_values is None else self._cache(past_key_values)
        if attention_mask is not None and length > 1:
            _refuse_padding(attention_mask, length)
        queries, keys, values = self.rotate(self.qkv(rows_of(hidden_states)), position_embeddings, batch, cache)
        numbers = torch.arange(max(len(keys), batch * length + 1), dtype=torch.int32, device=queries.device)
        context = ops.paged_attention(
            queries,
            keys,
            values,
            numbers[: len(keys)].view(batch, -1),  # block tables
            numbers[: batch * length + 1 : length].contiguous(),  # first queries
            torch.full((batch,), cache.length, dtype=torch.int32, device=queries.device),
            self.scale,
            window=self.window,
            soft_cap=self.soft_cap,
        )
        return self.out(context.flatten(1)).view(batch, length, -1), None

    def rotate(
        self, qkv: Tensor, cos_sin: tuple[Tensor, Tensor], batch: int, cache: PagedLayer
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adds keys and values of qkv [B * L, (H + 2 Hkv) D] to the cache.

        Returns:
            The queries [B * L, H, D], and all keys and values [B * blocks, Hkv, S, D].
        """
        length = len(qkv) // batch
        keys, values = cache.reserve(batch, length, self.num_kv_heads, self.head_dim, qkv)
        places = torch.arange(cache.length, cache.length + length, device=qkv.device)
        room = len(keys) // batch * BLOCK_SIZE  # slots of a sequence
        slots = (torch.arange(batch, device=qkv.device)[:, None] * room + places).flatten().int()
        cos, sin = (part[..., : part.shape[-1] // 2].expand(batch, length, -1).flatten(0, 1) for part in cos_sin)
        table = torch.cat([cos, sin], -1).float().contiguous()
        rows = torch.arange(len(qkv), dtype=torch.int32, device=qkv.device)  # of the table: one for each token
        cache.length += length
        return ops.rope_kv_write(qkv, rows, table, slots, keys, values, self.num_heads), keys, values

    def _cache(self, past: Cache) -> PagedLayer:
        while len(past.layers) <= self.layer_idx:
            past.layers.append(PagedLayer())
        layer = past.layers[self.layer_idx]
        if not isinstance(layer, PagedLayer):
            if past.get_seq_length(self.layer_idx):
                raise ValueError("past_key_values hold keys that another attention has written")
            past.layers[self.layer_idx] = layer = PagedLayer()
        return layer


def _refuse_padding(mask: Tensor, length: int) -> None:
    """Each of the last `length` tokens must see itself: [B, K] or [B, 1, L, K], true (or, in floats, 0) where it does.

    A token that is padding is hidden from all, itself included.
    """
    itself = mask[:, -length:] if mask.dim() == 2 else mask[:, 0].diagonal(mask.shape[-1] - length, 1, 2)
    seen = itself == 0 if mask.is_floating_point() else itself.bool()
    if not bool(seen.all()):
        raise ValueError("attention_mask hides tokens: prompts of different lengths, padded, are not supported")
