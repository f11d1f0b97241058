"""A model's modules without weights, and which of its parameters each tensor of a checkpoint is.

transformers builds the modules from config.json, with parameters that take no memory, and says how it renames what is
stored. Blocks get the names of the checkpoint, so that everything above speaks of tensors as they are stored. Knows
nothing of groups or scales.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from awq.errors import UserError
from awq.experts import SeparateExperts, is_fused

# Checkpoints of LLaVA's own code hold a language model as its class stores it, and tensors for images beside it.
SAME_LANGUAGE_MODEL = {
    "LlavaLlamaForCausalLM": "LlamaForCausalLM",
    "LlavaMistralForCausalLM": "MistralForCausalLM",
    "LlavaQwenForCausalLM": "Qwen2ForCausalLM",
}
# Stored by old versions of transformers, and computed by every one.
COMPUTED = re.compile(r"rotary_emb\.inv_freq$|attention\.(masked_)?bias$|attn\.(masked_)?bias$")


@dataclass(frozen=True)
class Skeleton:
    """Modules without weights.

    Attributes:
        network: the transformers model; parameters are on the meta device, buffers are real.
        parameters: name in the checkpoint -> name in the network, of every tensor that both have.
        blocks: the list of decoder blocks.
        stored_blocks: the common part of the blocks' names in the checkpoint, e.g. `model.layers`.
        surplus: tensors of the checkpoint that the network does not have.
    """

    network: nn.Module
    parameters: Mapping[str, str]
    blocks: nn.ModuleList
    stored_blocks: str
    surplus: tuple[str, ...]

    @property
    def config(self) -> Any:
        """Of the text model, where the model reads more than text."""
        return self.network.config.get_text_config()  # type: ignore[union-attr,operator]


def build_skeleton(path: Path, config: Mapping[str, Any], names: Iterable[str]) -> Skeleton:
    """The modules of a model folder; no code from the folder is run.

    Args:
        config: config.json as parsed.
        names: of the checkpoint's tensors.

    Raises:
        UserError: transformers does not have the class or refuses the configuration, or tensors are missing.
    """
    from accelerate import init_empty_weights
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    names = list(names)
    with init_empty_weights(include_buffers=False):  # buffers, such as the rotary frequencies, are computed
        network = _build(path, config)
        conversions = get_model_conversion_mapping(network)
        if any(".experts.0." in name for name in names):
            _separate_experts(network, conversions)
    network.eval().requires_grad_(False)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    state = dict(network.state_dict(keep_vars=True))
    parameters, surplus = {}, []
    for name in names:
        renamed = rename_source_key(name, renamings, [], network.base_model_prefix, state)[0]
        if renamed in state or name in state:
            parameters[name] = renamed if renamed in state else name
        else:
            surplus.append(name)
    _check_complete(path, network, set(parameters.values()))
    list_name, blocks = _find_blocks(path, network)
    stored = _take_stored_names(path, list_name, blocks, parameters)
    return Skeleton(network, parameters, blocks, stored, tuple(surplus))


def _build(path: Path, config: Mapping[str, Any]) -> Any:
    import transformers

    names = list(config.get("architectures") or [])
    name = SAME_LANGUAGE_MODEL.get(names[0], names[0]) if names else None
    kind = getattr(transformers, name, None) if name else None
    if kind is None:
        came = ", ".join(names) or "none named"
        raise UserError(
            f"{path / 'config.json'}: architectures is {came}; transformers {transformers.__version__} has no such "
            f"class, and code from the model folder is not run"
        )
    transformers.logging.set_verbosity_error()
    try:
        if name == names[0]:
            parsed = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        else:
            parsed = kind.config_class.from_dict({**config, "model_type": kind.config_class.model_type})
        return kind._from_config(parsed)
    except Exception as error:  # a configuration can be wrong in any way
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path / 'config.json'}: transformers cannot build {name}: {' '.join(reason)}") from error


def _separate_experts(network: nn.Module, conversions: Iterable[Any]) -> None:
    """Takes fused experts apart where transformers says that it fused them when loading."""
    sources = {
        conversion.target_patterns[0].rpartition(".")[2]: [
            pattern.removesuffix(".weight").rpartition(".")[2] for pattern in conversion.source_patterns
        ]
        for conversion in conversions
        if conversion.target_patterns[0].endswith((".experts.gate_up_proj", ".experts.down_proj"))
    }
    for name, module in list(network.named_modules()):
        if is_fused(module) and sources.keys() == {"gate_up_proj", "down_proj"}:
            (gate, up), (down,) = sources["gate_up_proj"], sources["down_proj"]
            network.set_submodule(name, SeparateExperts(module, gate, up, down))


def _check_complete(path: Path, network: Any, found: set[str]) -> None:
    tied = set(network.all_tied_weights_keys)
    wanted = [name for name, _ in network.named_parameters(remove_duplicate=False) if name not in tied]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing ({len(missing)} of {len(wanted)} tensors are)")


def _find_blocks(path: Path, network: Any) -> tuple[str, nn.ModuleList]:
    """The list of blocks stands beside the embedding of the tokens; its name and itself."""
    embedding = network.get_input_embeddings()
    parent = next(name for name, module in network.named_modules() if embedding in module.children())
    lists = {
        f"{parent}.{name}".lstrip("."): module
        for name, module in network.get_submodule(parent).named_children()
        if isinstance(module, nn.ModuleList)
    }
    if not lists:
        raise UserError(f"{path}: {type(network).__name__} has no list of decoder blocks beside its embedding")
    return max(lists.items(), key=lambda item: len(item[1]))


def _take_stored_names(path: Path, list_name: str, blocks: nn.ModuleList, parameters: Mapping[str, str]) -> str:
    """Gives modules inside of blocks the names they have in the checkpoint as well; the blocks' own stored name."""
    stored_lists = set()
    for stored, name in parameters.items():
        if not name.startswith(f"{list_name}."):
            continue
        index, _, inner = name.removeprefix(f"{list_name}.").partition(".")
        before, _, stored_inner = stored.partition(f".{index}.")
        stored_lists.add(before)
        old, new = inner.split("."), stored_inner.split(".")
        if len(old) != len(new) or old[-1] != new[-1]:
            raise UserError(f"{path}: {stored} is {name} in transformers; such a renaming is not supported")
        for depth, (own, other) in enumerate(zip(old, new, strict=True)):
            parent = blocks[int(index)].get_submodule(".".join(old[:depth]))
            if own != other and other not in parent._modules:
                parent.add_module(other, parent.get_submodule(own))
    if len(stored_lists) != 1:
        raise UserError(f"{path}: the decoder blocks are stored under several names: {', '.join(sorted(stored_lists))}")
    return stored_lists.pop()
