"""Reads the profiler's trace of decode steps: which kernels a token takes, one after another, and the gaps between.

The trace is Chrome's JSON as torch.profiler writes it. A kernel belongs to the step in which the host launched it
(alone or in a graph), told by the correlation of launch and kernel. A token lasts from its first kernel's start to that
of the next token; the last step of a trace has no such end and is left out. Kernels may overlap, where one is launched
before its predecessor is done: what is counted for it is the time after that, so that all of them and the gaps add up.
"""

import itertools
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
ANNOTATION = "user_annotation"
OWN = re.compile(r"tinyserve::.*?(\w+?)(?:_ragged)?_kernel\b")
ALIASES = {"mma_gemm": "w4a16_gemm", "wgmma_gemm": "w4a16_gemm"}
# Others' kernels: a part of the name, and what it is called here; the first that fits.
OTHERS = (
    ("memcpy", "copy"),
    ("memset", "memset"),
    ("flash", "flash attention"),
    ("nvjet", "cublas"),
    ("gemm", "cublas"),
    ("gemv", "cublas"),
    ("splitk", "cublas"),
    ("gather", "embedding"),
    ("index", "embedding"),
    ("reduce", "torch reduce"),
    ("elementwise", "torch elementwise"),
)
ATTENTION = "attention"  # is in the name of the op that each layer has once


@dataclass(frozen=True)
class Kernel:
    name: str
    op: str
    start_us: float  # from the token's start
    duration_us: float  # where it began before the one before it was done: waiting for that included
    gap_us: float  # since everything before it was done; 0 where it began before that
    alone_us: float  # of its duration, what comes after everything before it was done


@dataclass(frozen=True)
class Token:
    kernels: Sequence[Kernel]
    period_us: float  # until the next token's first kernel

    @property
    def gaps_us(self) -> float:
        """In which no kernel ran, the gap before the next token included."""
        end = max(kernel.start_us + kernel.duration_us for kernel in self.kernels)
        return sum(kernel.gap_us for kernel in self.kernels) + max(0.0, self.period_us - end)

    @property
    def busy_us(self) -> float:
        return self.period_us - self.gaps_us


def op_of(name: str) -> str:
    """The op that a kernel belongs to; of one that is not known, the beginning of its name."""
    if found := OWN.search(name):
        return ALIASES.get(found[1], found[1])
    lower = name.lower()
    known = next((op for part, op in OTHERS if part in lower), None)
    return known or re.sub(r"^void |<.*|\(.*", "", name)[:40]


def read_tokens(path: Path, step: str) -> list[Token]:
    """The tokens of the steps that are annotated with the name `step`.

    Raises:
        ValueError: the trace has no kernel in such steps, or only in the last one.
    """
    events = json.loads(path.read_text())["traceEvents"]
    steps = sorted(event["ts"] for event in events if event.get("cat") == ANNOTATION and event.get("name") == step)
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})
    }
    by_step: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") in ON_GPU:
            launch = launched.get(event.get("args", {}).get("correlation"), event["ts"])
            index = bisect_right(steps, launch) - 1
            if index >= 0:
                by_step.setdefault(index, []).append(event)
    groups = [sorted(group, key=lambda event: event["ts"]) for _, group in sorted(by_step.items())]
    if len(groups) < 2:
        raise ValueError(f"{path.name} has kernels in {len(groups)} of {len(steps)} steps called {step!r}: two needed")
    return [_token(group, following[0]["ts"]) for group, following in itertools.pairwise(groups)]


def _token(events: Sequence[dict[str, Any]], following: float) -> Token:
    first = done = events[0]["ts"]
    kernels = []
    for event in events:
        start, duration = event["ts"], event["dur"]
        gap, alone = max(0.0, start - done), max(0.0, start + duration - max(start, done))
        kernels.append(Kernel(event["name"], op_of(event["name"]), start - first, duration, gap, alone))
        done = max(done, start + duration)
    return Token(kernels, following - first)


def median_token(tokens: Sequence[Token]) -> Token:
    return sorted(tokens, key=lambda token: token.period_us)[len(tokens) // 2]


@dataclass(frozen=True)
class Place:
    """One kernel of a layer, on average over all layers."""

    op: str
    alone_us: float
    gap_us: float


def layers(token: Token) -> list[Sequence[Kernel]]:
    """The kernels of each layer, where all have as many: the layer is what repeats around its attention.

    Empty where nothing repeats.
    """
    ops = [kernel.op for kernel in token.kernels]
    starts = [i for i, op in enumerate(ops) if ATTENTION in op and (i == 0 or ATTENTION not in ops[i - 1])]
    distances = Counter(after - before for before, after in itertools.pairwise(starts))
    if not distances:
        return []
    period = distances.most_common(1)[0][0]
    before = 0  # kernels of a layer ahead of its attention: as far as the first two layers agree
    while before < min(period - 1, starts[0]) and ops[starts[0] - before - 1] == ops[starts[1] - before - 1]:
        before += 1
    parts = [token.kernels[start - before : start - before + period] for start in starts]
    return [part for part in parts if [kernel.op for kernel in part] == [kernel.op for kernel in parts[0]]]


def average_layer(parts: Sequence[Sequence[Kernel]]) -> list[Place]:
    return [
        Place(same[0].op, _mean(kernel.alone_us for kernel in same), _mean(kernel.gap_us for kernel in same))
        for same in zip(*parts, strict=True)
    ]


def by_op(token: Token) -> dict[str, tuple[int, float, float]]:
    """(kernels, microseconds alone, microseconds of gaps before them) of each op, the longest first."""
    sums: dict[str, tuple[int, float, float]] = {}
    for kernel in token.kernels:
        count, alone, gap = sums.get(kernel.op, (0, 0.0, 0.0))
        sums[kernel.op] = (count + 1, alone + kernel.alone_us, gap + kernel.gap_us)
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
