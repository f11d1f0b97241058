"""The peers' layouts, read back as their kernels read them."""

import pytest
import torch
from torch import Tensor

from awq.quantize import QuantizedTensor, dequantize
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers import machete, marlin, nibbles, tinygemm, torchao
from benchmarks.kernels.peers.humming import checkpoint
from benchmarks.kernels.peers.peer import Unavailable
from benchmarks.kernels.weights import random_weight
from benchmarks.shapes import Shape

N, K, GROUP = 128, 256, 64


@pytest.fixture(params=[torch.float16, torch.bfloat16])
def weight(request: pytest.FixtureRequest) -> QuantizedTensor:
    return random_weight(N, K, GROUP, request.param, "cpu")


def nibble(words: Tensor, place: int) -> Tensor:
    return words >> 4 * place & 0xF


def test_a_word_holds_its_first_number_lowest() -> None:
    numbers = torch.arange(16, dtype=torch.uint8).view(2, 8)
    words = nibbles.pack_last(numbers)
    assert [hex(int(word) & 0xFFFFFFFF) for word in words] == ["0x76543210", "0xfedcba98"]
    assert torch.equal(nibbles.pack_rows(numbers.t()), words.view(1, 2))


def test_marlin_codes_are_the_operand_of_its_lanes(weight: QuantizedTensor) -> None:
    """Of mma.m16n8k16's second operand, lane l holds column l / 4 and rows 2 * (l % 4) + {0, 1}, then those + 8.

    A lane's word has two such operands; after a mask, nibbles i and i + 4 are the halves of one register.
    """
    words = marlin.pack_codes(weight.codes)
    assert words.shape == (K // 16, 2 * N)
    for k_tile in range(K // 16):
        tile_words = words[k_tile].view(N // 64, 32, 4)
        for lane in range(32):
            for register in range(4):
                row = 16 * k_tile + 2 * (lane % 4) + 8 * (register % 2)
                column = torch.arange(N // 16) * 16 + 8 * (register // 2) + lane // 4
                lane_words = tile_words[:, lane].flatten()
                assert torch.equal(nibble(lane_words, register), weight.codes[column, row].int())
                assert torch.equal(nibble(lane_words, register + 4), weight.codes[column, row + 1].int())


def test_marlin_scales_and_zeros_stand_as_its_lanes_read_them(weight: QuantizedTensor) -> None:
    """Lane l's columns l / 4, l / 4 + 8, .. of 64 are 8 numbers in a row; zeros in the codes' order of nibbles."""
    scales = marlin.pack_scales(weight.scales).view(K // GROUP, N // 64, 8, 8)
    zeros = marlin.pack_zeros(weight.zeros).view(K // GROUP, N // 64, 8)
    for group in range(K // GROUP):
        for first in range(8):
            columns = first + 8 * torch.arange(8)
            for tile in range(N // 64):
                assert torch.equal(scales[group, tile, first], weight.scales[64 * tile + columns, group])
                word = zeros[group, tile, first]
                read = torch.stack([nibble(word, place) for place in (0, 4, 1, 5, 2, 6, 3, 7)])
                assert torch.equal(read, weight.zeros[64 * tile + columns, group].int())


def test_tinygemm_computes_with_its_packed_weight() -> None:
    weight = random_weight(N, K, GROUP, torch.bfloat16, "cpu")
    x = torch.randn(5, K).bfloat16()
    peer = tinygemm.Tinygemm()
    y = peer.multiply(x, peer.pack(weight), Case(Shape(N, K), 5, "bfloat16", GROUP))
    expected = x.float() @ dequantize(weight).t()
    assert (y.float() - expected).norm() / expected.norm() < 1e-2


def test_tinygemm_refuses_float16() -> None:
    with pytest.raises(Unavailable, match="bfloat16"):
        tinygemm.Tinygemm().pack(random_weight(N, K, GROUP, torch.float16, "cpu"))


def test_torchaos_padding_changes_no_product() -> None:
    weight = random_weight(N, K, GROUP, torch.bfloat16, "cpu")
    padded = torchao.padded(weight)
    assert (padded.k, padded.group) == (1024, GROUP)
    assert torch.equal(dequantize(padded)[:, :K], dequantize(weight))
    assert not dequantize(padded)[:, K:].any()


def test_machetes_zeros_carry_their_scales(weight: QuantizedTensor) -> None:
    zeros = machete.negated_zeros(weight)
    codes = weight.codes.view(N, -1, GROUP).float()
    restored = codes * weight.scales.float().unsqueeze(2) + zeros.t().float().unsqueeze(2)
    error = (restored.view(N, K) - dequantize(weight)).norm() / dequantize(weight).norm()
    assert error < 1e-2


def test_hummings_tensors_are_those_of_a_checkpoint(weight: QuantizedTensor) -> None:
    tensors = checkpoint(weight)
    codes = torch.stack([nibble(tensors["weight"], place) for place in range(8)], dim=2).view(N, K)
    zeros = torch.stack([nibble(tensors["zero_point"], place) for place in range(8)], dim=1).view(N, -1)
    assert torch.equal(codes, weight.codes.int())
    assert torch.equal(zeros, weight.zeros.int())
