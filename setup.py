"""Builds the kernel libraries with ninja and names what the package needs.

tinyserve/_cpu       always: every csrc/cpu kernel, once per instruction set
tinyserve/_cuda      where nvcc is found: every csrc/cuda kernel; needs neither a GPU nor a CUDA build of torch
tinyserve/_host      always: build facts for Python, through pybind11
tests/emulator/_emulated   by `build_ext --inplace --emulated`, alone: the CUDA kernels compiled for the CPU
tests/emulator/_instructions   beside it, on a machine with a GPU and nvcc: the emulator's own kernels for the GPU

TINYSERVE_CUDA_ARCHS ("80 90a") narrows the CUDA architectures; TINYSERVE_SANITIZE=1 builds
the CPU library with the address and undefined-behaviour sanitizers, and not the CUDA one.
"""

import fcntl
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = "0.1.0"
ALL_CUDA_ARCHS = "80 86 89 90a 120"  # the last one as PTX too, for GPUs still to come

AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512"
X86_ISAS = {  # name -> floats per vector, flags; csrc/cpu/dispatch.cpp asks the processor for the same features
    "avx512bf16": (16, f"{AVX512} -mavx512bf16"),
    "avx512": (16, AVX512),
    "avxvnni": (8, "-mavx2 -mfma -mf16c -mavxvnni"),
    "avx2": (8, "-mavx2 -mfma -mf16c"),
}
ARM_ISAS = {"dotprod": (4, "-march=armv8.2-a+dotprod")}
ISAS_OF = {"x86_64": X86_ISAS, "AMD64": X86_ISAS, "aarch64": ARM_ISAS, "arm64": ARM_ISAS}
PORTABLE = {"portable": (16, "")}
ISAS = {**ISAS_OF.get(platform.machine(), {}), **PORTABLE}

# TORCH_TARGET_VERSION: the oldest torch whose stable ABI is used, 2.10. Contraction is off in ISO mode, hence the flag.
CXX_FLAGS = "-O3 -std=c++20 -fPIC -Wall -Wextra -Wno-psabi -fvisibility=hidden -ffp-contract=fast"
# GCC 12 takes its own AVX-512 intrinsics' undefined vectors for mistakes.
CPU_FLAGS = f"{CXX_FLAGS} -Wno-maybe-uninitialized"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
EMULATED = "tests.emulator._emulated"
INSTRUCTIONS = "tests.emulator._instructions"
HAS_GPU = Path("/dev/nvidiactl").exists()


def torch_dir() -> Path:
    """Where torch is installed; found without importing it, which would take seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("setup.py needs torch (2.10 or newer): install it, then pip install --no-build-isolation")
    return Path(spec.origin).parent


def cuda_include() -> Path | None:
    """The CUDA headers: beside nvcc, or from the nvidia-cuda-runtime wheel."""
    roots = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        roots.insert(1, str(Path(nvcc).resolve().parent.parent))
    candidates = [Path(root, "include") for root in roots if root]
    site_packages = Path(sysconfig.get_paths()["purelib"], "nvidia")
    candidates += [site_packages / "cuda_runtime/include", *sorted(site_packages.glob("cu1*/include"))]
    return next((path for path in candidates if (path / "cuda_fp16.h").exists()), None)


class Ninja:
    """A build.ninja in the making: compile steps that libraries may share, then links."""

    def __init__(self, build_dir: Path) -> None:
        self._dir = build_dir
        compiler = os.environ.get("CXX", "g++")
        compiled = " -MMD -MF $out.d $flags -c $in -o $out"
        depfile = "\n  depfile = $out.d\n  deps = gcc"
        # What nvcc says, ptxas' report on every kernel above all, is kept: tests/ptxas_log.py reads it.
        kept = " > $out.log 2>&1 || { cat $out.log; exit 1; }"
        self._lines = [
            "ninja_required_version = 1.5",
            f"rule cxx\n  command = {compiler}{compiled}{depfile}\n  description = compile $out",
            f"rule nvcc\n  command = nvcc{compiled}{kept}{depfile}\n  description = nvcc $out",
            f"rule link\n  command = {compiler} -shared $in -o $out $flags\n  description = link $out",
        ]

    def compile(self, source: str, flags: str, variant: str, rule: str = "cxx") -> str:
        """Adds one object file; `variant` keeps apart what the same source becomes under other flags."""
        target = f"{variant}/{source}.o"
        self._lines.append(f"build {target}: {rule} {ROOT / source}\n  flags = {flags}")
        return target

    def link(self, target: str, objects: list[str], flags: str) -> None:
        self._lines.append(f"build {target}: link {' '.join(objects)}\n  flags = {flags}\ndefault {target}")

    def run(self, verbose: bool) -> None:
        ninja = [sys.executable, "-m", "ninja"] if importlib.util.find_spec("ninja") else ["ninja"]
        if ninja == ["ninja"] and not shutil.which("ninja"):
            raise SystemExit("setup.py needs ninja: pip install ninja")
        self._dir.mkdir(parents=True, exist_ok=True)
        with (self._dir / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would spoil ninja's log
            (self._dir / "build.ninja").write_text("\n".join(self._lines) + "\n")
            subprocess.run([*ninja, "-C", str(self._dir), *(["-v"] if verbose else [])], check=True)


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


class Build(build_ext):
    """Writes one build.ninja for all libraries, so that they build in parallel and only where something changed."""

    user_options: ClassVar = [
        *build_ext.user_options,
        ("emulated", None, "build only the CUDA kernels for the CPU, for the tests"),
    ]
    boolean_options: ClassVar = [*build_ext.boolean_options, "emulated"]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.emulated = False

    def finalize_options(self) -> None:
        if self.emulated:
            names = [EMULATED, *([INSTRUCTIONS] if HAS_GPU and shutil.which("nvcc") else [])]
            self.distribution.ext_modules = [Extension(name, sources=[], py_limited_api=True) for name in names]
        super().finalize_options()

    def build_extensions(self) -> None:
        torch = torch_dir()
        includes = [torch / "include", torch / "include/torch/csrc/api/include"]
        self._torch_flags = " ".join(f"-isystem {path}" for path in includes)
        self._torch_link = f"-L{torch / 'lib'} -ltorch_cpu -lc10"
        self._archs = os.environ.get("TINYSERVE_CUDA_ARCHS", ALL_CUDA_ARCHS).split()
        # A build directory for each set of targets: ninja forgets what the present build.ninja does not name.
        ninja = Ninja(ROOT / "build" / f"{'emulated' if self.emulated else 'ninja'}-{sysconfig.get_platform()}")
        steps = {
            "tinyserve._cpu": self._cpu,
            "tinyserve._cuda": self._cuda,
            "tinyserve._host": self._host,
            EMULATED: self._emulated,
            INSTRUCTIONS: self._instructions,
        }
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            steps[extension.name](ninja, str(target))
        ninja.run(bool(self.verbose > 1))

    def _ops(self, ninja: Ninja, stems: list[str], variant: str, flags: str) -> list[str]:
        """The Tensor level of the ops in `stems`, as one backend sees it."""
        files = ["csrc/bindings.cpp", *(f"csrc/ops/{stem}.cpp" for stem in stems)]
        return [ninja.compile(file, f"{CXX_FLAGS} {STABLE_ABI} {self._torch_flags} {flags}", variant) for file in files]

    def _cpu(self, ninja: Ninja, target: str) -> None:
        sanitize = "-O1 -g -fsanitize=address,undefined" if os.environ.get("TINYSERVE_SANITIZE") else ""
        stems = [Path(file).stem for file in sources("csrc/ops/*.cpp")]
        objects = self._ops(ninja, stems, "cpu", sanitize)
        once = ["csrc/cpu/dispatch.cpp", "csrc/cpu/pool.cpp"]
        objects += [ninja.compile(file, f"{CXX_FLAGS} {sanitize}", "cpu") for file in once]
        for isa, (width, flags) in ISAS.items():
            defines = f"-DTINYSERVE_ISA={isa} -DTINYSERVE_WIDTH={width}"
            for file in sources("csrc/cpu/*.cpp"):
                if file not in once:
                    objects.append(ninja.compile(file, f"{CPU_FLAGS} {flags} {defines} {sanitize}", isa))
        ninja.link(target, objects, f"{self._torch_link} {sanitize}")

    def _cuda_stems(self) -> list[str]:
        return [Path(file).stem for file in sources("csrc/cuda/*.cu")]

    def _cuda(self, ninja: Ninja, target: str) -> None:
        ops = self._ops(ninja, self._cuda_stems(), "cuda", self._cuda_ops())
        self._link_cuda(ninja, target, ops, "csrc/cuda/**/*.cu")

    def _instructions(self, ninja: Ninja, target: str) -> None:
        flags = f"{CXX_FLAGS} {STABLE_ABI} {self._torch_flags} {self._cuda_ops()}"
        self._link_cuda(ninja, target, [ninja.compile("tests/emulator/ops.cpp", flags, "cuda")], "tests/emulator/*.cu")

    def _cuda_ops(self) -> str:
        include = cuda_include()
        if include is None:
            raise SystemExit("setup.py found nvcc but not its headers: set CUDA_HOME to where include/cuda_fp16.h is")
        return f"-DTINYSERVE_CUDA -DUSE_CUDA -isystem {include}"

    def _link_cuda(self, ninja: Ninja, target: str, ops: list[str], kernels: str) -> None:
        """A library of these ops and of the kernels whose files match."""
        archs = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self._archs]
        if portable := [arch for arch in self._archs if arch.isdigit()]:  # 90a has code of its own and no heirs
            archs.append(f"-gencode=arch=compute_{portable[-1]},code=compute_{portable[-1]}")
        flags = f"-O3 -std=c++20 -Xptxas -v -Xcompiler -fPIC,-fvisibility=hidden,-Wall {' '.join(archs)}"
        objects = [*ops, *(ninja.compile(file, flags, "cuda", "nvcc") for file in sources(kernels))]
        torch_cuda = ninja.compile("csrc/host/torch_cuda.cpp", "-O1 -fPIC", "cuda")
        ninja.link("cuda/libtorch_cuda.so", [torch_cuda], "-Wl,-soname,libtorch_cuda.so")
        objects.append("cuda/libtorch_cuda.so")
        include = cuda_include()
        # The static runtime: the library then asks for no libcudart of a version that torch may not bring.
        runtime = " ".join(f"-L{include.parent / lib}" for lib in ("lib64", "lib")) if include else ""
        ninja.link(target, objects, f"{self._torch_link} {runtime} -lcudart_static -ldl -lrt -lpthread")

    def _host(self, ninja: Ninja, target: str) -> None:
        python = f"-isystem {sysconfig.get_paths()['include']}"
        cuda = " ".join(self._archs) if "tinyserve._cuda" in [e.name for e in self.extensions] else ""
        facts = {"TINYSERVE_VERSION": VERSION, "TINYSERVE_ISAS": " ".join(ISAS), "TINYSERVE_ARCHS": cuda}
        defines = " ".join(f"'-D{name}=\"{value}\"'" for name, value in facts.items())
        flags = f"-O2 -std=c++20 -fPIC -Wall -fvisibility=hidden {self._torch_flags} {python} {defines}"
        ninja.link(target, [ninja.compile("csrc/host/module.cpp", flags, "host")], "")

    def _emulated(self, ninja: Ninja, target: str) -> None:
        include = cuda_include()
        if include is None:
            raise SystemExit("--emulated needs the CUDA headers: install nvcc, or pip install nvidia-cuda-runtime")
        objects = self._ops(ninja, self._cuda_stems(), "emulated", "-DTINYSERVE_EMULATED")
        flags = f"-g -std=c++20 -fPIC -fvisibility=hidden -Wno-psabi -isystem {include}"
        kernels = f"{flags} -O1 -include {ROOT}/tests/emulator/emulator.h -x c++"
        for file in [*sources("csrc/cuda/**/*.cu"), *sources("tests/emulator/*.cu")]:
            objects.append(ninja.compile(file, kernels, "emulated"))
        for file in sources("tests/emulator/*.cpp"):  # what each instruction does: the tests' time
            ops = f"-DTINYSERVE_EMULATED {STABLE_ABI} {self._torch_flags}"
            objects.append(ninja.compile(file, f"{flags} -O3 {ops}", "emulated"))
        ninja.link(target, objects, self._torch_link)


extensions = [
    Extension("tinyserve._cpu", sources=[], py_limited_api=True),
    Extension("tinyserve._host", sources=[]),
]
if shutil.which("nvcc") and sources("csrc/cuda/*.cu") and not os.environ.get("TINYSERVE_SANITIZE"):
    extensions.append(Extension("tinyserve._cuda", sources=[], py_limited_api=True))

TEST = ["pytest", "pytest-asyncio", "pytest-xdist", "httpx", "hypothesis", "jsonschema", "regex"]
TEST += ["peft", "bitsandbytes", "matplotlib"]
# To look at the machine code of the CUDA kernels that were built.
DISASSEMBLER = [
    f"{name}; sys_platform == 'linux' and platform_machine == 'x86_64'"
    for name in ("nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm")
]
LINT = ["ruff", "mypy", "clang-format", "types-requests", "types-tqdm"]

setup(
    name="tinyserve",
    version=VERSION,
    description="AWQ 4-bit quantization and serving for language and vision-language models, on GPUs and CPUs",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["tinyserve", "tinyserve.*", "awq", "awq.*"]),
    package_data={"tinyserve.demo": ["*.txt", "llava/*", "llava/*/*"], "awq": ["report.css"]},
    ext_modules=extensions,
    cmdclass={"build_ext": Build},
    install_requires=[
        "torch>=2.10",
        "transformers>=5",
        "tokenizers",
        "safetensors",
        "accelerate",
        "numpy",
        "tqdm",
        "fastapi",
        "uvicorn",
        "uvloop; sys_platform != 'win32'",
        "httptools",
        "requests",
        "aiohttp",
        "msgspec",
        "pillow",
        "prometheus-client",
        "llguidance>=1.7",
    ],
    extras_require={
        "test": TEST + LINT + DISASSEMBLER,
        "eval": ["lm-eval>=0.4.13", "datasets"],
        "plots": ["matplotlib"],
        "lora": ["peft"],
        "train": ["peft", "emoji"],  # the demo's model, benchmarks/demo_llava
        "bitsandbytes": ["bitsandbytes"],
    },
    entry_points={"console_scripts": ["tinyserve = tinyserve.__main__:main"]},
)
