"""Starts server processes of this package, waits until they answer, and ends them.

For benchmarks and for tests that need real processes. Knows modules and ports, not what the servers do.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60.0
END_SECONDS = 20.0


class Server:
    """One process, with what it wrote so far."""

    def __init__(
        self, module: str, arguments: list[str], cwd: Path = ROOT, environment: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            cwd: where it runs; this package is importable from its own root only.
            environment: variables beyond those of this process; without OMP_NUM_THREADS in any of them, the server
                computes on one core, so that several can run side by side.
        """
        self.module = module
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [sys.executable, "-m", module, *arguments]
        variables = {"OMP_NUM_THREADS": "1", **os.environ, **(environment or {})}
        self.process = subprocess.Popen(command, cwd=cwd, stdout=self._log, stderr=self._log, env=variables)

    def output(self) -> str:
        """Everything the process has written."""
        size = os.fstat(self._log.fileno()).st_size  # reading by position leaves the process's own position alone
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def kill(self) -> None:
        """Ends it without warning, as a crash does."""
        self.process.kill()
        self.process.wait(END_SECONDS)

    def stop(self) -> int:
        """Asks it to end and returns its exit code; kills it when it does not."""
        self.process.terminate()
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@contextmanager
def start(
    module: str, arguments: list[str], cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Runs `python -m module arguments` inside the with block."""
    server = Server(module, arguments, cwd, environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


def wait_until(what: str, ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
    """Polls until `ready` says so.

    Raises:
        TimeoutError: it did not within `seconds`; names `what`.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def wait_for_health(
    url: str,
    ready: Callable[[dict[str, Any]], bool] = lambda health: True,
    server: Server | None = None,
    seconds: float = READY_SECONDS,
) -> None:
    """Waits until the server's /health is 200 and `ready` accepts what it says.

    Raises:
        TimeoutError, RuntimeError: it never did; RuntimeError when the process has ended, with its output.
    """

    def healthy() -> bool:
        if server is not None and server.process.poll() is not None:
            raise RuntimeError(f"{server.module} ended with code {server.process.returncode}:\n{server.output()}")
        try:
            response = requests.get(url + "/health", timeout=5)
        except requests.RequestException:
            return False
        return response.status_code == 200 and ready(response.json())

    wait_until(f"health of {url}", healthy, seconds)


def all_cores() -> dict[str, str]:
    """The environment of a server that computes on every core, as one that a user starts."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))}


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
