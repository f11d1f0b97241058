"""Runs one planned step: builds the flat batch, calls the model, returns the logits that are wanted.

Its input tensors are allocated once, at their largest, and written through NumPy, whose assignments cost a tenth of a
tensor's. It decides nothing: the scheduler has planned the step, the sampler will choose the tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinyserve import ops
from tinyserve.engine.insertion import insertion
from tinyserve.engine.request import Request
from tinyserve.engine.scheduler import Chunked, Step
from tinyserve.layers.attention import BatchLayout, LayerCache
from tinyserve.layers.huge_pages import huge_bytes
from tinyserve.models.language_model import LanguageModel

MAX_RECORDED = 64  # requests of a decode step; with more, what is between the kernels is nothing beside them
TAPE_BYTES = 256 << 20  # for the intermediate tensors of the largest such step


class _Input:
    """An int32 tensor [size] on the CPU, its NumPy view, and the first part of it on the model's device."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._tensor = torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = device
        self.array = self._tensor.numpy()

    def head(self, size: int) -> Tensor:
        part = self._tensor[:size]
        # a copy that returns before it is done would race with the next step's writes
        return part if self._device.type == "cpu" else part.to(self._device)


def _is_small_decode(step: Step) -> bool:
    return len(step.chunks) <= MAX_RECORDED and all(chunk.is_last and chunk.num_rows == 1 for chunk in step.chunks)


@dataclass(frozen=True)
class Due:
    """One request whose next token can be chosen from row `row` of the logits, and from the next ones if it drafted."""

    request: Request
    row: int
    drafts: tuple[int, ...]


class ModelRunner:
    """Args: max_tokens of one step, max_requests in it, max_blocks of one request."""

    def __init__(
        self,
        model: LanguageModel,
        caches: list[LayerCache],
        block_size: int,
        max_tokens: int,
        max_requests: int,
        max_blocks: int,
    ) -> None:
        self._model = model
        self._caches = caches
        self._block_size = block_size
        device = model.device
        self._token_ids = _Input(max_tokens, device)
        self._positions = _Input(max_tokens, device)
        self._slots = _Input(max_tokens, device)
        self._starts = _Input(max_requests + 1, device)
        self._lengths = _Input(max_requests, device)
        self._rows = _Input(max_tokens, device)
        self._tables = _Input(max_requests * max_blocks, device)
        self._max_blocks = max_blocks
        self._records = model.only_own_kernels and ops.can_record(device)
        self._tapes: dict[int, ops.Tape] = {}  # of decode steps, by their number of requests
        self._tape_memory = huge_bytes(TAPE_BYTES if self._records else 0)  # mapped on first touch

    def run(self, step: Step) -> tuple[list[Due], Tensor]:
        """Computes the step; Scheduler.complete says that it has run.

        Returns:
            The requests whose next token is due, and the logits [R, V] of them and of their drafts.
        """
        num_requests = len(step.chunks)
        inserted = insertion(step)
        is_recorded = self._records and inserted is None and _is_small_decode(step)
        # a recorded step finds everything where the first one of its size had it
        num_blocks = self._max_blocks if is_recorded else max(len(chunk.request.block_ids) for chunk in step.chunks)
        tables = self._tables.array[: num_requests * num_blocks].reshape(num_requests, num_blocks)
        due: list[Due] = []
        end = num_rows = 0
        for index, chunk in enumerate(step.chunks):
            request, start = chunk.request, end
            end += chunk.num_rows
            self._fill_tokens(chunk, start, end)
            tables[index, : len(request.block_ids)] = request.block_ids
            self._starts.array[index + 1] = end
            self._lengths.array[index] = request.num_computed + chunk.num_rows
            if chunk.is_last:
                due.append(Due(request, num_rows, chunk.drafts))
                for row in range(end - 1 - len(chunk.drafts), end):
                    self._rows.array[num_rows] = row
                    num_rows += 1
        layout = BatchLayout(
            positions=self._positions.head(end),
            slots=self._slots.head(end),
            block_tables=self._tables.head(num_requests * num_blocks).view(num_requests, num_blocks),
            query_starts=self._starts.head(num_requests + 1),
            context_lens=self._lengths.head(num_requests),
        )
        if is_recorded:
            return due, self._decode(end, layout)
        rows = None if num_rows == end else self._rows.head(num_rows)  # in pure decode every row is wanted
        if inserted is not None:  # the ids of placeholders are none of the vocabulary's
            np.maximum(self._token_ids.array[:end], 0, out=self._token_ids.array[:end])
        hidden = self._model.forward(self._token_ids.head(end), layout, self._caches, rows, inserted)
        return due, self._model.logits(hidden)

    def _decode(self, size: int, layout: BatchLayout) -> Tensor:
        """The logits [size, V] of a step of one token for each of `size` requests, in the same memory each time."""
        tape = self._tapes.get(size)
        if tape is not None:
            return tape.replay()
        ids = self._token_ids.head(size)
        self._tapes[size] = tape = ops.Tape(
            lambda: self._model.logits(self._model.forward(ids, layout, self._caches, rows=None)), self._tape_memory
        )
        return tape.result

    def _fill_tokens(self, chunk: Chunked, start: int, end: int) -> None:
        """Rows start..end of the flat batch: the request's tokens from `num_computed` on, then its drafts."""
        request = chunk.request
        size, first = self._block_size, request.num_computed
        if end - start == 1:
            self._token_ids.array[start] = request.token_ids[first]
            self._positions.array[start] = first
            self._slots.array[start] = request.block_ids[first // size] * size + first % size
            return
        last = first + end - start
        positions = np.arange(first, last, dtype=np.int32)
        blocks = np.asarray(request.block_ids, dtype=np.int32)
        self._token_ids.array[start:end] = [*request.token_ids[first : first + chunk.num_tokens], *chunk.drafts]
        self._positions.array[start:end] = positions
        self._slots.array[start:end] = blocks[positions // size] * size + positions % size
