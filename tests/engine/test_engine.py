"""The step loop on a tiny model: batching, chunking, preemption, cancellation change no output; failures stay local."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from run_engine import Result, run
from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine import sampler
from tinyserve.engine.bias import TokenBias
from tinyserve.engine.engine import Engine
from tinyserve.engine.generator import RequestError
from tinyserve.engine.sampling_state import SamplingState
from tinyserve.engine.scheduler import Step

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(max_new_tokens=20, temperature=0.0, ignore_eos=True)
PROMPTS = [[11], [300, 5, 900], list(range(1000, 1017)), list(range(40, 73)), list(range(500, 560))]


@pytest.fixture(params=[False, True], ids=["in turn", "looking ahead"])
def make_engine(request: pytest.FixtureRequest, make_engine: MakeEngine) -> MakeEngine:
    """Engines that take the tokens of a step before the next is launched, and after it."""
    return partial(make_engine, overlap=request.param)


@pytest.fixture
def expected(make_engine: MakeEngine) -> list[list[int]]:
    """Each prompt alone, in one chunk, with plenty of blocks."""
    engine = make_engine()
    outputs = [run(engine, [prompt], GREEDY)[0].token_ids for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in outputs}) == len(PROMPTS)
    return outputs


def tokens_of(results: Sequence[Result]) -> list[list[int]]:
    return [result.token_ids for result in results]


def test_batching_changes_no_output(make_engine: MakeEngine, expected: list[list[int]]) -> None:
    assert tokens_of(run(make_engine(), PROMPTS, GREEDY)) == expected


@pytest.mark.parametrize("max_batch_tokens", [16, 17, 23, 40])
def test_chunked_prefill_changes_no_output(
    make_engine: MakeEngine, expected: list[list[int]], max_batch_tokens: int
) -> None:
    assert tokens_of(run(make_engine(max_batch_tokens=max_batch_tokens), PROMPTS, GREEDY)) == expected


def test_preemption_changes_no_output(make_engine: MakeEngine, expected: list[list[int]]) -> None:
    engine = make_engine(num_blocks=10)
    assert tokens_of(run(engine, PROMPTS, GREEDY)) == expected
    assert engine.stats().preemptions, "the cache was large enough for all: the test shows nothing"


def test_requests_that_join_later_change_no_output(make_engine: MakeEngine, expected: list[list[int]]) -> None:
    engine = make_engine()
    results: dict[int, Result] = {}
    ids = []
    for prompt in PROMPTS:
        ids.append(engine.add(engine.prepare(prompt, GREEDY)))
        results[ids[-1]] = Result()
        for _ in range(3):
            for output in engine.step():
                results[output.request_id].take(output.chunk)
    while engine.has_work:
        for output in engine.step():
            results[output.request_id].take(output.chunk)
    assert tokens_of([results[request_id] for request_id in ids]) == expected


@pytest.mark.parametrize("num_steps", [0, 1, 2, 7])
def test_aborting_frees_the_blocks_at_once_and_leaves_the_others_alone(
    make_engine: MakeEngine, expected: list[list[int]], num_steps: int
) -> None:
    engine = make_engine(max_batch_tokens=16)
    ids = [engine.add(engine.prepare(prompt, GREEDY)) for prompt in PROMPTS]
    results = {request_id: Result() for request_id in ids}
    for _ in range(num_steps):
        for output in engine.step():
            results[output.request_id].take(output.chunk)
    for request_id in ids[1:4]:
        engine.abort(request_id)
        engine.abort(request_id)
    owned = [len(engine._requests[request_id].request.block_ids) for request_id in (ids[0], ids[4])]
    assert engine.stats().free_blocks == engine.stats().total_blocks - sum(owned)
    while engine.has_work:
        for output in engine.step():
            results[output.request_id].take(output.chunk)
    assert results[ids[0]].token_ids == expected[0]
    assert results[ids[4]].token_ids == expected[4]
    assert engine.stats().free_blocks == engine.stats().total_blocks


def test_max_new_tokens_is_clipped_to_the_context(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert engine.context_length == 256
    result = run(engine, [list(range(250))], SamplingParams(max_new_tokens=1000, temperature=0.0, ignore_eos=True))[0]
    assert len(result.token_ids) == 6
    assert result.finish_reason == "length"


def test_a_cache_smaller_than_the_context_limits_the_context(make_engine: MakeEngine) -> None:
    assert make_engine(num_blocks=16, block_size=8).context_length == 128


@pytest.mark.parametrize(
    ("prompt", "params", "code", "message"),
    [
        ([], SamplingParams(), 40001, "prompt is empty"),
        ("", SamplingParams(), 40001, "prompt is empty"),
        ([5] * 256, SamplingParams(), 40303, "prompt of 256 tokens leaves no room in the context of 256 tokens"),
        (
            "word " * 100_000,
            SamplingParams(),
            40303,
            "prompt of 500000 characters cannot fit in the context of 256 tokens",
        ),
        ("word " * 400, SamplingParams(), 40303, "leaves no room in the context of 256 tokens"),
        ([1, 49152], SamplingParams(), 40302, "prompt: token ids must be in 0..49151, got 49152"),
        ([1], SamplingParams(stop_token_ids=(3, -1)), 40302, "stop_token_ids: token ids must be in 0..49151, got -1"),
    ],
)
def test_what_cannot_be_served_is_refused_before_any_work(
    make_engine: MakeEngine, prompt: Any, params: SamplingParams, code: int, message: str
) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=message) as caught:
        engine.prepare(prompt, params)
    assert caught.value.code == code
    assert not engine.has_work


def test_a_stop_token_ends_the_text_without_showing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    free = run(engine, [PROMPTS[2]], GREEDY)[0]
    stop = free.token_ids[5]
    params = SamplingParams(max_new_tokens=20, temperature=0.0, ignore_eos=True, stop_token_ids=(stop,))
    result = run(engine, [PROMPTS[2]], params)[0]
    assert result.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert result.finish_reason == "stop"
    assert free.text.startswith(result.text)


def test_a_stop_string_across_token_borders_ends_the_text_before_itself(make_engine: MakeEngine) -> None:
    engine = make_engine()
    free = run(engine, [PROMPTS[3]], GREEDY)[0]
    assert len(free.text) > 20
    stop = free.text[9:14]
    params = SamplingParams(max_new_tokens=20, temperature=0.0, ignore_eos=True, stop=("\0never", stop))
    result = run(engine, [PROMPTS[3]], params)[0]
    assert result.text == free.text[: free.text.index(stop)]
    assert result.finish_reason == "stop"


class FailsFor:
    """Stands before a method and fails for the calls that `is_victim` picks."""

    def __init__(self, original: Callable[..., Any], is_victim: Callable[..., bool]) -> None:
        self._original = original
        self._is_victim = is_victim

    def __call__(self, *args: Any) -> Any:
        if self._is_victim(*args):
            raise RuntimeError("out of luck")
        return self._original(*args)


def test_an_exception_in_one_request_ends_that_request_alone(
    make_engine: MakeEngine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    ids = [engine.add(engine.prepare(prompt, GREEDY)) for prompt in PROMPTS]
    victim = engine._requests[ids[1]]
    monkeypatch.setattr(victim.detokenizer, "add", FailsFor(victim.detokenizer.add, lambda *_: True))
    drawn = engine._requests[ids[2]]
    drawn.sampling.bias = TokenBias(GREEDY, ())
    monkeypatch.setattr(drawn.sampling.bias, "at", FailsFor(drawn.sampling.bias.at, lambda _: True))
    results = {request_id: Result() for request_id in ids}
    while engine.has_work:
        for output in engine.step():
            if output.chunk.finish_reason == "error":
                results[output.request_id].last = output.chunk
            else:
                results[output.request_id].take(output.chunk)
    for index in (1, 2):
        last = results[ids[index]].last
        assert last is not None
        assert last.error == "RuntimeError: out of luck"
    for index in (0, 3, 4):
        assert results[ids[index]].token_ids == expected[index]
    assert engine.stats().free_blocks == engine.stats().total_blocks


def test_logits_that_are_not_finite_end_that_request_alone(
    make_engine: MakeEngine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    original = sampler.launch

    def poisoned(logits: Tensor, states: Sequence[SamplingState]) -> sampler.Launched:
        logits = logits.clone()
        logits[0, 17] = torch.nan
        return original(logits, states)

    monkeypatch.setattr(sampler, "launch", poisoned)
    results = run(engine, PROMPTS[:1], GREEDY)
    assert results[0].last is not None
    assert results[0].last.error == "the model's output is not finite"
    monkeypatch.undo()
    assert tokens_of(run(engine, PROMPTS, GREEDY)) == expected


def test_a_step_that_fails_ends_what_was_running_and_the_engine_goes_on(
    make_engine: MakeEngine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(max_num_requests=2)
    failures: Iterator[bool] = iter([False, True])
    original = engine._runner.run
    monkeypatch.setattr(engine._runner, "run", FailsFor(original, lambda _: next(failures, False)))
    results = run(engine, PROMPTS[:4], GREEDY)
    assert [result.finish_reason for result in results] == ["error", "error", "length", "length"]
    assert tokens_of(results[2:]) == expected[2:4]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_out_of_memory_makes_steps_smaller_and_ends_no_request(
    make_engine: MakeEngine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    engine = make_engine()
    original, sizes = engine._runner.run, []

    def run_within(step: Step) -> Any:
        sizes.append(step.num_tokens)
        if step.num_tokens > 30:
            raise error
        return original(step)

    monkeypatch.setattr(engine._runner, "run", run_within)
    assert tokens_of(run(engine, PROMPTS, GREEDY)) == expected
    assert max(sizes) > 30


def test_a_request_that_does_not_fit_even_alone_ends_alone(
    make_engine: MakeEngine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    original = engine._runner.run

    def run_without(step: Step) -> Any:
        if any(chunk.request.token_ids[0] == PROMPTS[1][0] for chunk in step.chunks):
            raise MemoryError
        return original(step)

    monkeypatch.setattr(engine._runner, "run", run_without)
    results = run(engine, [PROMPTS[1]], GREEDY)
    assert results[0].finish_reason == "error"
    assert tokens_of(run(engine, [PROMPTS[0]], GREEDY)) == expected[:1]


def test_a_lower_priority_number_ends_first(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_requests=1)
    ids = [engine.add(engine.prepare([5, 6, priority + 9], GREEDY, priority)) for priority in (2, 0, -1, 1)]
    ended = []
    while engine.has_work:
        ended += [output.request_id for output in engine.step() if output.chunk.finish_reason]
    assert ended == [ids[2], ids[1], ids[3], ids[0]]


def test_a_seed_gives_the_same_text_whatever_runs_beside_it(make_engine: MakeEngine) -> None:
    params = SamplingParams(max_new_tokens=20, temperature=1.3, seed=42, top_p=0.95, ignore_eos=True)
    others = SamplingParams(max_new_tokens=15, temperature=2.0, top_k=50, ignore_eos=True)
    alone = run(make_engine(), [PROMPTS[2]], params)[0]
    crowded = run(make_engine(), [PROMPTS[0], PROMPTS[2], PROMPTS[4]], [others, params, others])[1]
    assert crowded.token_ids == alone.token_ids
    other_seed = SamplingParams(max_new_tokens=20, temperature=1.3, seed=43, top_p=0.95, ignore_eos=True)
    assert run(make_engine(), [PROMPTS[2]], other_seed)[0].token_ids != alone.token_ids
