"""Eight 4-bit numbers in an int32, as the peers' layouts have them."""

import torch
from torch import Tensor

FACTOR = 8  # numbers in a word


def pack_last(numbers: Tensor) -> Tensor:
    """uint8 [..., 8] -> int32 [...]; the first number in the lowest 4 bits."""
    words = torch.zeros(numbers.shape[:-1], dtype=torch.int32, device=numbers.device)
    for place in range(FACTOR):
        words |= numbers[..., place].int() << (4 * place)
    return words


def pack_rows(numbers: Tensor) -> Tensor:
    """uint8 [K, N] -> int32 [K/8, N]; 8 consecutive k in a word."""
    k, n = numbers.shape
    return pack_last(numbers.view(k // FACTOR, FACTOR, n).transpose(1, 2))
