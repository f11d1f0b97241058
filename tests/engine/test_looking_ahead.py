"""A step that is launched before the tokens of the one before are taken: in that order, and nobody can tell."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from run_engine import Result, run

from tinyserve.config import Grammar, SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.engine.in_flight import InFlight
from tinyserve.engine.preparation import PreparedRequest

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(max_new_tokens=20, temperature=0.0, ignore_eos=True)
PROMPTS = [[11], [300, 5, 900], list(range(1000, 1017)), list(range(40, 73))]


def prepare(engine: Engine, *prompts: list[int], params: SamplingParams = GREEDY) -> list[PreparedRequest]:
    """Requests that have been added."""
    prepared = [engine.prepare(prompt, params) for prompt in prompts]
    for each in prepared:
        engine.add(each)
    return prepared


def record(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by what the engine does: "launch" a step, "take" a token."""
    calls: list[str] = []

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(name)
            return original(*args)

        return call

    monkeypatch.setattr(engine._runner, "run", noting("launch", engine._runner.run))
    monkeypatch.setattr(engine._answers, "take", noting("take", engine._answers.take))
    return calls


def test_tokens_are_taken_while_the_next_step_runs(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    params = replace(GREEDY, max_new_tokens=3)
    in_turn, ahead = make_engine(overlap=False), make_engine(overlap=True)
    calls = [record(engine, monkeypatch) for engine in (in_turn, ahead)]
    assert run(in_turn, PROMPTS[:1], params)[0].token_ids == run(ahead, PROMPTS[:1], params)[0].token_ids
    assert calls[0] == ["launch", "take"] * 3
    assert calls[1] == ["launch", "launch", "take", "launch", "take", "take"]  # its length ends it: no step too many


def test_a_cpu_does_not_look_ahead_by_itself(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    calls = record(engine, monkeypatch)
    run(engine, PROMPTS[:1], replace(GREEDY, max_new_tokens=2))
    assert calls == ["launch", "take"] * 2


def test_what_follows_from_a_token_waits_for_it(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(max_new_tokens=6, temperature=0.0, grammar=Grammar("regex", "[ab]{8}"))
    engine = make_engine(overlap=True)
    calls = record(engine, monkeypatch)
    constrained = run(engine, PROMPTS[:1], params)[0]
    assert calls == ["launch", "take"] * (len(calls) // 2)
    assert constrained.text == run(make_engine(overlap=False), PROMPTS[:1], params)[0].text
    calls.clear()
    run(engine, PROMPTS[:1], GREEDY)
    assert calls[:2] == ["launch", "launch"]  # it looks ahead again
    drafting = make_engine(overlap=True, num_speculative_tokens=3)
    calls = record(drafting, monkeypatch)
    run(drafting, PROMPTS[:1], GREEDY)
    assert calls[:2] == ["launch", "take"]


@pytest.mark.parametrize("beside", [[], PROMPTS[1:]], ids=["alone", "beside others"])
def test_a_token_that_is_thrown_away_is_in_nobodys_prefix(make_engine: MakeEngine, beside: list[list[int]]) -> None:
    """Wherever in a block the text ends, who goes on from it reads what was computed for it alone."""
    plain = make_engine(prefix_cache=False)
    free = run(plain, [PROMPTS[3]], GREEDY)[0].token_ids
    ends = [index for index in range(len(free)) if free[index] not in free[:index]]
    assert len(ends) > 8, "the text repeats itself: the test shows little"
    engine = make_engine(overlap=True)
    for end in ends:
        params = [replace(GREEDY, stop_token_ids=(free[end],)), *[GREEDY] * len(beside)]
        stopped = run(engine, [PROMPTS[3], *beside], params)[0]
        assert stopped.token_ids == free[: end + 1]
        longer = [*PROMPTS[3], *stopped.token_ids, 77, 78]
        result = run(engine, [longer], GREEDY)[0]
        assert result.token_ids == run(plain, [longer], GREEDY)[0].token_ids
        assert result.last is not None
        assert result.last.num_cached_tokens == (len(longer) - 2) // 8 * 8  # the stop token was computed ahead


def test_penalties_and_log_probabilities_see_the_tokens_that_nobody_has_taken(make_engine: MakeEngine) -> None:
    params = [
        SamplingParams(max_new_tokens=20, temperature=0.0, ignore_eos=True, repetition_penalty=1.3, logprobs=2),
        SamplingParams(max_new_tokens=15, temperature=1.1, seed=5, ignore_eos=True, frequency_penalty=0.9),
        SamplingParams(max_new_tokens=20, temperature=0.7, seed=6, top_p=0.9, min_tokens=9, logprobs=0),
        SamplingParams(max_new_tokens=20, temperature=0.0, logit_bias=((17, 3.0),), min_tokens=4),
    ]
    results = [run(make_engine(overlap=overlap), PROMPTS, params) for overlap in (False, True)]
    for in_turn, ahead in zip(*results, strict=True):
        assert (ahead.token_ids, ahead.text, ahead.finish_reason) == (
            in_turn.token_ids,
            in_turn.text,
            in_turn.finish_reason,
        )
        assert ahead.logprobs == in_turn.logprobs


def test_a_preempted_request_gets_the_token_that_was_on_its_way(make_engine: MakeEngine) -> None:
    engine = make_engine(overlap=True)
    expected = [run(engine, [prompt], GREEDY)[0].token_ids for prompt in PROMPTS]
    for num_steps in range(1, 12):
        prepared = prepare(engine, *PROMPTS)
        results = {each.request.id: Result() for each in prepared}
        step = 0
        while engine.has_work:
            if step == num_steps:
                for each in prepared[1:3]:
                    assert each.request.num_unread == 1
                    engine._scheduler._preempt(each.request)
            for output in engine.step():
                results[output.request_id].take(output.chunk)
            step += 1
        assert [result.token_ids for result in results.values()] == expected


def test_a_failing_step_ends_those_in_it_after_the_tokens_before_it(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(overlap=True)
    expected = run(engine, PROMPTS[:1], GREEDY)[0].token_ids
    prepare(engine, PROMPTS[0])
    for _ in range(4):
        engine.step()

    def fail(step: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(engine._runner, "run", fail)
    chunks = []
    while engine.has_work:
        chunks += [output.chunk for output in engine.step()]
    assert [chunk.token_ids for chunk in chunks] == [(expected[3],), ()]
    assert chunks[-1].error == "RuntimeError: out of luck"
    assert engine.stats().free_blocks == engine.stats().total_blocks


def test_what_goes_wrong_on_the_device_ends_the_step_that_it_was_in(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(overlap=True)
    first, second = prepare(engine, *PROMPTS[:2])
    engine.step()
    engine.abort(second.request.id)

    def wait(flight: InFlight) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(InFlight, "wait", wait)
    (output,) = engine.step()
    assert output.request_id == first.request.id
    assert output.chunk.error is not None
    assert "illegal memory access" in output.chunk.error
    assert not engine.has_work
    assert engine.step() == []
    assert engine.stats().free_blocks == engine.stats().total_blocks


def test_a_step_that_nobody_waits_for_any_more_says_nothing_about_the_pace(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(overlap=True)
    prepare(engine, PROMPTS[0])
    engine.step()
    for request_id in list(engine._requests):
        engine.abort(request_id)
    observed: list[tuple[int, int, float]] = []
    monkeypatch.setattr(engine._pace, "observe", lambda *step: observed.append(step))
    assert engine.step() == []
    assert observed == []
    run(engine, [PROMPTS[1]], replace(GREEDY, max_new_tokens=3))
    assert [step[:2] for step in observed] == [(0, 3), (1, 0), (1, 0)]
