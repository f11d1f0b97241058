"""Eight 4-bit values in one 32-bit word, along an axis, in any order. Knows no format.

Nibble i of a word is its bits 4i to 4i+3. Words are assembled as bytes, lowest first, so the machine has to be
little-endian, which safetensors files are as well.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PER_WORD = 8
NATURAL = tuple(range(PER_WORD))


def pack_rows(values: Tensor, order: Sequence[int] = NATURAL) -> Tensor:
    """Packs eight rows into one: nibble i of word [r, c] is values[8r + order[i], c].

    Args:
        values: uint8 [8R, C], 0 to 15.
        order: a permutation of 0 to 7.

    Returns:
        int32 [R, C].
    """
    eights = values.view(-1, PER_WORD, values.shape[1])
    low, high = list(order[0::2]), list(order[1::2])
    packed = torch.empty((*eights[:, 0].shape, 4), dtype=torch.uint8, device=values.device)
    for byte in range(4):
        torch.bitwise_or(eights[:, low[byte]], eights[:, high[byte]] << 4, out=packed[..., byte])
    return packed.view(torch.int32).squeeze(-1)


def unpack_rows(words: Tensor, order: Sequence[int] = NATURAL) -> Tensor:
    """The inverse of pack_rows: int32 [R, C] to uint8 [8R, C]."""
    data = words.flatten().view(torch.uint8).view(*words.shape, 4)
    values = torch.empty((words.shape[0], PER_WORD, words.shape[1]), dtype=torch.uint8, device=words.device)
    for byte in range(4):
        torch.bitwise_and(data[..., byte], 15, out=values[:, order[2 * byte]])
        torch.bitwise_right_shift(data[..., byte], 4, out=values[:, order[2 * byte + 1]])
    return values.view(-1, words.shape[1])


def pack_columns(values: Tensor) -> Tensor:
    """Packs eight columns into one in natural order: uint8 [R, 8C], 0 to 15, to int32 [R, C]."""
    pairs = values.view(values.shape[0], -1, 2)
    return (pairs[..., 0] | (pairs[..., 1] << 4)).view(torch.int32)


def unpack_columns(words: Tensor) -> Tensor:
    """The inverse of pack_columns: int32 [R, C] to uint8 [R, 8C]."""
    data = words.flatten().view(torch.uint8)
    return torch.stack((data & 15, data >> 4), dim=-1).view(words.shape[0], -1)
