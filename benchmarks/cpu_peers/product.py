"""What bench_cpu.py times: one implementation's product of a few rows with a quantized weight, repeated.

A call multiplies the same rows with `products` weights one after another, as a model's step does, so that what a
library needs once for every graph or session weighs as little as it does in a model. The weights of all `rotation`
calls together are far larger than the last-level cache, and each call takes the next ones: every weight comes from
memory.

Python and numpy alone: peers may run in a Python of their own, which has neither torch nor this package installed.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SETTLING_S = 0.03  # at the begin of a turn: threads of whoever had the one before may still spin


@dataclass(frozen=True)
class Case:
    """A weight [n, k] and how many of them there are."""

    n: int
    k: int
    group: int  # of ours, and of peers that have a choice
    bits: int
    products: int  # in one call
    rotation: int  # calls until a weight comes again


class Product(ABC):
    """One implementation. `name` stands in tables."""

    name: str
    bits: int

    @abstractmethod
    def prepare(self, case: Case) -> float:
        """Makes the weights of a case; those of the case before are dropped.

        Returns:
            Bytes of one weight as a product reads it.

        Raises:
            ValueError: the implementation has no such product.
        """

    @abstractmethod
    def set_rows(self, x: Array) -> None:
        """The rows that the next calls multiply: fp32 [M, K]."""

    @abstractmethod
    def call(self, index: int) -> None:
        """Multiplies with the weights of call `index` of the rotation."""

    @abstractmethod
    def result(self) -> Array:
        """The last call's last product, [M, N]."""

    @abstractmethod
    def weight(self) -> Array:
        """What the weights stand for, fp32 [N, K]; all of them are equal."""


def random_rows(m: int, k: int) -> Array:
    return np.random.default_rng(m).standard_normal((m, k), dtype=np.float32)


def relative_error(product: Product, case: Case, m: int) -> float:
    """Of the product with m rows, against the weights multiplied out in fp32, whose own error is far smaller."""
    x = random_rows(m, case.k)
    product.set_rows(x)
    product.call(0)
    expected = x @ product.weight().T
    return float(np.linalg.norm(product.result() - expected) / np.linalg.norm(expected))


class Clock:
    """Times calls of one product, going on through the rotation from one time to the next."""

    def __init__(self, product: Product, case: Case, m: int) -> None:
        self._product = product
        self._case = case
        self._calls: Iterator[int] = count()
        product.set_rows(random_rows(m, case.k))
        product.call(case.rotation - 1)  # warms up

    def seconds(self, limit: float) -> list[float]:
        """Seconds of one product, as each call had it that began within `limit` seconds, SETTLING_S left out."""
        times: list[float] = []
        begin = time.perf_counter()
        start = begin
        while not times or start < begin + limit:
            self._product.call(next(self._calls) % self._case.rotation)
            end = time.perf_counter()
            if start >= begin + SETTLING_S:
                times.append((end - start) / self._case.products)
            start = end
        return times
