"""How long one call takes: many calls in one CUDA graph, replayed between two events, in turn with its rivals.

A call's weight is one of several copies, so that none is still in a cache when its turn comes again. A machine without
a GPU has the same interface over a loop and a clock: for the tests of what is built on it.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

Call = Callable[[], object]

ROTATED_BYTES = 256 << 20  # of copies: four times the second-level cache of an H200
MIN_CALLS = 20  # in a replay
ENOUGH_S = 0.1  # a replay that takes as long as this needs no more calls
MIN_REPLAYS, MAX_REPLAYS = 5, 30
QUEUE_CYCLES = 200_000  # of the GPU's clock: what the host needs to queue a replay, several times over


class Replay(Protocol):
    """Calls that were prepared to run one after another."""

    calls: int

    def seconds(self) -> float:
        """Runs them all once; how long one of them took on average."""


class Timer(Protocol):
    device: str

    def prepare(self, calls: Sequence[Call]) -> Replay:
        """Runs every call once, to warm up, and makes a replay of them."""

    def estimate(self, call: Call) -> float:
        """Seconds of one call that has run before, roughly."""


def num_copies(copy_bytes: int) -> int:
    """At least two, even of a weight that exceeds the cache on its own: part of it would remain there."""
    return max(2, math.ceil(ROTATED_BYTES / copy_bytes))


def num_calls(copies: int, call_s: float) -> int:
    """A multiple of the copies, so that each is read equally often."""
    wanted = min(MIN_CALLS, ENOUGH_S / max(call_s, 1e-9))
    return copies * max(1, math.ceil(wanted / copies))


def take_turns(replays: Mapping[str, Replay], budget_s: float) -> dict[str, list[float]]:
    """Seconds of a call, a list for each name: a replay of each in turn, until about `budget_s` is spent."""
    seconds: dict[str, list[float]] = {name: [] for name in replays}
    spent = 0.0
    for done in range(MAX_REPLAYS):
        if done >= MIN_REPLAYS and spent >= budget_s:
            break
        for name, replay in replays.items():
            seconds[name].append(replay.seconds())
            spent += seconds[name][-1] * replay.calls
    return seconds


def median_seconds(timer: Timer, call: Call) -> float:
    replay = timer.prepare([call] * MIN_CALLS)
    return statistics.median(replay.seconds() for _ in range(MIN_REPLAYS))


class CudaGraphTimer:
    """Times on the current GPU."""

    device = "cuda"

    def prepare(self, calls: Sequence[Call]) -> Replay:
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for call in calls:
                call()
        replay = _GraphReplay(_captured(calls), len(calls))
        replay.seconds()  # the first one uploads it
        return replay

    def estimate(self, call: Call) -> float:
        return min(_between_events(call) for _ in range(2))


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """Not by torch.cuda.graph, which empties torch's cache first and leaves its stream current where a call fails."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin()
        try:
            for call in calls:
                call()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what went wrong first says more
                graph.capture_end()
            raise
        graph.capture_end()
    return graph


class _GraphReplay:
    def __init__(self, graph: torch.cuda.CUDAGraph, calls: int) -> None:
        self._graph, self.calls = graph, calls

    def seconds(self) -> float:
        return _between_events(self._graph.replay) / self.calls


def _between_events(work: Call) -> float:
    """The GPU's time alone: it waits until the host has queued all of the work."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(QUEUE_CYCLES)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


class LoopTimer:
    """Times by the clock, on the CPU."""

    device = "cpu"

    def prepare(self, calls: Sequence[Call]) -> Replay:
        for call in calls:
            call()
        return _LoopReplay(calls)

    def estimate(self, call: Call) -> float:
        return _LoopReplay([call]).seconds()


class _LoopReplay:
    def __init__(self, calls: Sequence[Call]) -> None:
        self._work, self.calls = calls, len(calls)

    def seconds(self) -> float:
        start = time.perf_counter()
        for call in self._work:
            call()
        return (time.perf_counter() - start) / self.calls
