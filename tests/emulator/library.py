"""The library of emulated CUDA kernels: built where it is missing or old, loaded once.

On a machine with a GPU and nvcc, beside it: the emulator's own small kernels for the GPU, tinyserve_instructions.*
"""

import functools
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = ROOT / "tests/emulator/_instructions.abi3.so"


@functools.cache
def load() -> str:
    """Registers the ops tinyserve_emulated.*; returns why that cannot be, or nothing."""
    build = [sys.executable, "setup.py", "build_ext", "--inplace", "--emulated"]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    if "needs the CUDA headers" in built.stderr:
        return built.stderr.strip().splitlines()[-1]
    assert built.returncode == 0, built.stdout + built.stderr
    torch.ops.load_library(ROOT / "tests/emulator/_emulated.abi3.so")
    if torch.cuda.is_available() and INSTRUCTIONS.exists():
        torch.ops.load_library(INSTRUCTIONS)
    return ""
