"""The instructions of every compiled CUDA kernel, as the disassembler names them.

    python tests/machine_code.py        how often each kernel has the instructions that matter

Needs cuobjdump and nvdisasm: of a CUDA toolkit, or of the wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, or of
Triton. The object files are those of the last build.
"""

import collections
import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import ptxas_log

OBJECTS = "build/ninja-*/cuda/{source}.o"
TOOL_FOLDERS = ("nvidia/cu13/bin", "triton/backends/nvidia/bin")
SECTION = re.compile(r"code for (?P<arch>sm_\w+)")
FUNCTION = re.compile(r"Function : (?P<name>\S+)")
# "/*0a30*/ @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;"
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][A-Z0-9_.]+)")

LOCAL_MEMORY = re.compile(r"(LDL|STL)\b")
MATRIX = {"sm_80": re.compile(r"HMMA\b"), "sm_90a": re.compile(r"HGMMA\b")}
WIDE_LOAD = re.compile(r"(LDG|LDGSTS)\.(?:\w+\.)*128|UBLKCP|UTMALDG")
SHOWN = ("HMMA", "HGMMA", "LDG.128", "LDGSTS.128", "UBLKCP", "UTMALDG", "LDSM", "LDL", "STL")


def tools() -> dict[str, str] | None:
    """An environment in which cuobjdump and nvdisasm are found; None where they are not there."""
    site_packages = Path(sysconfig.get_paths()["purelib"])
    path = os.pathsep.join([os.environ.get("PATH", ""), *(str(site_packages / folder) for folder in TOOL_FOLDERS)])
    if shutil.which("cuobjdump", path=path) and shutil.which("nvdisasm", path=path):
        return {**os.environ, "PATH": path}
    return None


def parse(text: str) -> dict[tuple[str, str], Counter[str]]:
    """How often each opcode stands in a kernel, by (architecture, mangled name)."""
    found: dict[tuple[str, str], Counter[str]] = {}
    arch, opcodes = "", Counter[str]()
    for line in text.splitlines():
        if section := SECTION.search(line):
            arch = section["arch"]
        elif function := FUNCTION.search(line):
            opcodes = found.setdefault((arch, function["name"]), collections.Counter())
        elif instruction := INSTRUCTION.search(line):
            opcodes[instruction["opcode"]] += 1
    return found


def disassemble(path: Path, environment: dict[str, str]) -> dict[tuple[str, str], Counter[str]]:
    program = shutil.which("cuobjdump", path=environment["PATH"])
    assert program is not None
    done = subprocess.run([program, "-sass", path], env=environment, capture_output=True, text=True, check=True)
    return parse(done.stdout)


def last_build(environment: dict[str, str]) -> Iterator[tuple[str, str, str, Counter[str]]]:
    """(source, architecture, kernel, opcodes) of everything that was built."""
    for source in ptxas_log.sources():
        objects = sorted(ptxas_log.ROOT.glob(OBJECTS.format(source=source)), key=lambda path: path.stat().st_mtime)
        if objects:
            for (arch, kernel), opcodes in disassemble(objects[-1], environment).items():
                yield source, arch, kernel, opcodes


def count(opcodes: Counter[str], pattern: re.Pattern[str]) -> int:
    return sum(number for opcode, number in opcodes.items() if pattern.match(opcode))


def main() -> None:
    environment = tools()
    if environment is None:
        raise SystemExit("no cuobjdump and nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    for source, arch, kernel, opcodes in last_build(environment):
        numbers = []
        for shown in SHOWN:
            stem, _, width = shown.partition(".")
            pattern = re.compile(rf"{stem}\b" + (rf"(?:\.\w+)*\.{width}" if width else ""))
            if number := count(opcodes, pattern):
                numbers.append(f"{shown} {number}")
        print(f"{source:<40} {arch:<7} {kernel[:80]:<80} {', '.join(numbers)}")


if __name__ == "__main__":
    main()
