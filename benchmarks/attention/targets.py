"""What attention is meant to reach on an H200, as data, and whether a run's results do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.attention.case import GQA, Case
from benchmarks.attention.peers.registry import FUSED, OURS, TWO_OPS
from benchmarks.kernels.limits import Ceilings
from benchmarks.kernels.rivals import Result, share, speed_ratio
from benchmarks.verdict import Verdict, at_least, at_most

LARGE = 1 << 16  # keys of all requests together
LATENCY_US = 8.0
PEERS = ("fa3", "flashinfer", "sdpa", "varlen")


@dataclass(frozen=True)
class Share:
    """Every case reaches so much of the limit."""

    regime: str
    covers: Callable[[Case], bool]
    share: float


SHARES = (
    Share("decode, 64k keys or more, bf16", lambda c: _is_large(c) and c.cache == "bfloat16", 0.85),
    Share("decode, 64k keys or more, fp8", lambda c: _is_large(c) and c.cache == "fp8", 0.80),
)
PHASES: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    ("decode, all cases", lambda case: case.is_decode),
    ("prefill, all cases", lambda case: not case.is_decode),
)


def _is_large(case: Case) -> bool:
    return case.is_decode and case.batch * case.context >= LARGE


def _is_short(case: Case) -> bool:
    return case.is_decode and case.heads == GQA and (case.batch, case.context) == (1, 1024)


def verdicts(results: Sequence[Result[Case]], ceilings: Ceilings) -> list[Verdict]:
    found = []
    for target in SHARES:
        shares = [(share(result, ceilings, OURS), result.case) for result in results if target.covers(result.case)]
        found.append(at_least(target.regime, f">= {target.share:.2f} of the limit", target.share, shares))
    latencies = [(_microseconds(result), result.case) for result in results if _is_short(result.case)]
    found.append(at_most("decode, batch 1, 1k", f"<= {LATENCY_US:.0f} us", LATENCY_US, latencies))
    fused = [(speed_ratio(result, FUSED, TWO_OPS), result.case) for result in results if result.case.is_decode]
    found.append(at_least("decode, rotation and cache too", f">= 1.00 x {TWO_OPS}", 1.0, fused))
    for regime, covers in PHASES:
        for peer in PEERS:
            ratios = [(speed_ratio(result, OURS, peer), result.case) for result in results if covers(result.case)]
            if any(ratio is not None for ratio, _ in ratios):
                found.append(at_least(regime, f">= 1.00 x {peer}", 1.0, ratios))
    return found


def _microseconds(result: Result[Case]) -> float | None:
    measured = result.measured.get(OURS)
    return 1e6 * measured.median_s if measured else None
