"""Which model a worker serves: what it is called and in which precision it is loaded.

Looks at names, flags and config.json; the checkpoint itself is read by the engine.
"""

import json
from pathlib import Path

from tinyserve.config import EngineConfig, LoadIn, Precision
from tinyserve.engine.generator import Generator


def load_generator(config: EngineConfig) -> Generator:
    """The engine for a checkpoint. Raises ValueError or OSError when it cannot be loaded."""
    if not config.model_path.is_dir():
        raise FileNotFoundError(f"--model-path: there is no folder {config.model_path}")
    from tinyserve.engine.async_engine import AsyncEngine  # loads torch, which a worker with its own generator spares

    return AsyncEngine.create(config)


def load_in(load_8bit: bool, load_4bit: bool) -> LoadIn | None:
    """What the two flags together mean. Raises ValueError when both are given."""
    if load_8bit and load_4bit:
        raise ValueError("--load-8bit and --load-4bit: give one of them")
    return "8bit" if load_8bit else "4bit" if load_4bit else None


def default_precision(model_path: Path, quant_path: Path | None, model_base: Path | None = None) -> Precision:
    """W4A16 where there are 4-bit linear layers for our own kernels to load, else W16A16."""
    if quant_path is not None:
        return "W4A16"
    if model_base is not None:
        return "W16A16"  # what is merged is of 16 bits, whatever an adapter's config says of its training
    try:
        config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "W16A16"  # the loader will say what is wrong with the folder
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []  # a language model's own counts too
    found = [
        part["quantization_config"] for part in parts if isinstance(part, dict) and part.get("quantization_config")
    ]
    in_bitsandbytes = bool(found) and isinstance(found[0], dict) and found[0].get("quant_method") == "bitsandbytes"
    return "W4A16" if found and not in_bitsandbytes else "W16A16"


def name_of(model_path: Path, precision: Precision) -> str:
    """What a model is called when nobody says: its folder's name, as LLaVA and llm-awq do it.

    A training checkpoint carries its parent's name too. 4-bit models get llm-awq's suffix, unless the name already says
    that they are AWQ models.
    """
    path = model_path.resolve() if model_path.name in ("", ".", "..") else model_path
    name = f"{path.parent.name}_{path.name}" if path.name.startswith("checkpoint-") else path.name
    return f"{name}-4bit-AWQ" if precision == "W4A16" and "awq" not in name.lower() else name
