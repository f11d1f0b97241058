"""The layout rules, checked: who may import whom, and that every kernel has all of its files."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

# A layer may import those to its right and itself. Every one may import config; models and layers also awq's formats
# and quantize, which say what a checkpoint holds, and skeleton, which says what transformers makes of its names.
LAYERS = [
    "__main__",
    "demo",
    "serve",
    "engine",
    "models",
    "layers",
    "ops",
    "gemm_table",
    "fakes",
    "fallback",
    "fallback_checks",
]
AWQ_FOR_LOADERS = {"awq.formats", "awq.quantize", "awq.skeleton"}


# Kernels that the CPU does not need: it draws tokens with torch's own functions (engine/draw.py).
CUDA_ALONE = {"sample"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """Every module of ours that a file imports, also inside functions; for `from package import name` both."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("tinyserve", "awq")}


def may_import(importer: str, imported: str) -> bool:
    mine, other = importer.split("."), imported.split(".")
    if mine[0] == "awq":
        return other[0] == "awq" or importer == "awq.entry"
    if other[0] == "awq":
        return ".".join(other[:2]) in AWQ_FOR_LOADERS and mine[1] in ("models", "layers")
    if other[1] == "config":
        return True
    if len(mine) == 1 or mine[1] == "config":
        return False
    return other[1].startswith("_") or LAYERS.index(mine[1]) <= LAYERS.index(other[1])


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for path in sorted([*ROOT.glob("tinyserve/**/*.py"), *ROOT.glob("awq/**/*.py")]):
        importer = module_name(path)
        wrong += [f"{importer} -> {name}" for name in sorted(imported_modules(path)) if not may_import(importer, name)]
    assert not wrong


def test_ops_alone_loads_the_kernels() -> None:
    loaders = [p for p in ROOT.glob("tinyserve/**/*.py") if re.search(r"load_library|torch\.ops\.", p.read_text())]
    assert [module_name(path) for path in loaders] == ["tinyserve.ops"]


def kernels(backend: str) -> set[str]:
    """The ops that kernels.h lists for a backend."""
    text = (ROOT / "csrc/kernels.h").read_text()
    table = re.search(rf"#define TINYSERVE_{backend}_KERNELS\(X\)((?:.*\\\n)*.*)", text)
    assert table is not None
    return set(re.findall(r"X\((\w+),", table[1]))


def test_every_kernel_has_its_op_its_test_its_wrapper_and_its_fallback() -> None:
    ops = (ROOT / "tinyserve/ops.py").read_text()
    fallback = (ROOT / "tinyserve/fallback.py").read_text()
    fakes = (ROOT / "tinyserve/fakes.py").read_text()
    assert kernels("CPU")
    for op in kernels("CPU") | CUDA_ALONE:
        assert (ROOT / f"csrc/cpu/{op}.cpp").exists() == (op not in CUDA_ALONE), op
        for path in (f"csrc/ops/{op}.cpp", f"tests/kernels/test_{op}.py"):
            assert (ROOT / path).exists(), path
        assert f"def {op}(" in ops
        assert f'"tinyserve::{op}"' in fakes, f"no fake for {op}"
        assert f"def {op}(" in fallback


def test_every_cuda_kernel_has_a_cpu_twin() -> None:
    assert kernels("CUDA") == {path.stem for path in ROOT.glob("csrc/cuda/*.cu")}
    assert kernels("CUDA") - CUDA_ALONE <= kernels("CPU")
    assert not CUDA_ALONE & kernels("CPU")


def included(path: Path) -> list[str]:
    return re.findall(r'#include ["<]([^">]+)[">]', path.read_text())


def test_kernels_know_no_torch() -> None:
    for path in [ROOT / "csrc/kernels.h", *ROOT.glob("csrc/cpu/*"), *ROOT.glob("csrc/cuda/**/*.*")]:
        for header in included(path):
            assert not re.match(r"(torch|ATen|c10|aten|pybind11)/", header), f"{path.name} includes {header}"
            own = (path.parent / header).resolve().is_relative_to(ROOT / "csrc/cuda")  # a folder of kernels
            assert not header.startswith("../") or header == "../kernels.h" or own, f"{path.name} includes {header}"


def test_ops_are_registered_in_bindings_alone() -> None:
    for path in ROOT.glob("csrc/**/*.*"):
        assert path.name == "bindings.cpp" or "TORCH_LIBRARY" not in path.read_text(), path


INSTRUCTIONS = {f"{noun}.cuh" for noun in ("ptx", "async_copy", "barrier", "mma", "wgmma")}


def test_instructions_stand_in_their_files() -> None:
    for path in ROOT.glob("csrc/cuda/**/*.*"):
        assert path.name in INSTRUCTIONS or "asm" not in re.findall(r"\w+", path.read_text()), path
        assert "<<<" not in path.read_text(), f"{path.name}: kernels are started by launch_kernel"
