"""What a model worker needs from whatever produces text: the real engine, or a timed stand-in in the benchmarks.

Only the interface and the types that cross it stand here; nothing about models, scheduling or HTTP.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tinyserve.config import SamplingParams
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.request import Chunk

VALIDATION = 40001  # a parameter is malformed
OUT_OF_RANGE = 40302  # a parameter is outside its range
CONTEXT_OVERFLOW = 40303  # the prompt leaves no room in the model's context


class RequestError(ValueError):
    """The caller's mistake, found before any work was done. `code` is the error_code of the wire protocol."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class EngineStats:
    num_running: int
    num_waiting: int
    free_blocks: int
    total_blocks: int
    generated_tokens: int  # since the start
    idle_blocks: int = 0  # free blocks whose content can still be used
    cached_tokens: int = 0  # of prompts, found in the cache since the start
    preemptions: int = 0  # since the start
    drafted_tokens: int = 0  # guesses that were checked since the start
    accepted_tokens: int = 0  # those that were right
    num_encoding: int = 0  # requests whose images are being encoded, or wait for it
    encoded_images: int = 0  # since the start
    encoding_progress: int = 0  # changes while images are encoded, more often than the number of those that are


class Generator(Protocol):
    """Streams text for prompts. Safe to call from several tasks at once."""

    @property
    def model_name(self) -> str: ...

    @property
    def context_length(self) -> int: ...

    @property
    def takes_images(self) -> bool: ...

    def count_tokens(self, text: str, images: Sequence[ImageFile] = ()) -> int:
        """Raises RequestError when the images do not fit the text."""
        ...

    def generate(
        self, prompt: str, params: SamplingParams, priority: int = 0, images: Sequence[ImageFile] = ()
    ) -> AsyncGenerator[Chunk, None]:
        """An async generator of what becomes new; the last chunk has a finish_reason. The lower `priority`, the sooner.

        The prompt has one `<image>` for each of `images`.
        Closing it, or cancelling the task that reads it, aborts the request and frees its blocks.

        Raises:
            RequestError: before the first chunk, when the prompt, an image or a parameter cannot be served.
            MemoryError: an image does not fit.
        """
        ...

    def stats(self) -> EngineStats:
        """Raises RuntimeError when it has failed for good: it will produce nothing any more."""
        ...

    @property
    def has_chat_template(self) -> bool: ...

    def apply_chat_template(self, messages: list[dict[str, str]]) -> str: ...

    async def close(self) -> None: ...
