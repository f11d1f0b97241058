"""The engine's face towards asyncio: a thread runs the steps, any number of tasks on any event loop read their chunks.

Commands travel to the thread through a queue, chunks travel back with one call per event loop and step. So HTTP never
waits for a step and a step never waits for HTTP. It decides nothing about tokens.
"""

import asyncio
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine.answers import Output
from tinyserve.engine.engine import Engine
from tinyserve.engine.generator import EngineStats
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.preparation import PreparedRequest
from tinyserve.engine.request import Chunk, FinishReason

_log = logging.getLogger(__name__)

INLINE_CHARACTERS = (
    2000  # a prompt up to this long is tokenized on the event loop: 1 ms at most, less than a thread switch
)


class Stream:
    """The chunks of one request on their way to the task that reads them.

    Chunks that the reader has not fetched are merged, so a slow reader holds one text and no queue.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pending: list[Chunk] = []
        self._arrived = asyncio.Event()

    def put(self, chunk: Chunk) -> None:
        """Only on the stream's own loop."""
        self._pending.append(chunk)
        self._arrived.set()

    async def get(self) -> Chunk:
        """What became new since the last call, at least one chunk of it."""
        await self._arrived.wait()
        self._arrived.clear()
        chunks, self._pending = self._pending, []
        last = chunks[-1]
        if len(chunks) == 1:
            return last
        return replace(
            last,
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            logprobs=tuple(each for chunk in chunks for each in chunk.logprobs),
        )


@dataclass(frozen=True)
class _Add:
    prepared: PreparedRequest
    stream: Stream


@dataclass(frozen=True)
class _Abort:
    request_id: int


@dataclass(frozen=True)
class _Close:
    pass


class AsyncEngine:
    """A Generator (generator.py) on a real Engine. From here on the engine belongs to the thread.

    Args:
        engine: loaded and idle.
        model_name: under which it is known to clients.
    """

    def __init__(self, engine: Engine, model_name: str) -> None:
        self.model_name = model_name
        self.context_length = engine.context_length
        self._engine = engine
        self._commands: queue.SimpleQueue[_Add | _Abort | _Close] = queue.SimpleQueue()
        self._added: dict[int, _Add] = {}  # requests that have not ended; the thread's own
        self._is_closed = False
        self._failure: str | None = None  # why the thread has died
        self._lock = threading.Lock()  # of _is_closed and the command that depends on it
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def create(cls, config: EngineConfig, model_name: str | None = None) -> "AsyncEngine":
        """Loads the model; blocks until it can serve.

        Raises:
            FileNotFoundError, ValueError: as Engine.create.
        """
        return cls(Engine.create(config), model_name or config.model_path.resolve().name)

    @property
    def takes_images(self) -> bool:
        return self._engine.image_encoder is not None

    def count_tokens(self, text: str, images: Sequence[ImageFile] = ()) -> int:
        return self._engine.preparation.count_tokens(text, images)

    @property
    def has_chat_template(self) -> bool:
        return self._engine.tokenizer.has_chat_template

    def apply_chat_template(self, messages: list[dict[str, str]]) -> str:
        return self._engine.tokenizer.apply_chat_template(messages)

    def stats(self) -> EngineStats:
        if self._failure is not None:
            raise RuntimeError(self._failure)
        return self._engine.stats()

    async def generate(
        self, prompt: str, params: SamplingParams, priority: int = 0, images: Sequence[ImageFile] = ()
    ) -> AsyncGenerator[Chunk, None]:
        """See Generator.generate.

        Raises:
            RequestError: before the first chunk, when the prompt, an image or a parameter cannot be served.
            MemoryError: an image does not fit.
            RuntimeError: the engine is closed.
        """
        if len(prompt) <= INLINE_CHARACTERS and params.grammar is None:  # a grammar takes up to 50 ms to compile
            prepared = self._engine.prepare(prompt, params, priority, images)
        else:
            prepared = await asyncio.to_thread(self._engine.prepare, prompt, params, priority, images)
        stream = Stream(asyncio.get_running_loop())
        async with self._inserted(prepared):
            self._submit(_Add(prepared, stream))
            finished = False
            try:
                while not finished:
                    chunk = await stream.get()
                    finished = chunk.finish_reason is not None
                    yield chunk
            finally:
                if not finished:
                    self._commands.put(_Abort(prepared.request.id))

    @asynccontextmanager
    async def _inserted(self, prepared: PreparedRequest) -> AsyncIterator[None]:
        """Waits until the request's images are encoded, and keeps them as long as it lives."""
        encoder = self._engine.image_encoder
        if encoder is None or not prepared.images:
            yield
            return
        lease = encoder.submit(prepared.images)
        try:
            prepared.insert(await asyncio.wrap_future(lease.embeddings), lease.timing)
            yield
        finally:
            lease.release()

    async def close(self) -> None:
        """Ends every running request with finish_reason "abort", then the thread. May be called more than once."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._commands.put(_Close())
        await asyncio.to_thread(self._thread.join)
        if self._engine.image_encoder is not None:
            await asyncio.to_thread(self._engine.image_encoder.close)

    def _submit(self, command: _Add) -> None:
        with self._lock:  # nothing may enter the queue behind _Close and wait for ever
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            self._commands.put(command)

    def _run(self) -> None:
        """The thread: commands, a step, chunks out; asleep while there is nothing to do."""
        try:
            while self._obey():
                self._deliver(self._engine.step())
        except BaseException as error:
            _log.critical("the engine thread has died", exc_info=True)
            self._failure = f"the engine has failed: {type(error).__name__}: {error}"
            self._end_all("error", self._failure)
            raise
        self._end_all("abort", None)

    def _obey(self) -> bool:
        """Carries out every command that waits, and waits for one when idle. False: close."""
        while True:
            try:
                command = self._commands.get(block=not self._engine.has_work)
            except queue.Empty:
                return True
            if isinstance(command, _Close):
                return False
            if isinstance(command, _Abort):
                self._added.pop(command.request_id, None)
                self._engine.abort(command.request_id)
            else:
                self._added[command.prepared.request.id] = command
                self._engine.add(command.prepared)

    def _deliver(self, outputs: list[Output]) -> None:
        """Chunks to their streams, with one wake-up per event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Chunk]]] = defaultdict(list)
        for output in outputs:
            stream = self._added[output.request_id].stream
            by_loop[stream.loop].append((stream, output.chunk))
            if output.chunk.finish_reason is not None:
                del self._added[output.request_id]
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:  # that loop is closed: nobody is left to read what belongs to it
                for request_id in [key for key, added in self._added.items() if added.stream.loop is loop]:
                    del self._added[request_id]
                    self._engine.abort(request_id)

    def _end_all(self, reason: FinishReason, error: str | None) -> None:
        """Refuses new requests, and tells every stream that is left that its own has ended."""
        with self._lock:
            self._is_closed = True
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Add):
                self._added[command.prepared.request.id] = command
        outputs = []
        for request_id, added in self._added.items():
            self._engine.abort(request_id)
            outputs.append(Output(request_id, added.prepared.request.chunk("", (), reason, error)))
        self._deliver(outputs)


def _put_all(batch: list[tuple[Stream, Chunk]]) -> None:
    for stream, chunk in batch:
        stream.put(chunk)
