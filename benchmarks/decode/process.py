"""Runs a task in a process of its own, for so long at most, and hands its rows on as they come."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.decode.task import Row, Task

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.decode.measure"]
LAST_LINES = 5  # of what it says when it ends badly


def run(task: Task, limit_s: float) -> Iterator[Row]:
    """Its rows; the last one says so where the process did not end well."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [*COMMAND, task.to_json()], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(min(limit_s, threading.TIMEOUT_MAX), end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        last_words = " | ".join(log.read().strip().splitlines()[-LAST_LINES:])
    if timed_out.is_set():
        yield failure(task, f"not done in {limit_s:.0f} s")
    elif code:
        yield failure(task, f"its process ended ({code}): {last_words}")


def failure(task: Task, why: str) -> Row:
    return {"model": task.model, "kind": "failed", "variant": "all", "what": "the rest", "why": why}
