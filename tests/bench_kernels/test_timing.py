"""How often a call is made, on how many copies, and in whose turn."""

import pytest

from benchmarks.kernels import timing

L2_OF_AN_H200 = 60 << 20


@pytest.mark.parametrize("copy_bytes", [1 << 20, 9 << 20, 35_000_000, 122_000_000, 1 << 30])
def test_copies_outsize_the_cache_between_two_uses_of_one(copy_bytes: int) -> None:
    copies = timing.num_copies(copy_bytes)
    assert copies * copy_bytes >= timing.ROTATED_BYTES
    assert (copies - 1) * copy_bytes >= 2 * L2_OF_AN_H200


@pytest.mark.parametrize("copies", [2, 8, 31, 300])
@pytest.mark.parametrize("call_s", [1e-6, 1e-3, 0.04, 1.0])
def test_every_copy_is_read_equally_often(copies: int, call_s: float) -> None:
    calls = timing.num_calls(copies, call_s)
    assert calls % copies == 0
    assert calls >= timing.MIN_CALLS or calls * call_s >= timing.ENOUGH_S
    assert calls < timing.MIN_CALLS + copies


class Scripted:
    """A replay that says how long it took, and writes down its turn."""

    calls = 10

    def __init__(self, name: str, seconds: float, turns: list[str]) -> None:
        self._name, self._seconds, self._turns = name, seconds, turns

    def seconds(self) -> float:
        self._turns.append(self._name)
        return self._seconds


def test_rivals_take_turns_until_the_time_is_spent() -> None:
    turns: list[str] = []
    replays = {name: Scripted(name, 0.01, turns) for name in ("a", "b")}
    seconds = timing.take_turns(replays, budget_s=2.0)  # a round is 2 x 10 calls of 0.01 s
    assert turns == ["a", "b"] * 10
    assert {name: len(values) for name, values in seconds.items()} == {"a": 10, "b": 10}


def test_even_the_slowest_is_replayed_several_times_and_the_fastest_not_forever() -> None:
    turns: list[str] = []
    assert len(timing.take_turns({"slow": Scripted("slow", 9.0, turns)}, 0.1)["slow"]) == timing.MIN_REPLAYS
    assert len(timing.take_turns({"fast": Scripted("fast", 0.0, turns)}, 0.1)["fast"]) == timing.MAX_REPLAYS
    assert timing.take_turns({}, 0.1) == {}


def test_a_loop_is_timed_per_call() -> None:
    made: list[int] = []
    replay = timing.LoopTimer().prepare([lambda: made.append(1)] * 4)
    assert replay.seconds() >= 0
    assert (replay.calls, len(made)) == (4, 8)  # once to warm up
