"""The ways to ask for a form of the answer, and every kind of mistake in them."""

import json
from typing import Any

import pytest

from tinyserve.config import MAX_GRAMMAR_CHARACTERS, Grammar
from tinyserve.engine.generator import RequestError
from tinyserve.serve.output_format import ANY_OBJECT, parse_grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
OPENAI = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"response_format": None, "structured_outputs": None, "guided_json": None}, None),
        ({"response_format": {"type": "text"}, "guided_json_object": False}, None),
        ({"response_format": OPENAI}, ("json_schema", json.dumps(SCHEMA), "response_format.json_schema.schema")),
        ({"response_format": {"type": "json_object"}}, ("json_schema", ANY_OBJECT, "response_format")),
        ({"guided_json": SCHEMA}, ("json_schema", json.dumps(SCHEMA), "guided_json")),
        ({"guided_json": json.dumps(SCHEMA)}, ("json_schema", json.dumps(SCHEMA), "guided_json")),
        ({"guided_regex": "a+"}, ("regex", "a+", "guided_regex")),
        ({"guided_grammar": 'start: "a"'}, ("grammar", 'start: "a"', "guided_grammar")),
        ({"guided_choice": ["a", 'b"\n']}, ("grammar", 'start: "a" | "b\\"\\n"', "guided_choice")),
        ({"structured_outputs": {"regex": "a+", "json": None}}, ("regex", "a+", "structured_outputs.regex")),
        ({"structured_outputs": {"json_object": True}}, ("json_schema", ANY_OBJECT, "structured_outputs.json_object")),
        ({"structured_outputs": {}}, None),
    ],
)
def test_every_way_to_ask(body: dict[str, Any], expected: tuple[Any, str, str] | None) -> None:
    assert parse_grammar(body) == (None if expected is None else Grammar(*expected))


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"response_format": "json"}, 40001, "response_format must be an object"),
        ({"response_format": {}}, 40001, "response_format.type must be text, json_object or json_schema, got None"),
        ({"response_format": {"type": "xml"}}, 40001, "response_format.type .* got 'xml'"),
        ({"response_format": {"type": "json_schema"}}, 40001, "response_format.json_schema must be an object with"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, 40001, "an object with a schema"),
        ({"guided_json": 5}, 40001, "guided_json must be a JSON schema"),
        ({"guided_json": ""}, 40302, "guided_json must be 1 to 65536 characters, got '0 characters'"),
        ({"guided_regex": ["a"]}, 40001, "guided_regex must be a string"),
        ({"guided_regex": "a" * (MAX_GRAMMAR_CHARACTERS + 1)}, 40302, "guided_regex must be 1 to 65536 characters"),
        ({"guided_regex": "\ud800"}, 40001, "guided_regex is not valid Unicode"),
        ({"guided_choice": []}, 40001, "guided_choice must be a list of strings"),
        ({"guided_choice": ["a", 5]}, 40001, "guided_choice must be a list of strings"),
        ({"guided_choice": ["a", ""]}, 40001, "guided_choice must be a list of strings that are not empty"),
        ({"guided_json_object": 1}, 40001, "guided_json_object must be true or false"),
        ({"structured_outputs": "regex"}, 40001, "structured_outputs must be an object"),
        ({"structured_outputs": {"xml": "x"}}, 40001, r"structured_outputs.xml must be left out"),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            40001,
            "only one form of output can be asked for, got guided_regex and response_format",
        ),
        (
            {"structured_outputs": {"json": {}, "regex": "a"}},
            40001,
            "structured_outputs.json and structured_outputs.reg",
        ),
    ],
)
def test_a_mistake_names_the_field(body: dict[str, Any], code: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_grammar(body)
    assert caught.value.code == code
    assert len(str(caught.value)) < 300


def test_a_schema_nested_too_deep_to_be_written_down() -> None:
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"not": value}
    with pytest.raises(RequestError, match="guided_json must be less deeply nested, got 'an object'"):
        parse_grammar({"guided_json": value})
    while value:  # taken apart here, where it cannot overflow the stack
        value = value["not"]
