"""A tape makes the recorded kernel calls again, on what now lies in the same memory."""

import gc

import pytest
import torch
from torch import Tensor

from tinyserve import ops


def memory(size: int = 1 << 20) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _layer(x: Tensor, weight: Tensor, packed: ops.PackedWeight) -> Tensor:
    h = ops.rms_norm(x, weight, 1e-5)
    return ops.silu_mul(ops.w4a8_linear(h, packed))


def _packed() -> ops.PackedWeight:
    codes = torch.randint(0, 16, (64, 96), dtype=torch.uint8)
    return ops.w4a16_pack(codes, torch.rand(64, 3).half(), torch.randint(0, 16, (64, 3), dtype=torch.uint8))


def test_computes_what_the_ops_compute() -> None:
    torch.manual_seed(0)
    x, weight, packed = torch.randn(3, 96).half(), torch.rand(96).half(), _packed()
    tape = ops.Tape(lambda: _layer(x, weight, packed), memory())
    assert torch.equal(tape.result, _layer(x, weight, packed))
    for _ in range(3):
        x.copy_(torch.randn(3, 96))
        expected = _layer(x, weight, packed)
        assert torch.equal(tape.replay(), expected)


def test_what_is_between_two_products_is_on_it_too() -> None:
    """SiLU and the residual of an exact product on a CPU are no kernels of their own."""
    torch.manual_seed(0)
    x, residual, packed = torch.randn(9, 96).half(), torch.randn(9, 32).half(), _packed()
    tape = ops.Tape(lambda: ops.w4a16_gemm(x, packed, residual=residual, silu_mul=True), memory())
    x.copy_(torch.randn(9, 96))
    residual.copy_(torch.randn(9, 32))
    assert torch.equal(tape.replay(), ops.w4a16_gemm(x, packed, residual=residual, silu_mul=True))


@pytest.mark.parametrize("size", [0, 1000, 1 << 20])  # of the memory: none, not for all, enough
def test_keeps_what_it_works_on(size: int) -> None:
    torch.manual_seed(0)
    x, weight, packed = torch.randn(3, 96).half(), torch.rand(96).half(), _packed()
    tape = ops.Tape(lambda: _layer(x, weight, packed), memory(size))
    others = [torch.full((3, 96), 7.0).half() for _ in range(50)]  # where the intermediate tensors would have been
    x.copy_(torch.randn(3, 96))
    assert torch.equal(tape.replay(), _layer(x, weight, packed))
    assert all(bool((other == 7).all()) for other in others)


def test_an_error_ends_the_recording() -> None:
    with pytest.raises(RuntimeError, match="weight must be"):
        ops.Tape(lambda: ops.rms_norm(torch.zeros(1, 8), torch.ones(7), 1e-5), memory())
    x = torch.zeros(1, 2)  # as long as it is replayed
    assert ops.Tape(lambda: ops.silu_mul(x), memory()).replay().shape == (1, 1)


def test_a_recording_within_a_recording_is_refused() -> None:
    with pytest.raises(RuntimeError, match="this thread records already"):
        ops.Tape(lambda: ops.Tape(lambda: torch.zeros(1), memory()).result, memory())
    x = torch.zeros(1, 2)  # as long as it is replayed
    assert ops.Tape(lambda: ops.silu_mul(x), memory()).replay().shape == (1, 1)


def test_a_tape_that_is_gone_cannot_be_replayed() -> None:
    tape = ops.Tape(lambda: ops.silu_mul(torch.zeros(1, 2)), memory())
    number = tape._number
    del tape
    gc.collect()
    with pytest.raises(RuntimeError, match=f"there is no tape {number}"):
        torch.ops.tinyserve.tape_replay(number)


def test_tapes_may_share_memory() -> None:
    torch.manual_seed(0)
    shared, x, y = memory(), torch.randn(3, 96).half(), torch.randn(7, 96).half()
    weight, packed = torch.rand(96).half(), _packed()
    small, large = (
        ops.Tape(lambda: _layer(x, weight, packed), shared),
        ops.Tape(lambda: _layer(y, weight, packed), shared),
    )
    for tape, rows in ((small, x), (large, y), (small, x)):
        rows.copy_(torch.randn(rows.shape))
        assert torch.equal(tape.replay(), _layer(rows, weight, packed))
