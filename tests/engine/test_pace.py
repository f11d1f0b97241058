"""The share of a step that prompts get, for steps of known cost: no clock is read."""

import math

import pytest

from tinyserve.engine.pace import MIN_TOKENS, Pace

DECODE_S, TOKEN_S = 0.020, 0.0005


def test_without_any_measurement_or_decode_there_is_no_limit() -> None:
    pace = Pace(2.0)
    assert pace.max_prefill(4, 1) == math.inf
    pace.observe(4, 0, DECODE_S)
    pace.observe(0, 100, 100 * TOKEN_S)
    assert pace.max_prefill(0, 1) == math.inf
    assert pace.max_prefill(4, 1) < math.inf


@pytest.mark.parametrize("slowdown", [1.5, 2.0, 3.0])
def test_a_mixed_step_settles_at_the_slowdown_asked_for(slowdown: float) -> None:
    pace = Pace(slowdown)
    pace.observe(0, 256, 256 * TOKEN_S / 5)  # far too good a start
    pace.observe(4, 0, DECODE_S)
    for _ in range(60):
        tokens = int(pace.max_prefill(4, 1))
        pace.observe(4, tokens, DECODE_S + tokens * TOKEN_S)
    assert DECODE_S + pace.max_prefill(4, 1) * TOKEN_S == pytest.approx(slowdown * DECODE_S, rel=0.05)


def test_more_decodes_leave_more_room_once_their_steps_are_known() -> None:
    pace = Pace(2.0)
    pace.observe(1, 0, DECODE_S)
    pace.observe(0, 100, 100 * TOKEN_S)
    assert pace.max_prefill(16, 1) == pace.max_prefill(1, 1) == pytest.approx(40)
    pace.observe(16, 0, 3 * DECODE_S)
    assert pace.max_prefill(16, 1) == pytest.approx(120)
    assert pace.max_prefill(1, 1) == pytest.approx(40)


def test_each_of_several_waiting_prompts_may_add_a_decode_steps_time() -> None:
    pace = Pace(2.0)
    pace.observe(4, 0, DECODE_S)
    pace.observe(0, 100, 100 * TOKEN_S)
    assert pace.max_prefill(4, 1) == pytest.approx(40)
    assert pace.max_prefill(4, 3) == pytest.approx(120)


def settled_step_s(pace: Pace, decode_s: float, fixed_s: float) -> float:
    """What a step with a prompt in it takes in the end, where the prompt costs `fixed_s` before its first token."""
    pace.observe(0, 64, 64 * TOKEN_S)
    pace.observe(4, 0, decode_s)
    tokens = 0
    for _ in range(80):
        tokens = int(pace.max_prefill(4, 1))
        pace.observe(4, tokens, decode_s + fixed_s + tokens * TOKEN_S)
    return decode_s + fixed_s + tokens * TOKEN_S


def test_a_step_may_always_take_as_long_as_nobody_notices() -> None:
    assert settled_step_s(Pace(2.0, min_step_s=0.025), 0.005, 0.0) == pytest.approx(0.025, rel=0.05)
    assert settled_step_s(Pace(2.0, min_step_s=0.025), DECODE_S, 0.0) == pytest.approx(2 * DECODE_S, rel=0.05)
    assert Pace(math.inf, min_step_s=0.025).max_prefill(4, 1) == math.inf


def test_a_prompt_that_costs_as_much_as_a_decode_step_before_its_first_token_still_moves_on() -> None:
    starved = settled_step_s(Pace(2.0), 0.004, 0.004)
    assert starved == pytest.approx(0.008 + MIN_TOKENS * TOKEN_S)
    assert settled_step_s(Pace(2.0, min_step_s=0.025), 0.004, 0.004) == pytest.approx(0.025, rel=0.05)


def test_several_prompts_add_to_the_shortest_step_too() -> None:
    pace = Pace(2.0, min_step_s=0.050)
    pace.observe(4, 0, DECODE_S)
    pace.observe(0, 100, 100 * TOKEN_S)
    assert pace.max_prefill(4, 1) == pytest.approx(60)
    assert pace.max_prefill(4, 3) == pytest.approx(140)


def test_one_step_that_was_held_up_changes_little() -> None:
    pace = Pace(2.0)
    pace.observe(1, 0, DECODE_S)
    pace.observe(0, 100, 100 * TOKEN_S)
    before = pace.max_prefill(1, 1)
    pace.observe(1, 0, 100 * DECODE_S)
    assert pace.max_prefill(1, 1) < 1.3 * before
    pace.observe(1, 40, 10.0)
    assert pace.max_prefill(1, 1) > 0.7 * before
    pace.observe(1, 40, 0.001)  # quicker than without the prompt
    assert pace.max_prefill(1, 1) < 1.3 * before


def test_a_prompt_moves_on_however_slow_its_tokens_are() -> None:
    pace = Pace(1.01)
    pace.observe(1, 0, DECODE_S)
    pace.observe(0, 1, 1.0)
    assert pace.max_prefill(1, 1) == MIN_TOKENS


def test_infinity_sets_no_limit() -> None:
    pace = Pace(math.inf)
    pace.observe(1, 0, DECODE_S)
    pace.observe(0, 1, TOKEN_S)
    assert pace.max_prefill(1, 1) == math.inf
