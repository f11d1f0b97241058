"""From a model folder to a model ready to run: opens the checkpoint, checks the precision, builds the definition.

It decides dtype, precision and how many positions there are. It knows no tensor names.
"""

import logging
import time
from pathlib import Path

import torch

from awq.formats import Checkpoint
from awq.formats.json_file import read_json
from tinyserve.config import CpuCompute, DtypeName, LmHeadDtype, LoadIn, Precision
from tinyserve.models import registry
from tinyserve.models.language_model import LanguageModel
from tinyserve.models.llava import LlavaConfig, LlavaImages
from tinyserve.models.names import canonical_names, with_images_of
from tinyserve.models.opening import config_folder, open_model, stored_in_bitsandbytes
from tinyserve.models.packed_cache import PackedCache
from tinyserve.models.weights import WeightReader

_log = logging.getLogger(__name__)
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def load_model(
    model_path: Path,
    quant_path: Path | None = None,
    precision: Precision = "W4A16",
    dtype: DtypeName = "auto",
    device: str = "cpu",
    max_context: int | None = None,
    cpu_compute: CpuCompute = "exact",
    model_base: Path | None = None,
    load_in: LoadIn | None = None,
    packed_cache: Path | bool = False,
    lm_head_dtype: LmHeadDtype = "auto",
) -> LanguageModel:
    """Loads a checkpoint into the definition of its architecture.

    Args:
        model_path: Hugging Face folder; or, with a model_base, an adapter or projector.
        quant_path: 4-bit linear layers from here (folder or .pt); None: from model_path.
        precision: "W4A16": 4-bit linear layers; "W16A16": a checkpoint that is not quantized.
        dtype: of activations; "auto": what config.json says.
        device: torch device.
        max_context: positions to prepare for; None: as many as the model has.
        cpu_compute: of a CPU with 4-bit weights: "exact" multiplies by the activations as they are, "int8" by rounded
            ones, and holds the output layer in 8 bits.
        model_base: the 16-bit model that the adapter or projector in model_path belongs to.
        load_in: quantize the linear layers of a 16-bit model by bitsandbytes.
        packed_cache: a folder where packed weights are kept for the next start, of 4-bit weights on a CPU; True: beside
            the checkpoint.
        lm_head_dtype: "int8": an output layer that has 16 bits in the checkpoint is rounded to 8; "auto": it is not,
            but where cpu_compute says so.

    Raises:
        FileNotFoundError: model_path or quant_path does not exist.
        ValueError: the checkpoint and the settings do not fit each other, or the checkpoint is damaged.
    """
    for flag, path in (("--model-path", model_path), ("--quant-path", quant_path)):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{flag}: {path} does not exist")
    start = time.perf_counter()
    checkpoint = open_model(model_path, model_base, quant_path if precision == "W4A16" else None)
    _check_precision(checkpoint, model_path, quant_path, precision, load_in)
    # What the model is, its own folder says; a quantized one beside it may be the language model alone.
    stored_config = checkpoint.config if quant_path is None else read_json(model_path / "config.json")
    definition = registry.definition(stored_config)
    config = definition.read_config(stored_config, config_folder(model_path, model_base))
    if max_context is not None and max_context > config.context_length:
        raise ValueError(f"--max-context must be at most the model's {config.context_length} tokens, got {max_context}")
    rounded = cpu_compute == "int8" and precision == "W4A16" and torch.device(device).type == "cpu"
    named = canonical_names(checkpoint) if definition.canonical else checkpoint
    if quant_path is not None and definition.canonical:
        named = with_images_of(model_path, named)
    activations = stored_dtype(checkpoint.config) if dtype == "auto" else _DTYPES[dtype]
    packed = None
    if packed_cache is not False:
        _check_can_keep_packed(precision, torch.device(device))
        folder = None if packed_cache is True else packed_cache
        packed = PackedCache.of_model(folder, model_path, quant_path, activations, rounded)
    weights = WeightReader(
        named,
        activations,
        torch.device(device),
        rounded,
        load_in,
        packed=packed,
        has_8_bit_output=lm_head_dtype == "int8",
    )
    model = definition.model(config, weights, num_positions=max_context or config.context_length)
    if packed is not None:
        packed.save()
    _log.info(
        "loaded %s: %s, %s activations, %.1f MB of weights per token, in %.1f s",
        model_path,
        precision,
        str(model.dtype).removeprefix("torch."),
        sum(linear.num_bytes for linear in model.linears) / 1e6,
        time.perf_counter() - start,
    )
    return model


def load_images(model_path: Path, device: str = "cpu") -> LlavaImages:
    """Only what turns images into embeddings, in fp32, for a model of 16 bits that reads images.

    Raises:
        ValueError: the model takes text only, or it is damaged.
    """
    checkpoint = open_model(model_path)
    config = registry.definition(checkpoint.config).read_config(checkpoint.config, model_path)
    if not isinstance(config, LlavaConfig):
        raise ValueError(f"{model_path} takes text only, no images")
    return LlavaImages(config, WeightReader(canonical_names(checkpoint), torch.float32, torch.device(device)))


def _check_precision(
    checkpoint: Checkpoint, model_path: Path, quant_path: Path | None, precision: Precision, load_in: LoadIn | None
) -> None:
    """Raises ValueError where the flags ask for another precision than the files have."""
    if precision == "W4A16" and checkpoint.quant is None:
        raise ValueError(
            f"precision W4A16 needs 4-bit weights: --model-path {model_path} is not quantized and --quant-path is "
            f"{quant_path or 'not given'}; give a quantized checkpoint with one of them, or --precision W16A16"
        )
    quantized = f"--quant-path {quant_path}" if quant_path else f"--model-path {model_path}"
    is_quantized = checkpoint.quant is not None or quant_path is not None
    if load_in is not None and (is_quantized or stored_in_bitsandbytes(checkpoint.config)):
        raise ValueError(f"--load-{load_in} quantizes 16-bit weights, but {quantized} is quantized already")
    if precision == "W16A16" and is_quantized:
        raise ValueError(
            f"precision W16A16 needs 16-bit weights, but {quantized} holds 4-bit ones: use --precision W4A16"
        )


def _check_can_keep_packed(precision: Precision, device: torch.device) -> None:
    if precision != "W4A16" or device.type != "cpu":
        raise ValueError(
            f"--packed-cache keeps packed 4-bit weights of a CPU, got {precision} on {device.type}: "
            + ("16-bit weights are not packed" if precision != "W4A16" else "there they are packed at every start")
        )


def stored_dtype(config: dict[str, object]) -> torch.dtype:
    """Of the weights, as config.json names it.

    Raises:
        ValueError: it names another than floating-point one of 16 or 32 bits.
    """
    text = config.get("text_config")
    parts = [config, text if isinstance(text, dict) else {}]
    named = [part.get(field) for part in parts for field in ("dtype", "torch_dtype")]
    stored = str(next(filter(None, named), "float16")).removeprefix("torch.")
    if stored not in _DTYPES:
        raise ValueError(f"config.json: dtype must be one of {', '.join(_DTYPES)}, got {stored!r}: give --dtype")
    return _DTYPES[stored]
