"""LLaVA and FastChat as published, unmodified, in a folder of their own.

They run with this environment's torch and transformers, and with the pydantic of their time.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.servers import Server, start

PACKAGES = ("llava-torch==1.2.2.post1", "fschat==0.2.36")  # without their dependencies, which pin a torch of 2023
LIGHT = (
    *("shortuuid", "tiktoken", "regex", "httpx", "httpcore", "h11", "nh3", "markdown2", "rich", "prompt_toolkit"),
    *("pydantic==1.10.26", "fastapi==0.103.2", "starlette==0.27.0"),  # FastChat's streams fail with pydantic 2
)


class Upstream:
    """Installs both packages and runs their modules."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._packages = folder / "packages"
        install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, "--target", str(self._packages), *PACKAGES, *LIGHT], check=True)

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self._packages), "LOGDIR": str(self.folder), "PYTHONWARNINGS": "ignore"}

    @contextmanager
    def serve(self, module: str, *flags: str) -> Iterator[Server]:
        """One of their servers, inside the with block."""
        with start(module, list(flags), self.folder, self.environment()) as server:
            yield server

    def run(self, module: str, *flags: str) -> str:
        """One of their scripts, to its end; what it printed.

        Raises:
            RuntimeError: it ended with another code than 0.
        """
        done = subprocess.run(
            [sys.executable, "-m", module, *flags],
            cwd=self.folder,
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{module} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout

    def model_for_fastchat(self, model: Path) -> Path:
        """The model folder with a rope factor of 1: FastChat expects the factor that transformers 5 leaves out."""
        folder = self.folder / model.name
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).symlink_to(file.resolve())
        config = json.loads((model / "config.json").read_text())
        config["rope_parameters"] = {"factor": 1.0, **config["rope_parameters"]}
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))
        return folder
