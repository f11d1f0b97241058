"""The instructions that CUDA kernels are made of, and that must not be among them."""

from collections import Counter

import machine_code
import ptxas_log
import pytest

LISTING = """\
	code for sm_90a
		Function : _Z6kernelPf
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                         /* 0x00000a00ff017b82 */
                                                                                  /* 0x000fe20000000800 */
        /*0050*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;      /* 0x0000000402047981 */
        /*0060*/             @UP1  UTMALDG.2D [UR8], [UR4] ;                      /* 0x00000008040075b4 */
        /*1a30*/                   HGMMA.64x16x16.F32.BF16 R24, R4, gdesc[UR8], R24 ;
	code for sm_80
		Function : _Z6kernelPf
        /*0010*/                   STL.64 [R1], R4 ;
        /*0020*/                   LDGSTS.E.BYPASS.LTC128B.128 [R5], [R2.64] ;
        /*0030*/                   LDG.E.64 R4, [R2.64] ;
"""


def test_a_listing_is_counted_kernel_by_kernel() -> None:
    found = machine_code.parse(LISTING)
    assert list(found) == [("sm_90a", "_Z6kernelPf"), ("sm_80", "_Z6kernelPf")]
    hopper, ampere = found.values()
    assert hopper["LDG.E.128.CONSTANT"] == 1
    assert machine_code.count(hopper, machine_code.MATRIX["sm_90a"]) == 1
    assert machine_code.count(hopper, machine_code.WIDE_LOAD) == 2
    assert machine_code.count(ampere, machine_code.WIDE_LOAD) == 1
    assert machine_code.count(hopper, machine_code.LOCAL_MEMORY) == 0
    assert machine_code.count(ampere, machine_code.LOCAL_MEMORY) == 1


@pytest.fixture(scope="module")
def kernels() -> list[tuple[str, str, str, Counter[str]]]:
    environment = machine_code.tools()
    if environment is None:
        pytest.skip("no cuobjdump and nvdisasm")
    found = list(machine_code.last_build(environment))
    if not found:
        pytest.skip("the CUDA library is not built here")
    return found


def test_no_kernel_touches_local_memory(kernels: list[tuple[str, str, str, Counter[str]]]) -> None:
    touching = [kernel[:3] for kernel in kernels if machine_code.count(kernel[3], machine_code.LOCAL_MEMORY)]
    assert [kernel for kernel in touching if kernel[0] not in ptxas_log.ALLOWED_BYTES] == []


def test_products_use_the_matrix_units_and_wide_loads(kernels: list[tuple[str, str, str, Counter[str]]]) -> None:
    """Those of Hopper's own kernels are HGMMA, on sm_90a alone; the others' HMMA."""
    wrong = []
    for source, arch, name, opcodes in kernels:
        own = "wgmma" in source
        if not own and not ("w4a16_gemv" in source or "gemm/mma" in source):
            continue
        if own and arch != "sm_90a":
            continue
        matrix = machine_code.MATRIX["sm_90a" if own else "sm_80"]
        if not machine_code.count(opcodes, matrix) or not machine_code.count(opcodes, machine_code.WIDE_LOAD):
            wrong.append((source, arch, name))
    assert not wrong
