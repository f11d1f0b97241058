"""What a run found, as lines for people, as JSON for programs, and as the page of --report.

It gathers scores, figures, sizes, the command and versions; how the page looks is decided in report_page.py.
"""

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from awq.formats.output import new_file
from awq.layer_figures import LayerFigures
from awq.model import ModelFolder
from awq.quantize import QuantConfig

PACKAGES = ("tinyserve", "torch", "transformers", "safetensors")
Scores = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """Bytes of a checkpoint's weights; `after` is of files that were written, else what they would take."""

    before: int
    after: int
    written: bool


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    model: str
    config: QuantConfig
    scores: Scores
    figures: Sequence[LayerFigures]
    sizes: Sizes
    command: str
    versions: Mapping[str, str]


def show(scores: Scores) -> None:
    """Prints one line per text or task."""
    for name, values in scores.items():
        shown = ", ".join(
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        print(f"{name}: {shown}")


def write(path: Path, scores: Scores, settings: Mapping[str, Any], command: str) -> None:
    """Writes {"results": {name: scores}, "config": {flag: value}, "command", "versions"}, replacing an earlier file."""
    record = {
        "results": scores,
        "config": {name: value for name, value in settings.items() if value is not None},
        "command": command,
        "versions": versions(),
    }
    with new_file(path, overwrite=True) as scratch:
        scratch.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def write_page(folder: Path, report: Report) -> Path:
    """Writes report.html into the folder, replacing an earlier one; returns its path."""
    from awq.report_page import render

    path = folder / "report.html"
    with new_file(path, overwrite=True) as scratch:
        scratch.write_text(render(report), encoding="utf-8")
    return path


def command_line(argv: Sequence[str]) -> str:
    """The command as it can be typed again."""
    return shlex.join(["python", "-m", "awq.entry", *argv])


def versions() -> dict[str, str]:
    """Of Python and of what computes and reads models."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # used from its source folder
            continue
    return found


def sizes(model: ModelFolder, config: QuantConfig, written: Path | None) -> Sizes:
    """Of the model's weights before and after.

    Args:
        written: the 4-bit checkpoint, if there is one.
    """
    before = _bytes_on_disk(model.path)
    if written is not None:
        return Sizes(before, _bytes_on_disk(written), written=True)
    saved = 0.0
    for module in model.linears():
        weight = model.checkpoint.tensor(f"{module}.weight")
        n, k = weight.shape
        scales_and_zeros = n * (k // config.group(k)) * (2 + config.bits / 8)
        saved += weight.numel() * (weight.element_size() - config.bits / 8) - scales_and_zeros
    return Sizes(before, round(before - saved), written=False)


def _bytes_on_disk(path: Path) -> int:
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
