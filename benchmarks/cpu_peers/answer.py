"""A peer's process: answers what remote.py asks, a line of JSON for each.

PYTHON -m benchmarks.cpu_peers.answer MODULE THREADS
"""

import importlib
import json
import os
import sys
from importlib.metadata import version
from typing import Any

from benchmarks.cpu_peers.product import Case, Clock, Product, relative_error


class Answers:
    """One method for each question."""

    def __init__(self, products: list[Product]) -> None:
        self._products = {product.name: product for product in products}
        self._cases: dict[str, Case] = {}
        self._clocks: dict[str, Clock] = {}

    def prepare(self, name: str, case: dict[str, int]) -> float:
        self._cases[name] = Case(**case)
        return self._products[name].prepare(self._cases[name])

    def error(self, name: str, m: int) -> float:
        return relative_error(self._products[name], self._cases[name], m)

    def start(self, name: str, m: int) -> None:
        self._clocks[name] = Clock(self._products[name], self._cases[name], m)

    def seconds(self, name: str, limit: float) -> list[float]:
        return self._clocks[name].seconds(limit)


def main() -> None:
    module, threads = sys.argv[1:]
    lines = os.fdopen(os.dup(1), "w")  # libraries print to what is now only their output
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        print(json.dumps(value), file=lines, flush=True)

    try:
        library = importlib.import_module(f"benchmarks.cpu_peers.{module}")
        products: list[Product] = library.products(int(threads))
    except (ImportError, OSError) as error:
        answer({"missing": str(error)})
        return
    names = [(product.name, product.bits) for product in products]
    answer({"ok": {"library": library.LIBRARY, "version": version(library.LIBRARY), "products": names}})
    answers = Answers(products)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer({"ok": getattr(answers, question["ask"])(*question["arguments"])})
        except ValueError as error:
            answer({"impossible": str(error)})


if __name__ == "__main__":
    main()
