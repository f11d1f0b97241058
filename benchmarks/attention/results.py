"""A run's results as a table for people and as what the results file holds."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.attention.case import Case
from benchmarks.attention.peers.registry import OURS
from benchmarks.kernels.limits import Ceilings
from benchmarks.kernels.results import implementations_json
from benchmarks.kernels.rivals import Result, share, speed_ratio

HEADER = (
    f"{'heads':<10} {'batch':>5} {'new':>5} {'context':>7} {'cache':<8} {'limit us':>9} {'ours us':>9} {'of limit':>8}"
    f" {'GB/s':>6} {'TFLOP/s':>7} {'spread':>7} {'error':>8}"
)


def table_row(result: Result[Case], ceilings: Ceilings) -> str:
    """Ours, then every other's time and how many times as fast ours is."""
    case = result.case
    line = f"{case.heads.name:<10} {case.batch:>5} {case.queries:>5} {case.context:>7} {case.cache:<8}"
    line += f" {1e6 * ceilings.limit_s(case):>9.1f}"
    if ours := result.measured.get(OURS):
        part, seconds = share(result, ceilings, OURS), ours.median_s
        line += f" {1e6 * seconds:>9.1f} {part:>8.0%} {case.total_bytes / seconds / 1e9:>6.0f}"
        line += f" {case.operations / seconds / 1e12:>7.1f} {ours.spread:>7.0%} {ours.error:>8.1e}"
    else:
        line += f" {'-':>9} {'-':>8} {'-':>6} {'-':>7} {'-':>7} {'-':>8}"
    for name, measured in result.measured.items():
        if name != OURS:
            ratio = speed_ratio(result, OURS, name)
            line += f"  {name} {1e6 * measured.median_s:.1f}" + (f" ({ratio:.2f}x)" if ratio else "")
    return line


def to_json(results: Sequence[Result[Case]], ceilings: Ceilings) -> list[dict[str, Any]]:
    return [
        {
            **asdict(result.case),
            "limit_us": round(1e6 * ceilings.limit_s(result.case), 3),
            "bound": "memory" if ceilings.memory_s(result.case) >= ceilings.compute_s(result.case) else "compute",
            "bytes": result.case.total_bytes,
            "operations": result.case.operations,
            "implementations": implementations_json(result, ceilings, OURS),
            "failed": result.failed,
        }
        for result in results
    ]
