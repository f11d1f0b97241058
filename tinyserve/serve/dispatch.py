"""Which of the workers that serve a model gets the next request.

Each method is a function over numbers; it knows no addresses, no HTTP and no table of workers. `METHODS` is the list of
them: a new method is one function and one line there.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """What a method may look at of one worker."""

    speed: float  # relative; above 0
    queue_length: int  # requests running and waiting there
    last_chosen: int  # a counter: the smaller, the longer ago


DispatchMethod = Callable[[Sequence[Candidate], random.Random], int]


def lottery(candidates: Sequence[Candidate], rng: random.Random) -> int:
    """Index of a random candidate, drawn in proportion to speed."""
    return rng.choices(range(len(candidates)), weights=[candidate.speed for candidate in candidates])[0]


def shortest_queue(candidates: Sequence[Candidate], rng: random.Random) -> int:
    """Index of the candidate with the least work for its speed; between equals the faster, then the longest unused one.

    The last rule lets idle workers take turns, also when each request ends before the next one comes.
    """

    def key(index: int) -> tuple[float, float, int]:
        candidate = candidates[index]
        return candidate.queue_length / candidate.speed, -candidate.speed, candidate.last_chosen

    return min(range(len(candidates)), key=key)


METHODS: dict[str, DispatchMethod] = {"lottery": lottery, "shortest_queue": shortest_queue}


def find_method(name: str) -> DispatchMethod:
    """The method called `name`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"dispatch method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]
