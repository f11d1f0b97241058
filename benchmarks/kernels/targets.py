"""What the kernels are meant to reach on a Hopper GPU, as data, and whether a run's results do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.kernels.comparison import Result
from benchmarks.kernels.limits import Case, Ceilings
from benchmarks.kernels.peers.registry import BASELINE, OURS


@dataclass(frozen=True)
class Target:
    """Every case of the regime reaches the share of the limit, and so many times the speed of each peer."""

    regime: str
    min_rows: int
    max_rows: int
    size: tuple[int, int] | None = None  # (N, K), where it is about one shape
    min_weight_bytes: int = 0
    dtypes: tuple[str, ...] = ("float16", "bfloat16")
    share: float = 0.0
    ratios: Mapping[str, float] = field(default_factory=dict)

    def covers(self, case: Case) -> bool:
        return (
            self.min_rows <= case.rows <= self.max_rows
            and self.size in (None, (case.shape.n, case.shape.k))
            and case.weight_bytes >= self.min_weight_bytes
            and case.dtype in self.dtypes
        )


TARGETS = (
    Target("M 1-8, 8192x8192, cold cache", 1, 8, size=(8192, 8192), share=0.65),
    Target("M 1-8, matrices >= 120 MB", 1, 8, min_weight_bytes=120_000_000, share=0.85),
    Target("M 16-64", 16, 64, share=0.60, ratios={"humming": 1.1, "marlin": 1.1}),
    Target("M 128-512", 128, 512, ratios={"machete": 1.0, "humming": 1.0}),
    Target("M >= 1024", 1024, 1 << 30, dtypes=("bfloat16",), ratios={BASELINE: 0.95}),
)


@dataclass(frozen=True)
class Verdict:
    """Of one demand of a target: its worst case."""

    regime: str
    demand: str
    reached: int  # cases
    cases: int
    worst: float | None  # None: nothing measured
    worst_case: str

    @property
    def word(self) -> str:
        if self.worst is None:
            return "NOT MEASURED"
        return "PASS" if self.reached == self.cases else "MISS"

    def __str__(self) -> str:
        line = f"{self.word:<12} {self.regime}: {self.demand}"
        if self.worst is None:
            return line
        return f"{line}; {self.reached} of {self.cases} cases, worst {self.worst:.2f} at {self.worst_case}"


def verdicts(results: Sequence[Result], ceilings: Ceilings, targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    found = []
    for target in targets:
        covered = [result for result in results if target.covers(result.case)]
        if target.share:
            shares = [(share(result, ceilings), result) for result in covered]
            found.append(_verdict(target.regime, f">= {target.share:.2f} of the limit", target.share, shares))
        for peer, ratio in target.ratios.items():
            ratios = [(speed_ratio(result, peer), result) for result in covered]
            found.append(_verdict(target.regime, f">= {ratio:.2f} x {peer}", ratio, ratios))
    return found


def _verdict(regime: str, demand: str, wanted: float, figures: list[tuple[float | None, Result]]) -> Verdict:
    measured = [(value, str(result.case)) for value, result in figures if value is not None]
    worst, where = min(measured, default=(None, ""))
    return Verdict(regime, demand, sum(value >= wanted for value, _ in measured), len(measured), worst, where)


def share(result: Result, ceilings: Ceilings, name: str = OURS) -> float | None:
    """The limit's time over the measured one."""
    measured = result.measured.get(name)
    return ceilings.limit_s(result.case) / measured.median_s if measured else None


def speed_ratio(result: Result, peer: str) -> float | None:
    """The peer's time over ours: above 1, ours is faster."""
    ours, theirs = result.measured.get(OURS), result.measured.get(peer)
    return theirs.median_s / ours.median_s if ours and theirs else None
