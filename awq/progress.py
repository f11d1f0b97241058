"""Tells how far long work is: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 5.0


def say(text: str) -> None:
    """One line on stderr, above a bar that may be shown."""
    tqdm.write(text, file=sys.stderr)


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Yields the items and shows how many are done.

    Args:
        what: names the work and its unit, e.g. "search: layer".
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, file=sys.stderr)
    else:
        yield from _lines(items, len(items), what)


def _lines(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{what} {done}/{total}, {now - start:.0f} s, about {left:.0f} s left", file=sys.stderr, flush=True)
