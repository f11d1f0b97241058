"""Runs every kernel test on each backend that this machine has.

The fixture `device` names where a test puts its tensors. Its parameters also choose what computes: the CPU's best
instruction set, its portable kernels, or, for ops with a CUDA kernel, that kernel on the GPU or run by the emulator.
New tensors hold NaN meanwhile, so an element that a kernel leaves unwritten shows.
"""

from collections.abc import Iterator

import pytest
import torch

from tinyserve import ops

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["cpu", "cpu-portable", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.manual_seed(0)
    best = ops.build_info()["cpu_isa"]
    if best is None:
        pytest.fail("the kernels are not built: python setup.py build_ext --inplace")
    if request.param == "cpu-portable":
        ops.use_cpu_isa("portable")
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch then fills what it allocates
    yield request.param.removesuffix("-portable")
    torch.use_deterministic_algorithms(False)
    ops.use_cpu_isa(best)
