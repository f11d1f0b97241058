"""One product by several implementations: packed, checked against the dequantized weight, then timed in turn."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from awq.quantize import QuantizedTensor, dequantize
from benchmarks.kernels import timing
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers.peer import Implementation, Packed
from benchmarks.kernels.rivals import Contender, Result, describe, race, require_device
from benchmarks.kernels.weights import random_activations, random_weight
from benchmarks.shapes import Shape

CHECKED_ROWS = 64  # of the result, spread over all of them
WRONG = 0.03  # relative error: more than any rounding to 16 bits makes of a weight


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
) -> Result[Case]:
    """What fails is named in the result and left out of the rest; raises DeviceLost."""
    x = random_activations(case.rows, case.shape.k, case.torch_dtype, timer.device)
    reference = Reference(x, dequantized)

    def enter(implementation: Implementation, copies: Sequence[Packed]) -> Contender:
        error = checked(case, implementation, x, copies[0], reference)
        calls = [partial(implementation.multiply, x, copy, case) for copy in copies]
        return Contender(error, num_bytes(copies[0]), calls)

    entries = {
        name: partial(enter, implementation, weights.copies[name])
        for name, implementation in implementations.items()
        if name in weights.copies
    }
    result = race(case, entries, timer, budget_s)
    result.failed |= {name: why for name, why in weights.failed.items() if name in implementations}
    return result


def checked(case: Case, implementation: Implementation, x: Tensor, packed: Packed, reference: Reference) -> float:
    """The relative error of one call; raises ArithmeticError where that is no rounding."""
    poison = [torch.full((case.rows, case.shape.n), float("nan"), dtype=x.dtype, device=x.device) for _ in range(2)]
    del poison  # its memory is likely the result's, so that an element never written is not right by luck
    error = reference.error(implementation.multiply(x, packed, case))
    if not error <= WRONG:
        raise ArithmeticError(f"wrong result: relative error {error:.3g}")
    return error


def read_case(encoded: dict[str, Any]) -> Case:
    """From what dataclasses.asdict has made of it."""
    return Case(**{**encoded, "shape": Shape(**encoded["shape"])})


def answer(implementation: Implementation, cases: Sequence[Case], device: str) -> Iterator[str | None]:
    """Why each case fails, None where it does not, in turn; ends early where the GPU no longer answers."""
    only: Mapping[str, Implementation] = {implementation.name: implementation}
    for (shape, dtype, group_size), same in groupby(
        cases, lambda case: (case.shape, case.torch_dtype, case.group_size)
    ):
        weights = Weights(shape, dtype, group_size, device)
        weights.pack(only, copy=False)
        dequantized = dequantize(weights.weight)
        for case in same:
            why = weights.failed.get(implementation.name)
            if why is None:
                x = random_activations(case.rows, shape.k, dtype, device)
                try:
                    packed = weights.copies[implementation.name][0]
                    checked(case, implementation, x, packed, Reference(x, dequantized))
                except Exception as error:
                    why = describe(error)
                    require_device()
            yield why
