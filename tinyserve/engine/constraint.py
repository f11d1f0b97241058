"""Where one request is in its grammar: which tokens may come next, and whether any may.

The grammar itself is llguidance's matcher, made by structured_output.py.
"""

from collections.abc import Collection
from concurrent.futures import Future

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from tinyserve.config import SamplingParams
from tinyserve.engine.draw import SamplingError

Mask = NDArray[np.uint32]  # [V / 32]: bit i % 32 of word i // 32 says that token i may come next
MAX_MESSAGE_CHARACTERS = 300  # of llguidance's own words


class Constraint:
    """One request's place in its grammar.

    The grammar decides where the text ends: `min_tokens` and `ignore_eos` keep an end away only while there is another
    token to choose.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos_ids: Collection[int], params: SamplingParams) -> None:
        self.matcher = matcher
        self.num_words = -(-vocab_size // 32)
        self._num_tokens = 0
        self._min_tokens = params.min_tokens
        self._ends_early = self._bits([*eos_ids, *params.stop_token_ids])
        self._ends_late = self._bits(eos_ids if params.ignore_eos else ())
        self._filled: Mask | None = None
        self._filling: Future[None] | None = None

    @property
    def is_complete(self) -> bool:
        """Nothing can follow."""
        return self.matcher.is_stopped()

    def accept(self, token_id: int) -> None:
        """Takes the next token of the output.

        Raises:
            SamplingError: it cannot be taken, or nothing can be computed behind it.
        """
        self._filled = None
        self._num_tokens += 1
        if not self.matcher.consume_token(token_id):
            raise SamplingError(f"the grammar failed: {shortened(self.matcher.get_error())}")

    def mask(self) -> Mask:
        """What may come next.

        Raises:
            SamplingError: the limits do not suffice to know.
        """
        if self._filling is not None:
            self._filling.result()
            self._filling = None
        if self._filled is None:
            words = np.zeros(self.num_words, dtype=np.uint32)
            self.matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            self.fill(words)
        if self.matcher.is_error():
            raise SamplingError(f"the grammar became too complex: {shortened(self.matcher.get_error())}")
        assert self._filled is not None
        return self._filled

    @property
    def is_known(self) -> bool:
        """What may come next has been computed, or is being computed."""
        return self._filled is not None or self._filling is not None

    def await_fill(self, filling: "Future[None]") -> None:
        """The mask will come from there."""
        self._filling = filling

    def fill(self, words: Mask) -> None:
        """Takes the grammar's mask, without the ends that are kept away."""
        withheld = self._ends_early if self._num_tokens < self._min_tokens else self._ends_late
        rest = words & ~withheld
        self._filled = rest if rest.any() else words

    def _bits(self, token_ids: Collection[int]) -> Mask:
        words = np.zeros(self.num_words, dtype=np.uint32)
        ids = np.asarray(list(token_ids), dtype=np.int64)
        np.bitwise_or.at(words, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
        return words


def shortened(message: str) -> str:
    """One of llguidance's messages on one line, cut where it becomes a listing."""
    words = " ".join(message.split())
    return words if len(words) <= MAX_MESSAGE_CHARACTERS else words[: MAX_MESSAGE_CHARACTERS - 3] + "..."
