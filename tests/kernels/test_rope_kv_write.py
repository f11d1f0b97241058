"""rope_kv_write against the fp64 reference, on every device this machine has."""

from typing import NamedTuple

import pytest
import reference
import torch
from torch import Tensor

from tinyserve import ops

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}
NUM_POSITIONS = 97
BLOCKS, BLOCK_SIZE = 11, 8


class Arguments(NamedTuple):
    qkv: Tensor
    positions: Tensor
    cos_sin: Tensor
    slots: Tensor
    k_cache: Tensor
    v_cache: Tensor
    num_heads: int

    def to(self, device: str) -> "Arguments":
        return self._replace(
            qkv=self.qkv.to(device),
            positions=self.positions.to(device),
            cos_sin=self.cos_sin.to(device),
            slots=self.slots.to(device),
            k_cache=self.k_cache.to(device),
            v_cache=self.v_cache.to(device),
        )


def make_arguments(
    tokens: int, heads: int, kv_heads: int, head_dim: int, rotary_dim: int, dtype: torch.dtype
) -> Arguments:
    angles = torch.rand(NUM_POSITIONS, rotary_dim // 2) * 6.3
    slots = torch.randperm(BLOCKS * BLOCK_SIZE)[:tokens].int()
    slots[1::5] = -1
    return Arguments(
        qkv=torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(dtype),
        positions=torch.randint(0, NUM_POSITIONS, (tokens,)).int(),
        cos_sin=torch.cat([angles.cos(), angles.sin()], dim=1),
        slots=slots,
        k_cache=torch.randn(BLOCKS, kv_heads, BLOCK_SIZE, head_dim).to(dtype),
        v_cache=torch.randn(BLOCKS, kv_heads, BLOCK_SIZE, head_dim).to(dtype),
        num_heads=heads,
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim"), [(64, 64), (80, 80), (96, 24), (128, 128), (64, 32), (40, 20), (8, 2), (64, 0), (40, 0)]
)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3), (5, 1)], ids=["mha", "gqa", "mqa"])
def test_matches_reference(
    heads: int, kv_heads: int, head_dim: int, rotary_dim: int, dtype: torch.dtype, device: str
) -> None:
    arguments = make_arguments(23, heads, kv_heads, head_dim, rotary_dim, dtype)
    given = arguments.to(device)
    q = ops.rope_kv_write(*given)
    expected = reference.rope_kv_write(*arguments)
    assert q.shape == (23, heads, head_dim)
    assert q.dtype == dtype
    for out, want in zip((q, given.k_cache, given.v_cache), expected, strict=True):
        assert reference.relative_error(out.cpu(), want) < TOLERANCE[dtype]


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "float8"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 80), (96, 24), (40, 20), (8, 2)])
def test_a_cache_of_8_bits_is_within_half_a_step(
    head_dim: int, rotary_dim: int, dtype: torch.dtype, codes: torch.dtype, device: str, is_cuda: bool
) -> None:
    if codes == torch.float8_e4m3fn and not is_cuda:
        pytest.skip("the CPU has no kernel for float8")
    arguments = make_arguments(23, 9, 3, head_dim, rotary_dim, dtype)
    caches = torch.full((2, BLOCKS, 3, BLOCK_SIZE, head_dim), 7, device=device).to(codes)
    scales = torch.full((2, BLOCKS, 3, BLOCK_SIZE), 7.0, device=device)
    given = arguments.to(device)._replace(k_cache=caches[0], v_cache=caches[1])
    q = ops.rope_kv_write(*given, scales[0], scales[1])
    expected_q, *expected = reference.rope_kv_write(*arguments)
    assert reference.relative_error(q.cpu(), expected_q) < TOLERANCE[dtype]
    written = torch.zeros(BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    written[arguments.slots[arguments.slots >= 0].long()] = True
    written = written.view(BLOCKS, BLOCK_SIZE)[:, None].expand(-1, 3, -1)
    largest = 127 if codes == torch.int8 else 448
    for code, scale, want in zip(caches.cpu().double(), scales.cpu(), expected, strict=True):
        assert (code[~written] == 7).all()
        assert (scale[~written] == 7).all()
        torch.testing.assert_close(
            scale[written].double(), want[written].abs().amax(-1) / largest, rtol=1e-4, atol=1e-7
        )
        error = (code * scale[..., None] - want)[written].abs()
        step = scale[written][:, None].double()
        if codes != torch.int8:  # three bits after the first one; 2^-9 below 2^-6
            step = torch.maximum(want[written].abs() / 8, step / 512)
        assert (error <= 0.501 * step + 1e-6).all()


def test_what_is_not_finite_spoils_the_scale_of_its_own_head_alone(device: str) -> None:
    arguments = make_arguments(4, 2, 2, 32, 32, torch.float32)
    arguments = arguments._replace(slots=torch.arange(4, dtype=torch.int32))
    arguments.qkv[1, -1] = float("inf")  # the last value head of token 1
    caches = torch.zeros(2, BLOCKS, 2, BLOCK_SIZE, 32, dtype=torch.int8, device=device)
    scales = torch.zeros(2, BLOCKS, 2, BLOCK_SIZE, device=device)
    given = arguments.to(device)._replace(k_cache=caches[0], v_cache=caches[1])
    ops.rope_kv_write(*given, scales[0], scales[1])
    assert scales.cpu().isnan().nonzero().tolist() == [[1, 0, 1, 1]]


def test_slots_alone_are_written_and_values_are_copied_exactly(device: str) -> None:
    arguments = make_arguments(23, 9, 3, 64, 64, torch.float16)
    given = arguments.to(device)
    given.k_cache.fill_(7)
    given.v_cache.fill_(7)
    ops.rope_kv_write(*given)
    kept = torch.ones(BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    kept[arguments.slots[arguments.slots >= 0].long()] = False
    for cache in (given.k_cache, given.v_cache):
        by_slot = cache.cpu().transpose(1, 2).reshape(BLOCKS * BLOCK_SIZE, 3, 64)
        assert (by_slot[kept] == 7).all()
        assert not (by_slot[~kept] == 7).all(dim=-1).any()
    values = arguments.qkv.view(23, 15, 64)[:, 12:]
    written = arguments.slots >= 0
    by_slot = given.v_cache.cpu().transpose(1, 2).reshape(BLOCKS * BLOCK_SIZE, 3, 64)
    assert torch.equal(by_slot[arguments.slots[written].long()], values[written])


def test_no_tokens(device: str) -> None:
    given = make_arguments(0, 4, 2, 16, 16, torch.float32).to(device)
    assert ops.rope_kv_write(*given).shape == (0, 4, 16)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("positions", NUM_POSITIONS, r"positions must be in 0\.\.96, got 97"),
        ("positions", -1, r"positions must be in 0\.\.96, got -1"),
        ("slots", BLOCKS * BLOCK_SIZE, r"slots must be in -1\.\.87, got 88"),
        ("slots", -2, r"slots must be in -1\.\.87, got -2"),
    ],
)
def test_names_a_value_out_of_bounds_and_writes_nothing(field: str, value: int, message: str, device: str) -> None:
    given = make_arguments(6, 4, 2, 16, 16, torch.float32).to(device)
    before = given.k_cache.clone()
    getattr(given, field)[4] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        ops.rope_kv_write(*given)
    assert torch.equal(given.k_cache, before)


def test_names_a_shape_that_does_not_fit(device: str) -> None:
    given = make_arguments(6, 4, 2, 16, 16, torch.float32).to(device)
    with pytest.raises((RuntimeError, ValueError), match=r"qkv must be \[6, 144\], got \[6, 128\]"):
        ops.rope_kv_write(*given._replace(num_heads=5))
    with pytest.raises((RuntimeError, ValueError), match=r"cos_sin must be float32 \[P, R\], R even and at most 16"):
        ops.rope_kv_write(*given._replace(cos_sin=torch.zeros(9, 18, device=device)))
    with pytest.raises((RuntimeError, ValueError), match=r"v_cache must be \[11, 2, 8, 16\], got \[12, 2, 8, 16\]"):
        ops.rope_kv_write(*given._replace(v_cache=torch.zeros(12, 2, 8, 16, device=device)))
    with pytest.raises((RuntimeError, ValueError), match=r"slots must be (Int|torch\.int32), got"):
        ops.rope_kv_write(*given._replace(slots=given.slots.long()))


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    given = make_arguments(6, 4, 2, 16, 16, torch.float16).to(device)
    torch.library.opcheck(torch.ops.tinyserve.rope_kv_write, tuple(given))
