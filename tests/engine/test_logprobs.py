"""Log probabilities against log_softmax in fp64."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tinyserve.engine.logprobs import LOWEST, Logprobs, look_up


def logprobs_of(
    logits: Tensor, rows: Sequence[int], token_ids: Sequence[int], numbers: Sequence[int]
) -> list[Logprobs]:
    """Of the token chosen in each of some rows; no other row has one."""
    tokens = torch.full((len(logits),), -1, dtype=torch.int32)
    tokens[list(rows)] = torch.tensor(token_ids, dtype=torch.int32)
    found = look_up(logits, rows, tokens, numbers)
    by_row = found.read(found.tensors)
    assert list(by_row) == list(rows)
    return list(by_row.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chosen_and_alternatives_are_the_log_softmax_of_their_row(dtype: torch.dtype) -> None:
    logits = (torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    expected = logits.double().log_softmax(-1)
    found = logprobs_of(logits, [0, 2, 4], [7, 299, 0], [0, 20, 3])
    for row, token_id, number, one in zip([0, 2, 4], [7, 299, 0], [0, 20, 3], found, strict=True):
        assert one.chosen == pytest.approx(float(expected[row, token_id]), abs=1e-4)
        assert len(one.top) == number
        for place, (each, logprob) in enumerate(one.top):
            assert logprob == pytest.approx(float(expected[row, each]), abs=1e-4)
            assert logprob == pytest.approx(float(expected[row].sort(descending=True).values[place]), abs=1e-4)


def test_fewer_tokens_than_alternatives_asked_for() -> None:
    (one,) = logprobs_of(torch.zeros(1, 4), [0], [1], [20])
    assert sorted(token_id for token_id, _ in one.top) == [0, 1, 2, 3]
    assert one.chosen == pytest.approx(math.log(0.25))


def test_a_probability_of_zero_is_a_number_that_json_knows() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    (one,) = logprobs_of(logits, [0], [2], [2])
    assert one.chosen == LOWEST
    assert one.top[0] == (0, 0.0)
    assert one.top[1][1] == LOWEST
