"""One request, from arrival to its last token, and the chunks in which its output leaves the engine.

The request owns its state and answers questions about it; who changes it, and when, is decided by scheduler.py (which
tokens run), engine.py (which token comes next) and block_manager.py (where keys and values lie). It knows no tensors.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Literal

from tinyserve.config import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class TokenLogprobs:
    """One new token's text and log probability, and the likeliest tokens in its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]  # the likeliest first; holds the token itself only if it is one of them


@dataclass
class Timing:
    """Where the seconds until the first token went, of a request with images."""

    decode_s: float = 0.0  # files to pictures
    preprocess_s: float = 0.0  # pictures to tiles
    vision_s: float = 0.0  # tiles to embeddings; all three of the batch that its images were encoded in
    prefill_s: float = 0.0  # from the engine's queue to the first token

    def start_prefill(self) -> None:
        self._start = time.perf_counter()

    def end_prefill(self) -> None:
        self.prefill_s = time.perf_counter() - self._start


@dataclass(frozen=True)
class Chunk:
    """What became new for one request: the last one carries the finish reason."""

    text: str  # new text only, may be empty; a stop string never appears in it, nor a part of one
    token_ids: tuple[int, ...]  # new tokens; the end-of-sequence token is counted but gives no text
    num_prompt_tokens: int
    num_completion_tokens: int
    finish_reason: FinishReason | None = None
    error: str | None = None  # with finish_reason "error"
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each of `token_ids`, where the request asks for them
    num_cached_tokens: int = 0  # prompt tokens whose keys and values were in the cache already
    timing: Timing | None = None  # with the finish reason, of a request with images


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(frozen=True, eq=False)
class Span:
    """Placeholder tokens from `start` on, and the embeddings [P, C] in their place, which model_runner.py reads."""

    start: int
    embeddings: "Tensor"


@dataclass(eq=False)
class Request:
    """The tokens of one request and how far their keys and values are computed.

    A preempted request keeps its output tokens: they are computed again like a prompt, so no token is lost or repeated.
    """

    id: int  # in order of arrival
    token_ids: list[int]  # prompt, then output
    params: SamplingParams
    priority: int = 0  # the lower, the sooner
    # Position of a token -> digest of what stands behind it and behind the placeholders that follow, an image for
    # example; without it, two prompts with different images would look alike.
    contents: Mapping[int, bytes] = field(default_factory=dict)
    spans: Sequence[Span] = ()  # in order; of all `contents`
    timing: Timing | None = None
    num_prompt_tokens: int = field(init=False)
    max_tokens: int = field(init=False)  # prompt and output together
    status: Status = Status.WAITING
    block_ids: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)  # of its full blocks, as far as anybody asked
    num_known_blocks: int = 0  # of its blocks, those that others can find
    # Tokens whose keys and values are in the cache, or will be once the steps that have been launched are done.
    num_computed: int = 0
    num_unread: int = 0  # newest tokens that launched steps choose, behind token_ids: the host does not know them yet
    num_cached: int = 0  # prompt tokens that were in the cache when it first ran

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        self.max_tokens = self.num_prompt_tokens + self.params.max_new_tokens

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: the lower priority number, then who came first."""
        return self.priority, self.id

    @property
    def num_tokens(self) -> int:
        """The unread ones too."""
        return len(self.token_ids) + self.num_unread

    @property
    def num_output_tokens(self) -> int:
        """Those that the host knows."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens whose keys and values are yet to be computed: 1 in decode, more in prefill and after a preemption.

        None when the last token that the request may have is on its way: nothing follows it.
        """
        return min(self.num_tokens, self.max_tokens - 1) - self.num_computed

    def chunk(
        self,
        text: str,
        token_ids: tuple[int, ...],
        reason: FinishReason | None = None,
        error: str | None = None,
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> Chunk:
        """What became new, with the counts as they are now."""
        return Chunk(
            text,
            token_ids,
            self.num_prompt_tokens,
            self.num_output_tokens,
            reason,
            error,
            logprobs,
            self.num_cached,
            self.timing if reason is not None else None,
        )
