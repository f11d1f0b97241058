"""A base model with a LoRA adapter of peft's merged into it, one weight at a time and when it is asked for.

What merging computes is peft's business. Here is decided only which tensors of an adapter belong to which weight. Knows
neither definitions of models nor what else a folder holds.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from awq.formats.checkpoint import CheckpointError, TensorInfo, TensorSource
from awq.formats.json_file import read_json
from awq.formats.overlay import Overlay, Renamed
from awq.formats.weights_folder import WeightsFolder
from tinyserve.models.names import canonical

CONFIG_FILE = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."  # of peft's wrappers around the model
# What an adapter may ask for that is more than a change of the weights it names.
UNSUPPORTED = ("layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens")


@dataclass(frozen=True)
class _Parts:
    module: str  # the layer's name in the class that the adapter was trained on
    tensors: list[str]  # names of the adapter's own tensors for it


class MergedLora:
    """The base's tensors; those that the adapter changes are merged in fp32 and rounded to the base's type once.

    Args:
        base: tensors of the base model, by their names in its class.
        folder: holds adapter_config.json and adapter_model.safetensors or .bin.

    Raises:
        ValueError: peft is not installed.
        CheckpointError: the adapter is no LoRA, is damaged, or does not fit the base; names file and module.
    """

    def __init__(self, base: TensorSource, folder: Path) -> None:
        self._folder = folder
        self._config = _read_config(folder / CONFIG_FILE)
        self._adapter = Renamed.by(_name_in_model, WeightsFolder(folder, WEIGHTS))
        stored = {canonical(name): name for name in base.names()}  # a class may call them otherwise than its files
        self._parts: dict[str, _Parts] = {}  # by the stored name of the module that they change
        whole = {}  # what the adapter holds besides, such as trained biases or a resized embedding, replaces the base's
        for name in self._adapter.names():
            module, is_lora, _ = name.partition(".lora_")
            if not is_lora:
                whole[stored.get(canonical(name), name)] = name
                continue
            weight = stored.get(canonical(f"{module}.weight"))
            if weight is None:
                raise CheckpointError(f"{folder}: changes {module}, but {base} has no {module}.weight")
            self._parts.setdefault(weight.removesuffix(".weight"), _Parts(module, [])).tensors.append(name)
        self._base = Overlay(Renamed(self._adapter, whole), base)
        self._names = frozenset(self._base.names())

    def __str__(self) -> str:
        return f"{self._folder} merged into {self._base}"

    def names(self) -> list[str]:
        return self._base.names()

    def info(self, name: str) -> TensorInfo:
        return self._base.info(name)

    def file_of(self, name: str) -> str:
        return self._base.file_of(name)

    def tensor(self, name: str) -> Tensor:
        module, _, last = name.rpartition(".")
        if module not in self._parts:
            return self._base.tensor(name)
        return self._merged(module).get_parameter(last).detach().to(self._base.info(name).dtype)

    def _merged(self, module: str) -> nn.Module:
        """The base's layer with the adapter merged in, fp32."""
        from peft import LoraModel, set_peft_model_state_dict

        parts = self._parts[module]
        tree = _tree(parts.module, self._layer(module))
        try:
            with warnings.catch_warnings():  # about ranks by pattern, whose other modules are not here
                warnings.simplefilter("ignore", RuntimeWarning)
                tuner = LoraModel(tree, replace(self._config, target_modules={parts.module}), "default")
            state = {name: self._adapter.tensor(name).float() for name in parts.tensors}
            loaded: Any = set_peft_model_state_dict(tree, state)
            merged = tuner.merge_and_unload().get_submodule(parts.module)
        except (RuntimeError, ValueError, TypeError) as error:  # torch's for shapes, peft's for settings
            raise CheckpointError(f"{self._folder}: does not fit {module}: {' '.join(str(error).split())}") from error
        if loaded.unexpected_keys:
            raise CheckpointError(f"{self._folder}: {loaded.unexpected_keys[0]} is nothing that {CONFIG_FILE} makes")
        if lacking := [name for name in loaded.missing_keys if ".lora_" in name]:
            raise CheckpointError(f"{self._folder}: {lacking[0]} is missing, though {module} is changed")
        return merged

    def _layer(self, module: str) -> nn.Module:
        weight = self._base.tensor(f"{module}.weight").to(torch.float32, copy=True)  # merging is done in place
        rows, columns = weight.shape
        if any(".lora_embedding_A" in name for name in self._parts[module].tensors):
            layer: nn.Module = nn.Embedding(rows, columns, device="meta")
        else:
            has_bias = f"{module}.bias" in self._names
            layer = nn.Linear(columns, rows, has_bias, device="meta")
            if has_bias:
                bias = self._base.tensor(f"{module}.bias").to(torch.float32, copy=True)
                layer.bias = nn.Parameter(bias, requires_grad=False)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer


def _read_config(path: Path) -> Any:
    """peft's LoraConfig, without what says where in a model the adapter goes: its tensors say that."""
    settings = read_json(path)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type must be LORA, got {kind!r}")
    for field in UNSUPPORTED:
        if settings.get(field):
            raise CheckpointError(f"{path}: {field} is not supported: merge the adapter into its base with peft")
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ValueError("--model-base: LoRA adapters need peft: pip install 'tinyserve[lora]'") from error
    try:
        config = PeftConfig.from_pretrained(str(path.parent))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: peft refuses it: {' '.join(str(error).split())}") from error
    places = ("layers_to_transform", "layers_pattern", "modules_to_save", "exclude_modules")
    return replace(config, **dict.fromkeys(places), bias="none")


def _name_in_model(name: str) -> str:
    """`base_model.model.lm_head.base_layer.weight` -> `lm_head.weight`."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def _tree(path: str, leaf: nn.Module) -> nn.Module:
    """Modules that hold nothing, down to `leaf`: what peft needs to find a layer by its name."""
    root = parent = nn.Module()
    *inner, last = path.split(".")
    for part in inner:
        child = nn.Module()
        parent.add_module(part, child)
        parent = child
    parent.add_module(last, leaf)
    return root
