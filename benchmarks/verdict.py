"""Whether what was measured reaches what was aimed at: one line for each demand, its worst case beside it."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Of one demand on all cases of a regime."""

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


def at_least(regime: str, demand: str, wanted: float, figures: Iterable[tuple[float | None, object]]) -> Verdict:
    """`figures`: each case's value, None where there is none, and the case."""
    measured = [(value, str(case)) for value, case in figures if value is not None]
    worst, where = min(measured, default=(None, ""))
    return Verdict(regime, demand, sum(value >= wanted for value, _ in measured), len(measured), worst, where)


def at_most(regime: str, demand: str, allowed: float, figures: Iterable[tuple[float | None, object]]) -> Verdict:
    """The same of values that should be small."""
    measured = [(value, str(case)) for value, case in figures if value is not None]
    worst, where = max(measured, default=(None, ""))
    return Verdict(regime, demand, sum(value <= allowed for value, _ in measured), len(measured), worst, where)
