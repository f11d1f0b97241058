"""A generator that yields tokens by the clock, to measure and test the serving path apart from any model.

Every request gets the same number of tokens at the same interval, each request on its own clock, as if the engine had
room for all of them.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from tinyserve.config import SamplingParams
from tinyserve.engine.generator import EngineStats
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.request import Chunk


class TimedGenerator:
    """Token i of a request is the word `w<i>` and comes i + 1 intervals after the request."""

    def __init__(self, model_name: str = "timed", num_tokens: int = 40, interval_s: float = 0.05) -> None:
        """
        Args:
            num_tokens: of every request that allows that many.
            interval_s: seconds from one token to the next.
        """
        self.model_name = model_name
        self.context_length = 4096
        self.takes_images = False
        self.has_chat_template = True
        self._num_tokens = num_tokens
        self._interval_s = interval_s
        self._num_running = 0
        self._generated = 0

    def count_tokens(self, text: str, images: Sequence[ImageFile] = ()) -> int:
        return len(text.split())

    async def generate(
        self, prompt: str, params: SamplingParams, priority: int = 0, images: Sequence[ImageFile] = ()
    ) -> AsyncGenerator[Chunk, None]:
        loop = asyncio.get_running_loop()
        num_prompt, total = self.count_tokens(prompt), min(self._num_tokens, params.max_new_tokens)
        last_reason = "stop" if total == self._num_tokens else "length"
        start = loop.time()
        self._num_running += 1
        try:
            for index in range(total):
                await asyncio.sleep(start + (index + 1) * self._interval_s - loop.time())
                self._generated += 1
                reason = last_reason if index + 1 == total else None
                yield Chunk(f"w{index} ", (index,), num_prompt, index + 1, reason)  # type: ignore[arg-type]
        finally:
            self._num_running -= 1

    def stats(self) -> EngineStats:
        return EngineStats(self._num_running, 0, 1024 - self._num_running, 1024, self._generated)

    def apply_chat_template(self, messages: list[dict[str, str]]) -> str:
        return "".join(f"<{message['role']}>{message['content']}</{message['role']}>\n" for message in messages)

    async def close(self) -> None:
        """Nothing to free."""
