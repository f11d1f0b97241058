"""One case of attention by several implementations: checked against fp32, then timed in turn.

All who read tinyserve's layout read the same caches; as many of them take turns as it takes to outsize the caches of
the GPU.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.attention.case import Case, Heads
from benchmarks.attention.peers.peer import Attend, Implementation
from benchmarks.attention.problem import Cache, Problem
from benchmarks.attention.reference import WRONG, Reference
from benchmarks.kernels import timing
from benchmarks.kernels.rivals import Contender, Result, describe, race, require_device


def compare(
    case: Case, implementations: Mapping[str, Implementation], timer: timing.Timer, budget_s: float
) -> Result[Case]:
    """What fails is named in the result and left out of the rest; raises DeviceLost."""
    problem = Problem.random(case, timer.device)
    first = problem.cache()
    caches = [first, *(first.clone() for _ in range(timing.num_copies(case.kv_bytes) - 1))]
    reference = Reference(problem, first)
    entries = {
        name: partial(_enter, implementation, problem, caches, reference)
        for name, implementation in implementations.items()
    }
    return race(case, entries, timer, budget_s)


def _enter(
    implementation: Implementation, problem: Problem, caches: Sequence[Cache], reference: Reference
) -> Contender:
    calls = [implementation.prepare(problem, cache) for cache in caches]
    return Contender(checked(problem, calls[0], reference), problem.case.kv_bytes, calls)


def checked(problem: Problem, attend: Attend, reference: Reference) -> float:
    """The relative error of one call; raises ArithmeticError where that is no rounding."""
    poison = [torch.full_like(problem.q, float("nan")) for _ in range(2)]
    del poison  # its memory is likely the result's, so that an element never written is not right by luck
    error = reference.error(attend())
    if not error <= WRONG[problem.case.cache]:
        raise ArithmeticError(f"wrong result: relative error {error:.3g}")
    return error


def read_case(encoded: dict[str, Any]) -> Case:
    """From what dataclasses.asdict has made of it."""
    return Case(**{**encoded, "heads": Heads(**encoded["heads"])})


def answer(implementation: Implementation, cases: Sequence[Case], device: str) -> Iterator[str | None]:
    """Why each case fails, None where it does not, in turn; raises DeviceLost where the GPU no longer answers."""
    for case in cases:
        why = None
        try:
            problem = Problem.random(case, device)
            cache = problem.cache()
            checked(problem, implementation.prepare(problem, cache), Reference(problem, cache))
        except Exception as error:
            why = describe(error)
            require_device()
        yield why
