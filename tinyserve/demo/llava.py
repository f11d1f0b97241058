"""The model that sees, as it comes with this package: a vision tower, a projector and a LoRA for SmolLM2.

benchmarks/demo_llava trained it; llava/README.md says on what and how well it does. This module decides only where the
files are and what its example pictures show.
"""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "llava"  # in the layout of LLaVA's LoRA checkpoints: --model-base is SmolLM2
QUESTION = "What does the picture show?"


def examples() -> dict[str, Path]:
    """What is on each example picture -> the picture. None of them was trained on."""
    return {path.stem.replace("_", " "): path for path in sorted((FOLDER / "examples").glob("*.png"))}


def version(folder: Path = FOLDER) -> str:
    """Changes with the weights, so that nothing made from earlier ones is taken for theirs."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
