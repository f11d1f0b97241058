"""w4a16_gemv against the fp64 reference, on every backend this machine has."""

import os
from collections.abc import Callable, Iterator

import pytest
import reference
import torch
from kernels.packing import is_for_tensor_cores, make_quantized
from kernels.products import TOLERANCE, check
from torch import Tensor

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
SIXTEEN_BITS = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
RANDOM_SHAPES = int(os.environ.get("TINYSERVE_RANDOM_SHAPES", "20"))  # for each dtype

# one group; ragged n; a last unit of half the size, for every group size; the whole row one group; more than one chunk
# of k on a CPU; the largest group
SHAPES = pytest.mark.parametrize(
    ("n", "k", "group_size"),
    [(1, 32, 32), (33, 64, 32), (15, 96, 32), (100, 608, 32), (17, 320, 64), (40, 544, 544), (70, 1152, 128)],
)

Quantized = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def _only_what_has_a_kernel(request: pytest.FixtureRequest) -> None:
    if "device" not in request.fixturenames:
        return
    if request.getfixturevalue("is_cuda") and request.node.callspec.params.get("dtype") == torch.float32:
        pytest.skip("on CUDA only 16 bits have a kernel")


@pytest.fixture
def set_gpu(device: str, is_cuda: bool) -> Iterator[Callable[[int, int], None]]:
    """Chooses the multiprocessors and the compute capability of the emulated GPU; a test that needs it runs there."""
    if not is_cuda or device == "cuda":
        pytest.skip("only the emulator can be another GPU")
    yield torch.ops.tinyserve_emulated.set_gpu
    torch.ops.tinyserve_emulated.set_gpu(4, 90)


def make_exact(n: int, k: int, group_size: int) -> Quantized:
    """Its scales are exact in every dtype of activations."""
    codes, scales, zeros = make_quantized(n, k, group_size)
    return codes, scales.bfloat16().half(), zeros


def check_product(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> None:
    quantized = make_exact(n, k, group_size)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized), dtype=dtype)
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype)
    expected = reference.w4a16_linear(x, *quantized, bias)
    check(lambda: ops.w4a16_gemv(x.to(device), weight, bias.to(device)), expected, dtype, device)


@DTYPES
@SHAPES
@pytest.mark.parametrize("m", range(1, 9))
def test_matches_reference(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> None:
    check_product(m, n, k, group_size, dtype, device)


@DTYPES
def test_random_shapes(dtype: torch.dtype, device: str) -> None:
    random = torch.Generator().manual_seed(1)
    for _ in range(RANDOM_SHAPES):
        m, n, blocks, choice = (int(torch.randint(high, (), generator=random)) for high in (8, 150, 24, 4))
        k = 32 * (blocks + 1)
        sizes = [size for size in (32, 64, 128) if k % size == 0] + [k]
        check_product(m + 1, n + 1, k, sizes[choice % len(sizes)], dtype, device)


@DTYPES
def test_a_real_models_shape(dtype: torch.dtype, device: str) -> None:
    check_product(1, 576, 1536, 64, dtype, device)


@SIXTEEN_BITS
@pytest.mark.parametrize("multiprocessors", [1, 3, 50])
@pytest.mark.parametrize(("n", "k", "group_size"), [(100, 608, 32), (70, 1152, 128), (1100, 64, 64)])
def test_any_number_of_multiprocessors(
    n: int,
    k: int,
    group_size: int,
    multiprocessors: int,
    dtype: torch.dtype,
    device: str,
    set_gpu: Callable[[int, int], None],
) -> None:
    """One has more tiles than sums fit in one round; of fifty most have nothing to do."""
    set_gpu(multiprocessors, 90)
    check_product(3, n, k, group_size, dtype, device)


@SIXTEEN_BITS
@pytest.mark.parametrize(
    ("m", "n", "k", "group_size", "multiprocessors"),
    [(8, 33, 6336, 32, 2), (7, 33, 13312, 128, 2), (8, 530, 6336, 64, 1)],
)
def test_x_that_does_not_fit_shared_memory(
    m: int,
    n: int,
    k: int,
    group_size: int,
    multiprocessors: int,
    dtype: torch.dtype,
    device: str,
    set_gpu: Callable[[int, int], None],
) -> None:
    """In two chunks; in three, of which the last is shorter; in two for each of two rounds of tiles."""
    set_gpu(multiprocessors, 86)
    check_product(m, n, k, group_size, dtype, device)


@SIXTEEN_BITS
@pytest.mark.parametrize("multiprocessors", [3, 9])
def test_tiles_that_multiprocessors_share(
    multiprocessors: int, dtype: torch.dtype, device: str, set_gpu: Callable[[int, int], None]
) -> None:
    """Rows so long that one tile too many costs more than a sum across CTAs; then again, with counters left as zero."""
    set_gpu(multiprocessors, 90)
    for _ in range(2):
        check_product(2, 60, 16448, 64, dtype, device)


@SIXTEEN_BITS
def test_nothing_beside_x_is_read(dtype: torch.dtype, device: str) -> None:
    quantized = make_exact(40, 160, 32)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized), dtype=dtype)
    for m, offset in [(1, 8), (3, 8), (8, 16), (2, 3)]:  # also at an address that no vector load can take
        around = torch.full((offset + m * 160 + 200,), float("nan"), dtype=dtype, device=device)
        x = around[offset : offset + m * 160].view(m, 160)
        x.copy_(torch.randn(m, 160))
        expected = reference.w4a16_linear(x.cpu(), *quantized)
        check(lambda x=x: ops.w4a16_gemv(x, weight), expected, dtype, device)  # type: ignore[misc]


@DTYPES
@pytest.mark.parametrize("silu_mul", [False, True])
def test_what_follows_the_product(silu_mul: bool, dtype: torch.dtype, device: str) -> None:
    quantized = make_exact(112, 96, 32)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized), dtype=dtype)
    x, bias = torch.randn(5, 96).to(dtype), torch.randn(112).to(dtype)
    residual = torch.randn(5, 56 if silu_mul else 112).to(dtype)
    expected = reference.w4a16_linear(x, *quantized, bias)
    if silu_mul:
        expected = reference.silu_mul_of_tiles(expected)
    x, offsets, more = (t.to(device) for t in (x, bias, residual))
    check(lambda: ops.w4a16_gemv(x, weight, offsets, more, silu_mul), expected + residual, dtype, device)
    check(lambda: ops.w4a16_gemv(x, weight, offsets, None, silu_mul), expected, dtype, device)


@pytest.mark.parametrize(
    ("scale_dtype", "dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16), (torch.float32, torch.float32)],
)
def test_scales_of_other_dtypes(scale_dtype: torch.dtype, dtype: torch.dtype, device: str) -> None:
    quantized = make_quantized(100, 320, 64, scale_dtype)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized), dtype=dtype)
    x = torch.randn(3, 320).to(dtype)
    check(lambda: ops.w4a16_gemv(x.to(device), weight), reference.w4a16_linear(x, *quantized), dtype, device)


@pytest.mark.parametrize("zero", [16, 63])
def test_zeros_above_fifteen_are_taken_as_they_are(zero: int, device: str) -> None:
    codes, scales, zeros = make_quantized(20, 64, 32)
    zeros[:] = zero  # GPTQ stores zero - 1 in four bits
    weight = ops.w4a16_pack(codes.to(device), scales.to(device), zeros.to(device))
    x = torch.randn(1, 64).half()
    expected = reference.w4a16_linear(x, codes, scales, zeros)
    check(lambda: ops.w4a16_gemv(x.to(device), weight), expected, torch.float16, device)


@DTYPES
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype, device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(100, 608, 32)), dtype=dtype)
    x = torch.randn(8, 608).to(dtype).to(device)
    together = ops.w4a16_gemv(x, weight)
    for m in range(1, 8):
        assert torch.equal(ops.w4a16_gemv(x[:m], weight), together[:m])


def test_result_does_not_depend_on_the_thread_count() -> None:
    weight = ops.w4a16_pack(*make_quantized(500, 1024, 64))
    x, threads = torch.randn(2, 1024), torch.get_num_threads()
    outs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        outs.append(ops.w4a16_gemv(x, weight))
    torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_no_rows(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    assert ops.w4a16_gemv(torch.empty(0, 64, device=device).half(), weight).shape == (0, 40)
    nothing = ops.w4a16_pack(*(t.to(device) for t in make_quantized(0, 64, 32)))
    assert ops.w4a16_gemv(torch.ones(3, 64, device=device).half(), nothing).shape == (3, 0)


def test_names_what_does_not_fit(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    x = torch.zeros(2, 64, device=device).half()
    with pytest.raises(RuntimeError, match=r"w4a16_gemv takes up to 8 rows, got x \[9, 64\]"):
        ops.w4a16_gemv(torch.zeros(9, 64, device=device).half(), weight)
    with pytest.raises(RuntimeError, match=r"x must be \[M, 64\], got \[2, 32\]"):
        ops.w4a16_gemv(x[:, :32].contiguous(), weight)
    with pytest.raises(RuntimeError, match=r"x must be \[M, K\], got \[64\]"):
        ops.w4a16_gemv(x[0], weight)
    with pytest.raises(RuntimeError, match="x must be contiguous"):
        ops.w4a16_gemv(torch.zeros(64, 2, device=device).half().T, weight)
    with pytest.raises(RuntimeError, match=r"bias must be \[40\], got \[39\]"):
        ops.w4a16_gemv(x, weight, torch.zeros(39, device=device).half())
    with pytest.raises(RuntimeError, match="bias must be Half, got Float"):
        ops.w4a16_gemv(x, weight, torch.zeros(40, device=device))
    with pytest.raises(RuntimeError, match="x must be float16, bfloat16 or float32, got Int"):
        ops.w4a16_gemv(x.int(), weight)
    if is_for_tensor_cores(weight):
        with pytest.raises(RuntimeError, match="x must be Half, which the weight is packed for, got BFloat16"):
            ops.w4a16_gemv(x.bfloat16(), weight)


def test_schema_and_fake_agree_with_the_kernel(device: str, is_cuda: bool) -> None:
    if is_cuda and device == "cpu":
        pytest.skip("the emulated ops have no fakes")
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    x, bias = torch.randn(2, 64, device=device).half(), torch.randn(40, device=device).half()
    torch.library.opcheck(torch.ops.tinyserve.w4a16_gemv, (x, weight.qweight, weight.qparams, bias, 40, 64, 32))
