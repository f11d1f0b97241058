"""What the requests of an engine say: takes each new token into its request, turns it into text, and ends the request.

It decides when and why a request ends. It knows no steps: where tokens come from is the engine's business.
"""

import logging
from dataclasses import dataclass

from tinyserve.engine.draw import SamplingError
from tinyserve.engine.logprobs import Logprobs
from tinyserve.engine.preparation import PreparedRequest
from tinyserve.engine.request import Chunk, FinishReason, Request, TokenLogprobs
from tinyserve.engine.sampler import Sampled
from tinyserve.engine.scheduler import Scheduler
from tinyserve.engine.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    request_id: int
    chunk: Chunk


class Answers:
    """Args: scheduler, which is told who has ended; tokenizer, for the texts of log probabilities."""

    def __init__(self, scheduler: Scheduler, tokenizer: Tokenizer) -> None:
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self.requests: dict[int, PreparedRequest] = {}  # that have not ended
        self.generated_tokens = self.cached_tokens = 0  # since the start

    def end(self, request_id: int) -> None:
        """Ends a request and frees its blocks at once, without a last chunk. Harmless when it has ended already."""
        prepared = self.requests.pop(request_id, None)
        if prepared is not None:
            self._scheduler.finish(prepared.request)

    def fail(self, request: Request, error: Exception) -> Output:
        """Ends a request with an error."""
        self.end(request.id)
        message = str(error) if isinstance(error, SamplingError) else f"{type(error).__name__}: {error}"
        return Output(request.id, request.chunk("", (), "error", message))

    def take(self, request: Request, token: Sampled | Exception) -> Output:
        """Takes one new token into its request. Whatever goes wrong here concerns this request alone."""
        if isinstance(token, Exception):
            return self.fail(request, token)
        try:
            return self._append(self.requests[request.id], token)
        except Exception as error:
            _log.exception("request %d failed", request.id)
            return self.fail(request, error)

    def _append(self, prepared: PreparedRequest, sampled: Sampled) -> Output:
        request, token_id = prepared.request, sampled.token_id
        request.token_ids.append(token_id)
        self.generated_tokens += 1
        if request.num_output_tokens == 1:
            self.cached_tokens += request.num_cached
            if request.timing is not None:
                request.timing.end_prefill()
        reason: FinishReason | None = None
        text, stopped = "", False
        if token_id in prepared.end_ids:
            reason = "stop"
        else:
            text, stopped = prepared.detokenizer.add(token_id, request.num_output_tokens > request.params.min_tokens)
            if not stopped and prepared.sampling.is_complete:
                reason = "stop"
            elif not stopped and len(request.token_ids) >= request.max_tokens:
                reason = "length"
        if reason is not None:
            rest, stopped = prepared.detokenizer.flush()
            text += rest
        if stopped:
            reason = "stop"
        if reason is not None:
            self.end(request.id)
        logprobs = self._with_text(token_id, sampled.logprobs)
        return Output(request.id, request.chunk(text, (token_id,), reason, logprobs=logprobs))

    def _with_text(self, token_id: int, logprobs: Logprobs | None) -> tuple[TokenLogprobs, ...]:
        if logprobs is None:
            return ()
        text = self._tokenizer.token_text
        top = tuple((text(each), logprob) for each, logprob in logprobs.top)
        return (TokenLogprobs(text(token_id), logprobs.chosen, top),)
