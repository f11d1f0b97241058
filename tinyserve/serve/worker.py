"""A worker: one loaded model that answers generation requests and tells a controller that it exists.

`ModelWorker` turns the parameters of a request into the records of a stream; worker_app.py puts it behind HTTP, and
model_worker.py is its command line. It takes any `Generator`, and knows neither batching nor the KV cache.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyserve.config import EngineConfig, Precision
from tinyserve.engine.generator import Generator, RequestError
from tinyserve.serve.admission import Admission
from tinyserve.serve.answer import Answer
from tinyserve.serve.chat_format import ChatFormat
from tinyserve.serve.generate_params import parse
from tinyserve.serve.request_reader import RequestReader
from tinyserve.serve.samples import samples
from tinyserve.serve.served_model import default_precision, load_generator, load_in, name_of
from tinyserve.serve.wire import ErrorCode, error_record
from tinyserve.serve.worker_heartbeat import Heartbeat

log = logging.getLogger(__name__)

MAX_WAITING = 1024  # requests beyond those that run; one more is told that the worker is overloaded


class GenerationError(RuntimeError):
    """The engine gave up a request; the text says why."""


class ModelWorker:
    """Serves one model. The arguments are LLaVA's in its order, llm-awq's and ours; all may be given by name."""

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        worker_id: str,
        no_register: bool,
        model_path: str | Path,
        model_base: str | Path | None = None,
        model_name: str | Sequence[str] | None = None,
        load_8bit: bool = False,
        load_4bit: bool = False,
        device: str = "auto",
        use_flash_attn: bool = False,
        *,
        model_type: str | None = None,
        quant_path: str | Path | None = None,
        precision: Precision | None = None,
        generator: Generator | None = None,
        limit_model_concurrency: int | None = None,
        max_open: int = EngineConfig.max_num_requests + MAX_WAITING,
        stream_interval: int = 1,
        speed: float = 1,
        heartbeat_interval: float = 30.0,
        worker_token: str | None = None,
        conv_mode: str | None = None,
    ) -> None:
        """Loads the model unless a generator is given, then registers, unless told not to, in the background.

        Args:
            controller_addr, worker_addr: http(s)://host:port of the controller and of this worker as others reach it.
            worker_id: a short name for logs.
            no_register: True: no controller is told.
            model_path: a Hugging Face folder.
            model_base: the 16-bit model that an adapter or projector in model_path belongs to.
            load_8bit, load_4bit: 16-bit linear layers are quantized by bitsandbytes at load.
            model_name: one or several names; None: from the path, see `model_names`.
            device: auto, cpu or cuda.
            use_flash_attn: on a GPU the attention of prompts is computed by the first library of
                layers/attention_registry.py that is installed; on a CPU it has no effect.
            model_type: accepted for compatibility; the type is read from the checkpoint.
            quant_path: AWQ checkpoint with the linear layers of `model_path`.
            precision: W4A16 or W16A16; None: W4A16 where the checkpoint or quant_path is quantized.
            generator: produces the text in place of a model loaded here.
            limit_model_concurrency: requests that the engine has at once; None: all, so that it chooses who goes first.
            max_open: requests in service and waiting; one more is told that the worker is overloaded.
            stream_interval: tokens between two records.
            speed: relative to other workers of the model, for the controller's dispatch.
            heartbeat_interval: seconds.
            worker_token: the secret that the controller asks of its workers.
            conv_mode: which of LLaVA's conversation templates the model was trained with; None: see chat_format.py.

        Raises:
            ValueError, OSError: the model cannot be loaded; the message names what is wrong.
        """
        model_path = Path(model_path)
        model_base = Path(model_base) if model_base else None
        quant_path = Path(quant_path) if quant_path else None
        precision = precision or default_precision(model_path, quant_path, model_base)
        if generator is None:
            config = EngineConfig(
                model_path=model_path,
                quant_path=quant_path,
                precision=precision,
                model_base=model_base,
                load_in=load_in(load_8bit, load_4bit),
                device=device,
                use_flash_attn=use_flash_attn,
            )
            generator = load_generator(config)
        names = [model_name] if isinstance(model_name, str) else list(model_name or ())
        self.worker_id = worker_id
        self.controller_addr = controller_addr.rstrip("/")
        self.worker_addr = worker_addr.rstrip("/")
        self.generator = generator
        self.model_names = names or [name_of(model_path, precision)]
        render = generator.apply_chat_template if generator.has_chat_template else None
        self._chat_format = ChatFormat(self.model_names[0], render, conv_mode)
        self._reader = RequestReader(generator, self.model_names, self._chat_format)
        self.speed = speed
        self.stream_interval = stream_interval
        self.call_count = 0
        self.failure: str | None = None  # why the generator can produce nothing any more
        self._heartbeat = Heartbeat(
            self.controller_addr,
            self.worker_addr,
            self.get_status,
            heartbeat_interval,
            worker_token,
            multimodal=generator.takes_images,
        )
        self._registers = not no_register
        limit = max_open if limit_model_concurrency is None else limit_model_concurrency
        self.admission = Admission(limit, max_open, self._queue_changed)
        if self._registers:
            self._heartbeat.start()

    @property
    def context_length(self) -> int:
        return self.generator.context_length

    def register_to_controller(self) -> None:
        """Registers now.

        Raises:
            HeartbeatError: the controller cannot be reached, or refuses.
        """
        self._heartbeat.register()

    def send_heart_beat(self) -> None:
        """Reports the queue length now, and registers again when the controller has forgotten this worker.

        Raises:
            HeartbeatError: the controller cannot be reached, or refuses.
        """
        if not self._heartbeat.send():
            self._heartbeat.register()

    def get_queue_length(self) -> int:
        """Requests in service and waiting for it."""
        return self.admission.queue_length

    def get_status(self) -> dict[str, Any]:
        return {"model_names": self.model_names, "speed": self.speed, "queue_length": self.get_queue_length()}

    def get_conv_template(self) -> dict[str, Any]:
        """How the model wants its conversations, as a FastChat conversation."""
        return self._chat_format.as_fastchat()

    async def stream(self, params: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """The records of one request. Closing the generator ends the request in the engine.

        Raises:
            RequestError: the request is wrong; before the first record.
            GenerationError: the engine gave up.
        """
        request = parse(params)
        question = await self._reader.read(request)
        del params  # as large as its images, which are decoded now
        request = replace(request, images=())
        answers = [Answer(request, question.prompt, index, self.stream_interval) for index in range(request.n)]
        generate = functools.partial(
            self.generator.generate, question.prompt, priority=request.priority, images=question.images
        )
        async with aclosing(samples(generate, question.sampling, request.n)) as chunks:
            async for index, chunk in chunks:
                if chunk.finish_reason in ("error", "abort"):
                    raise GenerationError(chunk.error or "the request was aborted")
                if answers[index].add(chunk):
                    yield answers[index].record(chunk, sum(answer.num_tokens for answer in answers))

    async def stream_gate(self, params: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """As `stream`, with every failure as a last record that has an error_code."""
        try:
            async with aclosing(self.stream(params)) as records:
                async for record in records:
                    yield record
        except Exception as error:
            yield failure_record(error)

    async def serve(self, params: Mapping[str, Any], num_bytes: int = 0) -> AsyncGenerator[bytes, None]:
        """As `stream_gate`, within the limits on requests and on what they take; `num_bytes`: of the request."""
        self.call_count += 1
        stream = self.stream(params)
        del params
        try:
            with self._reader.held(num_bytes):
                async with self.admission.permit(), aclosing(stream) as records:
                    async for record in records:
                        yield record
        except Exception as error:
            yield failure_record(error)

    def generate_stream(self, params: Mapping[str, Any]) -> Iterator[bytes]:
        """As `stream`, for callers without an event loop; abandoning the iterator ends the request."""
        return _iterate(self.stream(params))

    def generate_stream_gate(self, params: Mapping[str, Any]) -> Iterator[bytes]:
        """As `stream_gate`, for callers without an event loop."""
        return _iterate(self.stream_gate(params))

    async def count_tokens(self, prompt: str, images: Sequence[str] = ()) -> int:
        """See RequestReader.count_tokens."""
        return await self._reader.count_tokens(prompt, images)

    async def close(self) -> None:
        """Ends the heartbeats and the generator."""
        self._heartbeat.stop()
        await self.generator.close()

    def _queue_changed(self) -> None:
        if self._registers:
            self._heartbeat.notify()


def failure_record(error: Exception) -> bytes:
    """The last record of a stream that failed."""
    if isinstance(error, RequestError):
        return error_record(error.code, str(error))
    if isinstance(error, MemoryError):
        what = f": {error}" if str(error) else ""
        return error_record(ErrorCode.OUT_OF_MEMORY, f"the worker ran out of memory{what}")
    if isinstance(error, GenerationError):
        return error_record(ErrorCode.INTERNAL, f"generation failed: {error}")
    log.error("a request failed", exc_info=error)
    return error_record(ErrorCode.INTERNAL, f"generation failed: {type(error).__name__}: {error}")


def _iterate(records: AsyncGenerator[bytes, None]) -> Iterator[bytes]:
    """Runs an async generator in an event loop of its own, in the thread that iterates."""
    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(records))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(records.aclose())
        loop.close()
