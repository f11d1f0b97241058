"""An implementation as bench_cpu.py sees it, be it here or in a process of its own, and the times that it took."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks.cpu_peers.product import Case, Clock, Product, relative_error
from benchmarks.cpu_peers.remote import Process


@dataclass(frozen=True)
class Contender:
    """One implementation, here or in a process of its own."""

    name: str
    bits: int
    prepare: Callable[[Case], float]
    error: Callable[[int], float]
    start: Callable[[int], Callable[[float], list[float]]]  # rows -> Clock.seconds


def local(product: Product) -> Contender:
    case: Case | None = None

    def prepare(new: Case) -> float:
        nonlocal case
        case = new
        return product.prepare(new)

    def error(m: int) -> float:
        assert case is not None
        return relative_error(product, case, m)

    def start(m: int) -> Callable[[float], list[float]]:
        assert case is not None
        return Clock(product, case, m).seconds

    return Contender(product.name, product.bits, prepare, error, start)


def remote(process: Process, name: str, bits: int) -> Contender:
    def start(m: int) -> Callable[[float], list[float]]:
        process.ask("start", name, m)
        return lambda limit: process.ask("seconds", name, limit)

    return Contender(
        name,
        bits,
        prepare=lambda case: process.ask("prepare", name, asdict(case)),
        error=lambda m: process.ask("error", name, m),
        start=start,
    )


@dataclass(frozen=True)
class Times:
    """Seconds of one product: of each round the best and the median of its calls."""

    best: list[float]
    median: list[float]

    @classmethod
    def of(cls, turns: list[list[float]]) -> "Times":
        return cls([min(turn) for turn in turns], [statistics.median(turn) for turn in turns])

    @property
    def shortest(self) -> float:
        return min(self.best)

    @property
    def typical(self) -> float:
        return statistics.median(self.median)
