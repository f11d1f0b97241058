"""Runs one planned step: builds the flat batch, calls the model, returns the logits that are wanted.

It decides nothing: the scheduler has planned the step, the sampler will choose the tokens. It waits for nothing either:
on a GPU a step is only launched, and the newest token of a request may be one that the host does not know yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tinyserve.engine.insertion import Insertion, insertion
from tinyserve.engine.recording import Work, recordings
from tinyserve.engine.request import Request
from tinyserve.engine.scheduler import Chunked, Step
from tinyserve.engine.step_inputs import Ints, Sizes, StepInputs, Views
from tinyserve.layers.attention import BatchLayout, LayerCache
from tinyserve.layers.attention_library import HostLayout, LibraryAttention
from tinyserve.models.language_model import LanguageModel
from tinyserve.models.llama import Inserted


@dataclass(frozen=True)
class Due:
    """One request whose next token can be chosen from row `row` of the logits, and from the next ones if it drafted."""

    request: Request
    row: int
    drafts: tuple[int, ...]


def _is_decode(step: Step) -> bool:
    return all(chunk.is_last and chunk.num_rows == 1 for chunk in step.chunks)


class ModelRunner:
    """Args: max_tokens of one step, max_requests in it, max_blocks of one request; enforce_eager: nothing recorded.

    library: computes the attention of steps with prompts in them; None: the own kernel.
    """

    def __init__(
        self,
        model: LanguageModel,
        caches: list[LayerCache],
        block_size: int,
        max_tokens: int,
        max_requests: int,
        max_blocks: int,
        enforce_eager: bool = False,
        library: LibraryAttention | None = None,
    ) -> None:
        self._model = model
        self._caches = caches
        self._block_size = block_size
        self._library = library
        self._inputs = StepInputs(max_tokens, max_requests, max_blocks, model.device)
        self._recordings = None if enforce_eager else recordings(model, max_requests)
        self._unread: dict[Request, int] = {}  # whose newest token may be on the device only, and its row there

    def record(self) -> None:
        """Records decode steps where that has to be done before the first request."""
        if self._recordings is not None:
            self._recordings.prepare(self._padded_step)

    def run(self, step: Step) -> tuple[list[Due], Tensor]:
        """Launches the step; Scheduler.complete is to be told so.

        Returns:
            The requests whose next token is due, and the logits [R, V] of them and of their drafts, valid until the
            next step is launched.
        """
        image = insertion(step)
        due, rows = _due(step)
        if self._recordings is not None and image is None and _is_decode(step):
            size = self._recordings.size(len(step.chunks))
            if size is not None:
                sizes = Sizes(size, size)
                self._fill(step.chunks, sizes)
                self._inputs.send(sizes)
                return due, self._recordings.run(size, lambda: self._compute(sizes))[: len(due)]
        wanted = None if len(rows) == step.num_tokens else len(rows)
        sizes = Sizes(step.num_tokens, len(step.chunks), wanted, 0 if image is None else len(image.rows))
        host = self._fill(step.chunks, sizes)
        if wanted is not None:
            host.rows[:] = rows
        if image is not None:
            host.inserted[:] = image.rows
            np.maximum(host.known_ids, 0, out=host.known_ids)  # the ids of placeholders are none of the vocabulary's
        self._inputs.send(sizes)
        return due, self._compute(sizes, image, host)

    def keep_tokens(self, due: Sequence[Due], tokens: Tensor) -> None:
        """Takes the tokens int [R], on the device, that the requests `due`, without drafts, got after the last step.

        The next step finds there what the host does not know.
        """
        self._inputs.keep_tokens(tokens)
        self._unread = {one.request: row for row, one in enumerate(due)}

    def _compute(self, sizes: Sizes, image: Insertion | None = None, host: Views[Ints] | None = None) -> Tensor:
        """The logits of a step whose inputs have been sent; works on the same memory for the same sizes.

        Without `host`, the inputs as the host filled them, only the own kernels compute attention.
        """
        inputs = self._inputs.on_device(sizes)
        library = None
        if self._library is not None and host is not None and sizes.tokens > sizes.requests:
            known = HostLayout(self._block_size, host.query_starts, host.context_lens, host.block_tables)
            library = self._library.step(known, inputs.query_starts)
        layout = BatchLayout(
            inputs.positions,
            inputs.slots,
            inputs.block_tables,
            inputs.query_starts,
            inputs.context_lens,
            library=library,
        )
        inserted = None if image is None else Inserted(inputs.inserted.long(), image.embeddings)
        rows = None if sizes.rows is None else inputs.rows
        return self._model.logits(
            self._model.forward(self._inputs.token_ids(sizes), layout, self._caches, rows, inserted)
        )

    def _padded_step(self, size: int) -> Work:
        """What computes a step of `size` requests that are all padding; its inputs have been sent."""
        sizes = Sizes(size, size)
        self._fill((), sizes)
        self._inputs.send(sizes)
        return lambda: self._compute(sizes)

    def _fill(self, chunks: Sequence[Chunked], sizes: Sizes) -> Views[Ints]:
        """Writes the inputs of all chunks, and of padding where the step is to have more requests."""
        host = self._inputs.to_fill(sizes)
        host.sources[:] = self._inputs.own_sources(sizes.tokens)
        host.query_starts[0] = end = 0
        for index, chunk in enumerate(chunks):
            request, start = chunk.request, end
            end += chunk.num_rows
            self._fill_tokens(host, chunk, start, end)
            host.block_tables[index, : len(request.block_ids)] = request.block_ids
            host.query_starts[index + 1] = end
            host.context_lens[index] = request.num_computed + chunk.num_rows
        if end < sizes.tokens:
            self._pad(host, end, sizes.tokens)
        return host

    def _pad(self, host: Views[Ints], start: int, end: int) -> None:
        """Rows and requests start..end of a decode step that nobody asked for.

        Each has one token, 0, that is written nowhere and sees nothing: attention cuts its work into equal shares, so
        one key more would change where another request is cut, and so its bits.
        """
        host.known_ids[start:end] = host.positions[start:end] = 0
        host.slots[start:end] = -1
        host.query_starts[start : end + 1] = np.arange(start, end + 1)
        host.context_lens[start:end] = 0

    def _fill_tokens(self, host: Views[Ints], chunk: Chunked, start: int, end: int) -> None:
        """Rows start..end of the flat batch: the request's tokens from `num_computed` on, then its drafts."""
        request = chunk.request
        size, first = self._block_size, request.num_computed
        last = first + end - start
        if end - start == 1:
            if first < len(request.token_ids):
                host.known_ids[start] = request.token_ids[first]
            host.positions[start] = first
            host.slots[start] = request.block_ids[first // size] * size + first % size
        else:
            positions = np.arange(first, last, dtype=np.int32)
            blocks = np.asarray(request.block_ids, dtype=np.int32)
            known = [*request.token_ids[first : first + chunk.num_tokens], *chunk.drafts]
            host.known_ids[start : start + len(known)] = known
            host.positions[start:end] = positions
            host.slots[start:end] = blocks[positions // size] * size + positions % size
        if first + chunk.num_tokens > len(request.token_ids):  # the last of them is unread
            host.sources[end - 1] = self._unread[request]


def _due(step: Step) -> tuple[list[Due], list[int]]:
    """The requests whose next token is due, and the rows of the flat batch whose logits they need."""
    due: list[Due] = []
    rows: list[int] = []
    end = 0
    for chunk in step.chunks:
        end += chunk.num_rows
        if chunk.is_last:
            due.append(Due(chunk.request, len(rows), chunk.drafts))
            rows += range(end - 1 - len(chunk.drafts), end)
    return due, rows
