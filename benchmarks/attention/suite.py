"""What probe.py and a run ask of attention: its cases, implementations and checks."""

from collections.abc import Sequence

from benchmarks.attention.case import Case
from benchmarks.attention.comparison import answer, read_case
from benchmarks.attention.peers.registry import make

__all__ = ["answer", "make", "parts", "read_case"]


def parts(name: str, cases: Sequence[Case]) -> list[list[Case]]:
    """What one process tries: decoding and prefill are different kernels of most implementations."""
    decode, prefill = ([case for case in cases if case.is_decode is wanted] for wanted in (True, False))
    return [part for part in (decode, prefill) if part]
