"""A 16-bit model folder as the search sees it: its configuration, modules, mapping, tensors and identity.

It checks that there is something to quantize and says which model it is. What is done to the weights is decided
elsewhere.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awq.errors import UserError
from awq.experts import is_fused
from awq.formats import Checkpoint, open_checkpoint
from awq.formats.checkpoint import GROUP_SIZES
from awq.groups import Fold
from awq.model_map import ModelMap, model_map
from awq.network import compute_dtype, named_dtype
from awq.quantize import QuantConfig
from awq.results import ModelIdentity
from awq.skeleton import COMPUTED, SAME_LANGUAGE_MODEL, Skeleton, build_skeleton

ADAPTER_FILE = "adapter_config.json"  # of peft
EMBEDDING = "model.embed_tokens.weight"  # in a checkpoint of LLaVA's own code


@dataclass(frozen=True)
class ModelFolder:
    """An opened checkpoint of 16 (or 32) bits with its modules and its mapping."""

    path: Path
    checkpoint: Checkpoint
    skeleton: Skeleton
    mapping: ModelMap

    @property
    def num_layers(self) -> int:
        return len(self.mapping.groups)

    def linears(self) -> list[str]:
        """Global names of every Linear that is quantized, in order."""
        return [
            f"{self.mapping.block(index)}.{layer}"
            for index in range(self.num_layers)
            for layer in self.mapping.linears(index)
        ]

    def folds(self) -> dict[str, Fold]:
        """By global name of what takes the inverse of a scale."""
        return {name: fold for index in range(self.num_layers) for name, fold in self.mapping.folds(index).items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self.checkpoint.tensor(name).shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the blocks."""
        names = [name for name in self.checkpoint.names() if self.mapping.block_of(name) is not None]
        return {name: self.shape(name) for name in names}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, as stored; read when it is asked for."""
        return ((name, self.checkpoint.tensor(name)) for name in self.checkpoint.names())

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
        """What a file of search results is tied to.

        Norms and biases stand for all weights, as fine-tuning changes them; the widest input for the inner size.
        """
        config = self.skeleton.config
        linears = self.linears()
        in_first = linears[: len(self.mapping.linears(0))]
        digest = hashlib.sha256()
        shapes = self.shapes()
        for name in sorted(shapes, key=lambda name: (self.mapping.block_of(name), name)):
            if len(shapes[name]) == 1:
                digest.update(self.checkpoint.tensor(name).to(torch.float32).numpy().tobytes())
        return ModelIdentity(
            architecture=", ".join(self.checkpoint.config["architectures"]),
            hidden_size=int(config.hidden_size),
            intermediate_size=max(self.shape(f"{name}.weight")[1] for name in in_first),
            num_layers=self.num_layers,
            vocab_size=int(config.vocab_size),
            weights=digest.hexdigest()[:16],
        )


def open_model(path: Path) -> ModelFolder:
    """Opens a local model folder.

    Raises:
        UserError: not there, not a model folder, a class that transformers does not have, already quantized, a tensor
            that is missing, of another shape, or in a block and not known to its class, or no Linear.
    """
    if not path.is_dir():
        raise UserError(f"--model_path {path}: no such folder (a local Hugging Face model folder is needed)")
    if (path / ADAPTER_FILE).is_file():
        raise UserError(f"--model_path {path} is an adapter: `tinyserve merge` makes one model of it and its base")
    if not (path / "config.json").is_file():
        raise UserError(f"--model_path {path}: no config.json in it")
    checkpoint = open_checkpoint(path)
    if checkpoint.quant is not None:
        raise UserError(f"--model_path {path} is already quantized; the 16-bit model is needed here")
    skeleton = build_skeleton(path, _with_stored_vocabulary(checkpoint), checkpoint.names())
    model = ModelFolder(path, checkpoint, skeleton, model_map(skeleton))
    _check_tensors(model)
    if not model.linears():
        raise UserError(f"{path}: the decoder blocks of {checkpoint.config['architectures'][0]} hold no Linear")
    return model


def _with_stored_vocabulary(checkpoint: Checkpoint) -> dict[str, Any]:
    """LLaVA's code adds tokens for images to a vocabulary without always saying so in config.json."""
    architectures = checkpoint.config.get("architectures") or [""]
    if architectures[0] not in SAME_LANGUAGE_MODEL or not checkpoint.has(EMBEDDING):
        return checkpoint.config
    return {**checkpoint.config, "vocab_size": checkpoint.shape(EMBEDDING)[0]}


def _check_tensors(model: ModelFolder) -> None:
    name_of_class = model.checkpoint.config["architectures"][0]
    state = model.skeleton.network.state_dict(keep_vars=True)
    for stored, name in model.skeleton.parameters.items():
        wanted = tuple(state[name].shape)
        if model.shape(stored) != wanted:
            raise UserError(
                f"{model.path}: {stored} has shape {list(model.shape(stored))}; config.json makes it {list(wanted)}"
            )
    if model.mapping.known and any(is_fused(module) for module in model.skeleton.blocks.modules()):
        raise UserError(
            f"{model.path}: the experts of a layer are stored as one tensor, which is not supported; "
            f"transformers' save_pretrained stores each on its own"
        )
    for stored in model.skeleton.surplus:
        if model.mapping.block_of(stored) is not None and not COMPUTED.search(stored):
            raise UserError(f"{model.path}: {stored} is in the checkpoint, but {name_of_class} has no such tensor")


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
    config = open_checkpoint(path).config
    text = config.get("text_config") or config
    return int(text.get("max_position_embeddings") or sys.maxsize)
