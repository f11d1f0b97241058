"""Attention of prompts by libraries that want the keys of each request in a row: flash-attn, torch's varlen_attn.

Both read pages too, but flash-attn 2 only pages of a multiple of 256 tokens, and ours have 128 at most. So the keys
and values of a step's contexts are copied out of the cache for each layer, which costs little where each of them meets
many queries; where they are many beside the step's tokens, the step is left to the own kernel. Both align the causal
mask with the last key (flash-attn from 2.1 on), so a prefix that was computed before needs nothing more. Both have
the own kernel's head dimensions: multiples of 8 up to 256.

Written from the documentation of flash-attn 2 and the source of torch 2.13; never run with either on a GPU.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyserve.layers.attention_library import Attend, HostLayout, Scores, Unsupported, check_scores, sent

MAX_COPIED = 8  # keys for each token of a step: bounds the copies' memory and their share of the time; not measured


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the queries of a step are, and its keys once they are in a row, on the device and in numbers."""

    query_starts: Tensor  # int32 [B + 1]
    key_starts: Tensor  # int32 [B + 1]
    max_queries: int  # of one request
    max_keys: int
    blocks: Tensor  # int64 [Tk], of each key in the cache
    offsets: Tensor  # int64 [Tk], in its block


Function = Callable[[Tensor, Tensor, Tensor, Rows, Scores], Tensor]  # q [T, H, D], k and v [Tk, Hkv, D] -> [T, H, D]


class VarlenAttention:
    """Args: name with version; function; which of these kinds of scores it computes."""

    def __init__(self, name: str, function: Function, has_soft_cap: bool, has_alibi: bool) -> None:
        self.name = name
        self._function = function
        self._has_soft_cap, self._has_alibi = has_soft_cap, has_alibi

    def plan(self, host: HostLayout, query_starts: Tensor) -> Attend:
        num_tokens, num_keys = int(host.query_starts[-1]), int(host.context_lens.sum())
        if num_keys > MAX_COPIED * num_tokens:
            raise Unsupported(f"with more than {MAX_COPIED} keys for each token of a step")
        return functools.partial(self._attend, _rows(host, query_starts, num_keys))

    def _attend(self, rows: Rows, q: Tensor, k_cache: Tensor, v_cache: Tensor, scores: Scores) -> Tensor:
        check_scores(scores, True, self._has_soft_cap, self._has_alibi)
        k, v = (cache.transpose(1, 2)[rows.blocks, rows.offsets] for cache in (k_cache, v_cache))
        return self._function(q, k, v, rows, scores)


def _rows(host: HostLayout, query_starts: Tensor, num_keys: int) -> Rows:
    lengths = host.context_lens
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    owners = np.repeat(np.arange(len(lengths)), lengths)  # [Tk], the request of each key
    positions = np.arange(num_keys, dtype=np.int32) - starts[owners]
    blocks = host.block_tables[owners, positions // host.block_size]
    index = sent(np.stack([blocks, positions % host.block_size]), query_starts.device).long()
    max_queries = int(np.diff(host.query_starts).max())
    key_starts = sent(starts, query_starts.device)
    return Rows(query_starts, key_starts, max_queries, int(lengths.max()), index[0], index[1])


def _left(window: int) -> int:
    """Keys before the query's own, as the libraries count a window; -1: all."""
    return window - 1


def load_flash_attn(device: torch.device) -> VarlenAttention:
    """flash_attn.flash_attn_varlen_func, FlashAttention-2. Raises ImportError."""
    import flash_attn

    function: Any = flash_attn.flash_attn_varlen_func
    arguments = inspect.signature(function).parameters
    if "window_size" not in arguments:
        raise ImportError("older than 2.3, its function has no window_size")

    def attend(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scores: Scores) -> Tensor:
        more: dict[str, Any] = {}  # arguments that older versions lack are named only where a layer needs them
        if scores.soft_cap:
            more["softcap"] = scores.soft_cap
        if scores.alibi_slopes is not None:
            more["alibi_slopes"] = scores.alibi_slopes
        result: Tensor = function(
            q, k, v, rows.query_starts, rows.key_starts, rows.max_queries, rows.max_keys,
            softmax_scale=scores.scale, causal=True, window_size=(_left(scores.window), 0), **more,
        )  # fmt: skip
        return result

    name = f"flash-attn {flash_attn.__version__}"
    return VarlenAttention(name, attend, "softcap" in arguments, "alibi_slopes" in arguments)


def load_varlen_attn(device: torch.device) -> VarlenAttention:
    """torch.nn.attention.varlen.varlen_attn, FlashAttention-2 inside torch. Raises ImportError."""
    from torch.nn.attention import varlen

    function: Any = varlen.varlen_attn
    missing = {"scale", "window_size", "enable_gqa"} - set(inspect.signature(function).parameters)
    if missing:
        raise ImportError(f"torch {torch.__version__} is too old, its function has no {', '.join(sorted(missing))}")

    def attend(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scores: Scores) -> Tensor:
        result: Tensor = function(
            q, k, v, rows.query_starts, rows.key_starts, rows.max_queries, rows.max_keys,
            scale=scores.scale, window_size=(_left(scores.window), 0), enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        return result

    return VarlenAttention(f"torch {torch.__version__}", attend, has_soft_cap=False, has_alibi=False)
