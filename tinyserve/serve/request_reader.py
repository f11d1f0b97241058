"""From a client's checked fields to what the generator is asked: the prompt, its images, the settings.

Here a conversation becomes a prompt and base64 becomes files, and what this model cannot serve is refused before it
costs anything. It knows no records and no queue.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tinyserve.config import SamplingParams
from tinyserve.engine.generator import Generator, RequestError
from tinyserve.engine.image_file import ImageFile
from tinyserve.serve.chat_format import ChatFormat
from tinyserve.serve.generate_params import GenerateParams, with_stop
from tinyserve.serve.image_input import check_number, read_images
from tinyserve.serve.wire import ErrorCode

MAX_CHARACTERS_PER_TOKEN = 32  # on average over a prompt; beyond it, not even runs of blanks fit the context
MAX_HELD_BYTES = 1 << 30  # of the bodies of all open requests


@dataclass(frozen=True)
class Question:
    """What the generator is asked."""

    prompt: str
    images: Sequence[ImageFile]  # one for each <image> of the prompt
    sampling: SamplingParams


class RequestReader:
    """Args: generator; model_names it is served under; chat_format of its conversations; max_held_bytes, see `held`."""

    def __init__(
        self,
        generator: Generator,
        model_names: Sequence[str],
        chat_format: ChatFormat,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._generator = generator
        self._model_names = model_names
        self._chat_format = chat_format
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0
        self._lock = threading.Lock()  # requests may come from several event loops

    async def read(self, request: GenerateParams) -> Question:
        """Raises RequestError when this model cannot serve it."""
        if request.model is not None and request.model not in self._model_names:
            served = ", ".join(self._model_names)
            raise RequestError(ErrorCode.INVALID_MODEL, f"model {request.model!r} is not served here; this is {served}")
        if request.messages is None:
            assert request.prompt is not None
            self._check_length(request.prompt)  # whoever builds prompts also says where answers end
            return Question(request.prompt, await self._files(request.images), request.sampling)
        self._check_length("".join(message["content"] for message in request.messages))
        try:
            prompt = self._chat_format.prompt(request.messages)
        except Exception as error:  # a template is a program that raises what it likes about the conversation
            raise RequestError(ErrorCode.VALIDATION, f"messages: {error}") from error
        sampling = with_stop(request.sampling, self._chat_format.stop)
        return Question(prompt, await self._files(request.images), sampling)

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Counts the bytes of a request, its images above all, from its arrival to its end.

        Raises:
            RequestError: 42903 when those of all open requests would exceed the limit; a request alone never does.
        """
        with self._lock:
            if size and self._held_bytes and self._held_bytes + size > self._max_held_bytes:
                message = f"overloaded: open requests take {self._held_bytes} bytes; try again later"
                raise RequestError(ErrorCode.OVERLOADED, message)
            self._held_bytes += size
        try:
            yield
        finally:
            with self._lock:
                self._held_bytes -= size

    async def count_tokens(self, prompt: str, images: Sequence[str] = ()) -> int:
        """Raises RequestError when the prompt is far longer than the context, or an image cannot be used.

        Args:
            images: base64, one for each `<image>`; none: each counts as one of the vision tower's own size.
        """
        self._check_length(prompt)
        check_number(images)
        with self.held(sum(map(len, images))):
            return await asyncio.to_thread(self._generator.count_tokens, prompt, await self._files(images))

    async def _files(self, images: Sequence[str]) -> list[ImageFile]:
        if not images:
            return []
        if not self._generator.takes_images:
            raise RequestError(ErrorCode.VALIDATION, f"images: this model reads text only, got {len(images)} images")
        return await asyncio.to_thread(read_images, images)

    def _check_length(self, text: str) -> None:
        """Refuses what cannot fit before it costs the time to tokenize it."""
        limit = MAX_CHARACTERS_PER_TOKEN * self._generator.context_length
        if len(text) > limit:
            raise RequestError(
                ErrorCode.CONTEXT_OVERFLOW,
                f"the prompt has {len(text)} characters; {self._generator.context_length} tokens hold at most {limit}",
            )
