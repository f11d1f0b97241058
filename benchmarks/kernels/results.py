"""A run's results as a table for people and as what the results file holds."""

from collections.abc import Sequence
from typing import Any

from benchmarks.kernels.limits import Case, Ceilings
from benchmarks.kernels.peers.registry import OURS
from benchmarks.kernels.rivals import CaseT, Result, share, speed_ratio

HEADER = (
    f"{'N x K':>13} {'M':>5} {'dtype':<8} {'limit us':>9} {'ours us':>9} {'of limit':>8} {'spread':>7} {'error':>8}"
)


def table_row(result: Result[Case], ceilings: Ceilings) -> str:
    """Ours, then every peer's time and how many times as fast ours is."""
    case = result.case
    line = f"{case.shape!s:>13} {case.rows:>5} {case.dtype:<8} {1e6 * ceilings.limit_s(case):>9.1f}"
    if ours := result.measured.get(OURS):
        part = share(result, ceilings, OURS)
        line += f" {1e6 * ours.median_s:>9.1f} {part:>8.0%} {ours.spread:>7.0%} {ours.error:>8.1e}"
    else:
        line += f" {'-':>9} {'-':>8} {'-':>7} {'-':>8}"
    for name, measured in result.measured.items():
        if name == OURS:
            continue
        ratio = speed_ratio(result, OURS, name)
        line += f"  {name} {1e6 * measured.median_s:.1f}" + (f" ({ratio:.2f}x)" if ratio else "")
    return line


def failures(results: Sequence[Result[CaseT]]) -> list[str]:
    """A line for each implementation and reason, with the cases."""
    cases: dict[tuple[str, str], list[CaseT]] = {}
    for result in results:
        for name, why in result.failed.items():
            cases.setdefault((name, why), []).append(result.case)
    return [
        f"{name}: {why} [{len(found)} of {len(results)} cases{'' if len(found) > 1 else f': {found[0]}'}]"
        for (name, why), found in cases.items()
    ]


def to_json(results: Sequence[Result[Case]], ceilings: Ceilings) -> list[dict[str, Any]]:
    rows = []
    for result in results:
        case = result.case
        memory_s, compute_s = ceilings.memory_s(case), ceilings.compute_s(case)
        row = {
            "n": case.shape.n,
            "k": case.shape.k,
            "layers": case.shape.layers,
            "rows": case.rows,
            "dtype": case.dtype,
            "group_size": case.group_size,
            "limit_us": round(1e6 * ceilings.limit_s(case), 3),
            "bound": "memory" if memory_s >= compute_s else "compute",
            "implementations": implementations_json(result, ceilings, OURS),
            "failed": result.failed,
        }
        rows.append(row)
    return rows


def implementations_json(result: Result[CaseT], ceilings: Ceilings, ours: str) -> dict[str, dict[str, Any]]:
    """Every figure of one case, by implementation."""
    return {
        name: {
            "us": round(1e6 * measured.median_s, 3),
            "of_limit": share(result, ceilings, name),
            "ours_is_faster": None if name == ours else speed_ratio(result, ours, name),
            "spread": measured.spread,
            "error": measured.error,
            "copies": measured.copies,
            "copy_bytes": measured.copy_bytes,
            "calls": measured.calls,
            "replays_us": [round(1e6 * seconds, 3) for seconds in measured.seconds],
        }
        for name, measured in result.measured.items()
    }
