"""The choice among workers, as functions over numbers."""

import random
from collections import Counter

import pytest

from tinyserve.serve.dispatch import Candidate, find_method, lottery, shortest_queue


def test_lottery_draws_in_proportion_to_speed() -> None:
    rng = random.Random(0)
    candidates = [Candidate(1.0, 0, 0), Candidate(3.0, 99, 0)]
    drawn = Counter(lottery(candidates, rng) for _ in range(4000))
    assert abs(drawn[1] - 3000) < 4 * (4000 * 0.75 * 0.25) ** 0.5  # four standard deviations


def test_shortest_queue_weighs_the_queue_with_the_speed() -> None:
    rng = random.Random(0)
    assert shortest_queue([Candidate(1.0, 2, 0), Candidate(1.0, 1, 0)], rng) == 1
    assert shortest_queue([Candidate(1.0, 2, 0), Candidate(4.0, 6, 0)], rng) == 1


def test_shortest_queue_breaks_ties_by_speed_then_takes_turns() -> None:
    rng = random.Random(0)
    assert shortest_queue([Candidate(1.0, 0, 0), Candidate(2.0, 0, 9)], rng) == 1
    assert shortest_queue([Candidate(1.0, 0, 7), Candidate(1.0, 0, 3)], rng) == 1


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"lottery, shortest_queue.*'fastest'"):
        find_method("fastest")
