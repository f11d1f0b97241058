"""The attention layer on a mixed batch: a decode, a prefill and a prefill that continues, in one call."""

import torch
from torch import Tensor

from tinyserve.layers.attention import Attention, BatchLayout, LayerCache
from tinyserve.layers.linear import Linear
from tinyserve.layers.rope import RopeConfig, cos_sin_table

HEADS, KV_HEADS, D, C, S = 4, 2, 32, 64, 8


def layout(spans: list[tuple[int, int]], tables: list[list[int]]) -> BatchLayout:
    """For requests whose tokens first..last are in the batch, with the given blocks."""
    positions = [position for first, last in spans for position in range(first, last)]
    slots = [
        table[position // S] * S + position % S
        for (first, last), table in zip(spans, tables, strict=True)
        for position in range(first, last)
    ]
    starts = [0]
    for first, last in spans:
        starts.append(starts[-1] + last - first)
    return BatchLayout(*(_int32(x) for x in (positions, slots, tables, starts, [last for _, last in spans])))


def _int32(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_a_mixed_batch_gives_each_request_what_it_gets_alone() -> None:
    torch.manual_seed(0)
    cos_sin = cos_sin_table(RopeConfig(rotary_dim=D), 64, torch.device("cpu"))
    attention = Attention(
        Linear(torch.randn((HEADS + 2 * KV_HEADS) * D, C) * 0.1),
        Linear(torch.randn(C, HEADS * D) * 0.1),
        cos_sin,
        HEADS,
        D**-0.5,
    )
    lengths = (11, 20, 16)
    inputs = [torch.randn(length, C) for length in lengths]
    tables = [[5, 0, 9], [3, 8, 1], [2, 7, 6]]

    def cache() -> LayerCache:
        return LayerCache(torch.zeros(10, KV_HEADS, S, D), torch.zeros(10, KV_HEADS, S, D))

    def attend(x: Tensor, layout: BatchLayout, cache: LayerCache) -> Tensor:
        return attention.out(attention.attend(attention.qkv(x), layout, cache))

    alone = [attend(x, layout([(0, len(x))], [table]), cache()) for x, table in zip(inputs, tables, strict=True)]
    shared = cache()
    begun = torch.cat([inputs[0][:10], inputs[2][:7]])
    attend(begun, layout([(0, 10), (0, 7)], [tables[0], tables[2]]), shared)
    spans = [(10, 11), (0, 20), (7, 16)]
    flat = torch.cat([x[first:last] for x, (first, last) in zip(inputs, spans, strict=True)])
    got = attend(flat, layout(spans, tables), shared)
    expected = torch.cat([x[first:last] for x, (first, last) in zip(alone, spans, strict=True)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
