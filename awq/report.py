"""Evaluation results as lines for people and as JSON for programs."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from awq.formats.output import new_file


def show(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints one line per text or task."""
    for name, values in scores.items():
        shown = ", ".join(
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        print(f"{name}: {shown}")


def write(path: Path, scores: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Writes {"results": {name: scores}, "config": {flag: value}, "versions": ...}, replacing an earlier file."""
    record = {
        "results": scores,
        "config": {name: value for name, value in settings.items() if value is not None},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    with new_file(path, overwrite=True) as scratch:
        scratch.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
