"""Modules that a checkpoint holds as bitsandbytes has quantized them: which tensors they are, and whether they fit."""

import torch
from torch import Tensor

from awq.formats import Checkpoint
from tinyserve.layers.bitsandbytes_linear import QUANT_STATES, STORED_4BIT, STORED_8BIT, BitsAndBytesLinear


def holds(checkpoint: Checkpoint, module: str) -> bool:
    """Whether the module is stored so."""
    return any(checkpoint.has(f"{module}.{name}") for name in (*QUANT_STATES, STORED_8BIT[1]))


def read(
    checkpoint: Checkpoint, module: str, shape: tuple[int, int], device: torch.device, bias: Tensor | None = None
) -> BitsAndBytesLinear:
    """The module as a layer.

    Raises:
        ValueError: a part is missing or does not fit the others, or the weight is not of `shape` [N, K].
    """
    stored = {
        name: checkpoint.tensor(f"{module}.{name}")
        for name in dict.fromkeys((*STORED_8BIT, *STORED_4BIT, *QUANT_STATES))
        if checkpoint.has(f"{module}.{name}")
    }
    make = BitsAndBytesLinear.stored_8bit if STORED_8BIT[1] in stored else BitsAndBytesLinear.stored_4bit
    try:
        layer = make(stored, device, bias)
    except (KeyError, RuntimeError, ValueError) as error:  # bitsandbytes' own, for parts that do not fit
        raise ValueError(f"{module}: not what bitsandbytes stores: {error}") from error
    n = layer.out_features
    if (n, layer.num_weights // n) != shape:
        raise ValueError(f"{module} must be {list(shape)} by config.json, got {[n, layer.num_weights // n]}")
    return layer
