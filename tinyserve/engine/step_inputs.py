"""The inputs of one step on their way to the device: one buffer, one copy, and the same places for the same sizes.

A recorded step (recording.py) finds its inputs where the first one of its sizes had them, so nothing here moves: the
arrays of a step lie one behind the other in one int32 buffer, in an order that depends on its sizes alone. On a GPU
they are written into pinned memory and copied without waiting; there are two such buffers, since the host fills the
next step's while this one's copy may not have begun. It knows sizes and places, not what the numbers say.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int32]
Array = TypeVar("Array", Ints, Tensor)


@dataclass(frozen=True)
class Sizes:
    """Of one step: T tokens of B requests."""

    tokens: int  # T
    requests: int  # B
    rows: int | None = None  # R, tokens whose logits are wanted; None: all
    inserted: int = 0  # P, tokens that are parts of images


@dataclass(frozen=True, eq=False)
class Views(Generic[Array]):
    """The parts of a buffer for one step; int32, as layers.attention.BatchLayout has them."""

    known_ids: Array  # [T], tokens that the host knows
    sources: Array  # [T], where each token's id is found, see StepInputs.own_sources
    positions: Array  # [T]
    slots: Array  # [T]
    query_starts: Array  # [B + 1]
    context_lens: Array  # [B]
    block_tables: Array  # [B, max_blocks]
    rows: Array  # [R], in the flat batch
    inserted: Array  # [P], in the flat batch


def _num_elements(sizes: Sizes, max_blocks: int) -> int:
    return 4 * sizes.tokens + (2 + max_blocks) * sizes.requests + 1 + (sizes.rows or 0) + sizes.inserted


def _views(buffer: Array, sizes: Sizes, max_blocks: int) -> Views[Array]:
    """The parts of a buffer [n], n >= _num_elements, in the order of their names; known_ids first for all sizes."""
    requests = sizes.requests
    lengths = [*[sizes.tokens] * 4, requests + 1, requests, requests * max_blocks, sizes.rows or 0, sizes.inserted]
    parts: list[Array] = []
    end = 0
    for size in lengths:
        parts.append(buffer[end : end + size])
        end += size
    parts[6] = parts[6].reshape(requests, max_blocks)
    return Views(*parts)


class _Staging:
    """Two pinned buffers of int32 [size], filled and copied in turn."""

    def __init__(self, size: int) -> None:
        self._buffers = [torch.zeros(size, dtype=torch.int32, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]
        self._turn = 0

    def next(self) -> Ints:
        """The buffer to fill now, whose last copy is over: a wait in name only, two steps later."""
        self._turn ^= 1
        self._copied[self._turn].synchronize()
        return self._buffers[self._turn].numpy()

    def copy(self, target: Tensor) -> None:
        """Begins to copy as many elements as `target` has."""
        target.copy_(self._buffers[self._turn][: len(target)], non_blocking=True)
        self._copied[self._turn].record()


class StepInputs:
    """Args: max_tokens of one step, max_requests in it, max_blocks of one request; the model's device."""

    def __init__(self, max_tokens: int, max_requests: int, max_blocks: int, device: torch.device) -> None:
        self._max_blocks = max_blocks
        self._max_requests = max_requests
        size = _num_elements(Sizes(max_tokens, max_requests, max_tokens, max_tokens), max_blocks)
        # Tokens of the step before, which the host may not know yet, then this step's inputs: one index reaches both.
        self._pool = torch.zeros(max_requests + size, dtype=torch.int32, device=device)
        self._inputs = self._pool[max_requests:]
        self._token_ids = torch.zeros(max_tokens, dtype=torch.int32, device=device)
        self._own = np.arange(max_requests, max_requests + max_tokens, dtype=np.int32)
        # what a CPU computes with is written where it lies
        self._staging = _Staging(size) if device.type == "cuda" else None
        self._host: Ints = np.empty(0, np.int32) if self._staging else self._inputs.numpy()

    def own_sources(self, count: int) -> Ints:
        """`sources` of the first tokens of a step where each is its own entry of `known_ids`; row r: keep_tokens' r."""
        return self._own[:count]

    def to_fill(self, sizes: Sizes) -> Views[Ints]:
        """Where the host writes the next step's inputs; what is not written holds what an earlier step left."""
        if self._staging is not None:
            self._host = self._staging.next()
        return _views(self._host, sizes, self._max_blocks)

    def on_device(self, sizes: Sizes) -> Views[Tensor]:
        """Where a step of these sizes finds its inputs, every time."""
        return _views(self._inputs, sizes, self._max_blocks)

    def token_ids(self, sizes: Sizes) -> Tensor:
        """Where it finds the ids [T] of its tokens."""
        return self._token_ids[: sizes.tokens]

    @torch.inference_mode()
    def send(self, sizes: Sizes) -> None:
        """Brings what was filled to the device, and there the tokens' ids to their place; waits for nothing."""
        if self._staging is not None:
            self._staging.copy(self._inputs[: _num_elements(sizes, self._max_blocks)])
        sources = self._inputs[sizes.tokens : 2 * sizes.tokens]
        torch.index_select(self._pool, 0, sources, out=self.token_ids(sizes))

    @torch.inference_mode()
    def keep_tokens(self, tokens: Tensor) -> None:
        """Takes the tokens int32 [R] that are chosen after a step; the next one's `sources` may name them, 0 to R - 1.

        R is at most max_requests. A row without a token, -1, stands for 0: what follows it is thrown away.
        """
        torch.clamp(tokens, min=0, out=self._pool[: len(tokens)])
