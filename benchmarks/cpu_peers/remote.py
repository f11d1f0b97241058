"""Peers in a process of their own, with a Python of their own; both sides speak through answer.py's lines.

A process waits for questions between its turns, so that only one implementation works at a time.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class MissingPeerError(Exception):
    """The library is not there."""


class Process:
    """One module of this folder, answering in another Python.

    Raises:
        MissingPeerError: its library is not installed there.
    """

    def __init__(self, python: str, module: str, threads: int) -> None:
        self._command = [python, "-m", "benchmarks.cpu_peers.answer", module, str(threads)]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}  # that is ours
        try:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
        except OSError as error:
            raise MissingPeerError(str(error)) from error
        facts = self._answer()
        self.library: str = facts["library"]
        self.version: str = facts["version"]
        self.products: list[tuple[str, int]] = facts["products"]  # name and bits

    def ask(self, what: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps({"ask": what, "arguments": arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a peer's process ended: {' '.join(self._command)}")
        answer = json.loads(line)
        if "missing" in answer:
            self.close()
            raise MissingPeerError(answer["missing"])
        if "impossible" in answer:
            raise ValueError(answer["impossible"])
        return answer["ok"]

    def close(self) -> None:
        self._process.communicate()
