"""Runs every kernel test on each backend that this machine has.

The fixture `device` names where a test puts its tensors. Its parameters also choose what computes: the CPU's best
instruction set and every narrower one, the GPU, or, for ops with a CUDA kernel, that kernel run by the emulator with
its threads in two different orders and no memory around its arguments.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator import guarded, library

from tinyserve import ops

ROOT = Path(__file__).parents[2]


def emulated_kernel(name: str, device: str) -> Callable[..., Any]:
    """What ops._kernel is while a test runs on the emulator."""
    return functools.partial(guarded.call, getattr(torch.ops.tinyserve_emulated, name).default)


@functools.cache
def narrower_isas() -> list[str]:
    """The instruction sets after the one in use, best first, that this machine has."""
    info = ops.build_info()
    if info["cpu_isa"] is None:
        return []
    following = info["cpu_isas"][info["cpu_isas"].index(info["cpu_isa"]) + 1 :]
    return [isa for isa in following if is_usable(isa, info["cpu_isa"])]


def is_usable(isa: str, best: str) -> bool:
    try:
        ops.use_cpu_isa(isa)
    except ValueError:
        return False
    ops.use_cpu_isa(best)
    return True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" not in metafunc.fixturenames:
        return
    backends = ["cpu", *(f"cpu-{isa}" for isa in narrower_isas())]
    op = getattr(metafunc.module, "CUDA_OP", None)  # a file of tests of what an op has on CUDA alone
    if op is not None:
        backends = []
    else:
        op = getattr(metafunc.module, "OP", Path(str(metafunc.module.__file__)).stem.removeprefix("test_"))
    if (ROOT / "csrc/cuda" / f"{op}.cu").exists():
        backends += ["emulated-1", "emulated-2"]
    if torch.cuda.is_available():
        backends.append("cuda")
    metafunc.parametrize("device", backends, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    torch.manual_seed(0)
    name, _, variant = request.param.partition("-")
    best = ops.build_info()["cpu_isa"]
    assert best is not None, "the kernels are not built: python setup.py build_ext --inplace"
    if name == "emulated":
        if why_not := library.load():
            pytest.skip(why_not)
        torch.ops.tinyserve_emulated.set_seed(int(variant))
        monkeypatch.setattr(ops, "_kernel", emulated_kernel)
    elif variant:
        ops.use_cpu_isa(variant)
    yield "cpu" if name == "emulated" else name
    ops.use_cpu_isa(best)


@pytest.fixture
def is_cuda(request: pytest.FixtureRequest, device: str) -> bool:
    """Whether the CUDA kernels compute, on a GPU or in the emulator."""
    return not request.node.callspec.params["device"].startswith("cpu")


@pytest.fixture
def is_emulated(request: pytest.FixtureRequest, device: str) -> bool:
    return bool(request.node.callspec.params["device"].startswith("emulated"))


@pytest.fixture
def emulated_gpu(is_emulated: bool) -> Iterator[Callable[[int, int], None]]:
    """A function that sets the multiprocessors and the compute capability that the emulator has."""
    if not is_emulated:
        pytest.skip("for the emulator")
    yield torch.ops.tinyserve_emulated.set_gpu
    torch.ops.tinyserve_emulated.set_gpu(4, 90)
