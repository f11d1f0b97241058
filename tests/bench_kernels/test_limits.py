"""Shapes, bytes and limits against figures worked out elsewhere, by hand or by the models' own parameter counts."""

import pytest

from benchmarks import shapes
from benchmarks.kernels.limits import Case, Ceilings, measure_ceilings
from benchmarks.kernels.timing import LoopTimer
from benchmarks.shapes import Shape

H200 = Ceilings(4.3e12, {"float16": 790e12, "bfloat16": 790e12})


@pytest.mark.parametrize(
    ("name", "layers", "billions"), [("Llama-2-7B", 32, 6.476), ("Llama-3-8B", 32, 6.979), ("Qwen2.5-7B", 28, 6.525)]
)
def test_the_linear_layers_are_the_models_weights(name: str, layers: int, billions: float) -> None:
    architecture = next(a for a in shapes.ARCHITECTURES if a.name == name)
    assert layers * sum(n * k for n, k in architecture.linears().values()) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_a_shape_that_models_share_is_there_once() -> None:
    found = shapes.shapes()
    assert len({(shape.n, shape.k) for shape in found}) == len(found)
    assert shapes.shape(6144, 4096).layers == ("Llama-3-8B qkv", "Mistral-7B qkv")
    assert shapes.shape(8192, 8192).layers == ("Llama-2-70B o", "Llama-3-70B o")
    assert all(shape.k % 128 == 0 and shape.n % 128 == 0 for shape in found)


def test_the_quick_shapes_cover_the_targets() -> None:
    bytes_of = {str(shape): Case(shape, 1, "bfloat16").weight_bytes for shape in shapes.QUICK_SHAPES}
    assert len(bytes_of) == 6
    assert bytes_of["8192x8192"] < 60e6
    assert bytes_of["8192x28672"] >= 120e6


@pytest.mark.parametrize(
    ("n", "k", "rows", "microseconds"),
    [
        (8192, 8192, 1, 8.1),
        (8192, 8192, 64, 10.9),
        (28672, 4096, 16, 14.4),
        (8192, 28672, 1, 28.4),
        (4096, 4096, 4096, 174.0),
    ],
)
def test_limits_of_an_h200(n: int, k: int, rows: int, microseconds: float) -> None:
    assert 1e6 * H200.limit_s(Case(Shape(n, k), rows, "float16")) == pytest.approx(microseconds, abs=0.05)


def test_ceilings_are_rates_of_what_was_run() -> None:
    ceilings = measure_ceilings(LoopTimer(), ["bfloat16"], copy_bytes=1 << 16, rate_size=32)
    assert ceilings.copy_bytes_per_s > 0
    assert list(ceilings.flops_per_s) == ["bfloat16"]
