"""Whether a machine computes what the emulator's own kernels are to compute: one function for each, for any of them."""

from collections.abc import Callable

import reference
import torch
from emulator.machine import Machine
from torch import Tensor

Check = Callable[[], bool]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def close(out: Tensor, expected: Tensor) -> bool:
    return reference.relative_error(out.cpu(), expected) < 1e-6


def gemm(machine: Machine, dtype: torch.dtype, transposed: bool, m: int, n: int, k: int) -> Check:
    """cp.async, ldmatrix and mma."""
    a, b = random(m, k, dtype=dtype), random(n, k, dtype=dtype)
    expected = a.double() @ b.double().T
    operands = [x.T.contiguous() if transposed else x for x in (a, b)]

    def check() -> bool:
        out = torch.full((m, n), torch.nan, device=machine.device)
        machine.ops.test_gemm(*(x.to(machine.device) for x in operands), out, transposed)
        return close(out, expected)

    return check


def split_sum(machine: Machine, tiles: int, parts: int) -> Check:
    """Blocks whose last one to arrive adds up the parts of all."""
    x = random(tiles, parts, 64)
    expected = torch.zeros(tiles, 64)
    for part in range(parts):
        expected += x[:, part]

    def check() -> bool:
        device = machine.device
        workspace = torch.full_like(x, torch.nan, device=device)
        counters = torch.zeros(tiles, dtype=torch.int32, device=device)
        out = torch.full((tiles, 64), torch.nan, device=device)
        if device == "cpu":
            machine.ops.weaken(workspace)
            machine.ops.weaken(counters)
        machine.ops.test_split_sum(x.to(device), workspace, counters, out)
        return torch.equal(out.cpu(), expected) and not counters.any()

    return check


def warp_functions(machine: Machine) -> Check:
    """Shuffles, votes, lop3 and atomics in shared memory, in the order of warp_functions.cu."""
    x = torch.randperm(32, generator=torch.Generator().manual_seed(0)).int()
    lane = torch.arange(32)
    expected = torch.stack(
        [
            x[lane * 7 % 32],
            x[lane // 8 * 8 + 5],
            x[lane ^ 12],
            x[torch.where(lane + 3 < 32, lane + 3, lane)],
            x[torch.where(lane % 16 >= 3, lane - 3, lane)],
            (x % 2 * 2**lane).sum().int().expand(32),
            (lane < 16).int(),
            (lane < 16).int(),
            torch.where(lane < 16, x[:16].sum(), x[16:].sum()).int(),
            x.max().expand(32),
            x.min().expand(32),
            x & 0x0F0F0F0F | 0x30303030,
            x.sum().int().expand(32),
            x.sum().int().expand(32),
        ]
    )

    def check() -> bool:
        out = torch.full((14, 32), -1, dtype=torch.int32, device=machine.device)
        machine.ops.test_warp_functions(x.to(machine.device), out)
        return torch.equal(out.cpu(), expected)

    return check


def ring_sum(machine: Machine, chunks: int) -> Check:
    """Bulk copies through a ring of mbarriers, and a named barrier."""
    x = random(chunks, 128)

    def check() -> bool:
        out = torch.full((128,), torch.nan, device=machine.device)
        machine.ops.test_ring_sum(x.to(machine.device), out)
        return close(out, x.double().sum(0))

    return check


def cluster_gemm(machine: Machine, dtype: torch.dtype, tile_m: int, m: int, n: int, k: int, mistake: int = 0) -> Check:
    """wgmma upon tensor copies that a cluster shares, in a dependent launch; mistakes are numbered in kernels.h."""
    w, x = random(n, k, dtype=dtype), random(m, k, dtype=dtype)
    expected = x.double() @ w.double().T

    def check() -> bool:
        out = torch.full((m, n), torch.nan, device=machine.device)
        if machine.device == "cpu":
            machine.ops.hide_before_wait(x)
        machine.ops.test_cluster_gemm(w.to(machine.device), x.to(machine.device), out, tile_m, mistake)
        return close(out, expected)

    return check


def rms_norm(machine: Machine) -> Check:
    """A kernel of the product whose block sum needs its barrier: what another row left behind is wrong for this."""
    x, weight = random(4, 2048) * torch.tensor([[1.0], [10.0], [100.0], [1000.0]]), torch.ones(2048)
    expected = reference.rms_norm(x, weight, 1e-5)
    return lambda: close(machine.ops.rms_norm(x, weight, 1e-5), expected)
