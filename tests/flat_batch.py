"""Runs whole prompts through a model as the engine does: one flat batch over a paged KV cache, in chunks."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tinyserve.layers.attention import BatchLayout, LayerCache
from tinyserve.models.language_model import LanguageModel
from tinyserve.models.llama import Inserted

BLOCK_SIZE = 8


def logits(
    model: LanguageModel, prompts: Sequence[Tensor], inserted: Inserted | None = None, chunk: int | None = None
) -> list[Tensor]:
    """Logits [L, V] of each prompt [L].

    Args:
        model: of any architecture.
        prompts: token ids; their blocks are interleaved in the cache.
        inserted: rows of all prompts one after another.
        chunk: tokens of each prompt in one step; None: all.
    """
    longest = max(len(prompt) for prompt in prompts)
    config, max_blocks = model.config, -(-longest // BLOCK_SIZE)
    shape = (max_blocks * len(prompts), config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    zeros = partial(torch.zeros, shape, dtype=model.dtype)
    caches = [LayerCache(zeros(), zeros()) for _ in range(config.num_layers)]
    offsets = torch.tensor([0, *(len(prompt) for prompt in prompts)]).cumsum(0).tolist()
    flat = torch.cat(list(prompts))
    parts: list[list[Tensor]] = [[] for _ in prompts]
    for start in range(0, longest, chunk or longest):
        spans = [(index, start, min(len(prompt), start + (chunk or longest))) for index, prompt in enumerate(prompts)]
        spans = [span for span in spans if span[1] < span[2]]
        rows = torch.cat([torch.arange(offsets[index] + first, offsets[index] + last) for index, first, last in spans])
        hidden = model.forward(
            flat[rows].to(torch.int32),
            _layout(spans, len(prompts), max_blocks),
            caches,
            inserted=_taken(inserted, rows),
        )
        sizes = [last - first for _, first, last in spans]
        for (index, _, _), part in zip(spans, model.logits(hidden).split(sizes), strict=True):
            parts[index].append(part)
    return [torch.cat(part) for part in parts]


def _layout(spans: list[tuple[int, int, int]], num_prompts: int, max_blocks: int) -> BatchLayout:
    """Spans are (prompt, first, past the last token); block b of prompt p is number b * num_prompts + p."""
    tables = torch.arange(max_blocks) * num_prompts + torch.tensor([index for index, _, _ in spans]).unsqueeze(1)
    positions = torch.cat([torch.arange(first, last) for _, first, last in spans])
    owner = torch.cat([torch.full((last - first,), row) for row, (_, first, last) in enumerate(spans)])
    slots = tables[owner, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    starts = torch.tensor([0, *(last - first for _, first, last in spans)]).cumsum(0)
    lengths = torch.tensor([last for _, _, last in spans])
    return BatchLayout(*(tensor.to(torch.int32) for tensor in (positions, slots, tables, starts, lengths)))


def _taken(inserted: Inserted | None, rows: Tensor) -> Inserted | None:
    """Those of the inserted rows that this step computes, by their places in it."""
    if inserted is None:
        return None
    here, place = (inserted.rows.unsqueeze(1) == rows).nonzero(as_tuple=True)
    return Inserted(place, inserted.embeddings[here])
