"""sample against probabilities in fp64: what is kept, how often each token is drawn, and what is never drawn."""

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import pytest
import reference
import torch
from torch import Tensor

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
ROUNDING = 2e-6  # of a share: what fp32 weights may move a token's edge by
LOG2_E = 1.44269504  # as a temperature it makes a logit of -n a weight of exactly 2^-n

Cuts = tuple[float, int, float, float]  # temperature, top_k, top_p, min_p


def arguments(
    cuts: Sequence[Cuts], uniform: Sequence[float], device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ops.sample takes besides the logits."""
    each = torch.tensor(cuts, dtype=torch.float64).view(-1, 4)
    temperature, top_p, min_p = (each[:, column].float().to(device) for column in (0, 2, 3))
    numbers = torch.tensor(uniform, dtype=torch.float64, device=device)
    return temperature, each[:, 1].int().to(device), top_p, min_p, numbers


def sample(logits: Tensor, cuts: Sequence[Cuts], uniform: Sequence[float], device: str) -> list[int]:
    """Rows [R, V] with parameters for each, or for all of them."""
    rows = logits.shape[0]
    tokens = ops.sample(logits.to(device), *arguments(cuts if len(cuts) == rows else [*cuts] * rows, uniform, device))
    assert (tokens.shape, tokens.dtype) == ((rows,), torch.int32)
    return tokens.tolist()


def check_draws(row: Tensor, cuts: Cuts, uniform: Sequence[float], tokens: Sequence[int]) -> None:
    """Each token of one row [V] is the one whose part of [0, 1) holds its number, in the vocabulary's order."""
    ends = reference.sampling_probabilities(row, *cuts).cumsum(0)
    for number, token in zip(uniform, tokens, strict=True):
        start = float(ends[token - 1]) if token > 0 else 0.0
        assert ends[token] > start, f"{token} is cut, {number} drew it"
        assert start - ROUNDING <= number <= float(ends[token]) + ROUNDING, (number, token)


CUTS: list[Cuts] = [
    (1.0, -1, 1.0, 0.0),
    (0.5, 0, 1.0, 0.0),
    (1.0, 3, 1.0, 0.0),
    (1.0, -1, 0.6, 0.0),
    (1.0, -1, 1.0, 0.2),
    (1.5, 20, 0.8, 0.0),
    (2.0, 9, 0.9, 0.15),
    (1.0, 500, 0.95, 0.01),
]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(2, torch.float32), (33, torch.float16), (40, torch.bfloat16), (101, torch.float32)]
)
def test_every_number_draws_its_token(vocab_size: int, dtype: torch.dtype, device: str) -> None:
    """Evenly spaced numbers draw every token that is kept, as often as its probability says, and no other one."""
    num_draws = 8
    row = (torch.randn(vocab_size) * 1.5).to(dtype)
    uniform = [(index + 0.5) / num_draws for index in range(num_draws)]
    each = [cuts for cuts in CUTS for _ in uniform]
    tokens = sample(row.repeat(len(each), 1), each, uniform * len(CUTS), device)
    for index, cuts in enumerate(CUTS):
        drawn = tokens[index * num_draws : (index + 1) * num_draws]
        check_draws(row, cuts, uniform, drawn)
        shares = reference.sampling_probabilities(row, *cuts) * num_draws
        for token, share in enumerate(shares.tolist()):
            assert abs(drawn.count(token) - share) < 1.001, (cuts, token)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "kept"),
    [
        (-1, 1.0, 0.0, [0, 1, 2, 3, 4]),
        (4, 1.0, 0.0, [0, 1, 2, 3]),  # of equal ones the first
        (3, 1.0, 0.0, [1, 2, 3]),
        (2, 1.0, 0.0, [1, 2]),
        (-1, 0.5, 0.0, [2]),  # which is just that share
        (-1, 0.5000001, 0.0, [1, 2]),
        (-1, 0.4999, 0.0, [2]),
        (-1, 0.75, 0.0, [1, 2]),
        (-1, 0.750001, 0.0, [1, 2, 3]),
        (-1, 0.875, 0.0, [1, 2, 3]),
        (-1, 0.876, 0.0, [0, 1, 2, 3]),
        (-1, 0.95, 0.0, [0, 1, 2, 3, 4]),
        (2, 0.66, 0.0, [2]),  # a share of what top_k has left: 1 of 1.5
        (2, 0.67, 0.0, [1, 2]),
        (4, 0.93, 0.0, [1, 2, 3]),
        (4, 0.9334, 0.0, [0, 1, 2, 3]),
        (-1, 1.0, 0.25, [1, 2, 3]),
        (-1, 1.0, 0.1251, [1, 2, 3]),
        (-1, 1.0, 0.125, [0, 1, 2, 3, 4]),
        (3, 0.8, 0.5, [1, 2]),
        (-1, 1.0, 1.0, [2]),
    ],
)
def test_what_is_kept_to_the_last_bit(top_k: int, top_p: float, min_p: float, kept: list[int], device: str) -> None:
    """Weights 1/8, 1/2, 1, 1/4, 1/8: 2 in all."""
    logits = torch.tensor([[-3.0, -1.0, 0.0, -2.0, -3.0]])
    weights = [(1, 4, 8, 2, 1)[token] for token in kept]
    edges = [sum(weights[:place]) / sum(weights) for place in range(len(kept) + 1)]
    # just inside both ends of each one's part: nothing else has any
    uniform = [number for start, end in itertools.pairwise(edges) for number in (start + 1e-9, end - 1e-9)]
    tokens = sample(logits.repeat(len(uniform), 1), [(LOG2_E, top_k, top_p, min_p)], uniform, device)
    assert tokens == [token for token in kept for _ in range(2)]


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "cuts"),
    [
        (1, torch.float32, (1.0, 2, 0.5, 0.0)),
        (4999, torch.float32, (1.0, 100, 0.9, 0.0)),
        (4999, torch.bfloat16, (1.0, 700, 0.8, 0.0)),
        (8192, torch.bfloat16, (1.0, -1, 0.7, 0.001)),
        (8200, torch.float16, (3.0, 4000, 0.999, 0.0)),
        (50257, torch.float16, (1.0, -1, 0.95, 0.0)),
        (1 << 18, torch.bfloat16, (0.8, 200_000, 0.9, 0.0)),
        ((1 << 18) - 1, torch.float32, (1.0, -1, 1.0, 0.0)),
    ],
    ids=str,
)
def test_wide_and_ragged_rows(vocab_size: int, dtype: torch.dtype, cuts: Cuts, device: str) -> None:
    logits = (torch.randn(2 if vocab_size < 1 << 16 else 1, vocab_size) * 3).to(dtype)
    uniform = [0.2718, 0.9301][: len(logits)]
    tokens = sample(logits, [cuts], uniform, device)
    for row, number, token in zip(logits, uniform, tokens, strict=True):
        check_draws(row, cuts, [number], [token])


@pytest.mark.parametrize("cuts", [(1.0, 150, 1.0, 0.0), (1.0, 450, 0.5, 0.0), (1.0, -1, 0.37, 0.0)], ids=str)
@DTYPES
def test_a_cut_among_equal_logits_keeps_the_first_of_them(cuts: Cuts, dtype: torch.dtype, device: str) -> None:
    row = torch.randint(-1, 2, (600,)).to(dtype)  # about 200 of each; 0 and -0
    row[::7] *= -1
    uniform = [(index + 0.5) / 6 for index in range(6)]
    uniform += [0.0, 1 - 2**-53]  # the first and the last that is kept
    tokens = sample(row.repeat(len(uniform), 1), [cuts], uniform, device)
    kept = torch.nonzero(reference.sampling_probabilities(row, *cuts)).flatten().tolist()
    check_draws(row, cuts, uniform, tokens)
    assert (tokens[-2], tokens[-1]) == (kept[0], kept[-1])


@pytest.mark.parametrize("cuts", [(LOG2_E, 3500, 0.7, 0.0), (LOG2_E, 3500, 0.9, 0.0), (LOG2_E, 1500, 0.85, 0.0)])
def test_top_p_cuts_far_below_the_largest_and_above_where_top_k_does(cuts: Cuts, device: str) -> None:
    """A quarter each of twos and ones, and half zeros, spread so that every thread of a GPU's block has a two."""
    row = torch.tensor([0.0, 2.0, 0.0, 1.0]).repeat(1024)
    uniform = [0.0, 0.4, 0.7, 1 - 2**-53]
    tokens = sample(row.repeat(4, 1), [cuts], uniform, device)
    check_draws(row, cuts, uniform, tokens)
    kept = torch.nonzero(reference.sampling_probabilities(row, *cuts)).flatten().tolist()
    assert (tokens[0], tokens[-1]) == (kept[0], kept[-1])


@pytest.mark.parametrize("cuts", [(0.0, -1, 1.0, 0.0), (0.00099, -1, 1.0, 0.0), (5.0, 1, 1.0, 0.0), (1.0, 0, 0.0, 0.0)])
@DTYPES
def test_greedy_rows_take_the_first_of_the_largest(cuts: Cuts, dtype: torch.dtype, device: str) -> None:
    logits = torch.randn(4, 3001).clamp(max=1.5).to(dtype)
    logits[1] = -0.0
    logits[1, 5] = 0.0  # no larger than the others
    logits[2, 2999] = 100
    logits[3] = -1e4
    logits[3, [17, 1700]] = -500
    expected = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert sample(logits, [cuts], [0.99] * 4, device) == expected
    assert expected[1:] == [0, 2999, 17]


def test_rows_with_different_parameters_stand_side_by_side(device: str) -> None:
    row = torch.randn(200) * 2
    cuts: list[Cuts] = [*CUTS, (0.0, 0, 1.0, 0.0), *CUTS]
    uniform = torch.rand(len(cuts)).tolist()
    tokens = sample(row.repeat(len(cuts), 1), cuts, uniform, device)
    assert tokens[len(CUTS)] == int(row.argmax())
    for one, number, token in zip(cuts, uniform, tokens, strict=True):
        if one[0] > 0:
            check_draws(row, one, [number], [token])


@pytest.mark.parametrize("cuts", [CUTS[0], CUTS[6], (0.0, -1, 1.0, 0.0)], ids=str)
@DTYPES
def test_a_row_that_is_not_finite_is_minus_one_and_touches_no_other(
    cuts: Cuts, dtype: torch.dtype, device: str
) -> None:
    logits = torch.randn(6, 1037).to(dtype)
    logits[1, 1036] = math.nan
    logits[2, 3] = -torch.tensor(math.nan)  # with its sign bit
    logits[3, 800] = math.inf
    logits[4] = -math.inf
    alone = [sample(logits[index : index + 1], [cuts], [0.4], device)[0] for index in (0, 5)]
    assert min(alone) >= 0
    assert sample(logits, [cuts], [0.4] * 6, device) == [alone[0], -1, -1, -1, -1, alone[1]]


@pytest.mark.parametrize("cuts", [(100.0, -1, 1.0, 0.0), (100.0, 5, 0.9, 0.1), (0.001, 2000, 0.99, 0.0)], ids=str)
@pytest.mark.parametrize("place", [17, 1099])
def test_what_has_no_probability_is_never_drawn(place: int, cuts: Cuts, device: str) -> None:
    logits = torch.full((3, 1100), -math.inf)
    logits[0, place] = -3.0
    logits[1], logits[1, place] = -1e38, 3e38
    logits[2], logits[2, place] = -5.0, -4.9 if cuts[0] < 1 else 1e5
    for number in (0.0, 1 - 2**-53):
        assert sample(logits, [cuts], [number] * 3, device) == [place] * 3


@pytest.mark.parametrize("temperature", [0.001, 100.0])
def test_extreme_temperatures(temperature: float, device: str) -> None:
    row = torch.linspace(-8, 8, 150)[torch.randperm(150)] * (1 if temperature > 1 else 1e-3)
    cuts = (temperature, 120, 0.9, 0.0)
    uniform = [(index + 0.5) / 8 for index in range(8)]
    check_draws(row, cuts, uniform, sample(row.repeat(8, 1), [cuts], uniform, device))


def test_rows_that_start_off_16_bytes(device: str) -> None:
    rows = len(CUTS)
    logits = torch.randn(rows, 1024)
    shifted = torch.empty(rows * 1024 + 1, device=device)[1:].view(rows, 1024)
    shifted.copy_(logits)
    assert sample(shifted, CUTS, [0.3] * rows, device) == sample(logits, CUTS, [0.3] * rows, device)


def test_no_rows(device: str) -> None:
    assert sample(torch.empty(0, 8), [], [], device) == []


def test_names_what_does_not_fit(device: str) -> None:
    logits = torch.zeros(2, 8, device=device)
    temperature, top_k, top_p, min_p, uniform = arguments(CUTS[:2], [0.1, 0.2], device)

    def refused(match: str) -> AbstractContextManager[object]:
        return pytest.raises((RuntimeError, ValueError), match=match)

    with refused(r"logits must be \[R, V\], got \[8\]"):
        ops.sample(logits[0], temperature, top_k, top_p, min_p, uniform)
    with refused("logits must be float16, bfloat16 or float32, got"):
        ops.sample(logits.double(), temperature, top_k, top_p, min_p, uniform)
    with refused(r"temperature must be .*\[2\], got .*\[1\]"):
        ops.sample(logits, temperature[:1], top_k, top_p, min_p, uniform)
    with refused("top_k must be .*[iI]nt.*, got"):
        ops.sample(logits, temperature, top_k.long(), top_p, min_p, uniform)
    with refused("uniform must be .*, got"):
        ops.sample(logits, temperature, top_k, top_p, min_p, uniform.float())


def test_more_tokens_than_the_kernel_takes(device: str) -> None:
    logits = torch.zeros(1, ops.MAX_VOCAB + 1)
    logits[0, -1] = 50.0
    assert sample(logits, [(1.0, -1, 1.0, 0.0)], [0.5], device) == [ops.MAX_VOCAB]


def test_schema_and_fake_agree_with_the_kernel(is_cuda: bool, is_emulated: bool, device: str) -> None:
    if not is_cuda or is_emulated:
        pytest.skip("there is a kernel on a GPU alone")
    torch.library.opcheck(
        torch.ops.tinyserve.sample, (torch.randn(2, 64, device=device), *arguments(CUTS[:2], [0.1, 0.2], device))
    )
