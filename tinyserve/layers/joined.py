"""Linear layers that share their input as one layer, so that a step reads the input once and calls one op."""

from collections.abc import Sequence

import torch

from tinyserve import ops
from tinyserve.layers.bitsandbytes_linear import SideBySide
from tinyserve.layers.linear import Linear, LinearLayer, W4A16Linear


def joined(layers: Sequence[LinearLayer]) -> LinearLayer:
    """Outputs one beside the other; still a product for each layer where the weights cannot become one."""
    if len(layers) == 1:
        return layers[0]
    kind = type(layers[0])
    plain = [layer for layer in layers if isinstance(layer, Linear) and type(layer) is kind]
    packed = [layer for layer in layers if isinstance(layer, W4A16Linear) and type(layer) is kind]
    biases = [bias for bias in (*(one.bias for one in plain), *(one.bias for one in packed)) if bias is not None]
    if len(plain) + len(packed) < len(layers) or len(biases) not in (0, len(layers)):
        return SideBySide(layers)
    bias = torch.cat(biases) if biases else None
    if plain:
        return Linear(torch.cat([layer.weight for layer in plain]), bias)
    weight = ops.w4a16_join([layer.weight for layer in packed])
    return SideBySide(layers) if weight is None else type(packed[0])(weight, bias)
