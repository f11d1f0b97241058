"""Several implementations of one piece of work: each checked when it enters, then all timed in turn.

What the work is, those who enter know; here are only their calls, and the limit that the work has.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from benchmarks.kernels import timing
from benchmarks.kernels.limits import Ceilings, Work
from benchmarks.kernels.peers.peer import Unavailable

CaseT = TypeVar("CaseT", bound=Work)


class DeviceLost(Exception):
    """The GPU no longer answers in this process; what was measured before is all there will be."""


@dataclass(frozen=True)
class Contender:
    """An implementation whose result was right."""

    error: float  # relative
    copy_bytes: int
    calls: Sequence[timing.Call]  # one for each copy of what it reads, so that none waits in a cache


Entry = Callable[[], Contender]  # raises whatever keeps the implementation out


@dataclass(frozen=True)
class Measurement:
    """Of one implementation in one case."""

    error: float  # relative, against the work done in fp32
    copies: int
    copy_bytes: int
    calls: int  # in a replay
    seconds: list[float]  # of a call, one for each replay

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """From the fastest to the slowest replay, as part of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median_s


@dataclass
class Result(Generic[CaseT]):
    """Of all implementations in one case."""

    case: CaseT
    measured: dict[str, Measurement] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # why, by name


def race(case: CaseT, entries: Mapping[str, Entry], timer: timing.Timer, budget_s: float) -> Result[CaseT]:
    """What fails is named in the result and left out of the rest; raises DeviceLost."""
    result = Result(case)
    prepared: dict[str, timing.Replay] = {}
    facts: dict[str, tuple[float, int, int]] = {}
    for name, enter in entries.items():
        try:
            contender = enter()
            copies = len(contender.calls)
            rounds = timing.num_calls(copies, timer.estimate(contender.calls[0])) // copies
            prepared[name] = timer.prepare([*contender.calls] * rounds)
            facts[name] = (contender.error, copies, contender.copy_bytes)
        except Exception as error:
            result.failed[name] = describe(error)
            require_device()
    for name, seconds in timing.take_turns(prepared, budget_s).items():
        result.measured[name] = Measurement(*facts[name], prepared[name].calls, seconds)
    return result


def share(result: Result[CaseT], ceilings: Ceilings, name: str) -> float | None:
    """The limit's time over the measured one."""
    measured = result.measured.get(name)
    return ceilings.limit_s(result.case) / measured.median_s if measured else None


def speed_ratio(result: Result[CaseT], ours: str, peer: str) -> float | None:
    """The peer's time over ours: above 1, ours is faster."""
    our, their = result.measured.get(ours), result.measured.get(peer)
    return their.median_s / our.median_s if our and their else None


def describe(error: Exception) -> str:
    first_line = next(iter(str(error).strip().splitlines()), "")
    return first_line if isinstance(error, Unavailable) else f"{type(error).__name__}: {first_line}"


def require_device() -> None:
    """Some errors of a kernel stay with the process."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except Exception as error:
            raise DeviceLost(describe(error)) from error
