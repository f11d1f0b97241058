"""One product by several implementations: packed, checked against the dequantized weight, then timed in turn."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from awq.quantize import QuantizedTensor
from benchmarks.kernels import timing
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers.peer import Implementation, Packed, Unavailable
from benchmarks.kernels.weights import random_activations, random_weight
from benchmarks.shapes import Shape

CHECKED_ROWS = 64  # of the result, spread over all of them
WRONG = 0.03  # relative error: more than any rounding to 16 bits makes of a weight


class DeviceLost(Exception):
    """The GPU no longer answers in this process; what was measured before is all there will be."""


@dataclass(frozen=True)
class Measurement:
    """Of one implementation in one case."""

    error: float  # relative, against the dequantized weight in fp32
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
class Result:
    """Of all implementations in one case."""

    case: Case
    measured: dict[str, Measurement] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # why, by name


class Weights:
    """One shape's weight, packed by every implementation that can, each as often as it takes to outsize the caches."""

    def __init__(self, shape: Shape, dtype: torch.dtype, group_size: int, device: str) -> None:
        self.weight: QuantizedTensor = random_weight(shape.n, shape.k, group_size, dtype, device)
        self.copies: dict[str, list[Packed]] = {}
        self.failed: dict[str, str] = {}

    def pack(self, implementations: Mapping[str, Implementation], copy: bool = True) -> None:
        for name, implementation in implementations.items():
            try:
                first = implementation.pack(self.weight)
                more = timing.num_copies(num_bytes(first)) - 1 if copy else 0
                self.copies[name] = [first, *(tuple(tensor.clone() for tensor in first) for _ in range(more))]
            except Exception as error:
                self.failed[name] = describe(error)
                require_device()


def num_bytes(packed: Packed) -> int:
    return sum(tensor.nbytes for tensor in packed)


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


class Reference:
    """The product with the dequantized weight, in fp32, of a part of the rows."""

    def __init__(self, x: Tensor, dequantized: Tensor) -> None:
        self._rows = torch.linspace(0, len(x) - 1, min(len(x), CHECKED_ROWS), device=x.device).round().long()
        self._expected = x[self._rows].float() @ dequantized.t()

    def error(self, y: Tensor) -> float:
        difference = y[self._rows].float() - self._expected
        return float(difference.norm() / self._expected.norm())


def compare(
    case: Case,
    weights: Weights,
    dequantized: Tensor,
    implementations: Mapping[str, Implementation],
    timer: timing.Timer,
    budget_s: float,
) -> Result:
    """What fails is named in the result and left out of the rest; raises DeviceLost."""
    result = Result(case, failed={name: why for name, why in weights.failed.items() if name in implementations})
    x = random_activations(case.rows, case.shape.k, case.torch_dtype, timer.device)
    reference = Reference(x, dequantized)
    prepared: dict[str, timing.Replay] = {}
    facts: dict[str, tuple[float, int, int]] = {}
    for name, implementation in implementations.items():
        if name not in weights.copies:
            continue
        copies = weights.copies[name]
        try:
            error = checked(case, implementation, x, copies[0], reference)
            calls = [_call(implementation, x, copy, case) for copy in copies]
            rounds = timing.num_calls(len(copies), timer.estimate(calls[0])) // len(copies)
            prepared[name] = timer.prepare(calls * rounds)
            facts[name] = (error, len(copies), num_bytes(copies[0]))
        except Exception as error_:
            result.failed[name] = describe(error_)
            require_device()
    for name, seconds in timing.take_turns(prepared, budget_s).items():
        result.measured[name] = Measurement(*facts[name], prepared[name].calls, seconds)
    return result


def checked(case: Case, implementation: Implementation, x: Tensor, packed: Packed, reference: Reference) -> float:
    """The relative error of one call; raises ArithmeticError where that is no rounding."""
    poison = [torch.full((case.rows, case.shape.n), float("nan"), dtype=x.dtype, device=x.device) for _ in range(2)]
    del poison  # its memory is likely the result's, so that an element never written is not right by luck
    error = reference.error(implementation.multiply(x, packed, case))
    if not error <= WRONG:
        raise ArithmeticError(f"wrong result: relative error {error:.3g}")
    return error


def _call(implementation: Implementation, x: Tensor, packed: Packed, case: Case) -> Any:
    return lambda: implementation.multiply(x, packed, case)
