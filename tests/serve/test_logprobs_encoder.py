"""The logprobs of records as FastChat's clients read them."""

import json
from typing import Any

import pytest

from tinyserve.engine.request import TokenLogprobs
from tinyserve.serve.logprobs_encoder import LogprobsEncoder

TOKENS = (
    TokenLogprobs(" Paris", -0.25, ((" Paris", -0.25), (" the", -2.0))),
    TokenLogprobs('"\n\u00e9', -9999.0, ((".", -0.5),)),
    TokenLogprobs("!", -1.0, (("\u0120x", -0.1), ("\u0120x", -3.0))),
)
ENCODED: dict[str, list[Any]] = {
    "text_offset": [4, 10, 13],
    "tokens": [" Paris", '"\n\u00e9', "!"],
    "token_logprobs": [-0.25, -9999.0, -1.0],
    "top_logprobs": [
        {" Paris": -0.25, " the": -2.0},
        {".": -0.5, '"\n\u00e9': -9999.0},
        {"\u0120x": -0.1, "!": -1.0},
    ],
}


def encode(encoder: LogprobsEncoder, *tokens: TokenLogprobs) -> dict[str, Any]:
    return json.loads(encoder.encode(tokens))


def test_cumulative_records_hold_all_tokens_so_far() -> None:
    encoder = LogprobsEncoder(4, cumulative=True)
    assert encode(encoder, TOKENS[0]) == {key: values[:1] for key, values in ENCODED.items()}
    assert encode(encoder) == {key: values[:1] for key, values in ENCODED.items()}
    assert encode(encoder, *TOKENS[1:]) == ENCODED


def test_delta_records_hold_the_new_tokens() -> None:
    encoder = LogprobsEncoder(4, cumulative=False)
    assert encode(encoder, *TOKENS[:2]) == {key: values[:2] for key, values in ENCODED.items()}
    assert encode(encoder, TOKENS[2]) == {key: values[2:] for key, values in ENCODED.items()}
    assert encode(encoder) == {key: [] for key in ENCODED}


@pytest.mark.parametrize("cumulative", [True, False])
def test_the_likeliest_alternative_comes_first(cumulative: bool) -> None:
    (top,) = encode(LogprobsEncoder(0, cumulative), TOKENS[2])["top_logprobs"]
    assert list(top) == ["\u0120x", "!"]
