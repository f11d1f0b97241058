"""The engine: requests in, chunks of text out, one step at a time. Synchronous; one thread calls it.

It owns model, cache, scheduler and sampler, and the order of things: plan a step, launch it, take its tokens. On a GPU
it looks one step ahead: the next step is planned and launched before the tokens of this one are taken, so that the GPU
never waits for the host. A request that turns out to have ended then has a token too many in the step after: nobody
takes it. What becomes of a token is answers.py's business; asyncio and HTTP are async_engine.py's.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine import kv_cache
from tinyserve.engine.answers import Answers, Output
from tinyserve.engine.block_manager import BlockManager
from tinyserve.engine.draw import take
from tinyserve.engine.generator import EngineStats
from tinyserve.engine.image_encoder import ImageEncoder
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.in_flight import Choice, Computed, InFlight
from tinyserve.engine.masks import MaskThread
from tinyserve.engine.memory import is_out_of_memory
from tinyserve.engine.model_runner import Due, ModelRunner
from tinyserve.engine.pace import Pace
from tinyserve.engine.preparation import Preparation, PreparedRequest
from tinyserve.engine.request import Request
from tinyserve.engine.scheduler import Scheduler, Step
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.engine.warm_up import warm_up
from tinyserve.layers import attention_registry
from tinyserve.models.language_model import LanguageModel
from tinyserve.models.loader import load_model
from tinyserve.models.opening import tokenizer_folder

_log = logging.getLogger(__name__)

# Tokens of one step, when no number is given. A step is what everybody waits for: the next tokens of running
# requests, a cancellation, a new request. A CPU computes prompts no slower in small steps (SmolLM2 W4A16, one Zen 3
# core: 319 tokens/s in chunks of 256, 336 in chunks of 1024), a GPU does.
MAX_BATCH_TOKENS = {"cpu": 256, "cuda": 2048}
MASK_THREADS = {"cpu": 1, "cuda": 8}  # for grammars; the model needs the CPU's cores, a GPU leaves them free


class Engine:
    def __init__(self, config: EngineConfig, model: LanguageModel, tokenizer: Tokenizer) -> None:
        limit = min(config.max_context or model.config.context_length, model.config.context_length)
        library = None  # before the cache, which takes what is left of the memory
        if config.use_flash_attn:
            library = attention_registry.choose(model.device, model.dtype, config.kv_cache_dtype)
        num_blocks = kv_cache.num_blocks(model, config, limit)
        self.context_length = min(limit, num_blocks * config.block_size)
        self.tokenizer = tokenizer
        self._model = model
        vocab_size, spec = model.config.vocab_size, model.image_spec
        self.preparation = Preparation(tokenizer, vocab_size, self.context_length, config.seed, spec)
        self.image_encoder = None if spec is None else ImageEncoder(model, config.image_memory_bytes)
        self._masks = MaskThread(MASK_THREADS[model.device.type])
        self._drafted_tokens = self._accepted_tokens = 0
        self._max_drafts = config.num_speculative_tokens
        self._blocks = BlockManager(num_blocks, config.block_size, config.prefix_cache)
        self._pace = Pace(config.max_slowdown, config.min_step_ms / 1e3)
        max_tokens = config.max_batch_tokens or MAX_BATCH_TOKENS[model.device.type]
        max_requests = min(config.max_num_requests, max_tokens)
        draft = self._draft if self._max_drafts else None
        self._scheduler = Scheduler(self._blocks, self._pace, max_tokens, max_requests, draft)
        self._answers = Answers(self._scheduler, tokenizer)
        self._requests = self._answers.requests
        self._in_flight: InFlight | None = None
        self._last_done = 0.0  # seconds, when the step before was
        looks_ahead = config.overlap if config.overlap is not None else model.device.type == "cuda"
        self._looks_ahead = looks_ahead and not self._max_drafts  # a draft follows from the text so far
        self._runner = ModelRunner(
            model,
            kv_cache.allocate(model, num_blocks, config.block_size, config.kv_cache_dtype),
            config.block_size,
            max_tokens,
            max_requests,
            max_blocks=-(-self.context_length // config.block_size),
            enforce_eager=config.enforce_eager,
            library=library,
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
            config.lm_head_dtype,
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
        self._answers.end(request_id)

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
            generated_tokens=self._answers.generated_tokens,
            idle_blocks=self._blocks.num_idle,
            cached_tokens=self._answers.cached_tokens,
            preemptions=self._scheduler.num_preemptions,
            drafted_tokens=self._drafted_tokens,
            accepted_tokens=self._accepted_tokens,
            num_encoding=0 if encoder is None else encoder.num_pending,
            encoded_images=0 if encoder is None else encoder.num_encoded,
            encoding_progress=0 if encoder is None else encoder.progress,
        )

    def step(self) -> list[Output]:
        """Launches a step and returns what became new: by this step or, where it looks ahead, by the one before.

        A step that fails ends the requests that ran, no others. While there is work, no output only means: call again.
        """
        outputs = self._take_tokens() if self._in_flight is not None and self._in_flight.decides_the_next else []
        launched = self._launch()
        outputs += self._take_tokens()
        self._in_flight = launched
        if not self._looks_ahead:
            outputs += self._take_tokens()
        return outputs

    def _launch(self) -> InFlight | None:
        """Plans a step and launches it; None where there is nothing to do, or too little memory for as much as that."""
        start = time.perf_counter()
        try:
            step = self._scheduler.next_step()
        except Exception as error:
            _log.exception("no step could be planned")  # going on would fail for ever
            return InFlight([prepared.request for prepared in self._requests.values()], error)
        if step is None:
            return None
        requests = [chunk.request for chunk in step.chunks]
        try:
            self._start_masks(step)
            due, logits = self._runner.run(step)
        except Exception as error:
            if is_out_of_memory(error) and self._scheduler.shed(step):
                _log.warning("out of memory in a step of %d tokens: steps become smaller", step.num_tokens)
                return None
            return InFlight(requests, error)
        self._scheduler.complete(step)
        choice = self._choose(logits, due)
        if self._looks_ahead and choice.tokens is not None:
            self._runner.keep_tokens(due, choice.tokens)
        for one in due:
            one.request.num_unread += 1
        computed = Computed.of(due, logits, choice)
        return InFlight(requests, computed, step.num_decodes, step.num_tokens - step.num_decodes, start)

    def _take_tokens(self) -> list[Output]:
        """Waits for the step in flight and takes its tokens into those of its requests that have not ended since."""
        flight, self._in_flight = self._in_flight, None
        if flight is None:
            return []
        for one in flight.due:
            one.request.num_unread -= 1
        if not any(self._is_open(request) for request in flight.requests):
            return []  # not waited for: it says nothing about the pace either
        outputs: list[Output] = []
        try:
            for output in self._outputs_of(flight.wait()):
                outputs.append(output)
        except Exception as error:
            _log.exception("an engine step failed")
            failed = [request for request in flight.requests if self._is_open(request)]
            return [*outputs, *(self._answers.fail(request, error) for request in failed)]
        now = time.perf_counter()
        # one step begins when it is launched or when the one before it is done, whichever is later
        self._pace.observe(flight.num_decodes, flight.num_prefill, now - max(flight.started, self._last_done))
        self._last_done = now
        return outputs

    def _outputs_of(self, computed: Computed) -> Iterator[Output]:
        """The next token of each request, and one more for each draft that was that token.

        Every token is chosen as if there were no drafts; a right one only means that the logits after it are known
        already. So drafts change no distribution, and no text that has a seed.
        """
        due, choice, offset = computed.due, computed.choice, 0
        while any(self._is_open(one.request) for one in due):  # what nobody waits for is not asked for
            right = []
            for one, token in zip(due, choice.results(), strict=True):
                if not self._is_open(one.request):
                    continue
                yield self._answers.take(one.request, token)
                if offset < len(one.drafts) and self._is_open(one.request):
                    self._drafted_tokens += 1
                    if one.request.token_ids[-1] == one.drafts[offset]:
                        one.request.num_computed += 1
                        self._accepted_tokens += 1
                        right.append(one)
            due, offset = right, offset + 1
            if right:
                choice = self._choose(computed.logits, right, offset)

    def _choose(self, logits: Tensor, due: Sequence[Due], offset: int = 0) -> Choice:
        """The tokens behind the first `offset` drafts of each."""
        states = [self._requests[one.request.id].sampling for one in due]
        return Choice(take(logits, [one.row + offset for one in due]), states)

    def _is_open(self, request: Request) -> bool:
        return request.id in self._requests

    def _draft(self, request: Request, limit: int) -> tuple[int, ...]:
        prepared = self._requests[request.id]
        if prepared.sampling.constraint is not None:  # its mask is computed beside the step, for one token
            return ()
        return prepared.ngrams.guess(request.token_ids, min(limit, self._max_drafts))

    def _start_masks(self, step: Step) -> None:
        states = [self._requests[chunk.request.id].sampling for chunk in step.chunks if chunk.is_last]
        self._masks.start([state.constraint for state in states if state.constraint is not None])
