"""Sixty-four requests that come at random times say what each of them says alone, whatever the engine does meanwhile.

Activations are in fp32, where a row's result does not depend on the rows beside it, so outputs are compared exactly.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny_llama
from llama_model import load_llama
from run_engine import Result, run

from tinyserve.config import SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.models.llama import LlamaModel

MakeEngine = Callable[..., Engine]
NUM_REQUESTS = 64
VOCABULARY = 512  # small, so that thousands of steps take seconds


@dataclass(frozen=True)
class Case:
    """One request, and when it comes and goes, in steps."""

    prompt: list[int]
    params: SamplingParams
    priority: int
    arrives: int
    leaves_after: int | None  # steps after it came; None: stays to the end


def make_cases() -> list[Case]:
    """Prompts begin alike in groups, as turns of a chat do; a third draws its tokens, a fifth leaves early."""
    random_ = random.Random(0)
    families = [[random_.randrange(VOCABULARY) for _ in range(100)] for _ in range(4)]
    cases = []
    for index in range(NUM_REQUESTS):
        prefix = random_.choice(families)[: random_.choice((0, 8, 16, 40, 64, 100))]
        prompt = prefix + [random_.randrange(VOCABULARY) for _ in range(random_.randrange(1, 30))]
        params = SamplingParams(
            max_new_tokens=random_.randrange(1, 32),
            temperature=1.2 if index % 3 == 0 else 0.0,
            top_p=0.9,
            seed=index,
            ignore_eos=True,
        )
        leaves_after = random_.randrange(0, 12) if index % 5 == 0 else None
        cases.append(Case(prompt, params, random_.randrange(3), random_.randrange(0, 60), leaves_after))
    return cases


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    folder = tiny_llama.save(tmp_path_factory.mktemp("tiny") / "small-vocabulary", vocab_size=VOCABULARY)
    return load_llama(folder, precision="W16A16", dtype="float32")


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    """Knows six tokens, so it cannot help repeating itself."""
    folder = tiny_llama.save(tmp_path_factory.mktemp("tiny") / "parrot", vocab_size=6)
    return load_llama(folder, precision="W16A16", dtype="float32")


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    """The tokens of each case alone; filled by the first test that needs them."""
    return []


def run_together(engine: Engine, cases: list[Case]) -> list[Result]:
    """Steps the engine to the end, while cases come and go; a case that has left keeps what it had."""
    results = [Result() for _ in cases]
    by_id: dict[int, Result] = {}
    ids: list[int | None] = [None] * len(cases)
    step = 0
    while step < 80 or engine.has_work:
        for index, case in enumerate(cases):
            request_id = ids[index]
            if case.arrives == step:
                request_id = ids[index] = engine.add(engine.prepare(case.prompt, case.params, case.priority))
                by_id[request_id] = results[index]
            if case.leaves_after is not None and request_id is not None and step == case.arrives + case.leaves_after:
                engine.abort(request_id)
        for output in engine.step():
            by_id[output.request_id].take(output.chunk)
        step += 1
        assert step < 5000
    stats = engine.stats()
    assert (stats.free_blocks, stats.num_running, stats.num_waiting) == (stats.total_blocks, 0, 0)
    return results


@pytest.mark.parametrize(
    ("settings", "preempts"),
    [
        ({"num_blocks": 24, "max_batch_tokens": 50, "num_speculative_tokens": 4}, True),
        ({"num_blocks": 400}, False),
        ({"num_blocks": 24, "max_batch_tokens": 37}, True),
        ({"num_blocks": 30, "max_batch_tokens": 128, "prefix_cache": False}, True),
        ({"num_blocks": 60, "max_batch_tokens": 17, "max_slowdown": 1.2, "min_step_ms": 0.0, "block_size": 16}, False),
    ],
    ids=["guesses and few blocks", "room for all", "few blocks", "few blocks, nothing shared", "small steps"],
)
def test_together_as_alone(
    make_engine: MakeEngine,
    model: LlamaModel,
    alone: list[list[int]],
    settings: dict[str, Any],
    preempts: bool,
) -> None:
    cases = make_cases()
    if not alone:
        engine = make_engine(model=model, prefix_cache=False)
        alone += [run(engine, [case.prompt], case.params)[0].token_ids for case in cases]
    engine = make_engine(model=model, **settings)
    results = run_together(engine, cases)
    for case, result, tokens in zip(cases, results, alone, strict=True):
        if case.leaves_after is None:
            assert result.token_ids == tokens
            assert result.finish_reason == "length"
        else:
            assert result.token_ids == tokens[: len(result.token_ids)]
    stats = engine.stats()
    assert (stats.cached_tokens > 0) == settings.get("prefix_cache", True)
    assert stats.preemptions or not preempts, "the blocks were enough: the case shows nothing"
    assert any(result.finish_reason is None for result in results), "nobody left early"


def test_together_as_alone_with_a_cache_of_int8(make_engine: MakeEngine, model: LlamaModel) -> None:
    cases = [replace(case, leaves_after=None) for case in make_cases()]
    engine = make_engine(model=model, prefix_cache=False, kv_cache_dtype="int8")
    tokens = [run(engine, [case.prompt], case.params)[0].token_ids for case in cases]
    engine = make_engine(model=model, num_blocks=24, max_batch_tokens=37, kv_cache_dtype="int8")
    assert [result.token_ids for result in run_together(engine, cases)] == tokens
    assert engine.stats().preemptions
    assert engine.stats().cached_tokens


@pytest.mark.parametrize("budget", range(16, 34))
def test_chunks_may_end_anywhere(make_engine: MakeEngine, model: LlamaModel, budget: int) -> None:
    prompts = [list(range(100, 100 + length)) for length in (31, 32, 33, 70)]
    params = SamplingParams(max_new_tokens=6, temperature=0.0, ignore_eos=True)
    whole = [run(make_engine(model=model, prefix_cache=False), [prompt], params)[0].token_ids for prompt in prompts]
    engine = make_engine(model=model, max_batch_tokens=budget)
    assert [result.token_ids for result in run(engine, prompts, params)] == whole
    assert [result.token_ids for result in run(engine, prompts, params)] == whole  # all but the last tokens are known


def test_a_second_turn_computes_only_what_is_new(make_engine: MakeEngine) -> None:
    engine = make_engine()
    params = SamplingParams(max_new_tokens=9, temperature=0.0, ignore_eos=True)
    first = list(range(2000, 2050))
    answer = run(engine, [first], params)[0]
    second = [*first, *answer.token_ids, 77, 78, 79]
    result = run(engine, [second], params)[0]
    assert result.last is not None
    assert result.last.num_cached_tokens == 56  # of 50 + 9: seven full blocks; the last output token was never computed
    assert answer.last is not None
    assert answer.last.num_cached_tokens == 0
    assert engine.stats().cached_tokens == 56
    assert result.token_ids == run(make_engine(prefix_cache=False), [second], params)[0].token_ids


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_new_tokens=60, temperature=0.0, ignore_eos=True),
        SamplingParams(max_new_tokens=60, temperature=0.4, seed=3, ignore_eos=True),
        SamplingParams(max_new_tokens=60, temperature=0.0, ignore_eos=True, repetition_penalty=1.02, logprobs=2),
    ],
    ids=["greedy", "drawn", "penalised, with log probabilities"],
)
def test_guesses_change_no_text_and_spare_steps(
    make_engine: MakeEngine, parrot: LlamaModel, params: SamplingParams
) -> None:
    prompts = [[1, 2, 3, 4] * 5, [5, 0, 1] * 4, [2, 2, 4]]
    plain = [run(make_engine(model=parrot), [prompt], params)[0] for prompt in prompts]
    engine = make_engine(model=parrot, num_speculative_tokens=5)
    guessed = run(engine, prompts, params)
    assert [result.token_ids for result in guessed] == [result.token_ids for result in plain]
    assert [result.text for result in guessed] == [result.text for result in plain]
    stats = engine.stats()
    assert 0 < stats.accepted_tokens < stats.drafted_tokens


def test_a_guess_does_not_run_past_the_last_token_wanted(make_engine: MakeEngine, parrot: LlamaModel) -> None:
    params = SamplingParams(max_new_tokens=30, temperature=0.9, seed=1, ignore_eos=True)
    prompt = [1, 2, 3, 4] * 5
    free = run(make_engine(model=parrot), [prompt], params)[0].token_ids
    for count in (1, 2, 3, 17, 29):
        engine = make_engine(model=parrot, num_speculative_tokens=5)
        result = run(engine, [prompt], replace(params, max_new_tokens=count))[0]
        assert result.token_ids == free[:count]
        stop = replace(params, stop_token_ids=(free[count],))
        stopped = run(engine, [prompt], stop)[0]
        assert stopped.token_ids == free[: free.index(free[count]) + 1]
        assert stopped.finish_reason == "stop"
