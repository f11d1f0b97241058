"""What ptxas said about every kernel while the CUDA library was built: its registers, its stack, its spills.

    python tests/ptxas_log.py        a table of the last build, and what is wrong in it

setup.py keeps nvcc's output beside each object file.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = "build/ninja-*/cuda/{source}.o.log"

ENTRY = re.compile(r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\w+)'")
FUNCTION = re.compile(r"Function properties for (?P<name>\S+)")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
LOCAL = re.compile(r"(\d+) bytes lmem")
# Warnings, and advice with a number such as C7510, which is that wgmma instructions wait for one another. What ptxas
# says of a kernel's use is "info"; so are its notes on registers it was told to leave.
COMPLAINT = re.compile(r"warning|\(C\d{4}\)|Potential Performance Loss", re.IGNORECASE)
# Bytes that a source's kernels may keep in local memory. The result of 16 rows of 256-wide heads alone takes half of
# the registers; two words of what is left are put aside on sm_80, 86 and 89.
ALLOWED_BYTES = {"csrc/cuda/attention/decode_256.cu": 8, "csrc/cuda/attention/rope_decode_256.cu": 8}


@dataclass
class Kernel:
    """One function for one architecture. Functions that are called, not inlined, have no registers of their own."""

    source: str
    name: str  # mangled
    arch: str
    registers: int = 0
    shared_bytes: int = 0  # static
    stack_bytes: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    local_bytes: int = 0

    @property
    def in_local_memory(self) -> int:
        return max(self.stack_bytes, self.spill_store_bytes, self.spill_load_bytes, self.local_bytes)


@dataclass
class Log:
    kernels: list[Kernel]
    complaints: list[str]  # lines


def parse(text: str, source: str) -> Log:
    kernels: list[Kernel] = []
    arch = ""
    for line in text.splitlines():
        if entry := ENTRY.search(line):
            arch = entry["arch"]
        elif function := FUNCTION.search(line):
            kernels.append(Kernel(source, function["name"], arch))
        elif kernels:
            _add(kernels[-1], line)
    return Log(kernels, [f"{source}: {line.strip()}" for line in text.splitlines() if COMPLAINT.search(line)])


def _add(kernel: Kernel, line: str) -> None:
    if frame := FRAME.search(line):
        kernel.stack_bytes, kernel.spill_store_bytes, kernel.spill_load_bytes = (int(n) for n in frame.groups())
    if used := USED.search(line):
        kernel.registers = int(used[1])
        kernel.shared_bytes = int(shared[1]) if (shared := SHARED.search(line)) else 0
        kernel.local_bytes = int(local[1]) if (local := LOCAL.search(line)) else 0


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/**/*.cu"))


def last_build() -> dict[str, Log | None]:
    """The log of every kernel's source; None where it was not built."""
    found: dict[str, Log | None] = {}
    for source in sources():
        paths = sorted(ROOT.glob(LOGS.format(source=source)), key=lambda path: path.stat().st_mtime)
        found[source] = parse(paths[-1].read_text(), source) if paths else None
    return found


def problems(logs: Iterable[Log]) -> list[str]:
    found = []
    for log in logs:
        found += log.complaints
        for kernel in log.kernels:
            if kernel.in_local_memory > ALLOWED_BYTES.get(kernel.source, 0):
                found.append(
                    f"{kernel.source}: {kernel.name} on {kernel.arch}: stack frame {kernel.stack_bytes} bytes,"
                    f" spill stores {kernel.spill_store_bytes}, spill loads {kernel.spill_load_bytes},"
                    f" local memory {kernel.local_bytes}"
                )
    return found


def main() -> None:
    logs = [log for log in last_build().values() if log is not None]
    for kernel in sorted((kernel for log in logs for kernel in log.kernels), key=lambda k: (k.source, k.arch, k.name)):
        print(f"{kernel.source:<40} {kernel.arch:<7} {kernel.registers:>3} registers {kernel.name}")
    found = problems(logs)
    print(*found, sep="\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
