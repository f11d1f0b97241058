"""Seconds of an engine's steps: of decoding at a given batch and context, and until a prompt's first token.

Steps are timed as they follow each other, without waiting for the GPU between them: the engine may plan the next while
one runs. Before the first and after the last everything is done.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.decode.random_engine import RandomEngine

STEPS, WARM_STEPS = 48, 8
ENOUGH_S = 1.5  # of steps; never fewer than MIN_STEPS
MIN_STEPS = 12
PROMPTS = 4  # the first one warms up
STEP_NAME = "decode step"  # in a trace


@dataclass(frozen=True)
class DecodeTimes:
    batch: int
    context: int  # tokens in the cache before the first of these steps
    steps: int
    seconds: float  # of all steps together
    intervals_s: list[float]  # between one step's end on the host and the next's

    @property
    def step_s(self) -> float:
        return self.seconds / self.steps

    @property
    def mean_context(self) -> float:
        return self.context + (self.steps + 1) / 2


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode(made: RandomEngine, batch: int, context: int) -> DecodeTimes:
    """Raises RuntimeError where a step did not decode for all requests."""
    engine = made.engine
    with made.running(batch, context):
        begin = time.perf_counter()
        for _ in range(WARM_STEPS):
            engine.step()
        synchronize(made.device)
        guess_s = (time.perf_counter() - begin) / WARM_STEPS
        steps = max(MIN_STEPS, min(STEPS, int(ENOUGH_S / guess_s)))
        intervals, tokens = [], 0
        begin = last = time.perf_counter()
        for _ in range(steps):
            tokens += len(engine.step())
            now = time.perf_counter()
            intervals.append(now - last)
            last = now
        synchronize(made.device)
        seconds = time.perf_counter() - begin
    if tokens != batch * steps:
        raise RuntimeError(f"{tokens} tokens in {steps} steps of {batch} requests: some did not decode")
    return DecodeTimes(batch, context + 1 + WARM_STEPS, steps, seconds, intervals)


def first_token(made: RandomEngine, tokens: int) -> list[float]:
    """Seconds from a prompt's arrival until its first token, of several prompts."""
    seconds = []
    for _ in range(PROMPTS):
        synchronize(made.device)
        begin = time.perf_counter()
        with made.prefilling(tokens):
            while not made.engine.step():
                pass
            seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def trace(made: RandomEngine, batch: int, context: int, path: Path, steps: int = 4) -> None:
    """Writes a trace of decode steps in Chrome's format, each under STEP_NAME: what timeline.py reads."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if made.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with made.running(batch, context):
        for _ in range(WARM_STEPS):
            made.engine.step()
        synchronize(made.device)
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(steps):
                with torch.profiler.record_function(STEP_NAME):
                    made.engine.step()
            synchronize(made.device)
    profiler.export_chrome_trace(str(path))
