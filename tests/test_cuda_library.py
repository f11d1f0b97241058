"""The CUDA library loads beside a torch that has CUDA, of which only a stand-in is here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Python loads torch's libraries for itself alone: what they define is found only by a library that names them.
LOAD = """
import ctypes, sys, torch
from tinyserve import ops
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_LOCAL)
torch.ops.load_library(sys.argv[2])
assert torch._C._dispatch_has_kernel_for_dispatch_key("tinyserve::rms_norm", "CUDA")
"""


def test_it_finds_what_torchs_cuda_library_defines(tmp_path: Path) -> None:
    libraries = sorted(ROOT.glob("tinyserve/_cuda.*.so"))
    stand_ins = sorted(ROOT.glob("build/ninja-*/cuda/libtorch_cuda.so"))
    if not libraries or not stand_ins:
        pytest.skip("the CUDA library is not built here")
    command = [sys.executable, "-c", LOAD, str(stand_ins[-1]), str(libraries[0])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
