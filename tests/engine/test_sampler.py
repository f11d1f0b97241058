"""Sampling: each parameter against its definition on small rows, and drawn frequencies against exact probabilities."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine.draw import CANDIDATES, SamplingError
from tinyserve.engine.sampler import Sampled, launch, sample
from tinyserve.engine.sampling_state import SamplingState

PROBABILITIES = (0.4, 0.25, 0.2, 0.1, 0.05)


def state(
    params: SamplingParams, prompt: Sequence[int] = (0,), seed: int = 0, ends: Sequence[int] = ()
) -> SamplingState:
    return SamplingState(params, prompt, seed, ends)


def tokens_of(logits: Tensor, states: Sequence[SamplingState]) -> list[int]:
    sampled = sample(logits, states)
    assert all(isinstance(one, Sampled) for one in sampled)
    return [one.token_id for one in sampled if isinstance(one, Sampled)]


def row(probabilities: Sequence[float] = PROBABILITIES) -> Tensor:
    return torch.tensor(probabilities).log().unsqueeze(0)


def frequencies(logits: Tensor, params: SamplingParams, num_draws: int = 4000) -> dict[int, float]:
    """Shares of the tokens drawn from one row [1, V], many rows at a time."""
    states = [state(params, seed=seed) for seed in range(num_draws)]
    tokens = tokens_of(logits.expand(num_draws, -1), states)
    return {token: count / num_draws for token, count in Counter(tokens).items()}


def check_distribution(drawn: dict[int, float], expected: dict[int, float], num_draws: int = 4000) -> None:
    assert set(drawn) == set(expected)
    for token, share in expected.items():
        assert abs(drawn[token] - share) < 4 * math.sqrt(share * (1 - share) / num_draws) + 1e-9, (token, drawn)


@pytest.mark.parametrize(
    ("params", "kept", "exponent"),
    [
        (SamplingParams(), 5, 1.0),
        (SamplingParams(temperature=0.5), 5, 2.0),
        (SamplingParams(temperature=2.0), 5, 0.5),
        (SamplingParams(top_k=2), 2, 1.0),
        (SamplingParams(top_k=0), 5, 1.0),
        (SamplingParams(top_k=100), 5, 1.0),
        (SamplingParams(top_p=0.6), 2, 1.0),  # the token that crosses the mass stays
        (SamplingParams(top_p=0.3), 1, 1.0),
        (SamplingParams(top_p=0.5, top_k=3), 2, 1.0),  # top_p of what top_k left: 0.47, 0.29, 0.24
        (SamplingParams(min_p=0.3), 3, 1.0),
        (SamplingParams(min_p=1.0), 1, 1.0),
    ],
    ids=str,
)
def test_drawn_frequencies_follow_the_definition(params: SamplingParams, kept: int, exponent: float) -> None:
    weights = {token: probability**exponent for token, probability in enumerate(PROBABILITIES[:kept])}
    total = sum(weights.values())
    check_distribution(frequencies(row(), params), {token: weight / total for token, weight in weights.items()})


@pytest.mark.parametrize(
    "params",
    [SamplingParams(temperature=0.0), SamplingParams(temperature=5.0, top_k=1), SamplingParams(top_p=0.0)],
    ids=["temperature 0", "top_k 1", "top_p 0"],
)
def test_greedy_takes_the_most_likely(params: SamplingParams) -> None:
    assert tokens_of(row((0.1, 0.2, 0.4, 0.3)), [state(params)]) == [2]


@pytest.mark.parametrize("params", [SamplingParams(top_p=0.9), SamplingParams(top_k=900)], ids=["top_p", "top_k"])
def test_a_flat_row_needs_more_than_the_first_candidates(params: SamplingParams) -> None:
    vocab_size = 1000
    assert CANDIDATES[0] < vocab_size
    drawn = frequencies(torch.zeros(1, vocab_size), params, num_draws=8000)
    assert 895 <= len(drawn) <= 901


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_p=0.9999), SamplingParams(min_p=0.01)])
def test_wide_rows_are_drawn_by_their_probabilities(params: SamplingParams) -> None:
    logits = torch.full((1, CANDIDATES[-1] + 1000), -50.0)
    places = {0: 0.2, 255: 0.1, 256: 0.3, 5000: 0.25, CANDIDATES[-1] + 999: 0.15}
    for column, probability in places.items():
        logits[0, column] = math.log(probability)
    check_distribution(frequencies(logits, params), places)


def test_rows_with_different_parameters_do_not_influence_each_other() -> None:
    each = [
        SamplingParams(seed=1),
        SamplingParams(temperature=0.0),
        SamplingParams(seed=2, top_p=0.7, temperature=1.7),
        SamplingParams(seed=3, top_k=3),
        SamplingParams(seed=4, repetition_penalty=2.0),
        SamplingParams(seed=5, logprobs=3),
        SamplingParams(temperature=0.0, frequency_penalty=1.0, logprobs=20),
        SamplingParams(seed=6, logit_bias=((17, 5.0),), min_tokens=3),
    ]
    torch.manual_seed(0)
    logits = torch.randn(len(each), 1000)
    together = sample(logits, [state(params, ends=(3,)) for params in each])
    for row, (params, one) in enumerate(zip(each, together, strict=True)):
        (alone,) = sample(logits[row : row + 1], [state(params, ends=(3,))])
        assert isinstance(one, Sampled)
        assert isinstance(alone, Sampled)
        assert one.token_id == alone.token_id
        if params.logprobs is None:
            assert one.logprobs is None
        else:
            assert one.logprobs is not None
            assert alone.logprobs is not None
            assert dict(one.logprobs.top) == pytest.approx(dict(alone.logprobs.top))
            assert len(one.logprobs.top) == params.logprobs


def reference(logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """Probabilities of one row [V] in fp64, written down from the definitions alone."""
    scores = logits.double()
    for token in set(prompt) | set(output):
        scores[token] *= params.repetition_penalty if scores[token] < 0 else 1 / params.repetition_penalty
    for token, count in Counter(output).items():
        scores[token] -= params.frequency_penalty * count + params.presence_penalty
    for token, bias in params.logit_bias:
        scores[token] += bias
    order = scores.argsort(descending=True)
    if params.greedy:
        return torch.nn.functional.one_hot(order[0], len(scores)).double()
    weights = (scores / params.temperature).softmax(-1)[order]
    if params.top_k > 0:
        weights[params.top_k :] = 0
    total, mass = float(weights.sum()), 0.0
    for place in range(len(weights)):
        if place > 0 and (mass >= params.top_p * total or weights[place] < params.min_p * weights[0]):
            weights[place] = 0
        mass += float(weights[place])
    return torch.zeros_like(weights).scatter(0, order, weights / weights.sum())


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
        top_k=st.sampled_from([-1, 1, 3, 20]),
        top_p=st.sampled_from([1.0, 0.9, 0.4]),
        min_p=st.sampled_from([0.0, 0.05, 0.5]),
        repetition_penalty=st.sampled_from([1.0, 1.5, 0.7]),
        presence_penalty=st.sampled_from([0.0, 1.0]),
        frequency_penalty=st.sampled_from([0.0, -0.5]),
        logit_bias=st.sampled_from([(), ((1, 2.0), (3, -100.0))]),
    ),
    st.lists(st.integers(0, 29), max_size=8),
    st.lists(st.integers(0, 29), max_size=8),
    st.integers(0, 100),
)
def test_any_combination_draws_what_the_reference_says(
    params: SamplingParams, prompt: list[int], output: list[int], seed: int
) -> None:
    num_draws = 1000
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed)) * 3
    states = [state(params, prompt, draw) for draw in range(num_draws)]
    for one in states:
        for token in output:
            one.add(token)
    drawn = Counter(tokens_of(logits.expand(num_draws, -1), states))
    expected = reference(logits, params, prompt, output)
    for token, share in enumerate(expected.tolist()):
        assert (share == 0) <= (drawn[token] == 0), token
        bound = 5 * math.sqrt(share * (1 - share) / num_draws) + 2 / num_draws  # rare tokens are not normal
        assert abs(drawn[token] / num_draws - share) <= bound, (token, share, drawn[token])


def test_a_seed_repeats_and_another_one_differs() -> None:
    logits = torch.zeros(1, 10000)

    def draw(seed: int) -> list[int]:
        one = state(SamplingParams(seed=seed))
        return [tokens_of(logits, [one])[0] for _ in range(5)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("params", [SamplingParams(repetition_penalty=2.0), SamplingParams(logit_bias=((1, 5.0),))])
def test_the_caller_s_logits_stay_as_they_are(params: SamplingParams, neighbours: int) -> None:
    logits = torch.ones(1 + neighbours, 4)
    sample(logits, [state(params), *[state(SamplingParams())] * neighbours])
    assert torch.equal(logits, torch.ones_like(logits))


@pytest.mark.parametrize(
    ("params", "weights"),
    [
        (SamplingParams(repetition_penalty=2.0), (0.4**2, 0.25, 0.2**2, 0.1, 0.05)),  # seen: 0 and 2; logs are negative
        (SamplingParams(presence_penalty=1.0), (0.4, 0.25, 0.2 / math.e, 0.1, 0.05)),
        (SamplingParams(frequency_penalty=1.0), (0.4, 0.25, 0.2 / math.e**2, 0.1, 0.05)),
        (SamplingParams(logit_bias=((4, math.log(8)), (0, -100.0))), (0, 0.25, 0.2, 0.1, 0.4)),
        (SamplingParams(min_tokens=3), (0.4, 0, 0.2, 0.1, 0.05)),
        (SamplingParams(min_tokens=2), PROBABILITIES),
    ],
    ids=str,
)
def test_drawn_frequencies_follow_what_was_done_to_the_logits(params: SamplingParams, weights: Sequence[float]) -> None:
    """Prompt 0, output 2 2, and 1 ends a text."""
    states = [state(params, (0,), seed, (1,)) for seed in range(4000)]
    for one in states:
        one.add(2)
        one.add(2)
    drawn = {token: count / 4000 for token, count in Counter(tokens_of(row().expand(4000, -1), states)).items()}
    check_distribution(drawn, {token: weight / sum(weights) for token, weight in enumerate(weights) if weight})


def test_log_probabilities_are_the_model_s_own_whatever_was_done_to_the_logits() -> None:
    params = SamplingParams(logit_bias=((4, 100.0),), temperature=3.0, repetition_penalty=3.0, logprobs=2)
    (one,) = sample(row(), [state(params)])
    assert isinstance(one, Sampled)
    assert one.logprobs is not None
    assert one.token_id == 4
    assert one.logprobs.chosen == pytest.approx(math.log(0.05))
    assert dict(one.logprobs.top) == pytest.approx({0: math.log(0.4), 1: math.log(0.25)})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_an_error_for_that_row_alone(bad: float, temperature: float) -> None:
    logits = row().repeat(3, 1)
    logits[1, 3] = bad
    tokens = sample(logits, [state(SamplingParams(temperature=temperature, seed=5)) for _ in range(3)])
    assert isinstance(tokens[1], SamplingError)
    assert isinstance(tokens[0], Sampled)
    assert tokens[0] == tokens[2]


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    logits = torch.full((1, 64), -math.inf)
    logits[0, 17] = 0.0
    assert set(frequencies(logits, SamplingParams(temperature=100.0), num_draws=500)) == {17}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_logits_are_sampled_in_fp32(dtype: torch.dtype) -> None:
    check_distribution(
        frequencies(row((0.5, 0.25, 0.25)).to(dtype), SamplingParams(top_p=0.99)), {0: 0.5, 1: 0.25, 2: 0.25}
    )


# -- before the result is known ----------------------------------------------------------------------------------------

AHEAD = [
    SamplingParams(seed=1, temperature=1.5),
    SamplingParams(temperature=0.0, logprobs=2),
    SamplingParams(seed=2, repetition_penalty=3.0, temperature=0.7),
    SamplingParams(seed=3, frequency_penalty=1.1, presence_penalty=-0.7),
    SamplingParams(temperature=0.0, presence_penalty=2.0, repetition_penalty=1.9, logprobs=0),
    SamplingParams(seed=4, min_tokens=6, logit_bias=((4, 2.5), (2, -3.0))),
    SamplingParams(temperature=0.0, min_tokens=4, frequency_penalty=-2.0),
]


@pytest.mark.parametrize("depth", [2, 4])
def test_what_is_launched_before_the_results_are_known_is_the_same(depth: int) -> None:
    num_steps = 12
    logits = torch.randn(num_steps, len(AHEAD), 6, generator=torch.Generator().manual_seed(0)) * 2

    def states() -> list[SamplingState]:
        return [state(params, (0, 3), ends=(1,)) for params in AHEAD]

    waiting = states()
    expected = [sample(logits[step], waiting) for step in range(num_steps)]
    ahead, launched, found = states(), [], []
    for step in range(num_steps):
        launched.append(launch(logits[step], ahead))
        if len(launched) == depth:
            found.append(launched.pop(0).result())
    found += [one.result() for one in launched]
    assert found == expected
    assert len({one.token_id for step in expected for one in step if isinstance(one, Sampled)}) > 3


def test_a_request_that_joins_later_has_fewer_tokens_ahead() -> None:
    params = SamplingParams(temperature=0.0, presence_penalty=2.0)
    logits = torch.tensor([[3.0, 2.5, 2.0, 0.0]])
    early, late = state(params), state(params)
    first = launch(logits, [early])
    second = launch(logits, [early])
    third = launch(logits.repeat(2, 1), [late, early])
    assert [one.tokens.tolist() for one in (first, second, third)] == [[0], [1], [0, 2]]
    assert [one.result() for one in (first, second, third)] == [
        [Sampled(0)],
        [Sampled(1)],
        [Sampled(0), Sampled(2)],
    ]


def test_tokens_are_there_before_the_result_and_minus_one_where_it_is_an_error() -> None:
    logits = row().repeat(3, 1)
    logits[1, 2] = math.nan
    each = [state(SamplingParams(temperature=0.0, logprobs=1, presence_penalty=1.0)) for _ in range(3)]
    launched, following = launch(logits, each), launch(row().repeat(3, 1), each)
    assert (launched.tokens.dtype, launched.tokens.tolist()) == (torch.int32, [0, -1, 0])
    results = launched.result()
    assert isinstance(results[1], SamplingError)
    assert [one.token_id for one in results if isinstance(one, Sampled)] == [0, 0]
    # whoever asks nevertheless for what was launched after the error gets something, and the others what is theirs
    assert next(one for one in following.result() if isinstance(one, Sampled)).token_id == 1


def test_a_launch_that_nobody_asks_about_touches_no_other_request() -> None:
    params = SamplingParams(seed=1, repetition_penalty=1.5)
    logits = torch.randn(8, 1, 10, generator=torch.Generator().manual_seed(1))
    alone = state(params)
    expected = [sample(step, [alone]) for step in logits]
    one, ended = state(params), state(SamplingParams(presence_penalty=1.0))
    first = launch(logits[0].repeat(2, 1), [one, ended])
    second = launch(logits[1].repeat(2, 1), [one, ended])
    found = [first.result()[:1]]  # where `ended` ends, so that its token of the second launch is thrown away
    found += [second.result()[:1], *(sample(step, [one]) for step in logits[2:])]
    assert found == expected


def test_only_a_grammar_needs_the_result() -> None:
    assert not any(state(params).needs_result for params in AHEAD)
