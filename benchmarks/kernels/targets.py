"""What the kernels are meant to reach on a Hopper GPU, as data, and whether a run's results do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.kernels.limits import Case, Ceilings
from benchmarks.kernels.peers.registry import BASELINE, OURS
from benchmarks.kernels.rivals import Result, share, speed_ratio
from benchmarks.verdict import Verdict, at_least


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


def verdicts(results: Sequence[Result[Case]], ceilings: Ceilings, targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    found = []
    for target in targets:
        covered = [result for result in results if target.covers(result.case)]
        if target.share:
            shares = [(share(result, ceilings, OURS), result.case) for result in covered]
            found.append(at_least(target.regime, f">= {target.share:.2f} of the limit", target.share, shares))
        for peer, ratio in target.ratios.items():
            ratios = [(speed_ratio(result, OURS, peer), result.case) for result in covered]
            found.append(at_least(target.regime, f">= {ratio:.2f} x {peer}", ratio, ratios))
    return found
