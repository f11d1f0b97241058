"""The Hugging Face folder with `quant_method` awq, as AutoAWQ writes it; `version` gemm is what most engines load.

Per quantized module, for N out features, K in features and groups of G:
    qweight int32 [K, N/8]     nibble i of word [k, c] is the code of out channel 8c + ORDER[i]
    qzeros  int32 [K/G, N/8]   the zeros, packed the same way
    scales  fp16 or bf16 [K/G, N]
The versions gemv and gemv_fast, which are only read, are llm-awq's two layouts. Knows no model.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from awq.errors import UserError
from awq.formats.checkpoint import FLOATS, INT32, CheckpointError, Dtypes, Layout
from awq.formats.llm_awq import layout_v1, layout_v2
from awq.formats.model_folder import write_model_folder
from awq.formats.nibbles import PER_WORD, pack_rows, unpack_rows
from awq.formats.output import SHARD_BYTES
from awq.formats.skipped import skipped_parts
from awq.quantize import QuantConfig, QuantizedTensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def encode_gemm(weight: QuantizedTensor) -> dict[str, Tensor]:
    """The stored tensors of a module by suffix; N must be a multiple of 8."""
    return {
        "qweight": pack_rows(weight.codes, ORDER).t().contiguous(),
        "qzeros": pack_rows(weight.zeros, ORDER).t().contiguous(),
        "scales": weight.scales.t().contiguous(),
    }


def _decode_gemm(tensors: Mapping[str, Tensor], config: QuantConfig) -> QuantizedTensor:
    codes = unpack_rows(tensors["qweight"].t(), ORDER)
    zeros = unpack_rows(tensors["qzeros"].t(), ORDER)
    return QuantizedTensor(codes, tensors["scales"].t().contiguous(), zeros, config)


def _expected_gemm(n: int, k: int, group: int) -> dict[str, tuple[Dtypes, tuple[int, ...]]]:
    return {
        "qweight": (INT32, (k, n // PER_WORD)),
        "qzeros": (INT32, (k // group, n // PER_WORD)),
        "scales": (FLOATS, (k // group, n)),
    }


GEMM = Layout(
    name="AWQ gemm",
    suffixes=("qweight", "qzeros", "scales"),
    size=lambda shape: (shape[1] * PER_WORD, shape[0]),
    expected=_expected_gemm,
    decode=_decode_gemm,
)

VERSIONS: dict[str, Layout] = {
    "gemm": GEMM,
    "gemv": layout_v1("AWQ gemv"),
    "gemv_fast": layout_v2("AWQ gemv_fast", "qzeros"),
}


def read_quantization_config(config: Mapping[str, Any], where: str) -> tuple[Layout, QuantConfig, tuple[str, ...]]:
    """The layout, the rounding and the excluded modules that a `quantization_config` with quant_method awq declares.

    Args:
        config: the object from config.json; AutoAWQ's own names of the fields (w_bit, q_group_size) count as well.
        where: the file, for messages.

    Raises:
        CheckpointError: names the field, what came and what is supported.
    """
    version = str(config.get("version", "gemm")).lower()
    if version not in VERSIONS:
        raise CheckpointError(f"{where}: AWQ version {version!r} is not supported; supported: {', '.join(VERSIONS)}")
    bits = config.get("bits", config.get("w_bit", 4))
    if bits != 4:
        raise CheckpointError(f"{where}: quantization_config bits must be 4, got {bits!r}")
    try:
        quant = QuantConfig(
            4, config.get("group_size", config.get("q_group_size", 128)), config.get("zero_point", True)
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: quantization_config {error}") from None
    excluded = config.get("modules_to_not_convert") or []
    if not isinstance(excluded, list) or not all(isinstance(part, str) and part for part in excluded):
        raise CheckpointError(f"{where}: modules_to_not_convert must be a list of names, got {excluded!r}")
    return VERSIONS[version], quant, tuple(excluded)


def _quantization_config(config: QuantConfig, matrices: Sequence[str], quantized: Sequence[str]) -> dict[str, Any]:
    parts = skipped_parts(matrices, quantized)
    for part in parts:
        clash = next((name for name in quantized if part in name), None)
        if clash is not None:
            raise UserError(
                f"{part} stays in 16 bits, but its name is part of the quantized {clash}: modules_to_not_convert "
                "of the AWQ format cannot tell them apart; the compressed-tensors format can"
            )
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": config.group_size,
        "zero_point": True,
        "modules_to_not_convert": parts,
    }


def write_awq_folder(
    output: Path,
    source: Path,
    state: Mapping[str, Tensor],
    quantized: Mapping[str, QuantizedTensor],
    config: QuantConfig,
    *,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Writes a folder that this package and others (vLLM, SGLang, LMDeploy, transformers) load without flags.

    config.json is the source's with a top-level `quantization_config`; generation_config.json, tokenizer, processor and
    chat template are copied. Every module that stays in 16 bits is listed as not converted. `zero_point` is written as
    true even for symmetric rounding: in this format it says that qzeros are stored, which they always are (8
    everywhere), and engines refuse or slow down where it is false. Weights tied to others (an lm_head that is the
    embedding) are stored once.

    Args:
        output: the folder to make. An existing one is refused unless it is empty.
        source: the folder the model came from, 16-bit or quantized.
        state: every tensor that is not quantized, by its full name, biases of quantized modules included; cast to the
            dtype of the scales. Values may be made on access, so that a large model is never in memory at once.
        quantized: module name ("model.layers.0.self_attn.q_proj") -> its weight; may be made on access as well.
        config: how all of them were rounded.
        shard_bytes: size above which the weights are split into several files.
        overwrite: replace an existing output, once the new one is complete.

    Raises:
        UserError: the output exists, a layer cannot be stored (names it and says why), nothing is quantized, or the
            name of a 16-bit module is part of a quantized one's, so that no list in the config tells them apart.
    """
    write_model_folder(
        output,
        source,
        state,
        quantized,
        config,
        encode=encode_gemm,
        multiple_n=PER_WORD,
        describe=partial(_quantization_config, config),
        shard_bytes=shard_bytes,
        overwrite=overwrite,
    )
