"""The cases that compute-sanitizer watches are valid ones: the CPU computes them all."""

import torch

from benchmarks import sanitized_kernels


def test_every_case_has_a_finite_result() -> None:
    ops = set()
    for op, case, work in sanitized_kernels.works():
        y = work("cpu")
        assert y.isfinite().all(), (op, case)
        assert torch.equal(y, work("cpu")), "the same input at every call"
        ops.add(op)
    norms, attention = {"rms_norm", "layer_norm"}, {"rope_kv_write", "paged_attention", "rope_paged_attention"}
    assert ops == norms | attention | {"w4a16_gemv", "w4a16_gemm", "silu_mul", "sample"}


def test_without_a_gpu_it_lists_no_configurations() -> None:
    assert list(sanitized_kernels.config_works("cpu")) == []
