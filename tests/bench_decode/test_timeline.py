"""Traces in the profiler's format, made here: kernels of graphs and of single launches, gaps, overlaps, layers."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import timeline
from benchmarks.decode import trace
from benchmarks.decode.steps import STEP_NAME
from benchmarks.decode.trace import layers, median_token, read_tokens

OWN = "void tinyserve::cuda::(anonymous namespace)::{}_kernel<__nv_bfloat16, 4>(tinyserve::Args)"
LAYER = [
    ("rms_norm", 2.0), ("w4a16_gemv", 5.0), ("rope_kv_write", 2.0), ("paged_attention", 6.0), ("w4a16_gemv", 4.0),
    ("rms_norm", 2.0), ("w4a16_gemv", 9.0), ("w4a16_gemv", 6.0),
]  # fmt: skip
GAP, NUM_LAYERS = 1.0, 3


class Trace:
    """Steps one after another: each is launched as one graph, its kernels follow it on the GPU."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "args": {"name": "python"}}]
        self.now = 1000.0
        self._correlation = 0

    def host(self, category: str, name: str, start: float, duration: float, **args: Any) -> None:
        self.events.append(
            {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": start, "dur": duration, "args": args}
        )

    def step(self, kernels: list[tuple[str, float]], host_start: float, gap: float = GAP) -> None:
        self._correlation += 1
        self.host("user_annotation", STEP_NAME, host_start, 5.0)
        self.host("cuda_runtime", "cudaGraphLaunch", host_start + 1, 3.0, correlation=self._correlation)
        for name, duration in kernels:
            is_copy = name.startswith("Memcpy")
            self.events.append(
                {
                    "ph": "X", "cat": "gpu_memcpy" if is_copy else "kernel", "pid": 0, "tid": 7, "ts": self.now,
                    "name": name, "dur": duration,
                    "args": {"stream": 7, "correlation": self._correlation, "graph node id": 3},
                }
            )  # fmt: skip
            self.now += duration + gap

    def write(self, folder: Path) -> Path:
        path = folder / "trace.json"
        path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": self.events}))
        return path


def token_kernels() -> list[tuple[str, float]]:
    prologue = [("Memcpy HtoD (Pinned -> Device)", 1.5), ("void at::native::vectorized_gather_kernel<16>", 2.0)]
    layer = [(OWN.format(op), duration) for op, duration in LAYER]
    head = [(OWN.format("rms_norm"), 2.0), ("nvjet_sm90_tst_64x8", 240.0), (OWN.format("sample"), 3.0)]
    return prologue + layer * NUM_LAYERS + head


def sample(tmp_path: Path, steps: int = 4) -> Path:
    made = Trace()
    for index in range(steps):  # launched ahead of their kernels, as an engine does that does not wait
        made.step(token_kernels(), host_start=900.0 + 20 * index)
    return made.write(tmp_path)


def test_a_token_is_its_kernels_and_the_gaps_between(tmp_path: Path) -> None:
    tokens = read_tokens(sample(tmp_path), STEP_NAME)
    assert len(tokens) == 3  # the last step has no end
    token = median_token(tokens)
    kernels = token_kernels()
    busy = sum(duration for _, duration in kernels)
    assert len(token.kernels) == len(kernels)
    assert token.busy_us == pytest.approx(busy)
    assert token.gaps_us == pytest.approx(GAP * len(kernels))  # that before the next token is one of them
    assert token.period_us == pytest.approx(busy + GAP * len(kernels))
    assert [kernel.op for kernel in token.kernels[:3]] == ["copy", "embedding", "rms_norm"]
    assert [kernel.op for kernel in token.kernels[-2:]] == ["cublas", "sample"]


def test_layers_are_what_repeats_around_attention(tmp_path: Path) -> None:
    parts = layers(read_tokens(sample(tmp_path), STEP_NAME)[0])
    assert len(parts) == NUM_LAYERS
    average = trace.average_layer(parts)
    assert [place.op for place in average] == [op for op, _ in LAYER]
    assert [place.alone_us for place in average] == pytest.approx([us for _, us in LAYER])
    assert all(place.gap_us == pytest.approx(GAP) for place in average)


def test_kernels_that_overlap_leave_no_gap(tmp_path: Path) -> None:
    made = Trace()
    for index in range(2):
        made.step([(OWN.format("rms_norm"), 4.0), (OWN.format("silu_mul"), 4.0)], 900.0 + 20 * index, gap=-1.0)
    token = read_tokens(made.write(tmp_path), STEP_NAME)[0]
    assert [kernel.gap_us for kernel in token.kernels] == [0.0, 0.0]
    assert [kernel.alone_us for kernel in token.kernels] == pytest.approx([4.0, 3.0])
    assert list(trace.by_op(token)["silu_mul"]) == pytest.approx([1, 3.0, 0.0])
    assert token.period_us == pytest.approx(6.0)
    assert token.busy_us == pytest.approx(6.0)
    assert token.gaps_us == 0.0


@pytest.mark.parametrize(
    ("name", "op"),
    [
        (OWN.format("w4a16_gemv"), "w4a16_gemv"),
        (OWN.format("wgmma_gemm"), "w4a16_gemm"),
        ("void tinyserve::cuda::silu_mul_ragged_kernel<__half>(tinyserve::SiluMulArgs)", "silu_mul"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm>(Params)", "cublas"),
        ("void flash::flash_fwd_splitkv_kernel<Traits>(Params)", "flash attention"),
        ("void some::new_thing<3>(int)", "some::new_thing"),
    ],
)
def test_kernels_are_called_by_their_op(name: str, op: str) -> None:
    assert trace.op_of(name) == op


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kernels in 1 of 1 steps"):
        read_tokens(sample(tmp_path, steps=1), STEP_NAME)
    with pytest.raises(ValueError, match="kernels in 0 of 0 steps"):
        read_tokens(sample(tmp_path), "another name")


def test_the_table_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    found = timeline.show(sample(tmp_path), tmp_path / "token.png")
    assert (tmp_path / "token.png").stat().st_size > 10_000
    assert json.loads(json.dumps(found))["num_layers"] == NUM_LAYERS
    assert found["ops"]["w4a16_gemv"]["kernels"] == 4 * NUM_LAYERS
    printed = capsys.readouterr().out
    assert "one token (the median of 3)" in printed
    assert "a layer, the mean of 3" in printed


def test_a_token_without_layers_is_drawn_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = Trace()
    for index in range(2):
        made.step([(OWN.format("rms_norm"), 4.0)], 900.0 + 20 * index)
    assert timeline.show(made.write(tmp_path), tmp_path / "token.png")["layer"] == []
