"""What machine and which versions a measurement belongs to, and the file it is written to."""

import datetime
import json
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "aiohttp")


def describe() -> dict[str, Any]:
    """Machine, versions and commit, as a result file carries them."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],  # above 0: others were at work as well
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def cpu_name() -> str:
    """As the system calls it; with family and model where that name stands for several generations."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+?)\s*$", text, re.MULTILINE))
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts and not re.search(r"\d", name):
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name


def write_results(name: str, results: dict[str, Any], path: Path | None = None) -> Path:
    """Writes `results/<name>-<machine>.json`, or `path`, and returns where it is."""
    if path is None:
        machine = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
        path = RESULTS / f"{name}-{machine}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)
    return path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """TINYSERVE_COMMIT says it where the files came without their history."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TINYSERVE_COMMIT")
    return done.stdout.strip()
