"""Small cases that a CPU computes, and figures made up."""

from benchmarks.attention.case import Case, Heads
from benchmarks.kernels.limits import Ceilings

GROUPED, PLAIN = Heads("grouped", 4, 2, 32), Heads("plain", 2, 2, 32)
CEILINGS = Ceilings(1e10, {"bfloat16": 1e12})


def small_cases() -> list[Case]:
    """Contexts that fill no last block; decoding, prefill and prefill behind a prefix; every kind of cache."""
    return [
        Case(GROUPED, 3, 1, 70),
        Case(PLAIN, 1, 1, 33),
        Case(GROUPED, 2, 1, 45, "int8"),
        Case(GROUPED, 2, 40, 40),
        Case(GROUPED, 2, 13, 50),
    ]
