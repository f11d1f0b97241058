"""The emulator of CUDA kernels sees what it is there for: a barrier that is missing."""

from collections.abc import Iterator

import pytest
import reference
import torch
from emulator import library

SEEDS = range(1, 9)


@pytest.fixture
def emulated() -> Iterator[object]:
    if why_not := library.load():
        pytest.skip(why_not)
    yield torch.ops.tinyserve_emulated
    torch.ops.tinyserve_emulated.drop_barriers(False)


def wrong_seeds() -> list[int]:
    """The thread orders for which rms_norm, whose block sum needs a barrier, gives a wrong result."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 2048), torch.ones(2048)
    x *= torch.tensor([[1.0], [10.0], [100.0], [1000.0]])  # sums left over from another row are wrong for this one
    expected = reference.rms_norm(x, weight, 1e-5)
    wrong = []
    for seed in SEEDS:
        torch.ops.tinyserve_emulated.set_seed(seed)
        out = torch.ops.tinyserve_emulated.rms_norm(x, weight, 1e-5)
        if not reference.relative_error(out, expected) < 1e-6:
            wrong.append(seed)
    return wrong


def test_a_kernel_with_its_barriers_is_right_in_every_order(emulated: object) -> None:
    assert wrong_seeds() == []


def test_a_dropped_barrier_is_seen(emulated: object) -> None:
    torch.ops.tinyserve_emulated.drop_barriers(True)
    assert wrong_seeds()
