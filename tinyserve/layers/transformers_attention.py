"""Attention of transformers' models over our paged cache, through transformers' own registry of attention functions.

A model hands queries, keys and values after RoPE, [1, H, T, D] for a flat batch, and what its scores need (scale,
window, soft cap). Where the tokens lie travels beside them as the keyword argument BATCH. What this cannot compute is
refused by name: an argument that changes scores and that is not known here must not be passed over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tinyserve import ops
from tinyserve.layers.attention import BatchLayout, LayerCache, attend_cached
from tinyserve.layers.attention_library import Scores

NAME = "tinyserve_paged"  # in transformers' registry; no mask function has it, so that no mask is made
BATCH = "tinyserve_batch"  # the keyword argument with a Batch

# What models hand over that says nothing new here: positions are in the layout, and all is causal and without dropout.
IGNORED = frozenset(
    ("dropout", "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states")
) | {"return_dict", "is_causal", "output_router_logits", "position_embeddings", "layer_past", "past_key_values"}


@dataclass(frozen=True)
class Heads:
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, eq=False)
class Handed:
    """What one layer has handed to its attention."""

    qkv: tuple[Tensor, Tensor, Tensor]  # queries [H, T, D], keys and values [Hkv, T, D]
    scale: float
    window: int
    soft_cap: float

    @property
    def heads(self) -> Heads:
        return Heads(num_kv_heads=len(self.qkv[1]), head_dim=self.qkv[1].shape[-1])


class Batch(Protocol):
    """One call of the whole model, as its attention layers see it."""

    def attend(
        self, index: int, qkv: tuple[Tensor, Tensor, Tensor], scale: float, window: int, soft_cap: float
    ) -> Tensor:
        """Of layer `index`: queries [H, T, D], keys and values [Hkv, T, D] -> [T, H, D]."""
        ...


@dataclass(frozen=True, eq=False)
class PagedBatch:
    """Reads and writes a paged cache. `no_rotation` is fp32 [P, 0]: keys come rotated."""

    layout: BatchLayout
    caches: Sequence[LayerCache]
    no_rotation: Tensor

    def attend(
        self, index: int, qkv: tuple[Tensor, Tensor, Tensor], scale: float, window: int, soft_cap: float
    ) -> Tensor:
        layout, cache = self.layout, self.caches[index]
        q = ops.rope_kv_write(
            torch.cat(qkv).transpose(0, 1).flatten(1),  # [T, (H + 2 Hkv) D]
            layout.positions,
            self.no_rotation,
            layout.slots,
            cache.k,
            cache.v,
            len(qkv[0]),
            cache.k_scales,
            cache.v_scales,
        )
        return attend_cached(q, layout, cache, Scores(scale, window, soft_cap))


@dataclass(eq=False)
class Survey:
    """Keeps what each layer hands over, and answers with zeros."""

    layers: dict[int, Handed] = field(default_factory=dict)

    def attend(
        self, index: int, qkv: tuple[Tensor, Tensor, Tensor], scale: float, window: int, soft_cap: float
    ) -> Tensor:
        q, k, v = qkv
        if index in self.layers:
            raise ValueError(f"layer {index} calls its attention twice")
        if k.shape != v.shape or q.shape[-1] != k.shape[-1] or len(q) % len(k):
            shapes = ", ".join(str(list(part.shape)) for part in qkv)
            raise ValueError(f"queries, keys and values must be [heads, T, D] of one D, got {shapes}")
        self.layers[index] = Handed(qkv, scale, window, soft_cap)
        return torch.zeros_like(q).transpose(0, 1)


def register() -> None:
    """Makes NAME an attention implementation of transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention modules call: [1, H, T, D] -> [1, T, H, D]."""
    batch: Batch | None = kwargs.pop(BATCH, None)
    if batch is None:
        raise ValueError(f"{type(module).__name__} does not hand on what its model is called with")
    unknown = [name for name, given in kwargs.items() if given is not None and name not in IGNORED]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if unknown:
        raise ValueError(f"{type(module).__name__} attends with {', '.join(sorted(unknown))}")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise ValueError(f"{type(module).__name__} is not causal")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = batch.attend(
        module.layer_idx,  # type: ignore[arg-type]
        (query[0], key[0], value[0]),
        scale,
        sliding_window or 0,
        softcap or 0.0,
    )
    return attended[None], None
