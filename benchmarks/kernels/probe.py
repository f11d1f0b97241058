"""Tries every implementation on every case in processes of their own, before any is timed in the common one.

A kernel that crashes or hangs then takes nobody with it, and what an implementation compiles at first use is compiled
here, several at once, into caches on disk.

    python -m benchmarks.kernels.probe SUITE NAME DEVICE [FOLDER] < cases.json

is one process; it prints a line of JSON for each case.
"""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Unavailable
from benchmarks.kernels.rivals import DeviceLost

ROOT = Path(__file__).parents[2]
MAX_STARTS = 4  # of processes for the same cases: each one after the first follows a crash
WORKERS = max(1, min(8, (os.cpu_count() or 2) // 2))
POLL_S = 0.1
COMMAND = [sys.executable, "-m", "benchmarks.kernels.probe"]

Failures = dict[Any, str]  # by case


class Suite(Protocol):
    """A module that knows a kind of work: its cases (dataclasses), its implementations and how one is checked."""

    __name__: str

    def parts(self, name: str, cases: Sequence[Any]) -> list[list[Any]]:
        """The cases of one process each."""

    def read_case(self, encoded: dict[str, Any]) -> Any:
        """From what dataclasses.asdict has made of it."""

    def make(self, name: str, folder: PeerFolder, device: str) -> Any:
        """Raises Unavailable."""

    def answer(self, implementation: Any, cases: Sequence[Any], device: str) -> Iterator[str | None]:
        """Why each case fails, None where it does not; raises DeviceLost."""


def probe_all(
    suite: Suite,
    names: Sequence[str],
    cases: Sequence[Any],
    device: str,
    folder: Path | None,
    patience_s: float,
    time_limit_s: float = math.inf,
) -> dict[str, Failures]:
    """What fails, by implementation.

    A case may take `patience_s`, the first of a process twice that; no process starts after `time_limit_s`.
    """
    deadline = time.monotonic() + time_limit_s
    jobs = [(name, part) for name in names for part in suite.parts(name, cases)]
    failures: dict[str, Failures] = {name: {} for name in names}
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(lambda job: probe(suite, job[0], job[1], device, folder, patience_s, deadline), jobs)
        for (name, _), failed in zip(jobs, found, strict=True):
            failures[name] |= failed
    return failures


def probe(
    suite: Suite,
    name: str,
    cases: list[Any],
    device: str,
    folder: Path | None,
    patience_s: float,
    deadline: float = math.inf,
) -> Failures:
    failures: Failures = {}
    left, end = cases, "time was up"
    for _ in range(MAX_STARTS):
        if time.monotonic() > deadline:
            break
        answers, end = _one_process(suite, name, left, device, folder, patience_s)
        failures |= {case: why for case, why in zip(left, answers, strict=False) if why is not None}
        left = left[len(answers) :]
        if not left:
            return failures
        failures[left[0]] = end
        left = left[1:]
    return failures | dict.fromkeys(left, f"not tried: before it, {end}")


def _one_process(
    suite: Suite, name: str, cases: list[Any], device: str, folder: Path | None, patience_s: float
) -> tuple[list[str | None], str]:
    """Why each case failed, None where it did not, of as many cases as it came to; and what ended it."""
    command = [*COMMAND, suite.__name__, name, device, *([str(folder)] if folder else [])]
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered, log = (Path(scratch, file) for file in ("asked", "answered", "log"))
        asked.write_text(json.dumps([asdict(case) for case in cases]))
        with asked.open() as stdin, answered.open("wb") as stdout, log.open("wb") as stderr:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
            )
            hung = _wait(process, answered, patience_s)
        answers = [json.loads(line) for line in answered.read_text().splitlines()]
        last_words = next(reversed(log.read_text(errors="replace").strip().splitlines()), "")
    end = f"no answer in {patience_s:.0f} s" if hung else f"its process ended ({process.returncode}): {last_words}"
    return answers, end


def _wait(process: subprocess.Popen[bytes], answered: Path, patience_s: float) -> bool:
    """Whether the process had to be ended, since nothing came from it for too long."""
    size, since = 0, time.monotonic()
    while process.poll() is None:
        if answered.stat().st_size != size:
            size, since = answered.stat().st_size, time.monotonic()
        if time.monotonic() - since > (patience_s if size else 2 * patience_s):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(POLL_S)
    return False


def main() -> None:
    module, name, device, *folder = sys.argv[1:]
    suite: Suite = importlib.import_module(module)  # type: ignore[assignment]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a peer prints is no answer
    cases = [suite.read_case(case) for case in json.load(sys.stdin)]
    try:
        implementation = suite.make(name, PeerFolder(Path(folder[0]) if folder else None), device)
        for why in suite.answer(implementation, cases, device):
            print(json.dumps(why), file=answers)
    except Unavailable as error:
        print("\n".join([json.dumps(str(error))] * len(cases)), file=answers)
    except DeviceLost as error:
        raise SystemExit(f"the GPU no longer answers: {error}") from error


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
