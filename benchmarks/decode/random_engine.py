"""An engine around a model that is made up, and requests whose contexts are in the cache without having been computed.

The engine is the real one, from the plan of a step to the tokens that come out; only BlockManager.try_start is told
that all of a prompt but its last token is computed, as after a hit of the whole prefix. The cache is full of random
numbers, so that attention reads and multiplies what it would.
"""

import contextlib
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import PretrainedConfig

from benchmarks import byte_tokenizer
from benchmarks.decode import random_weights
from benchmarks.decode.variant import Variant
from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine import kv_cache
from tinyserve.engine.engine import Engine
from tinyserve.engine.request import Request
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.engine.warm_up import warm_up
from tinyserve.models import registry
from tinyserve.models.weights import WeightReader

BLOCK_SIZE = 32
ROOM = 256  # tokens beside the context that a request may have: what is decoded
FREE_SHARE = 0.9  # of the memory that the weights leave, at most: for the cache


class RandomEngine:
    """One model in one variant.

    Args:
        config: of the model; its positions are as many as are asked for.
        max_batch, max_context: of the largest case.
        num_tokens: that the cache is to hold, or as many as fit.
    """

    def __init__(
        self, config: PretrainedConfig, variant: Variant, device: str, max_batch: int, max_context: int, num_tokens: int
    ) -> None:
        positions = max_context + ROOM
        hf = config.to_dict() | {"max_position_embeddings": positions}
        checkpoint = random_weights.checkpoint(config, device, variant.group)
        definition = registry.definition(hf)
        dtype = getattr(torch, str(config.dtype).removeprefix("torch."))
        weights = WeightReader(checkpoint, dtype, torch.device(device))
        self.model = definition.model(definition.read_config(hf, Path()), weights, num_positions=positions)
        self.device = torch.device(device)
        self._vocab_size = config.vocab_size
        wanted = kv_cache.block_bytes(self.model, BLOCK_SIZE, variant.kv_cache_dtype) * -(-num_tokens // BLOCK_SIZE)
        settings = EngineConfig(
            Path(config.model_type),
            precision=variant.precision,
            cpu_compute="exact",
            kv_cache_dtype=variant.kv_cache_dtype,
            kv_cache_bytes=min(wanted, self._free_bytes()),
            block_size=BLOCK_SIZE,
            max_num_requests=max_batch,
            max_batch_tokens=max(max_batch, max_context),
            max_context=positions,
            max_slowdown=math.inf,
            prefix_cache=False,
            enforce_eager=variant.enforce_eager,
        )
        with tempfile.TemporaryDirectory() as folder, _random_cache():
            byte_tokenizer.save(Path(folder))
            self.engine = Engine(settings, self.model, Tokenizer(Path(folder)))
        warm_up(self.engine._scheduler, self.engine._runner, self.engine._pace, self.engine.context_length)

    def _free_bytes(self) -> int:
        if self.device.type != "cuda":
            return 1 << 30
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0] * FREE_SHARE)

    def fits(self, batch: int, context: int) -> bool:
        """Whether so many requests run at once; each keeps a block free for its next tokens."""
        each = -(-(context + ROOM) // BLOCK_SIZE)
        return batch * (each + 1) <= self.engine.stats().total_blocks and context + ROOM <= self.engine.context_length

    @contextlib.contextmanager
    def running(self, batch: int, context: int) -> Iterator[None]:
        """`batch` greedy requests decode, each with about `context` tokens in the cache, until the block ends."""
        blocks = self.engine._blocks
        try_start = blocks.try_start

        def try_start_computed(request: Request, reserve: int) -> bool:
            started = try_start(request, reserve)
            if started:
                request.num_computed = request.num_tokens - 1
            return started

        with mock.patch.object(blocks, "try_start", try_start_computed), self._requests(batch, context, ROOM) as ids:
            waiting = set(ids)
            while waiting:
                waiting -= {output.request_id for output in self.engine.step()}
            yield

    @contextlib.contextmanager
    def prefilling(self, tokens: int) -> Iterator[int]:
        """One prompt that is yet to be computed, its id."""
        with self._requests(1, tokens, 8) as ids:
            yield ids[0]

    @contextlib.contextmanager
    def _requests(self, batch: int, tokens: int, new: int) -> Iterator[list[int]]:
        """Their ids; they end with the block."""
        random_ = random.Random(tokens)
        params = SamplingParams(max_new_tokens=new, temperature=0.0, ignore_eos=True)
        prompts = [[random_.randrange(self._vocab_size) for _ in range(tokens)] for _ in range(batch)]
        ids = [self.engine.add(self.engine.prepare(prompt, params)) for prompt in prompts]
        try:
            yield ids
        finally:
            for request_id in ids:
                self.engine.abort(request_id)
            self.engine.step()  # what has been launched ahead for them, if anything


@contextlib.contextmanager
def _random_cache() -> Iterator[None]:
    """What kv_cache.allocate makes is full of random numbers instead of zeros."""
    allocate = kv_cache.allocate

    def allocate_random(*args: Any, **named: Any) -> Any:
        caches = allocate(*args, **named)
        for cache in caches:
            for tensor in vars(cache).values():
                if isinstance(tensor, Tensor):
                    fill(tensor)
        return caches

    with mock.patch.object(kv_cache, "allocate", allocate_random):
        yield


def fill(tensor: Tensor) -> None:
    """Random numbers in place, in any dtype that a cache has; scales are those of normal numbers."""
    if tensor.dtype == torch.float32:
        tensor.fill_(3 / 127)
    elif tensor.dtype == torch.int8:
        tensor.random_(-127, 128)
    elif tensor.dtype == torch.float8_e4m3fn:
        tensor.view(torch.uint8).random_(0, 0x7F)  # every positive number, no NaN
    else:
        tensor.normal_()
