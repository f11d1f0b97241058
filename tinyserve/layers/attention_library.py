"""Attention of prompts by another library where it can, by our own kernel where it cannot.

It decides who computes a layer of a step, and says once in the log why the own kernel has to. Only steps with prompts
in them come here: a decode step is one kernel of ours from the projection on, recorded in graphs. It knows no library;
those are in attention_registry.py.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_log = logging.getLogger(__name__)

Ints = NDArray[np.int32]
DTYPES = (torch.float16, torch.bfloat16)  # that all libraries have, of queries and cache alike


class Unsupported(Exception):
    """What a library cannot do, said before it has done anything; the text follows "attention of prompts "."""


@dataclass(frozen=True, eq=False)
class HostLayout:
    """What layers.attention.BatchLayout says of a step's requests, on the host: nobody has to wait for the device.

    The arrays are valid while the step is launched.
    """

    block_size: int  # S
    query_starts: Ints  # [B + 1]
    context_lens: Ints  # [B]
    block_tables: Ints  # [B, max_blocks]; undefined behind the blocks of a request's context


@dataclass(frozen=True, eq=False)
class Scores:
    """How a layer scores keys, as ops.paged_attention has it."""

    scale: float
    window: int = 0
    soft_cap: float = 0.0
    alibi_slopes: Tensor | None = None  # fp32 [H]


Attend = Callable[[Tensor, Tensor, Tensor, Scores], Tensor]  # q [T, H, D], cache k, v [blocks, Hkv, S, D] -> [T, H, D]
MayAttend = Callable[[Tensor, Tensor, Tensor, Scores], Tensor | None]  # None: not computed, the own kernel has to


class Library(Protocol):
    name: str  # with its version

    def plan(self, host: HostLayout, query_starts: Tensor) -> Attend:
        """What computes the layers of one step, one after another; waits for nothing.

        Args:
            host: the step.
            query_starts: its query_starts on the device.

        Raises:
            Unsupported: no layer of this step can be computed. The result raises it for a single layer.
        """
        ...


class LibraryAttention:
    """One library for the steps of one engine."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._said: set[str] = set()

    def step(self, host: HostLayout, query_starts: Tensor) -> MayAttend | None:
        """As Library.plan; None: the own kernel computes all layers of this step."""
        try:
            return functools.partial(self._attend, self._library.plan(host, query_starts))
        except Unsupported as what:
            self._say(what)
            return None

    def _attend(self, attend: Attend, q: Tensor, k_cache: Tensor, v_cache: Tensor, scores: Scores) -> Tensor | None:
        try:
            if q.dtype not in DTYPES or k_cache.dtype != q.dtype:
                names = " over a cache of ".join(str(x.dtype).removeprefix("torch.") for x in (q, k_cache))
                raise Unsupported(f"in {names}")
            return attend(q, k_cache, v_cache, scores)
        except Unsupported as what:
            self._say(what)
            return None

    def _say(self, what: Unsupported) -> None:
        if str(what) not in self._said:
            self._said.add(str(what))
            _log.info("attention of prompts %s is computed by the own kernel, not by %s", what, self._library.name)


def check_scores(scores: Scores, has_window: bool, has_soft_cap: bool, has_alibi: bool) -> None:
    """Raises Unsupported where a layer scores in a way that the library has no argument for."""
    if scores.window and not has_window:
        raise Unsupported("in a sliding window")
    if scores.soft_cap and not has_soft_cap:
        raise Unsupported("with a soft cap")
    if scores.alibi_slopes is not None and not has_alibi:
        raise Unsupported("with ALiBi")


def pinned(values: Ints, device: torch.device) -> Tensor:
    """A copy on the host, out of which a transfer to a GPU does not wait; torch keeps its memory until that is over."""
    return torch.tensor(values, pin_memory=device.type == "cuda")


def sent(values: Ints, device: torch.device) -> Tensor:
    """A copy on the device, on its way: nothing is waited for."""
    return pinned(values, device).to(device, non_blocking=True)
