"""Runs a model over whole texts, for perplexity: our layers and kernels, a KV cache that lives as long as the call.

It knows no datasets and no perplexity protocol; awq.evaluate does.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tinyserve.config import KvCacheDtype
from tinyserve.layers.attention import BatchLayout, LayerCache
from tinyserve.models.language_model import LanguageModel

BLOCK_SIZE = 32


def logits(model: LanguageModel, token_ids: Tensor, kv_cache_dtype: KvCacheDtype = "auto") -> Tensor:
    """Logits [B, L, V], in the dtype of the activations, for token_ids [B, L].

    Raises:
        ValueError: token_ids is not [B, L], or L exceeds the model's context.
    """
    return model.logits(_hidden(model, token_ids, kv_cache_dtype)).view(*token_ids.shape, -1)


@torch.inference_mode()
def _hidden(model: LanguageModel, token_ids: Tensor, kv_cache_dtype: KvCacheDtype) -> Tensor:
    """Final hidden states [B * L, C]; one text at a time bounds the memory and changes no result."""
    if token_ids.dim() != 2:
        raise ValueError(f"token_ids must be [B, L], got {list(token_ids.shape)}")
    length = token_ids.shape[1]
    if length > model.num_positions:
        raise ValueError(f"a text must be at most {model.num_positions} tokens, got {length}")
    layout, caches = _layout(length, model.device), list(_caches(model, length, kv_cache_dtype))
    flat = token_ids.to(model.device, torch.int32)
    return torch.cat([model.forward(text, layout, caches) for text in flat])


def _layout(length: int, device: torch.device) -> BatchLayout:
    """One request in blocks 0, 1, 2, ..."""
    positions = torch.arange(length, dtype=torch.int32, device=device)
    return BatchLayout(
        positions=positions,
        slots=positions,
        block_tables=torch.arange(-(-length // BLOCK_SIZE), dtype=torch.int32, device=device).unsqueeze(0),
        query_starts=torch.tensor([0, length], dtype=torch.int32, device=device),
        context_lens=torch.tensor([length], dtype=torch.int32, device=device),
    )


def _caches(model: LanguageModel, length: int, dtype: KvCacheDtype) -> Iterator[LayerCache]:
    """One cache that every layer uses in turn: within a single pass no layer reads what another has written."""
    config = model.config
    heads = (-(-length // BLOCK_SIZE), config.num_kv_heads, BLOCK_SIZE)
    stored = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}.get(dtype, model.dtype)
    k, v = (torch.zeros(*heads, config.head_dim, dtype=stored, device=model.device) for _ in range(2))
    scales = [torch.zeros(heads, device=model.device) for _ in range(2)] if dtype != "auto" else []
    yield from [LayerCache(k, v, *scales)] * config.num_layers
