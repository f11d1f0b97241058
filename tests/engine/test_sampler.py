"""Sampling: each parameter against its definition on small rows, and drawn frequencies against exact probabilities."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine.sampler import CANDIDATES, SamplingError, SamplingState, sample

CPU = torch.device("cpu")
PROBABILITIES = (0.4, 0.25, 0.2, 0.1, 0.05)


def state(params: SamplingParams, vocab_size: int, prompt: Sequence[int] = (0,), seed: int = 0) -> SamplingState:
    return SamplingState(params, prompt, vocab_size, seed, CPU)


def row(probabilities: Sequence[float] = PROBABILITIES) -> Tensor:
    return torch.tensor(probabilities).log().unsqueeze(0)


def frequencies(logits: Tensor, params: SamplingParams, num_draws: int = 4000) -> dict[int, float]:
    """Shares of the tokens drawn from one row [1, V], many rows at a time."""
    states = [state(params, logits.shape[1], seed=seed) for seed in range(num_draws)]
    tokens = sample(logits.expand(num_draws, -1), states)
    return {token: count / num_draws for token, count in Counter(tokens).items() if isinstance(token, int)}


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
    assert sample(row((0.1, 0.2, 0.4, 0.3)), [state(params, 4)]) == [2]


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
    ]
    torch.manual_seed(0)
    logits = torch.randn(len(each), 1000)
    together = sample(logits, [state(params, 1000) for params in each])
    alone = [sample(logits[i : i + 1], [state(params, 1000)])[0] for i, params in enumerate(each)]
    assert together == alone


def test_a_seed_repeats_and_another_one_differs() -> None:
    logits = torch.zeros(1, 10000)

    def draw(seed: int) -> list[int | SamplingError]:
        one = state(SamplingParams(seed=seed), 10000)
        return [sample(logits, [one])[0] for _ in range(5)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def penalised(params: SamplingParams, prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> list[float]:
    one = state(params, logits.shape[0], prompt)
    for token in output:
        one.add(token)
    logits = logits.clone()
    one.penalise(logits)
    return logits.tolist()


def test_repetition_penalty_counts_prompt_and_output_once_each() -> None:
    params = SamplingParams(repetition_penalty=2.0)
    logits = torch.tensor([4.0, -4.0, 4.0, 4.0])
    assert penalised(params, [0, 1], [2, 2], logits) == [2.0, -8.0, 2.0, 4.0]


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = torch.zeros(4)
    assert penalised(SamplingParams(presence_penalty=1.5), [0], [1, 1, 2], logits) == [0.0, -1.5, -1.5, 0.0]
    assert penalised(SamplingParams(frequency_penalty=0.5), [0], [1, 1, 2], logits) == [0.0, -1.0, -0.5, 0.0]


def test_penalties_leave_the_caller_s_logits_alone() -> None:
    logits = torch.ones(1, 4)
    sample(logits, [state(SamplingParams(repetition_penalty=2.0), 4)])
    assert logits.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_an_error_for_that_row_alone(bad: float, temperature: float) -> None:
    logits = row().repeat(3, 1)
    logits[1, 3] = bad
    tokens = sample(logits, [state(SamplingParams(temperature=temperature, seed=5), 5) for _ in range(3)])
    assert isinstance(tokens[1], SamplingError)
    assert isinstance(tokens[0], int)
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
