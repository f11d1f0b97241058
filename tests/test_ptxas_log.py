"""No CUDA kernel may keep registers in memory, nor may ptxas complain of one; and the reader of its report is right."""

import shutil

import ptxas_log
import pytest

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_80'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 4096 bytes smem, 380 bytes cmem[0]
ptxas info    : Compile time = 12.3 ms
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_90a'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
"""
SPILLING = """\
ptxas info    : Compiling entry function '_Z3badPf' for 'sm_90a'
ptxas info    : Function properties for _Z3badPf
    48 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size
"""
CALLING = """\
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_80'
ptxas info    : Function properties for _Z6called
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers
"""


def test_a_report_is_read_kernel_by_kernel() -> None:
    log = ptxas_log.parse(REPORT, "good.cu")
    assert [(kernel.arch, kernel.registers, kernel.shared_bytes) for kernel in log.kernels] == [
        ("sm_80", 40, 4096),
        ("sm_90a", 168, 0),
    ]
    assert ptxas_log.problems([log]) == []


def test_spills_are_problems() -> None:
    (problem,) = ptxas_log.problems([ptxas_log.parse(REPORT, "good.cu"), ptxas_log.parse(SPILLING, "bad.cu")])
    assert problem.startswith("bad.cu: _Z3badPf on sm_90a: stack frame 48 bytes, spill stores 16, spill loads 20")


def test_a_called_functions_stack_is_its_own() -> None:
    (problem,) = ptxas_log.problems([ptxas_log.parse(CALLING, "calls.cu")])
    assert "_Z6called on sm_80: stack frame 8 bytes" in problem


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ...",
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum register ...",
        "ptxas warning : Value of threads per SM for entry _Z4goodPf is out of range. .minnctapersm will be ignored",
        "csrc/cuda/rms_norm.cu(12): warning #177-D: variable was declared but never referenced",
    ],
)
def test_complaints_are_problems(line: str) -> None:
    assert ptxas_log.problems([ptxas_log.parse(REPORT + line, "good.cu")]) == [f"good.cu: {line}"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc: the CUDA library is not built here")
def test_the_build_is_free_of_spills_and_complaints() -> None:
    logs = ptxas_log.last_build()
    built = [log for log in logs.values() if log is not None]
    assert len(built) == len(logs), "build first: python setup.py build_ext --inplace"
    assert sum(len(log.kernels) for log in built) > 0  # a source that only launches has none
    assert ptxas_log.problems(built) == []
