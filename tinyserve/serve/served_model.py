"""Which model a worker serves: what it is called, in which precision it is loaded, what cannot be loaded yet.

Looks at names, flags and config.json; the checkpoint itself is read by the engine.
"""

import json
from pathlib import Path

from tinyserve.config import EngineConfig, Precision
from tinyserve.engine.generator import Generator


def load_generator(config: EngineConfig) -> Generator:
    """The engine for a checkpoint. Raises ValueError or OSError when it cannot be loaded."""
    if not config.model_path.is_dir():
        raise FileNotFoundError(f"--model-path: there is no folder {config.model_path}")
    from tinyserve.engine.async_engine import AsyncEngine  # loads torch, which a worker with its own generator spares

    return AsyncEngine.create(config)


def refuse_unsupported(model_base: str | None, load_8bit: bool, load_4bit: bool) -> None:
    """Raises ValueError for a way of loading that the specifications have and this version has not."""
    if model_base:
        raise ValueError(f"--model-base {model_base}: adapters are not supported yet; merge them into the model first")
    if load_8bit or load_4bit:
        flag = "--load-8bit" if load_8bit else "--load-4bit"
        raise ValueError(
            f"{flag}: loading in bitsandbytes precision is not supported; quantize with python -m awq.entry"
        )


def default_precision(model_path: Path, quant_path: Path | None) -> Precision:
    """W4A16 where there are quantized linear layers to load, else W16A16."""
    if quant_path is not None:
        return "W4A16"
    try:
        config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "W16A16"  # the loader will say what is wrong with the folder
    return "W4A16" if isinstance(config, dict) and config.get("quantization_config") else "W16A16"


def name_of(model_path: Path, precision: Precision) -> str:
    """What a model is called when nobody says: its folder's name, as LLaVA and llm-awq do it.

    A training checkpoint carries its parent's name too. 4-bit models get llm-awq's suffix, unless the name already says
    that they are AWQ models.
    """
    path = model_path.resolve() if model_path.name in ("", ".", "..") else model_path
    name = f"{path.parent.name}_{path.name}" if path.name.startswith("checkpoint-") else path.name
    return f"{name}-4bit-AWQ" if precision == "W4A16" and "awq" not in name.lower() else name
