"""The engine: requests in, chunks of text out, one step at a time. Synchronous; one thread calls it.

It owns model, cache, scheduler and sampler, and the order of a step: plan, run, sample, detokenize, finish. It
decides when a request ends. It knows no asyncio and no HTTP; async_engine.py is its face towards them.
"""

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine import kv_cache, sampler
from tinyserve.engine.block_manager import BlockManager
from tinyserve.engine.draw import SamplingError, take
from tinyserve.engine.generator import EngineStats
from tinyserve.engine.image_encoder import ImageEncoder
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.logprobs import Logprobs
from tinyserve.engine.masks import MaskThread
from tinyserve.engine.memory import is_out_of_memory
from tinyserve.engine.model_runner import Due, ModelRunner
from tinyserve.engine.pace import Pace
from tinyserve.engine.preparation import Preparation, PreparedRequest
from tinyserve.engine.request import Chunk, FinishReason, Request, Status, TokenLogprobs
from tinyserve.engine.sampler import Sampled
from tinyserve.engine.scheduler import Scheduler, Step
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.engine.warm_up import warm_up
from tinyserve.models.language_model import LanguageModel
from tinyserve.models.loader import load_model
from tinyserve.models.opening import tokenizer_folder

_log = logging.getLogger(__name__)

# Tokens of one step, when no number is given. A step is what everybody waits for: the next tokens of running
# requests, a cancellation, a new request. A CPU computes prompts no slower in small steps (SmolLM2 W4A16, one Zen 3
# core: 319 tokens/s in chunks of 256, 336 in chunks of 1024), a GPU does.
MAX_BATCH_TOKENS = {"cpu": 256, "cuda": 2048}
MASK_THREADS = {"cpu": 1, "cuda": 8}  # for grammars; the model needs the CPU's cores, a GPU leaves them free


@dataclass(frozen=True)
class Output:
    request_id: int
    chunk: Chunk


class Engine:
    def __init__(self, config: EngineConfig, model: LanguageModel, tokenizer: Tokenizer) -> None:
        limit = min(config.max_context or model.config.context_length, model.config.context_length)
        num_blocks = kv_cache.num_blocks(model, config, limit)
        self.context_length = min(limit, num_blocks * config.block_size)
        self.tokenizer = tokenizer
        self._model = model
        vocab_size, spec = model.config.vocab_size, model.image_spec
        self.preparation = Preparation(tokenizer, vocab_size, self.context_length, config.seed, spec)
        self.image_encoder = None if spec is None else ImageEncoder(model, config.image_memory_bytes)
        self._masks = MaskThread(MASK_THREADS[model.device.type])
        self._requests: dict[int, PreparedRequest] = {}
        self._generated_tokens = self._cached_tokens = self._drafted_tokens = self._accepted_tokens = 0
        self._max_drafts = config.num_speculative_tokens
        self._blocks = BlockManager(num_blocks, config.block_size, config.prefix_cache)
        self._pace = Pace(config.max_slowdown, config.min_step_ms / 1e3)
        max_tokens = config.max_batch_tokens or MAX_BATCH_TOKENS[model.device.type]
        max_requests = min(config.max_num_requests, max_tokens)
        draft = self._draft if self._max_drafts else None
        self._scheduler = Scheduler(self._blocks, self._pace, max_tokens, max_requests, draft)
        self._runner = ModelRunner(
            model,
            kv_cache.allocate(model, num_blocks, config.block_size, config.kv_cache_dtype),
            config.block_size,
            max_tokens,
            max_requests,
            max_blocks=-(-self.context_length // config.block_size),
            enforce_eager=config.enforce_eager,
        )

    @classmethod
    def create(cls, config: EngineConfig) -> "Engine":
        """Loads everything from config.model_path and config.quant_path.

        Raises:
            FileNotFoundError, ValueError: as models.loader.load_model.
        """
        device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        model = load_model(
            config.model_path,
            config.quant_path,
            config.precision,
            config.dtype,
            device,
            config.max_context,
            config.cpu_compute,
            config.model_base,
            config.load_in,
            config.packed_cache,
        )
        engine = cls(config, model, Tokenizer(tokenizer_folder(config.model_path, config.model_base)))
        warm_up(engine._scheduler, engine._runner, engine._pace, engine.context_length)
        if engine.image_encoder is not None:
            engine.image_encoder.warm_up()
        with contextlib.suppress(ValueError):  # then a request that brings a grammar is told why
            engine.preparation.load_grammars()
        return engine

    def prepare(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        priority: int = 0,
        images: Sequence[ImageFile] = (),
    ) -> PreparedRequest:
        """See Preparation.prepare; any thread may call it."""
        return self.preparation.prepare(prompt, params, priority, images)

    def add(self, prepared: PreparedRequest) -> int:
        """Queues a prepared request, its images inserted; returns its id."""
        self._scheduler.add(prepared.request)
        self._requests[prepared.request.id] = prepared
        if prepared.request.timing is not None:
            prepared.request.timing.start_prefill()
        return prepared.request.id

    def abort(self, request_id: int) -> None:
        """Ends a request and frees its blocks at once, without a last chunk. Harmless when it has ended already."""
        prepared = self._requests.pop(request_id, None)
        if prepared is not None:
            self._scheduler.finish(prepared.request)

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def stats(self) -> EngineStats:
        encoder = self.image_encoder
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            free_blocks=self._blocks.num_free,
            total_blocks=self._blocks.num_blocks,
            generated_tokens=self._generated_tokens,
            idle_blocks=self._blocks.num_idle,
            cached_tokens=self._cached_tokens,
            preemptions=self._scheduler.num_preemptions,
            drafted_tokens=self._drafted_tokens,
            accepted_tokens=self._accepted_tokens,
            num_encoding=0 if encoder is None else encoder.num_pending,
            encoded_images=0 if encoder is None else encoder.num_encoded,
            encoding_progress=0 if encoder is None else encoder.progress,
        )

    def step(self) -> list[Output]:
        """Runs one step and returns what became new. A step that fails ends the requests that ran, no others."""
        start = time.perf_counter()
        try:
            step = self._scheduler.next_step()
        except Exception as error:
            _log.exception("no step could be planned")  # going on would fail for ever
            return [self._fail(prepared.request, error) for prepared in list(self._requests.values())]
        if step is None:
            return []
        try:
            self._start_masks(step)
            due, logits = self._runner.run(step)
        except Exception as error:
            if is_out_of_memory(error) and self._scheduler.shed(step):
                _log.warning("out of memory in a step of %d tokens: steps become smaller", step.num_tokens)
                return []
            _log.exception("an engine step failed")
            return [self._fail(chunk.request, error) for chunk in step.chunks]
        self._scheduler.complete(step)
        outputs = self._choose(logits, due)
        self._pace.observe(step.num_decodes, step.num_tokens - step.num_decodes, time.perf_counter() - start)
        return outputs

    def _choose(self, logits: Tensor, due: Sequence[Due]) -> list[Output]:
        """The next token of each request from its row of [R, V], and one more for each draft that was that token.

        Every token is chosen as if there were no drafts; a right one only means that the logits after it are known
        already. So drafts change no distribution, and no text that has a seed.
        """
        outputs: list[Output] = []
        offset = 0
        while due:
            tokens = self._sample(take(logits, [one.row + offset for one in due]), [one.request for one in due])
            right = []
            for one, token in zip(due, tokens, strict=True):
                outputs.append(self._advance(one.request, token))
                if offset < len(one.drafts) and one.request.status is Status.RUNNING:
                    self._drafted_tokens += 1
                    if one.request.token_ids[-1] == one.drafts[offset]:
                        one.request.num_computed += 1
                        self._accepted_tokens += 1
                        right.append(one)
            due, offset = right, offset + 1
        return outputs

    def _draft(self, request: Request, limit: int) -> tuple[int, ...]:
        prepared = self._requests[request.id]
        if prepared.sampling.constraint is not None:  # its mask is computed beside the step, for one token
            return ()
        return prepared.ngrams.guess(request.token_ids, min(limit, self._max_drafts))

    def _start_masks(self, step: Step) -> None:
        states = [self._requests[chunk.request.id].sampling for chunk in step.chunks if chunk.is_last]
        self._masks.start([state.constraint for state in states if state.constraint is not None])

    def _sample(self, logits: Tensor, due: Sequence[Request]) -> list[Sampled | Exception]:
        """A token for each row [R, V]; where a row cannot be sampled from, its error."""
        states = [self._requests[request.id].sampling for request in due]
        try:
            return list(sampler.sample(logits, states))
        except Exception:
            _log.exception("sampling %d requests at once failed: one at a time now", len(due))
        tokens: list[Sampled | Exception] = []
        for row, state in enumerate(states):
            try:
                tokens += sampler.sample(logits[row : row + 1], [state])
            except Exception as error:
                tokens.append(error)
        return tokens

    def _advance(self, request: Request, token: Sampled | Exception) -> Output:
        """Takes one new token into its request. Whatever goes wrong here concerns this request alone."""
        if isinstance(token, Exception):
            return self._fail(request, token)
        try:
            return self._append(self._requests[request.id], token)
        except Exception as error:
            _log.exception("request %d failed", request.id)
            return self._fail(request, error)

    def _append(self, prepared: PreparedRequest, sampled: Sampled) -> Output:
        request, token_id = prepared.request, sampled.token_id
        request.token_ids.append(token_id)
        self._generated_tokens += 1
        if request.num_output_tokens == 1:
            self._cached_tokens += request.num_cached
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
            elif not stopped and request.num_tokens >= request.max_tokens:
                reason = "length"
        if reason is not None:
            rest, stopped = prepared.detokenizer.flush()
            text += rest
        if stopped:
            reason = "stop"
        if reason is not None:
            self.abort(request.id)
        logprobs = self._with_text(token_id, sampled.logprobs)
        return Output(request.id, request.chunk(text, (token_id,), reason, logprobs=logprobs))

    def _with_text(self, token_id: int, logprobs: Logprobs | None) -> tuple[TokenLogprobs, ...]:
        if logprobs is None:
            return ()
        text = self.tokenizer.token_text
        top = tuple((text(each), logprob) for each, logprob in logprobs.top)
        return (TokenLogprobs(text(token_id), logprobs.chosen, top),)

    def _fail(self, request: Request, error: Exception) -> Output:
        self.abort(request.id)
        message = str(error) if isinstance(error, SamplingError) else f"{type(error).__name__}: {error}"
        return Output(request.id, request.chunk("", (), "error", message))
