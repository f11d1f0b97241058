"""Keeps the tokens of a request inside its grammar: a JSON schema, a regular expression or a context-free grammar.

llguidance compiles a grammar and computes, before each token, the mask of those that may follow. With 49,000 tokens on
one Zen 3 core that takes 2 to 10 us inside a JSON document, 240 us in a regular expression of letters and up to 8 ms
where the limits below end it; handing the work to a thread takes 30 us. So the masks of a step are computed in a thread
beside the model, all in one piece. A grammar that needs more is its own request's error. What is done to the logits
besides, and in which order, is sampler.py's business.
"""

import functools
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray
from torch import Tensor

from tinyserve.config import Grammar, SamplingParams
from tinyserve.engine.draw import SamplingError
from tinyserve.engine.tokenizer import Tokenizer

Mask = NDArray[np.uint32]  # [V / 32]: bit i % 32 of word i // 32 says that token i may come next

COMPILE_BUDGET_S = 0.05  # of processor time, which other work on the machine does not lengthen
MAX_MESSAGE_CHARACTERS = 300  # of llguidance's own words
LIMITS = LLParserLimits(
    step_lexer_fuel=50_000,  # about 4 ms for one mask
    step_max_items=20_000,  # about 1 ms
    max_lexer_states=20_000,  # about 40 MB
    verbose_errors=False,
)


class GrammarError(ValueError):
    """A grammar that cannot be used; the text names the field of the request."""


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
            raise SamplingError(f"the grammar failed: {_shortened(self.matcher.get_error())}")

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
            raise SamplingError(f"the grammar became too complex: {_shortened(self.matcher.get_error())}")
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


class GrammarCompiler:
    """Makes constraints for one model. Safe to use from several threads at once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def load(self) -> LLTokenizer:
        """The vocabulary as llguidance wants it. Takes about half a second the first time.

        Raises:
            ValueError: the tokenizer is not one of the Rust library.
        """
        with self._lock:
            if self._vocabulary is None:
                eos_ids = sorted(self._tokenizer.eos_token_ids)
                self._vocabulary = LLTokenizer(
                    self._tokenizer.to_json(), n_vocab=self._vocab_size, eos_token=eos_ids or None
                )
            return self._vocabulary

    def compile(self, grammar: Grammar, params: SamplingParams) -> Constraint:
        """The beginning of a grammar, with the first mask already known.

        Raises:
            GrammarError: it cannot be compiled, or not within the budget.
        """
        try:
            vocabulary = self.load()
            start = time.thread_time()
            matcher = LLMatcher(vocabulary, _source(grammar), log_level=0, limits=LIMITS)
            constraint = Constraint(matcher, self._vocab_size, self._tokenizer.eos_token_ids, params)
            if not matcher.is_error():
                constraint.mask()
        except ValueError as error:
            raise GrammarError(f"{grammar.field} cannot be used: {_shortened(str(error))}") from error
        if matcher.is_error():
            raise GrammarError(f"{grammar.field} cannot be used: {_shortened(matcher.get_error())}")
        spent = time.thread_time() - start
        if spent > COMPILE_BUDGET_S:
            raise GrammarError(
                f"{grammar.field} takes {spent * 1e3:.0f} ms to compile; {COMPILE_BUDGET_S * 1e3:.0f} ms are allowed"
            )
        return constraint


class MaskThread:
    """Fills the masks of a step while the model computes it.

    Args:
        num_threads: that llguidance may use. One on a CPU, whose cores the model needs.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None
        self._executor: LLExecutor | None = None

    def start(self, constraints: Sequence[Constraint]) -> None:
        """Returns at once; `Constraint.mask` waits."""
        constraints = [constraint for constraint in constraints if not constraint.is_known]
        if not constraints:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "masks")
            self._executor = LLExecutor(self._num_threads)
        filling = self._pool.submit(self._fill, constraints)
        for constraint in constraints:
            constraint.await_fill(filling)

    def _fill(self, constraints: Sequence[Constraint]) -> None:
        assert self._executor is not None
        masks = np.zeros((len(constraints), constraints[0].num_words), dtype=np.uint32)
        places = [(constraint.matcher, row) for row, constraint in enumerate(constraints)]
        self._executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, masks.shape[1] * 4, len(constraints))
        for constraint, mask in zip(constraints, masks, strict=True):
            constraint.fill(mask)


def forbid(logits: Tensor, rows: Sequence[int], masks: Sequence[Mask]) -> None:
    """Sets to minus infinity, in the given rows of fp32 logits [R, V], what their masks do not allow.

    Each byte of a mask looks up eight numbers to add, which is several times as fast as to test each bit.
    """
    octets = torch.from_numpy(np.stack(masks).view(np.uint8)).to(logits.device)  # [rows, V / 8]
    added = torch.nn.functional.embedding(octets.int(), _added_by_octet(logits.device)).view(len(rows), -1)
    logits.index_add_(0, torch.tensor(rows, device=logits.device), added[:, : logits.shape[1]])


@functools.cache
def _added_by_octet(device: torch.device) -> Tensor:
    """[256, 8]: 0 where the bit is set, else minus infinity."""
    bits = (torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1
    return torch.where(bits.bool(), 0.0, -torch.inf).to(device)


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's terms. Raises ValueError where it can be seen already that it is wrong."""
    if grammar.kind == "json_schema":
        # Free whitespace is what a weak model repeats for ever. A schema may ask for it, in its own x-guidance.
        return LLMatcher.grammar_from_json_schema(grammar.text, defaults={"whitespace_flexible": False})
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    try:
        return LLMatcher.grammar_from_lark(any_to_lark(grammar.text))
    except Exception as error:  # the converter's own, and whatever else a text makes it stumble over
        raise ValueError(str(error) or type(error).__name__) from error


def _shortened(message: str) -> str:
    words = " ".join(message.split())
    return words if len(words) <= MAX_MESSAGE_CHARACTERS else words[: MAX_MESSAGE_CHARACTERS - 3] + "..."
