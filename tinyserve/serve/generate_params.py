"""What a generation request asks for: the JSON of a client, checked field by field.

Fields of all lineages are understood: LLaVA's (`prompt`, `temperature`, `top_p`, `max_new_tokens`, `stop`, `images`),
FastChat's (`echo`, `stop_token_ids`, `top_k`, penalties, `logprobs`), OpenAI's and vLLM's (`n`, `seed`, `logit_bias`,
`top_logprobs`, `min_p`, `min_tokens`, `ignore_eos`; the form of the answer: output_format.py) and our own (`messages`,
`stream_format`, `priority`). A null counts as not given and unknown fields are ignored, as upstream does; those that
ask for what is not built are refused. It knows no engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyserve.config import MAX_STOP_CHARACTERS, SamplingParams
from tinyserve.engine.generator import RequestError
from tinyserve.serve import fields
from tinyserve.serve.chat_messages import parse_messages
from tinyserve.serve.image_input import check_number, parse_images
from tinyserve.serve.output_format import parse_grammar
from tinyserve.serve.wire import ErrorCode

MAX_PRIORITY = 1000
MAX_N = 16  # samples of one prompt
MAX_TOKEN_ID_DIGITS = 9


@dataclass(frozen=True)
class GenerateParams:
    """One request. Exactly one of `prompt` and `messages` is given."""

    prompt: str | None
    messages: tuple[dict[str, str], ...] | None  # a conversation, for which the worker applies the model's template
    sampling: SamplingParams
    images: tuple[str, ...] = ()  # base64 or data: URLs, one for each <image> in the prompt or the messages, in order
    priority: int = 0  # the lower, the sooner
    n: int = 1  # samples of the prompt, each a text of its own
    model: str | None = None
    echo: bool = True  # cumulative text starts with the prompt
    cumulative: bool = True  # False ("stream_format": "delta"): a record holds its new text alone


def parse(body: Mapping[str, Any]) -> GenerateParams:
    """Checks a request.

    Raises:
        RequestError: 40001 for a wrong type or a missing prompt, 40302 for a value outside its range; the message names
            the field, what came and what is allowed.
    """
    prompt = fields.text(body, "prompt")
    conversation = parse_messages(body)
    messages = None if conversation is None else tuple(conversation.messages)
    if (prompt is None) == (messages is None):
        what = "neither" if prompt is None else "both"
        raise RequestError(ErrorCode.VALIDATION, f"a request needs either prompt or messages, got {what}")
    stream_format = fields.text(body, "stream_format") or "cumulative"
    if stream_format not in ("cumulative", "delta"):
        raise RequestError(
            ErrorCode.VALIDATION, f"stream_format must be cumulative or delta, got {fields.short(stream_format)}"
        )
    images = parse_images(body) if conversation is None else tuple(conversation.images)
    check_number(images)
    return GenerateParams(
        prompt=prompt,
        messages=messages,
        images=images,
        sampling=_sampling(body),
        priority=_priority(body),
        n=_n(body),
        model=fields.text(body, "model"),
        echo=fields.flag(body, "echo", True) and messages is None,
        cumulative=stream_format == "cumulative",
    )


def with_stop(sampling: SamplingParams, stop: Sequence[str]) -> SamplingParams:
    """With more stop strings. Raises RequestError when there are too many."""
    try:
        return replace(sampling, stop=tuple(dict.fromkeys((*sampling.stop, *stop))))
    except ValueError as error:
        raise RequestError(ErrorCode.OUT_OF_RANGE, str(error)) from error


def _sampling(body: Mapping[str, Any]) -> SamplingParams:
    default = SamplingParams()
    given: dict[str, Any] = {
        "max_new_tokens": fields.whole(body, "max_new_tokens"),
        "min_tokens": fields.whole(body, "min_tokens"),
        "temperature": fields.number(body, "temperature"),
        "top_p": fields.number(body, "top_p"),
        "top_k": fields.whole(body, "top_k"),
        "min_p": fields.number(body, "min_p"),
        "repetition_penalty": fields.number(body, "repetition_penalty"),
        "presence_penalty": fields.number(body, "presence_penalty"),
        "frequency_penalty": fields.number(body, "frequency_penalty"),
        "logit_bias": _logit_bias(body),
        "logprobs": _logprobs(body),
        "seed": fields.whole(body, "seed"),
        "stop": _stop(body),
        "stop_token_ids": _stop_token_ids(body),
        "ignore_eos": fields.flag(body, "ignore_eos", default.ignore_eos),
        "grammar": parse_grammar(body),
    }
    try:
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise RequestError(ErrorCode.OUT_OF_RANGE, str(error)) from error


def _priority(body: Mapping[str, Any]) -> int:
    priority = fields.whole(body, "priority") or 0
    if abs(priority) > MAX_PRIORITY:
        raise RequestError(
            ErrorCode.OUT_OF_RANGE, f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY}, got {priority}"
        )
    return priority


def _n(body: Mapping[str, Any]) -> int:
    n = fields.whole(body, "n")
    n = 1 if n is None else n
    if not 1 <= n <= MAX_N:
        raise RequestError(ErrorCode.OUT_OF_RANGE, f"n must be between 1 and {MAX_N}, got {n}")
    best_of = fields.whole(body, "best_of")
    if best_of not in (None, n):
        raise RequestError(ErrorCode.OUT_OF_RANGE, f"best_of must be n, which is {n}, or left out, got {best_of}")
    if fields.flag(body, "use_beam_search", False):
        raise RequestError(ErrorCode.VALIDATION, "use_beam_search must be false, got True: answers are sampled")
    return n


def _logprobs(body: Mapping[str, Any]) -> int | None:
    """Alternatives for each token: a number, as completions have it, or true and `top_logprobs`, as chats have it."""
    value, number = body.get("logprobs"), fields.whole(body, "top_logprobs")
    if not isinstance(value, bool):
        if number is not None:
            raise RequestError(ErrorCode.VALIDATION, f"top_logprobs needs logprobs true, got {fields.short(value)}")
        return fields.whole(body, "logprobs")
    if number is not None and not value:
        raise RequestError(ErrorCode.VALIDATION, "top_logprobs needs logprobs true, got False")
    return (number or 0) if value else None


def _logit_bias(body: Mapping[str, Any]) -> tuple[tuple[int, float], ...] | None:
    value = body.get("logit_bias")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise fields.wrong_type("logit_bias", value, "an object of token ids and numbers")
    bias: dict[int, float] = {}
    for key, each in value.items():
        if not key.isascii() or not key.isdigit() or len(key) > MAX_TOKEN_ID_DIGITS:
            raise fields.wrong_type("logit_bias", key, "an object of token ids and numbers")
        if each is None:
            raise fields.wrong_type(f"logit_bias[{key}]", each, "a number")
        bias[int(key)] = fields.number({f"logit_bias[{key}]": each}, f"logit_bias[{key}]") or 0.0
    return tuple(bias.items())


def _stop(body: Mapping[str, Any]) -> tuple[str, ...] | None:
    value = body.get("stop")
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise fields.wrong_type(
            "stop", value, f"a string or a list of strings of at most {MAX_STOP_CHARACTERS} characters"
        )
    # An empty stop string, which some conversation templates send, stops nothing.
    return tuple(fields.valid_unicode("stop", text) for text in texts if text)


def _stop_token_ids(body: Mapping[str, Any]) -> tuple[int, ...] | None:
    value = body.get("stop_token_ids")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        raise fields.wrong_type("stop_token_ids", value, "a list of whole numbers")
    return tuple(value)
