"""Decides which tensors a quantized checkpoint holds, and in which dtype; the same for every format that is written.

Knows neither layouts nor files.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from awq.errors import UserError
from awq.formats.checkpoint import FLOAT16, GROUP_SIZES
from awq.progress import track
from awq.quantize import QuantConfig, QuantizedTensor

KERNEL_K = 32  # K must be a multiple of this for every kernel that reads the codes


def check_config(config: QuantConfig) -> None:
    """Refuses a rounding that 4-bit checkpoints cannot hold.

    Raises:
        UserError: names bits and group size, and what is allowed.
    """
    if config.bits != 4 or config.group_size not in (*GROUP_SIZES, -1):
        raise UserError(
            "a checkpoint holds 4 bits in groups of 32, 64, 128 or -1 (whole rows), "
            f"got {config.bits} bits, group_size {config.group_size}"
        )


def storage_dtype(quantized: Mapping[str, QuantizedTensor]) -> torch.dtype:
    """The 16-bit dtype of the checkpoint: that of the scales.

    Raises:
        UserError: nothing is quantized, or the scales are fp32.
    """
    first = next(iter(quantized), None)
    if first is None:
        raise UserError("no layer is quantized, so there is no quantized checkpoint to write")
    dtype = quantized[first].scales.dtype
    if dtype not in FLOAT16:
        raise UserError(f"{first}: scales must be float16 or bfloat16 in a checkpoint, got {dtype}")
    return dtype


def plain_tensors(
    state: Mapping[str, Tensor],
    quantized: Mapping[str, QuantizedTensor],
    dtype: torch.dtype,
    tied: frozenset[str] = frozenset(),
) -> Iterator[tuple[str, Tensor]]:
    """The 16-bit part: floating-point tensors cast to dtype, tied ones left out.

    Raises:
        UserError: a tensor is also among the quantized ones, or overflows dtype.
    """
    for name in state:
        module, _, last = name.rpartition(".")
        if last == "weight" and module in quantized:
            raise UserError(f"{name} is given both quantized and not")
        if name in tied:
            continue
        tensor = state[name]
        if tensor.is_floating_point() and tensor.dtype != dtype:
            cast = tensor.to(dtype)
            if not bool(torch.isfinite(cast).all()) and bool(torch.isfinite(tensor).all()):
                raise UserError(f"{name}: values up to {float(tensor.abs().max()):.4g} do not fit into {dtype}")
            tensor = cast
        yield name, tensor


def quantized_tensors(
    quantized: Mapping[str, QuantizedTensor], config: QuantConfig, dtype: torch.dtype, multiple_n: int, multiple_k: int
) -> Iterator[tuple[str, QuantizedTensor]]:
    """The quantized part, each layer checked against the restrictions of a format.

    Raises:
        UserError: names the layer, its shape and what the format needs.
    """
    for module in track(list(quantized), "write: layer"):
        weight = quantized[module]
        if weight.config != config or weight.scales.dtype != dtype:
            raise UserError(
                f"{module}: rounded with {weight.config} and {weight.scales.dtype} scales, "
                f"others with {config} and {dtype}"
            )
        if weight.n % multiple_n or weight.k % multiple_k:
            raise UserError(
                f"{module}: {weight.n} out and {weight.k} in features; "
                f"the format needs multiples of {multiple_n} and {multiple_k}"
            )
        if not config.zero_point and bool((weight.zeros != config.symmetric_zero).any()):
            raise UserError(
                f"{module}: symmetric rounding has zeros of {config.symmetric_zero} only, but it has others"
            )
        yield module, weight


def tied_names(state: Mapping[str, Tensor], source_names: frozenset[str], config: Mapping[str, Any]) -> frozenset[str]:
    """Names of weights that are another weight of the state and come back by tying when the model is loaded.

    A weight is tied if its matrix equals a stored one, and it is either not in the 16-bit checkpoint or the
    output layer of a model whose config ties word embeddings.
    """
    text_config = config.get("text_config")
    ties = config.get("tie_word_embeddings", text_config.get("tie_word_embeddings") if text_config else False)
    candidates = {name for name in state if name not in source_names or (ties and name.endswith("lm_head.weight"))}
    tied = set()
    for name in candidates:
        tensor = state[name]
        stored = (other for other in state if other not in candidates)
        if tensor.ndim == 2 and any(_equal(tensor, state[other]) for other in stored):
            tied.add(name)
    return frozenset(tied)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))
