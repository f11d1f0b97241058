"""run_gpu.sh on machines made of stand-ins: all well, something missing, a part that fails, one that hangs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/run_gpu.sh"
SANITIZER_PARTS = ["sanitizer, memcheck", "sanitizer, racecheck", "sanitizer, synccheck"]
PARTS = {
    "kernels": ["build", "tests", *SANITIZER_PARTS, "tuner", "benchmarks"],
    "attention": ["build", "tests of layers and models", "benchmarks"],
    "decode": ["build", "tests of the engine", "benchmarks"],
}
FILES = {
    "kernels": {"sanitizer.log", "tuned.json", "kernels.json"},
    "attention": {"attention.json", "attention.png"},
    "decode": {"decode.json", "decode-timeline.png"},
}

# Answers as the real programs do, as far as the script looks; FAKE_FAIL and FAKE_HANG name the part that goes wrong.
PYTHON = """\
#!/bin/bash
case "$*" in
  "-c import ${FAKE_LACKS:-nothing}") echo "ModuleNotFoundError: No module named '$FAKE_LACKS'" >&2; exit 1 ;;
  "-c import torch; torch.zeros"*) [[ -z "${FAKE_NO_CUDA:-}" ]] || { echo "RuntimeError: no driver" >&2; exit 1; } ;;
  "-c "*|--version) ;;
  "setup.py build_ext --inplace") part=build; echo "archs $TINYSERVE_CUDA_ARCHS" ;;
  "tests/ptxas_log.py") echo "rms_norm 40 registers" ;;
  "-m pytest "*) part=tests; echo "tests: $*"; echo "12 passed in 1.00s" ;;
  "-m zipfile -e "*) ;;
  "-m benchmarks.sanitized_kernels") part=sanitizer; echo "========= ERROR SUMMARY: 0 errors" ;;
  "-m benchmarks.tune_gemm "*) part=tuner; [[ -n "${FAKE_FAIL:-}" ]] || echo "{}" >"${@: -1}" ;;
  "-m benchmarks.bench_"*) part=benchmarks
    echo "PASS something"; echo "arguments $* table ${TINYSERVE_GEMM_TABLE:-none}"
    while [[ "$1" != --out ]]; do shift; done
    echo "{}" >"$2"
    case "$2" in
      *attention.json) touch "${2%.json}.png" ;;
      *decode.json) touch "${2%.json}-timeline.png"; echo "one token (the median of 3): 1500.0 us" ;;
    esac ;;
  *) echo "unexpected: $*" >&2; exit 99 ;;
esac
[[ -z "${part:-}" || "$part" != "${FAKE_FAIL:-}" ]] || { echo "$part went wrong"; exit 7; }
[[ -z "${part:-}" || "$part" != "${FAKE_HANG:-}" ]] || sleep 60
"""
SANITIZER = '#!/bin/bash\nwhile [[ "$1" != *python ]]; do shift; done\nexec "$@"\n'


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of one that has everything; variables may be added."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "python", PYTHON)
    program(folder, "nvcc", "#!/bin/sh\necho release 13.0\n")
    program(folder, "compute-sanitizer", SANITIZER)
    program(folder, "nvidia-smi", "#!/bin/sh\necho 9.0\n")
    script = tmp_path / "tree/benchmarks" / SCRIPT.name  # what it leaves in its tree is left there
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    for name in ("engine/test_graphs.py", "models/test_graphs.py", "engine/test_others.py"):
        test = tmp_path / "tree/tests" / name
        test.parent.mkdir(parents=True, exist_ok=True)
        test.write_text("def test_it(): ...\n" if "others" in name else "def test_it_on_cuda(): ...\n")
    python = str(folder / "python")
    return {"PATH": f"{folder}:/usr/bin:/bin", "PYTHON": python, "HOME": str(tmp_path), "SCRIPT": str(script)}


def run(machine: dict[str, str], *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A call without the name of a part is one of kernels."""
    named = {"kernels", "attention", "decode", "all"} & set(map(str, arguments))
    wanted = arguments if named else ("kernels", *arguments)
    return call(machine, *wanted, **more)


def call(machine: dict[str, str], *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", machine["SCRIPT"], *arguments], env=machine | more, capture_output=True, text=True, timeout=120
    )


def verdicts(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The word of each part, from the summary that comes last."""
    lines = done.stdout.split("== parts\n")[1].split("\n== ")[0].splitlines()
    return {line[10:].split(" (")[0].split(":")[0].strip(): line[:10].strip() for line in lines}


@pytest.mark.parametrize("what", PARTS)
def test_all_parts_run_and_the_summary_comes_last(machine: dict[str, str], tmp_path: Path, what: str) -> None:
    peers = tmp_path / "the peers"
    peers.mkdir()
    done = run(machine, what, tmp_path / "out", peers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts(done) == dict.fromkeys(PARTS[what], "OK")
    assert done.stdout.count("ERROR SUMMARY: 0 errors") == (3 if what == "kernels" else 0)
    assert "12 passed" in done.stdout
    assert "PASS something" in done.stdout
    assert ("one token (the median of 3)" in done.stdout.split("== parts")[1]) == (what == "decode")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"summary.txt", "build.log", "tests.log", "benchmarks.log"} | FILES[what]
    assert len(files) <= 8
    assert "archs 90a" in (tmp_path / "out/build.log").read_text()
    log = (tmp_path / "out/benchmarks.log").read_text()
    assert (f"--peers {peers}" in log) == (what != "decode")
    assert ("table none" in log) == (what != "kernels")
    assert done.stdout.endswith((tmp_path / "out/summary.txt").read_text())


def test_only_files_with_tests_for_a_gpu_are_opened(machine: dict[str, str], tmp_path: Path) -> None:
    run(machine, "decode", tmp_path / "out")
    log = (tmp_path / "out/tests.log").read_text()
    assert "-k cuda tests/engine/test_graphs.py\n" in log
    assert "test_others" not in log


def test_without_tests_for_a_gpu_that_is_said(machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tree/tests/models/test_graphs.py").unlink()
    done = run(machine, "attention", tmp_path / "out")
    assert done.returncode == 1
    assert verdicts(done) == {"build": "OK", "tests of layers and models": "SKIPPED", "benchmarks": "OK"}
    program(tmp_path / "bin", "python", PYTHON.replace('"12 passed in 1.00s"', '"3 deselected"; exit 5'))
    assert verdicts(run(machine, "decode", tmp_path / "out"))["tests of the engine"] == "NO TESTS"


def test_the_engine_takes_what_it_needs_from_the_peers(machine: dict[str, str], tmp_path: Path) -> None:
    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "llguidance-1.0-cp39-abi3-manylinux_2_31_x86_64.whl").touch()
    lacking = PYTHON.replace('"-m zipfile -e "*) ;;', '"-m zipfile -e "*) mkdir "$5"; touch "$5/there" ;;').replace(
        'case "$*" in', 'case "$*" in\n"-c import llguidance") [[ -e ${PYTHONPATH##*:}/there ]] || exit 1 ;;', 1
    )
    program(tmp_path / "bin", "python", lacking)
    assert run(machine, "decode", tmp_path / "out", peers).returncode == 0
    done = run(machine, "decode", tmp_path / "out")
    assert done.returncode == 3
    assert "the Python package llguidance" in done.stdout
    assert run(machine, "kernels", tmp_path / "out").returncode == 0


def test_later_calls_choose_by_the_table_of_the_first(machine: dict[str, str], tmp_path: Path) -> None:
    run(machine, "kernels", tmp_path / "out")
    assert f"table {tmp_path}/out/tuned.json" in (tmp_path / "out/benchmarks.log").read_text()
    for path in (tmp_path / "out").iterdir():  # as the lent machine does between calls
        path.unlink()
    run(machine, "decode", tmp_path / "out")
    assert f"table {tmp_path}/tree/build/gemm-table.json" in (tmp_path / "out/benchmarks.log").read_text()


def test_all_is_the_three_calls_each_in_a_folder(machine: dict[str, str], tmp_path: Path) -> None:
    done = run(machine, "all", tmp_path / "out", FAKE_FAIL="tuner")
    assert done.returncode == 1
    assert done.stdout.count("== parts") == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(PARTS)
    assert (tmp_path / "out/decode/decode.json").exists()


@pytest.mark.parametrize(("capability", "arch"), [("8.0", "80"), ("12.0", "120")])
def test_the_gpu_names_the_architecture(machine: dict[str, str], tmp_path: Path, capability: str, arch: str) -> None:
    program(tmp_path / "bin", "nvidia-smi", f"#!/bin/sh\necho {capability}\n")
    run(machine, tmp_path / "out")
    assert f"archs {arch}\n" in (tmp_path / "out/build.log").read_text()


@pytest.mark.parametrize("part", ["tests", "sanitizer", "tuner", "benchmarks"])
def test_a_part_that_fails_stops_no_other(machine: dict[str, str], tmp_path: Path, part: str) -> None:
    done = run(machine, tmp_path / "out", FAKE_FAIL=part)
    assert done.returncode == 1
    assert verdicts(done) == {name: "FAILED" if name.split(",")[0] == part else "OK" for name in PARTS["kernels"]}
    assert f"{part} went wrong" in done.stdout


def test_without_a_build_nothing_else_runs(machine: dict[str, str], tmp_path: Path) -> None:
    done = run(machine, tmp_path / "out", FAKE_FAIL="build")
    assert done.returncode == 1
    assert verdicts(done) == {"build": "FAILED", "all after it": "SKIPPED"}


def test_a_part_that_hangs_is_ended(machine: dict[str, str], tmp_path: Path) -> None:
    done = run(machine, tmp_path / "out", FAKE_HANG="tests", TINYSERVE_GPU_SECONDS="9")
    assert done.returncode == 1
    found = verdicts(done)
    assert found["build"] == "OK"
    assert found["tests"] == "TIMED OUT"
    assert set(found.values()) <= {"OK", "TIMED OUT", "NO TIME"}


def test_a_machine_without_a_sanitizer_says_so_and_goes_on(machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin/compute-sanitizer").unlink()
    found = verdicts(run(machine, tmp_path / "out"))
    assert found.pop("sanitizer") == "SKIPPED"
    assert set(found.values()) == {"OK"}


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"FAKE_LACKS": "torch"}, "the Python package torch: ModuleNotFoundError"),
        ({"FAKE_LACKS": "pytest"}, "the Python package pytest"),
        ({"FAKE_NO_CUDA": "1"}, "a build of torch that runs on this GPU: RuntimeError: no driver"),
        ({"PYTHON": "/nowhere/python"}, "python3"),
    ],
)
def test_what_is_missing_is_named(machine: dict[str, str], tmp_path: Path, missing: dict[str, str], said: str) -> None:
    done = run(machine, tmp_path / "out", **missing)
    assert done.returncode == 3
    assert "this machine lacks:" in done.stdout
    assert said in done.stdout


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "nvidia-smi (the GPU's driver)"),
        ("echo No devices were found; exit 6", "a GPU that nvidia-smi sees: No devices were found"),
        ("echo N/A", 'it said "N/A"'),
    ],
)
def test_a_missing_gpu_is_named(machine: dict[str, str], tmp_path: Path, answer: str | None, said: str) -> None:
    (tmp_path / "bin/nvidia-smi").unlink()
    if answer:
        program(tmp_path / "bin", "nvidia-smi", f"#!/bin/sh\n{answer}\n")
    done = run(machine, tmp_path / "out")
    assert done.returncode == 3
    assert said in done.stdout


def test_a_dry_run_runs_nothing(machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin/nvidia-smi").unlink()
    done = run(machine, "--dry-run", "all", tmp_path / "out")
    assert done.returncode == 0
    for part in (part for parts in PARTS.values() for part in parts):
        assert f"== {part} (at most" in done.stdout
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("arguments", [[], ["--help"], ["out"], ["prefill", "out"], ["decode", "a", "b", "c"]])
def test_wrong_arguments_show_how_it_is_used(machine: dict[str, str], arguments: list[str]) -> None:
    done = call(machine, *arguments)
    assert done.returncode == 2
    assert "bash benchmarks/run_gpu.sh kernels OUT [PEERS]" in done.stdout


@pytest.mark.parametrize("what", PARTS)
def test_the_limits_of_all_parts_fit_into_ten_minutes(machine: dict[str, str], tmp_path: Path, what: str) -> None:
    done = run(machine, "--dry-run", what, tmp_path / "out")
    limits = [int(line.split("at most ")[1].split(" s)")[0]) for line in done.stdout.splitlines() if "(at most" in line]
    assert len(limits) == len(PARTS[what])
    assert sum(limits[:-1]) <= 585 - 100  # what is left to the benchmarks when every other part runs out of time
    assert os.access(SCRIPT, os.X_OK)


def test_long_logs_are_cut(machine: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "bin", "python", PYTHON.replace("part=tests;", "part=tests; yes | head -c 20000000;"))
    assert run(machine, tmp_path / "out").returncode == 0
    assert max(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 16 * 2**20
    assert (tmp_path / "out/tests.log").read_text().endswith("12 passed in 1.00s\n")
