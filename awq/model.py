"""A 16-bit model folder as the search sees it: its configuration, mapping, tensors and identity.

It checks that there is something to quantize and says which model it is. What is done to the weights is decided
elsewhere.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awq.errors import UserError
from awq.formats import Checkpoint, open_checkpoint
from awq.formats.checkpoint import GROUP_SIZES
from awq.mappings import Architecture, architecture_of
from awq.network import compute_dtype, named_dtype
from awq.quantize import QuantConfig
from awq.results import ModelIdentity


@dataclass(frozen=True)
class ModelFolder:
    """An opened checkpoint of 16 (or 32) bits with its mapping."""

    path: Path
    checkpoint: Checkpoint
    architecture: Architecture

    @property
    def num_layers(self) -> int:
        return int(self.checkpoint.config["num_hidden_layers"])

    def linears(self) -> list[str]:
        """Global names of every Linear that is quantized, in order."""
        return [
            f"{self.architecture.block(index)}.{layer}"
            for index in range(self.num_layers)
            for layer in self.architecture.linears()
        ]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self.checkpoint.tensor(name).shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the blocks."""
        names = [name for name in self.checkpoint.names() if self.architecture.block_of(name) is not None]
        return {name: self.shape(name) for name in names}

    def check_group(self, config: QuantConfig) -> None:
        """Refuses a group size that does not divide the input channels of every Linear.

        Raises:
            UserError: names the layer, its K, the group size and what would do.
        """
        for module in self.linears():
            k = self.shape(f"{module}.weight")[1]
            if config.group_size != -1 and k % config.group_size != 0:
                fits = [str(group) for group in GROUP_SIZES if k % group == 0]
                raise UserError(
                    f"--q_group_size {config.group_size} does not divide the {k} input channels of {module}; "
                    f"use {', '.join([*fits, '-1'])}"
                )

    def dtype(self) -> torch.dtype:
        """Of the first Linear's weight, as stored."""
        return self.checkpoint.tensor(f"{self.linears()[0]}.weight").dtype

    def compute_dtype(self, flag: str) -> torch.dtype:
        """The type to compute in under --dtype `flag`."""
        stored = self.dtype()
        return compute_dtype(named_dtype(flag) or (torch.float16 if stored == torch.float32 else stored))

    def identity(self) -> ModelIdentity:
        """What a file of search results is tied to."""
        config = self.checkpoint.config
        digest = hashlib.sha256()
        norms = {group.prev for group in self.architecture.groups} - set(self.architecture.linears())
        for index in range(self.num_layers):
            for norm in sorted(norms):
                name = f"{self.architecture.block(index)}.{norm}.weight"
                if self.checkpoint.has(name):
                    digest.update(self.checkpoint.tensor(name).to(torch.float32).numpy().tobytes())
        return ModelIdentity(
            architecture=", ".join(config.get("architectures") or []),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=self.num_layers,
            vocab_size=int(config["vocab_size"]),
            weights=digest.hexdigest()[:16],
        )


def open_model(path: Path) -> ModelFolder:
    """Opens a local model folder.

    Raises:
        UserError: not there, not a model folder, an architecture without mapping, already quantized, or a field of
            config.json that is missing.
    """
    if not path.is_dir():
        raise UserError(f"--model_path {path}: no such folder (a local Hugging Face model folder is needed)")
    if not (path / "config.json").is_file():
        raise UserError(f"--model_path {path}: no config.json in it")
    checkpoint = open_checkpoint(path)
    architecture = architecture_of(checkpoint.config.get("architectures") or [])
    if checkpoint.quant is not None:
        raise UserError(f"--model_path {path} is already quantized; the 16-bit model is needed here")
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"):
        if not isinstance(checkpoint.config.get(name), int):
            raise UserError(f"{path / 'config.json'}: {name} must be an integer, got {checkpoint.config.get(name)!r}")
    model = ModelFolder(path, checkpoint, architecture)
    missing = [name for name in model.linears() if not checkpoint.has(f"{name}.weight")]
    if missing:
        raise UserError(
            f"{path}: {missing[0]}.weight is missing ({len(missing)} of {len(model.linears())} Linears are)"
        )
    return model


def load_tokenizer(path: Path) -> Any:
    """The folder's tokenizer, without running code from the folder.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no usable tokenizer: {str(error).splitlines()[0]}") from error


def encode(tokenizer: Any, text: str) -> Tensor:
    """Token ids int64 [n] of a whole text, with what the tokenizer puts before texts."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def window_limit(path: Path) -> int:
    """The longest window that the model of a folder can read."""
    return int(open_checkpoint(path).config.get("max_position_embeddings") or sys.maxsize)
