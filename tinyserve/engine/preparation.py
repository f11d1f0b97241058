"""From a prompt and its parameters to a request that has passed every check.

Here a prompt becomes tokens, a grammar becomes a constraint, and what the model cannot serve is refused. It knows the
tokenizer and the model's limits, no engine state: any thread may call it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tinyserve.config import SamplingParams
from tinyserve.engine.constraint import Constraint
from tinyserve.engine.detokenizer import Detokenizer
from tinyserve.engine.generator import CONTEXT_OVERFLOW, OUT_OF_RANGE, VALIDATION, RequestError
from tinyserve.engine.ngram import NgramIndex
from tinyserve.engine.request import Request
from tinyserve.engine.sampler import SamplingState
from tinyserve.engine.structured_output import GrammarCompiler, GrammarError
from tinyserve.engine.tokenizer import Tokenizer


@dataclass(frozen=True)
class PreparedRequest:
    """A request and all that goes with it on its way through the engine."""

    request: Request
    detokenizer: Detokenizer
    sampling: SamplingState
    ngrams: NgramIndex
    end_ids: frozenset[int]  # tokens that end the text


class Preparation:
    """Args: tokenizer; vocab_size; context_length in tokens; seed of requests that bring none."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, context_length: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._seed = seed
        self._grammars = GrammarCompiler(tokenizer, vocab_size)
        self._ids = itertools.count()

    def load_grammars(self) -> None:
        """Makes the first request that brings a grammar as quick as the next.

        Raises:
            ValueError: this tokenizer cannot be used with grammars.
        """
        self._grammars.load()

    def prepare(self, prompt: str | Sequence[int], params: SamplingParams, priority: int) -> PreparedRequest:
        """Tokenizes and checks a prompt.

        Args:
            prompt: text, or token ids.
            params: `max_new_tokens` is clipped to the room left in the context.
            priority: requests with a lower number go first.

        Raises:
            RequestError: the prompt is empty or too long, or a parameter does not fit the model, or the grammar cannot
                be compiled.
        """
        vocab_size = self._vocab_size
        if isinstance(prompt, str) and len(prompt) > self._context_length * self._tokenizer.max_token_characters:
            message = f"prompt of {len(prompt)} characters cannot fit in the context of {self._context_length} tokens"
            raise RequestError(CONTEXT_OVERFLOW, message)  # megabytes take seconds to tokenize
        token_ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not prompt or not token_ids:  # of an empty text, some tokenizers make a beginning-of-sequence token
            raise RequestError(VALIDATION, "prompt is empty")
        for name, ids in (
            ("prompt", token_ids),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", [token_id for token_id, _ in params.logit_bias]),
        ):
            wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
            if wrong is not None:
                raise RequestError(OUT_OF_RANGE, f"{name}: token ids must be in 0..{vocab_size - 1}, got {wrong}")
        if len(token_ids) >= self._context_length:
            raise RequestError(
                CONTEXT_OVERFLOW,
                f"prompt of {len(token_ids)} tokens leaves no room in the context of {self._context_length} tokens",
            )
        request_id = next(self._ids)
        request = Request(request_id, token_ids, params, priority)
        request.max_tokens = min(request.max_tokens, self._context_length)
        end_ids = self._end_ids(params)
        return PreparedRequest(
            request,
            Detokenizer(self._tokenizer, token_ids, params.stop),
            SamplingState(params, token_ids, self._seed + request_id, end_ids, self._constraint(params)),
            NgramIndex(),
            end_ids,
        )

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        if params.grammar is None:
            return None
        try:
            return self._grammars.compile(params.grammar, params)
        except GrammarError as error:
            raise RequestError(VALIDATION, str(error)) from error

    def _end_ids(self, params: SamplingParams) -> frozenset[int]:
        """Tokens that end the text."""
        own = self._tokenizer.eos_token_ids if not params.ignore_eos else frozenset()
        return own.union(params.stop_token_ids) if params.stop_token_ids else own
