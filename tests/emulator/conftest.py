"""`machine` is the emulator and, where there is one, a GPU: for tests of what instructions mean, which must agree.

`emulated` is the first alone, for tests of mistakes. The emulator is afterwards as it was found.
"""

from collections.abc import Iterator

import pytest
import torch
from emulator import library
from emulator.machine import Machine


@pytest.fixture
def emulated() -> Iterator[Machine]:
    if why_not := library.load():
        pytest.skip(why_not)
    ops = torch.ops.tinyserve_emulated
    yield Machine(ops, "cpu", range(1, 9))
    ops.reset()


@pytest.fixture(params=["emulated", "cuda"] if torch.cuda.is_available() else ["emulated"])
def machine(request: pytest.FixtureRequest, emulated: Machine) -> Machine:
    if request.param == "emulated":
        return emulated
    if not library.INSTRUCTIONS.exists():
        pytest.skip("needs nvcc: the emulator's own kernels are not built for this GPU")
    return Machine(torch.ops.tinyserve_instructions, "cuda", range(1))


@pytest.fixture
def hopper(machine: Machine) -> Machine:
    """A machine that has what sm_90a alone has."""
    if machine.device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    return machine
