"""The int8 products with Arm's dot-product instructions: cross-compiled, run under qemu, compared with fp64."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
KERNELS = ("w4a16_pack", "w4a8_linear", "w4a16_gemv", "w4a16_gemm", "w8_pack", "w8a8_linear")
# As setup.py compiles this instruction set, but for -O1: that is faster to compile.
FLAGS = [
    "-O1",
    "-std=c++20",
    "-march=armv8.2-a+dotprod",
    "-DTINYSERVE_ISA=dotprod",
    "-DTINYSERVE_WIDTH=4",
    "-Wno-psabi",
]


def compiled(source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    subprocess.run([COMPILER, *FLAGS, "-c", source, "-o", target], check=True)
    return target


@pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason="needs apt-get install g++-aarch64-linux-gnu qemu-user",
)
def test_dot_products_of_arm(tmp_path: Path) -> None:
    sources = [ROOT / f"csrc/cpu/{name}.cpp" for name in KERNELS] + [Path(__file__).with_name("aarch64_products.cpp")]
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(lambda source: compiled(source, tmp_path), [*sources, ROOT / "csrc/cpu/dispatch.cpp"]))
    dispatch = objects.pop()  # it would want the kernels of every set; here it only has to compile
    assert b"getauxval" in dispatch.read_bytes()
    program = tmp_path / "products"
    subprocess.run([COMPILER, "-static", *objects, "-o", program], check=True)
    done = subprocess.run([EMULATOR, "-cpu", "max", program], check=True, capture_output=True, text=True)
    errors = [(name, float(error)) for name, error in (line.split() for line in done.stdout.splitlines())]
    assert len(errors) == 12
    assert all(error < 1e-5 for _, error in errors), errors
