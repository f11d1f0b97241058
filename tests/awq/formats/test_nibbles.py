"""Packing words against bit arithmetic on Python's integers."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awq.formats import nibbles


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 9),
    order=st.permutations(range(8)),
    seed=st.integers(0, 2**31),
)
def test_rows_in_any_order(rows: int, columns: int, order: list[int], seed: int) -> None:
    chosen = random.Random(seed)
    values = torch.tensor([[chosen.randrange(16) for _ in range(columns)] for _ in range(8 * rows)], dtype=torch.uint8)
    words = nibbles.pack_rows(values, order)
    assert words.shape == (rows, columns)
    for row in range(rows):
        for column in range(columns):
            expected = sum(int(values[8 * row + order[nibble], column]) << (4 * nibble) for nibble in range(8))
            assert int(words[row, column]) & 0xFFFFFFFF == expected
    assert torch.equal(nibbles.unpack_rows(words, order), values)


def test_columns() -> None:
    values = torch.arange(48, dtype=torch.uint8).remainder(16).view(3, 16)
    words = nibbles.pack_columns(values)
    assert words.shape == (3, 2)
    assert int(words[0, 0]) & 0xFFFFFFFF == 0x76543210
    assert int(words[0, 1]) & 0xFFFFFFFF == 0xFEDCBA98
    assert torch.equal(nibbles.unpack_columns(words), values)


def test_unpacking_takes_strided_words() -> None:
    values = torch.arange(64, dtype=torch.uint8).remainder(16).view(16, 4)
    words = nibbles.pack_rows(values)
    assert torch.equal(nibbles.unpack_rows(words.t().contiguous().t()), values)
    assert torch.equal(
        nibbles.unpack_columns(nibbles.pack_columns(values.view(8, 8)).t().contiguous().t()), values.view(8, 8)
    )
