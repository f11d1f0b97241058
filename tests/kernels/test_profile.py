"""The CPU kernels' profile counts the calls between its start and its end, and their time."""

import time

import torch

from tinyserve import ops


def test_counts_calls_and_their_time() -> None:
    x, weight = torch.randn(64, 1024), torch.ones(1024)
    ops.rms_norm(x, weight, 1e-5)  # before it starts
    start = time.perf_counter()
    with ops.profile_cpu() as times:
        ops.rms_norm(x, weight, 1e-5)
        ops.rms_norm(x, weight, 1e-5)
        ops.silu_mul(x)
        assert times == []
    elapsed = time.perf_counter() - start
    ops.silu_mul(x)  # after it has ended
    assert {one.name: one.calls for one in times} == {"rms_norm": 2, "silu_mul": 1}
    assert all(one.seconds > 0 for one in times)
    assert sum(one.seconds for one in times) < elapsed


def test_starts_anew() -> None:
    with ops.profile_cpu():
        ops.silu_mul(torch.ones(1, 2))
    with ops.profile_cpu() as times:
        pass
    assert times == []
