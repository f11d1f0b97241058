"""The emulated library, as it was found after every test."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from emulator import library


@pytest.fixture
def emulated() -> Iterator[Any]:
    if why_not := library.load():
        pytest.skip(why_not)
    ops = torch.ops.tinyserve_emulated
    yield ops
    ops.set_fault("")
    ops.set_resident_blocks(4)
    ops.set_gpu(4, 90)
