"""Penalties of a batch against transformers' processor and OpenAI's formula, row by row in fp64."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from tinyserve.config import SamplingParams
from tinyserve.engine.penalties import SeenTokens, penalise

VOCAB = 40
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=30)
REQUEST = st.tuples(
    TOKENS, TOKENS, st.sampled_from([1.0, 0.5, 1.7]), st.sampled_from([0.0, -2.0, 0.4]), st.sampled_from([0.0, 1.3])
)


def reference(logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """One row [V] in fp64."""
    row = logits.double()
    if params.repetition_penalty != 1.0 and [*prompt, *output]:
        ids = torch.tensor([[*prompt, *output]])
        row = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, row.unsqueeze(0))[0]
    for token_id, count in Counter(output).items():
        row[token_id] -= params.frequency_penalty * count + params.presence_penalty
    return row


def seen(params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> SeenTokens:
    one = SeenTokens(params, prompt)
    for token_id in output:
        one.add(token_id)
    return one


@settings(max_examples=50, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=5), st.integers(0, 1000))
def test_every_row_of_a_batch_follows_the_formulas(requests: list[tuple[list[int], ...]], seed: int) -> None:
    logits = torch.randn(len(requests) + 2, VOCAB, generator=torch.Generator().manual_seed(seed))
    logits[0, 3] = -torch.inf
    before = logits.clone()
    each = []
    for prompt, output, repetition, presence, frequency in requests:
        params = SamplingParams(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)  # type: ignore[arg-type]
        each.append((params, prompt, output))
    rows = list(range(1, len(requests) + 1))
    penalise(logits, rows, [seen(*one) for one in each])
    assert torch.equal(logits[[0, -1]], before[[0, -1]])  # rows that are not named
    for row, one in zip(rows, each, strict=True):
        torch.testing.assert_close(logits[row].double(), reference(before[row], *one), rtol=1e-6, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(REQUEST, st.integers(0, 4)), min_size=1, max_size=4), st.integers(0, 1000))
def test_tokens_that_only_the_device_knows_count_too(
    requests: list[tuple[tuple[list[int], ...], int]], seed: int
) -> None:
    logits = torch.randn(len(requests), VOCAB, generator=torch.Generator().manual_seed(seed))
    together, known, ahead = logits.clone(), [], torch.full((len(requests), 4), -1)
    everything = []
    for index, ((prompt, output, repetition, presence, frequency), number) in enumerate(requests):
        params = SamplingParams(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)  # type: ignore[arg-type]
        last = output[len(output) - number :] if number <= len(output) else []
        ahead[index, 4 - len(last) :] = torch.tensor(last)
        known.append(seen(params, prompt, output[: len(output) - len(last)]))
        everything.append(seen(params, prompt, output))
    rows = list(range(len(requests)))
    penalise(logits, rows, known, ahead)
    penalise(together, rows, everything)
    assert torch.equal(logits, together)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(repetition_penalty=2.0), [2.0, -8.0, 2.0, 4.0]),  # once each, prompt and output
        (SamplingParams(presence_penalty=1.5), [4.0, -4.0, 2.5, 4.0]),  # the output alone
        (SamplingParams(frequency_penalty=0.5), [4.0, -4.0, 3.0, 4.0]),
    ],
)
def test_what_counts_by_hand(params: SamplingParams, expected: list[float]) -> None:
    logits = torch.tensor([[4.0, -4.0, 4.0, 4.0]])
    penalise(logits, [0], [seen(params, [0, 1], [2, 2])])
    assert logits[0].tolist() == expected


def test_more_distinct_tokens_than_there_was_room_for() -> None:
    one = seen(SamplingParams(frequency_penalty=1.0), [], [*range(500), 7])
    assert one.ids.tolist() == list(range(500))
    assert one.counts.tolist() == [2 if token_id == 7 else 1 for token_id in range(500)]
