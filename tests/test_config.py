"""Settings are validated when they are built; a message names the setting, what came and what is allowed."""

import math
from pathlib import Path
from typing import Any

import pytest

from tinyserve.config import EngineConfig, Grammar, SamplingParams


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be between 1 and 1048576, got 0"),
        ({"temperature": -0.1}, "temperature must be between 0.0 and 100.0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be between 0.0 and 100.0, got nan"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1, got 1.5"),
        ({"top_p": "0.5"}, "top_p must be between 0 and 1, got '0.5'"),
        ({"temperature": True}, "temperature must be between 0.0 and 100.0, got True"),
        ({"top_k": 1.5}, "top_k must be a whole number, got 1.5"),
        ({"max_new_tokens": "8"}, "max_new_tokens must be"),
        ({"min_tokens": 300}, "min_tokens must be between 0 and max_new_tokens, which is 256, got 300"),
        ({"logprobs": 21}, "logprobs must be between 0 and 20, got 21"),
        ({"logit_bias": ((5, 101.0),)}, r"logit_bias.5. must be between -100.0 and 100.0, got 101.0"),
        ({"logit_bias": ((5, 1.0),) * 1025}, "logit_bias must be at most 1024 token ids, got '1025 token ids'"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": -2}, "top_k must be -1 .all. or at least 1, got -2"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be between 0.01 and 100.0, got 0.0"),
        ({"presence_penalty": 2.5}, "presence_penalty must be between -2.0 and 2.0, got 2.5"),
        ({"frequency_penalty": -3.0}, "frequency_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ("a",) * 17}, "stop must be at most 16, got '17 strings'"),
        ({"stop": ("",)}, "stop must be 1 to 1024 characters, got ''"),
        ({"stop": ("x" * 1025,)}, "stop must be 1 to 1024 characters"),
        ({"stop_token_ids": (1,) * 129}, "stop_token_ids must be at most 128, got '129 ids'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sampling_parameters_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("xml", "x"), "kind must be json_schema, regex, grammar, got 'xml'"),
        (("regex", "", "guided_regex"), "guided_regex must be 1 to 65536 characters, got '0 characters'"),
        (("regex", "a" * 65537), "grammar must be 1 to 65536 characters, got '65537 characters'"),
    ],
)
def test_a_grammar_that_is_none_is_refused(settings: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grammar(*settings)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}, {"temperature": 9e-4}])
def test_what_counts_as_greedy(settings: dict[str, Any]) -> None:
    assert SamplingParams(**settings).greedy
    assert not SamplingParams().greedy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "W8A8"}, "precision must be W4A16 or W16A16, got 'W8A8'"),
        ({"dtype": "int8"}, "dtype must be auto, float16, bfloat16, float32, got 'int8'"),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype must be auto, int8 or fp8, got 'int4'"),
        ({"cpu_compute": "int4"}, "cpu_compute must be int8 or exact, got 'int4'"),
        ({"lm_head_dtype": "int4"}, "lm_head_dtype must be auto or int8, got 'int4'"),
        ({"block_size": 12}, "block_size must be 8, 16, 32, 64 or 128, got 12"),
        ({"max_num_requests": 0}, "max_num_requests"),
        ({"max_batch_tokens": 8}, "max_batch_tokens"),
        ({"max_context": 0}, "max_context"),
        ({"max_slowdown": 1.0}, "max_slowdown must be above 1, got 1.0"),
        ({"min_step_ms": -1.0}, "min_step_ms must be between 0.0 and 60000.0, got -1.0"),
        ({"kv_cache_bytes": 1000}, "kv_cache_bytes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_engine_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(Path("model"), **settings)
