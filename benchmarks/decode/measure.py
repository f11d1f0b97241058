"""Measures one model in a process of its own: whatever happens to it, the others' figures stay.

python -m benchmarks.decode.measure TASK        TASK: a Task as JSON; a row is printed as soon as there is one
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.decode import steps, torch_prefill
from benchmarks.decode.floor import Model
from benchmarks.decode.random_engine import ROOM, RandomEngine
from benchmarks.decode.task import Row, Task
from benchmarks.decode.variant import Variant
from benchmarks.kernels.rivals import describe
from benchmarks.peak_memory import forget_peak_memory, peak_memory_bytes


def rows(task: Task) -> Iterator[Row]:
    """What fails is a row of its own, and the rest goes on. What targets need most comes first: time may run out."""
    first, *others = task.parsed_variants()
    yield from of_variant(task, first, with_trace=True)
    if task.compared_prompt:
        yield from attempted(None, f"torch prefill {task.compared_prompt}", partial(torch_row, task))
        release(task.device)
    for variant in others:
        yield from of_variant(task, variant, with_trace=False)


def of_variant(task: Task, variant: Variant, with_trace: bool) -> Iterator[Row]:
    begin = time.perf_counter()
    try:
        made = make(task, variant)
    except Exception as error:
        yield failure(variant, "load", error)
        return
    yield {
        "kind": "load",
        "variant": str(variant),
        "seconds": time.perf_counter() - begin,
        "kv_cache_tokens": made.engine.stats().total_blocks * made.engine._blocks.block_size,
    }
    yield from of_engine(task, variant, made, with_trace)
    yield {"kind": "memory", "variant": str(variant), "peak_bytes": peak_memory_bytes(task.device)}
    del made  # the next one needs its memory
    release(task.device)


def make(task: Task, variant: Variant) -> RandomEngine:
    batch, context = max(task.batches), max((*task.contexts, *task.prompts))
    num_tokens = max(task.batches) * (max(task.contexts) + ROOM + 64)
    return RandomEngine(task.config, variant, task.device, batch, context, max(num_tokens, 2 * (context + ROOM)))


def of_engine(task: Task, variant: Variant, made: RandomEngine, with_trace: bool) -> Iterator[Row]:
    model = Model.of(task.config)
    for context in task.contexts:
        for batch in task.batches:
            what = f"decode {batch} x {context}"
            if made.fits(batch, context):
                work = partial(decode_row, task, variant, model, made, batch, context)
                yield from attempted(variant, what, work)
            else:
                why = f"the cache holds {made.engine.stats().total_blocks} blocks"
                yield {"kind": "skipped", "variant": str(variant), "what": what, "why": why}
    for tokens in task.prompts:
        work = partial(first_token_row, task, variant, model, made, tokens)
        yield from attempted(variant, f"first token {tokens}", work)
    if with_trace and task.trace:
        path = Path(task.trace)
        yield from attempted(variant, "trace", partial(trace_row, variant, made, min(task.contexts), path))


def attempted(variant: Variant | None, what: str, work: Callable[[], Row]) -> Iterator[Row]:
    try:
        yield work()
    except Exception as error:
        yield failure(variant, what, error)


def failure(variant: Variant | None, what: str, error: Exception) -> Row:
    return {"kind": "failed", "variant": str(variant), "what": what, "why": describe(error)}


def decode_row(task: Task, variant: Variant, model: Model, made: RandomEngine, batch: int, context: int) -> Row:
    times = steps.decode(made, batch, context)
    limit_s = model.decode_s(task.ceilings, variant, batch, times.mean_context)
    return {
        "kind": "decode",
        "variant": str(variant),
        **asdict(times),
        "context": context,
        "mean_context": times.mean_context,
        "step_ms": 1e3 * times.step_s,
        "limit_ms": 1e3 * limit_s,
        "of_limit": limit_s / times.step_s,
        "tokens_per_s": batch / times.step_s,
    }


def first_token_row(task: Task, variant: Variant, model: Model, made: RandomEngine, tokens: int) -> Row:
    seconds = steps.first_token(made, tokens)
    limit_s = model.prefill_s(task.ceilings, tokens)
    return {
        "kind": "first token",
        "variant": str(variant),
        "tokens": tokens,
        "seconds": seconds,
        "best_ms": 1e3 * min(seconds),
        "limit_ms": 1e3 * limit_s,
        "of_limit": limit_s / min(seconds),
    }


def trace_row(variant: Variant, made: RandomEngine, context: int, path: Path) -> Row:
    steps.trace(made, 1, context, path)
    return {"kind": "trace", "variant": str(variant), "batch": 1, "context": context, "path": str(path)}


def torch_row(task: Task) -> Row:
    assert task.compared_prompt is not None
    seconds = torch_prefill.seconds(task.config, task.compared_prompt, task.device)
    return {
        "kind": "torch prefill",
        "variant": "transformers",
        "tokens": task.compared_prompt,
        "seconds": seconds,
        "best_ms": 1e3 * min(seconds),
    }


def release(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    forget_peak_memory(device)


def main() -> None:
    task = Task.from_json(sys.argv[1])
    answers: Any = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no row
    for row in rows(task):
        print(json.dumps({"model": task.model, **row}), file=answers)


if __name__ == "__main__":
    main()
