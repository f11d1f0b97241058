"""What form the whole answer must have: the JSON of a client, in each of the ways that OpenAI's and vLLM's clients ask.

    response_format      {"type": "text" | "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}}
    structured_outputs   {"json": ...}, {"regex": ...}, {"choice": [...]}, {"grammar": ...} or {"json_object": true}
    guided_json, guided_regex, guided_choice, guided_grammar, guided_json_object   the same, a field for each

A schema is an object or its text; a grammar is Lark or GBNF. One form at most: two would contradict each other. JSON
comes without whitespace between its parts. Whether a grammar compiles is the engine's business.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tinyserve.config import Grammar
from tinyserve.engine.generator import RequestError
from tinyserve.serve import fields
from tinyserve.serve.wire import ErrorCode

ANY_OBJECT = json.dumps({"type": "object"})


def parse_grammar(body: Mapping[str, Any]) -> Grammar | None:
    """
    Raises:
        RequestError: 40001 for a wrong type or two forms at once, 40302 for a grammar of more than 65536 characters.
    """
    structured = body.get("structured_outputs")
    if structured is not None and not isinstance(structured, dict):
        raise fields.wrong_type("structured_outputs", structured, "an object")
    asked: list[tuple[str, str, Any]] = []  # field, form, value
    for form in _FORMS:
        asked.append((f"guided_{form}", form, body.get(f"guided_{form}")))
        asked.append((f"structured_outputs.{form}", form, (structured or {}).get(form)))
    unknown = sorted(set(structured or ()) - set(_FORMS))
    if unknown:
        raise fields.wrong_type(f"structured_outputs.{unknown[0]}", (structured or {})[unknown[0]], "left out")
    asked.append(_response_format(body))
    given = [(field, form, value) for field, form, value in asked if value is not None and value is not False]
    if len(given) > 1:
        names = " and ".join(field for field, _, _ in given)
        raise RequestError(ErrorCode.VALIDATION, f"only one form of output can be asked for, got {names}")
    if not given:
        return None
    field, form, value = given[0]
    try:
        return _FORMS[form](field, value)
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(ErrorCode.OUT_OF_RANGE, str(error)) from error


def _response_format(body: Mapping[str, Any]) -> tuple[str, str, Any]:
    """OpenAI's field, as one of the forms."""
    value = body.get("response_format")
    if value is None:
        return "response_format", "json", None
    if not isinstance(value, dict):
        raise fields.wrong_type("response_format", value, "an object")
    kind = value.get("type")
    if kind == "text":
        return "response_format", "json", None
    if kind == "json_object":
        return "response_format", "json_object", True
    if kind != "json_schema":
        raise fields.wrong_type("response_format.type", kind, "text, json_object or json_schema")
    inner = value.get("json_schema")
    if not isinstance(inner, dict) or inner.get("schema") is None:
        raise fields.wrong_type("response_format.json_schema", inner, "an object with a schema")
    return "response_format.json_schema.schema", "json", inner["schema"]


def _json(field: str, value: Any) -> Grammar:
    if not isinstance(value, dict | str):
        raise fields.wrong_type(field, value, "a JSON schema, as an object or as text")
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        raise fields.wrong_type(field, "an object", "less deeply nested") from None
    return Grammar("json_schema", fields.valid_unicode(field, text), field)


def _json_object(field: str, value: Any) -> Grammar:
    if value is not True:
        raise fields.wrong_type(field, value, "true or false")
    return Grammar("json_schema", ANY_OBJECT, field)


def _regex(field: str, value: Any) -> Grammar:
    return Grammar("regex", _string(field, value), field)


def _grammar(field: str, value: Any) -> Grammar:
    return Grammar("grammar", _string(field, value), field)


def _choice(field: str, value: Any) -> Grammar:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise fields.wrong_type(field, value, "a list of strings that are not empty")
    choices = [json.dumps(fields.valid_unicode(field, each), ensure_ascii=False) for each in value]
    return Grammar("grammar", "start: " + " | ".join(choices), field)


def _string(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise fields.wrong_type(field, value, "a string")
    return fields.valid_unicode(field, value)


_FORMS: dict[str, Callable[[str, Any], Grammar]] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
