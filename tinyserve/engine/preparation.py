"""From a prompt and its parameters to a request that has passed every check.

Here a prompt becomes tokens, a grammar becomes a constraint, and what the model cannot serve is refused. It knows the
tokenizer and the model's limits, no engine state and no pixels: any thread may call it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine.constraint import Constraint
from tinyserve.engine.detokenizer import Detokenizer
from tinyserve.engine.generator import CONTEXT_OVERFLOW, OUT_OF_RANGE, VALIDATION, RequestError
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.image_prompt import MARK, ImagePrompt, check_tokens, tokenize
from tinyserve.engine.ngram import NgramIndex
from tinyserve.engine.request import Request, Span, Timing
from tinyserve.engine.sampling_state import SamplingState
from tinyserve.engine.structured_output import GrammarCompiler, GrammarError
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.models.image_spec import ImageSpec

MAX_COUNTED_CONTEXTS = 32  # a prompt so many times as long as the context is not even counted


@dataclass(frozen=True)
class PreparedRequest:
    """A request and all that goes with it on its way through the engine."""

    request: Request
    detokenizer: Detokenizer
    sampling: SamplingState
    ngrams: NgramIndex
    end_ids: frozenset[int]  # tokens that end the text
    images: Sequence[ImageFile] = ()  # what is to be encoded and inserted before the request can run

    def insert(self, embeddings: Sequence[Tensor], timing: Timing) -> None:
        """Puts the embeddings [P, C] of each image in its place; `timing` says what they took."""
        self.request.spans = [Span(*each) for each in zip(self.request.contents, embeddings, strict=True)]
        self.request.timing = timing


class Preparation:
    """Args: tokenizer; vocab_size; context_length in tokens; seed where none is given; image_spec, None: text only.

    Raises:
        ValueError: the tokenizer lacks a token that image_spec asks for.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        context_length: int,
        seed: int,
        image_spec: ImageSpec | None = None,
    ) -> None:
        check_tokens(tokenizer, image_spec)
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._seed = seed
        self._image_spec = image_spec
        self._grammars = GrammarCompiler(tokenizer, vocab_size)
        self._ids = itertools.count()

    def load_grammars(self) -> None:
        """Makes the first request that brings a grammar as quick as the next.

        Raises:
            ValueError: this tokenizer cannot be used with grammars.
        """
        self._grammars.load()

    def prepare(
        self, prompt: str | Sequence[int], params: SamplingParams, priority: int, images: Sequence[ImageFile] = ()
    ) -> PreparedRequest:
        """Tokenizes and checks a prompt.

        Args:
            prompt: text, or token ids.
            params: `max_new_tokens` is clipped to the room left in the context.
            priority: requests with a lower number go first.
            images: one for each `<image>` in the text.

        Raises:
            RequestError: the prompt is empty or too long, or a parameter does not fit the model, or the images do not,
                or the grammar cannot be compiled.
        """
        vocab_size = self._vocab_size
        if isinstance(prompt, str) and len(prompt) > self._context_length * self._tokenizer.max_token_characters:
            message = f"prompt of {len(prompt)} characters cannot fit in the context of {self._context_length} tokens"
            raise RequestError(CONTEXT_OVERFLOW, message)  # megabytes take seconds to tokenize
        tokenized = self.tokenize(prompt, images) if isinstance(prompt, str) else ImagePrompt(list(prompt), ())
        token_ids, text_ids = tokenized.token_ids, tokenized.text_ids
        if not prompt or not token_ids:  # of an empty text, some tokenizers make a beginning-of-sequence token
            raise RequestError(VALIDATION, "prompt is empty")
        for name, ids in (
            ("prompt", text_ids),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", [token_id for token_id, _ in params.logit_bias]),
        ):
            wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
            if wrong is not None:
                raise RequestError(OUT_OF_RANGE, f"{name}: token ids must be in 0..{vocab_size - 1}, got {wrong}")
        if len(token_ids) >= self._context_length:
            parts = f" ({len(token_ids) - len(text_ids)} of them for {len(images)} images)" if images else ""
            raise RequestError(
                CONTEXT_OVERFLOW,
                f"prompt of {len(token_ids)} tokens{parts} leaves no room in the context of {self._context_length} "
                "tokens",
            )
        request_id = next(self._ids)
        contents = {start: image.digest for start, image in zip(tokenized.starts, images, strict=True)}
        request = Request(request_id, token_ids, params, priority, contents)
        request.max_tokens = min(request.max_tokens, self._context_length)
        end_ids = self._end_ids(params)
        return PreparedRequest(
            request,
            Detokenizer(self._tokenizer, text_ids, params.stop),
            SamplingState(params, text_ids, self._seed + request_id, end_ids, self._constraint(params)),
            NgramIndex(),
            end_ids,
            images,
        )

    def count_tokens(self, prompt: str, images: Sequence[ImageFile] = ()) -> int:
        """Tokens of a prompt; where no images are given, every `<image>` counts as one of the tower's own size.

        Raises:
            RequestError: the images do not fit the prompt, or are far too many for the context.
        """
        if self._image_spec is not None and not images:
            size, number = self._image_spec.image_size, prompt.count(MARK)
            if number * self._image_spec.num_tokens(size, size) > MAX_COUNTED_CONTEXTS * self._context_length:
                message = f"prompt with {number} {MARK} cannot fit in the context of {self._context_length} tokens"
                raise RequestError(CONTEXT_OVERFLOW, message)
            images = [ImageFile(b"", b"", size, size)] * number
        return len(self.tokenize(prompt, images).token_ids)

    def tokenize(self, prompt: str, images: Sequence[ImageFile] = ()) -> ImagePrompt:
        """Raises RequestError when the images do not fit the prompt, or the model."""
        return tokenize(prompt, images, self._tokenizer, self._image_spec)

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
