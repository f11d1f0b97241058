"""logit_bias and the tokens that must not come yet."""

import math

import torch

from tinyserve.config import SamplingParams
from tinyserve.engine.bias import TokenBias, add_bias


def test_each_row_gets_its_own_bias() -> None:
    logits = torch.ones(4, 5)
    biases = [
        TokenBias(SamplingParams(logit_bias=((1, 100.0), (3, -2.5))), ()),
        TokenBias(SamplingParams(), ()),
        TokenBias(SamplingParams(logit_bias=((1, 0.5),)), ()),
    ]
    add_bias(logits, [0, 2, 3], [bias.at(0) for bias in biases])
    assert logits.tolist() == [[1, 101, 1, -1.5, 1], [1] * 5, [1] * 5, [1, 1.5, 1, 1, 1]]


def test_an_end_is_forbidden_until_there_are_enough_tokens_even_with_a_bias_for_it() -> None:
    bias = TokenBias(SamplingParams(min_tokens=2, logit_bias=((4, 100.0), (0, 1.0))), {4, 2})
    for num_tokens, expected in ((0, -math.inf), (1, -math.inf), (2, 100.0)):
        logits = torch.zeros(1, 5)
        add_bias(logits, [0], [bias.at(num_tokens)])
        assert logits[0, 4] == expected
        assert logits[0, 2] == min(expected, 0.0)
        assert logits[0, [0, 1, 3]].tolist() == [1.0, 0.0, 0.0]
