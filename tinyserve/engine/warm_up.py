"""An engine's first steps: what the kernels refuse is an error now, and the cost of steps is known before requests."""

import time

from tinyserve.config import SamplingParams
from tinyserve.engine.model_runner import ModelRunner
from tinyserve.engine.pace import Pace
from tinyserve.engine.request import Request
from tinyserve.engine.scheduler import Scheduler

MAX_TOKENS = 64  # of a prompt that shows what prefill costs


def warm_up(scheduler: Scheduler, runner: ModelRunner, pace: Pace, context_length: int) -> None:
    """Runs a prompt and a single token, a few times each, and records decode steps; leaves nothing behind."""
    prompt = max(1, min(MAX_TOKENS, context_length - 1))
    pace.observe(0, prompt, min(_seconds(scheduler, runner, prompt) for _ in range(2)))
    runner.record()  # what a capture does not allow has happened by now: the kernels' libraries are loaded
    pace.observe(1, 0, min(_seconds(scheduler, runner, 1) for _ in range(3)))


def _seconds(scheduler: Scheduler, runner: ModelRunner, num_tokens: int) -> float:
    """That a prompt of `num_tokens` takes."""
    request = Request(-1, [0] * num_tokens, SamplingParams(max_new_tokens=1))
    scheduler.add(request)
    start = time.perf_counter()
    step = scheduler.next_step()
    while step is not None and request.num_pending:
        _, logits = runner.run(step)
        request.num_computed += step.num_tokens
        step = scheduler.next_step()
    logits[-1, 0].item()  # a GPU has only been told so far
    seconds = time.perf_counter() - start
    request.num_computed = 0  # so that no block is kept
    scheduler.finish(request)
    return seconds
