"""Requests as clients of all three lineages send them, and every kind of mistake in them."""

from typing import Any

import pytest

from tinyserve.config import Grammar, SamplingParams
from tinyserve.engine.generator import RequestError
from tinyserve.serve.generate_params import parse

LLAVA = {"model": "m", "prompt": "p", "temperature": 0.2, "top_p": 0.7, "max_new_tokens": 512, "stop": "</s>"}
FASTCHAT = {
    "model": "m",
    "prompt": "p",
    "temperature": 0.7,
    "logprobs": None,
    "top_p": 1.0,
    "top_k": -1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "max_new_tokens": 8155,
    "echo": False,
    "stop_token_ids": None,
    "best_of": None,
    "use_beam_search": False,
    "stop": [],
}


def refusal(**fields: Any) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        parse({"prompt": "p", **fields})
    return caught.value.code, str(caught.value)


def test_only_the_prompt_is_needed() -> None:
    request = parse({"prompt": "p"})
    assert (request.prompt, request.model, request.echo, request.cumulative) == ("p", None, True, True)
    assert request.sampling == SamplingParams()


def test_what_llava_sends() -> None:
    request = parse({**LLAVA, "images": []})
    assert request.sampling == SamplingParams(max_new_tokens=512, temperature=0.2, top_p=0.7, stop=("</s>",))
    assert request.echo


def test_what_fastchat_sends() -> None:
    request = parse(FASTCHAT)
    assert request.sampling == SamplingParams(max_new_tokens=8155, temperature=0.7)
    assert not request.echo


def test_all_of_our_own_fields() -> None:
    fields = {"seed": 7, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "stop_token_ids": [1, 2]}
    request = parse({"prompt": "p", "stop": ["a", "b"], "stream_format": "delta", **fields})
    expected = SamplingParams(
        seed=7, min_p=0.1, repetition_penalty=1.1, ignore_eos=True, stop_token_ids=(1, 2), stop=("a", "b")
    )
    assert request.sampling == expected
    assert not request.cumulative


def test_what_openai_s_and_vllm_s_clients_send() -> None:
    fields = {"n": 3, "best_of": 3, "logprobs": 5, "logit_bias": {"7": -100, "12": 1.5}, "min_tokens": 4}
    request = parse({"prompt": "p", "use_beam_search": False, "guided_regex": "a+", **fields})
    assert request.n == 3
    assert request.sampling == SamplingParams(
        logprobs=5, logit_bias=((7, -100.0), (12, 1.5)), min_tokens=4, grammar=Grammar("regex", "a+", "guided_regex")
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": None}, None),
        ({"logprobs": False}, None),
        ({"logprobs": 0}, 0),
        ({"logprobs": 20}, 20),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 4}, 4),
    ],
)
def test_log_probabilities_are_asked_for_as_completions_or_as_chats_do(fields: Any, expected: int | None) -> None:
    assert parse({"prompt": "p", **fields}).sampling.logprobs == expected


def test_a_conversation_in_place_of_a_prompt_is_never_echoed() -> None:
    messages = [{"role": "user", "content": "hi", "name": "ignored"}]
    request = parse({"messages": messages, "echo": True})
    assert request.messages == ({"role": "user", "content": "hi"},)
    assert not request.echo


def test_a_slider_sends_whole_numbers_as_floats() -> None:
    assert parse({"prompt": "p", "max_new_tokens": 512.0}).sampling.max_new_tokens == 512


def test_an_empty_stop_string_stops_nothing() -> None:
    assert parse({"prompt": "p", "stop": ""}).sampling.stop == ()
    assert parse({"prompt": "p", "stop": ["", "x"]}).sampling.stop == ("x",)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("prompt", 5, "a string"),
        ("prompt", ["p"], "a string"),
        ("model", 5, "a string"),
        ("temperature", "0.7", "a number"),
        ("temperature", True, "a number"),
        ("top_p", [], "a number"),
        ("top_k", 1.5, "a whole number"),
        ("max_new_tokens", "many", "a whole number"),
        ("max_new_tokens", 1.5, "a whole number"),
        ("repetition_penalty", {}, "a number"),
        ("seed", "x", "a whole number"),
        ("priority", "high", "a whole number"),
        ("stop", 5, "a string or a list of strings"),
        ("stop", [5], "a string or a list of strings"),
        ("stop_token_ids", ["</s>"], "a list of whole numbers"),
        ("stop_token_ids", 2, "a list of whole numbers"),
        ("echo", "yes", "true or false"),
        ("ignore_eos", 1, "true or false"),
        ("n", "2", "a whole number"),
        ("best_of", 1.5, "a whole number"),
        ("use_beam_search", "no", "true or false"),
        ("min_tokens", "4", "a whole number"),
        ("logprobs", "5", "a whole number"),
        ("logprobs", 2.5, "a whole number"),
        ("logit_bias", [5], "an object of token ids and numbers"),
        ("logit_bias", {"-1": 5}, "an object of token ids and numbers"),
        ("logit_bias", {"x": 5}, "an object of token ids and numbers"),
        ("logit_bias", {"5": "high"}, "a number"),
        ("logit_bias", {"5": None}, "a number"),
        ("stream_format", "sse", "cumulative or delta"),
        ("stream_format", 1, "a string"),
    ],
)
def test_a_wrong_type_names_field_value_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    code, message = refusal(**{field: value})
    assert code == 40001
    assert field in message
    assert allowed in message
    assert str(value) in message or isinstance(value, dict)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 10**400),
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 10**400),
        ("top_p", 1.1),
        ("top_p", -1),
        ("top_k", -2),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("seed", -1),
        ("seed", 2**64),
        ("priority", -1001),
        ("priority", 10**9),
        ("stop", "x" * 5000),
        ("stop", ["x"] * 100),
        ("stop_token_ids", [1] * 1000),
        ("stop", ["x"] * 5000),
        ("n", 0),
        ("n", 17),
        ("n", 10**400),
        ("best_of", 2),
        ("min_tokens", -1),
        ("min_tokens", 257),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"5": float("nan")}),
        ("logit_bias", {str(token_id): 1 for token_id in range(2000)}),
    ],
)
def test_a_value_out_of_range_names_the_field(field: str, value: Any) -> None:
    code, message = refusal(**{field: value})
    assert code == 40302
    assert message.startswith(field)
    assert len(message) < 300


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "either prompt or messages, got neither"),
        ({"prompt": None}, "got neither"),
        ({"prompt": "p", "messages": [{"role": "user", "content": "x"}]}, "got both"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": []}, "messages must be a list of at least one"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            r"messages\[0\].role must be one of system, user, assistant",
        ),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content must be a string"),
        ({"prompt": "p", "images": "aGk="}, "images must be a list of base64 strings"),
        ({"prompt": "\ud800"}, "prompt is not valid Unicode"),
        ({"prompt": "p", "use_beam_search": True}, "use_beam_search must be false"),
        ({"prompt": "p", "top_logprobs": 5}, "top_logprobs needs logprobs true, got None"),
        ({"prompt": "p", "top_logprobs": 5, "logprobs": 5}, "top_logprobs needs logprobs true, got 5"),
        ({"prompt": "p", "top_logprobs": 5, "logprobs": False}, "top_logprobs needs logprobs true, got False"),
        ({"prompt": "p", "guided_regex": "a", "guided_json": {}}, "only one form of output"),
        ({"prompt": "p", "stop": "\udfff"}, "stop is not valid Unicode"),
    ],
)
def test_a_request_that_makes_no_sense(body: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse(body)
    assert caught.value.code == 40001


def test_too_many_messages() -> None:
    with pytest.raises(RequestError, match="messages must be at most 1000") as caught:
        parse({"messages": [{"role": "user", "content": "x"}] * 1001})
    assert caught.value.code == 40302
