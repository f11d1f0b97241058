"""What a model folder is, and the one checkpoint that it makes, with its base where it needs one.

A folder is a whole model, a LoRA adapter, or a projector alone (LLaVA's first training stage). Which one is read from
its files, and the architecture from its config.json, never from the folder's name as LLaVA's own loader does it. Knows
no flag of precision and no definition of a model.
"""

from pathlib import Path
from typing import Any

from awq.formats import Checkpoint, CheckpointError, open_checkpoint
from awq.formats.checkpoint import TensorSource
from awq.formats.json_file import read_json
from awq.formats.overlay import Overlay, Renamed
from awq.formats.weights_folder import WeightsFolder, find_weights
from tinyserve.models import lora

PROJECTOR = ("mm_projector.safetensors", "mm_projector.bin")
NON_LORA = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")  # what LLaVA trains beside an adapter
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

# LLaVA saves the config of an adapter or a projector with the architecture of the language model it started from.
WITH_IMAGES = {
    "LlamaForCausalLM": "LlavaLlamaForCausalLM",
    "MistralForCausalLM": "LlavaMistralForCausalLM",
    "Qwen2ForCausalLM": "LlavaQwenForCausalLM",
}


def open_model(model_path: Path, model_base: Path | None = None, quant_path: Path | None = None) -> Checkpoint:
    """Opens a model; headers are read and checked, weights are not.

    Args:
        model_path: a whole model, a LoRA adapter or a projector.
        model_base: the 16-bit model that an adapter or a projector belongs to.
        quant_path: as of awq.formats.open_checkpoint.

    Raises:
        CheckpointError: a folder is not what the flags make of it (names the flag), or something in it is wrong.
    """
    adapter, projector = is_adapter(model_path), _is_projector(model_path)
    if quant_path is not None and (adapter or projector or model_base is not None):
        raise CheckpointError(
            f"--quant-path {quant_path} belongs to a whole model: give that as --model-path (an adapter and its "
            "base become one by tinyserve merge), without --model-base"
        )
    if model_base is None:
        if adapter:
            base = read_json(model_path / lora.CONFIG_FILE).get("base_model_name_or_path")
            raise CheckpointError(f"--model-path {model_path} is an adapter: give its base ({base}) as --model-base")
        if projector:
            raise CheckpointError(f"--model-path {model_path} is a projector: give its language model as --model-base")
        return _open_whole(model_path, quant_path)
    base_config, weights = _open_base(model_base)
    if adapter:
        config = _config(model_path, base_config)
        if find_weights(model_path, NON_LORA):
            weights = Overlay(_unwrapped(WeightsFolder(model_path, NON_LORA)), weights)
        return Checkpoint(config, lora.MergedLora(weights, model_path))
    if projector:
        own = Renamed.by(_projector_name, WeightsFolder(model_path, PROJECTOR))
        return Checkpoint(_config(model_path), Overlay(own, weights))
    raise CheckpointError(
        f"--model-base {model_base} is for an adapter ({lora.CONFIG_FILE}) or a projector ({PROJECTOR[1]}); "
        f"--model-path {model_path} holds neither"
    )


def is_adapter(folder: Path) -> bool:
    return (folder / lora.CONFIG_FILE).is_file()


def tokenizer_folder(model_path: Path, model_base: Path | None) -> Path:
    """Where the tokenizer is: beside the model, or where an adapter came without one, beside its base."""
    has_own = any((model_path / name).is_file() for name in TOKENIZER_FILES)
    return model_path if has_own or model_base is None else model_base


def config_folder(model_path: Path, model_base: Path | None) -> Path:
    """The folder whose config.json counts, and with it what stands beside it."""
    has_own = model_base is None or (model_path / "config.json").is_file()
    return model_path if has_own or model_base is None else model_base


def stored_in_bitsandbytes(config: dict[str, Any]) -> bool:
    """Whether the weights of a config.json are bitsandbytes' own 4- or 8-bit ones."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "bitsandbytes"


def _is_projector(folder: Path) -> bool:
    return find_weights(folder, PROJECTOR) is not None and find_weights(folder) is None


def _open_whole(model_path: Path, quant_path: Path | None) -> Checkpoint:
    if quant_path is None and (model_path / "config.json").is_file():
        config = read_json(model_path / "config.json")
        if stored_in_bitsandbytes(config):
            return Checkpoint(config, WeightsFolder(model_path))
    return open_checkpoint(model_path, quant_path)


def _open_base(folder: Path) -> tuple[dict[str, Any], TensorSource]:
    if not folder.is_dir():
        raise CheckpointError(f"--model-base: there is no folder {folder}")
    if is_adapter(folder) or _is_projector(folder):
        raise CheckpointError(f"--model-base {folder} must be a whole model, but is itself an adapter or a projector")
    config = read_json(folder / "config.json")
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
        raise CheckpointError(
            f"--model-base {folder} is quantized ({method}); adapters and projectors belong to 16-bit weights"
        )
    return config, WeightsFolder(folder)


def _config(folder: Path, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """The folder's own config.json, else the base's, with the architecture that its fields say.

    Adapters that were trained over a quantized base still name that quantization; merged weights have none.
    """
    own = folder / "config.json"
    config = dict(base) if base is not None and not own.is_file() else read_json(own)
    config.pop("quantization_config", None)
    if config.get("mm_vision_tower"):
        config["architectures"] = [WITH_IMAGES.get(name, name) for name in config.get("architectures") or ()]
    return config


def _unwrapped(source: TensorSource) -> TensorSource:
    """`base_model.model.model.mm_projector.0.weight`, as peft's wrappers make it -> `model.mm_projector.0.weight`."""
    wrapped = any(name.startswith((lora.PREFIX, "model.model.")) for name in source.names())
    return Renamed.by(lambda name: name.removeprefix("base_model.").removeprefix("model." * wrapped), source)


def _projector_name(name: str) -> str:
    """`mm_projector.0.weight`, after whatever prefix it was trained under -> `model.mm_projector.0.weight`."""
    start = name.find("mm_projector.")
    return name if start < 0 else f"model.{name[start:]}"
