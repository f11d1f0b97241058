"""The record format: what goes over the wire is exactly what the protocol says, however the network cuts it."""

import json

import pytest

from tinyserve.serve import wire

TEXTS = [
    "",
    "plain",
    'quote " and \\ slash',
    "line\nbreak\ttab",
    "zero \0 inside",
    "Zürich 東京",
    "emoji 🙂 end",
    "\x1f\x7f",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_record_is_ascii_json_and_one_zero_byte(text: str) -> None:
    data = wire.encode({"text": text, "error_code": 0})
    assert data.endswith(b"\0")
    assert data.count(b"\0") == 1
    assert data.isascii()
    assert json.loads(data[:-1]) == {"text": text, "error_code": 0}


def test_cumulative_records_start_with_the_prefix() -> None:
    encoder = wire.RecordEncoder(prefix='Say "hi" 🙂\n')
    so_far = 'Say "hi" 🙂\n'
    for count, text in enumerate(TEXTS, start=1):
        so_far += text
        record = json.loads(encoder.encode(text, 7, count, None)[:-1])
        assert record == {
            "text": so_far,
            "error_code": 0,
            "usage": {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count},
            "finish_reason": None,
        }


def test_delta_records_hold_the_new_text_alone() -> None:
    encoder = wire.RecordEncoder(prefix="the prompt", cumulative=False)
    texts = [json.loads(encoder.encode(text, 1, 1, None)[:-1])["text"] for text in TEXTS]
    assert texts == TEXTS


def test_the_fast_encoder_writes_what_json_dumps_would() -> None:
    fast = wire.RecordEncoder(prefix="päß ").encode("a\0b", 3, 4, "stop")
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert fast == wire.encode({"text": "päß a\0b", "error_code": 0, "usage": usage, "finish_reason": "stop"})


def test_prompt_tokens_from_the_cache_are_told_as_openai_does() -> None:
    record = json.loads(wire.RecordEncoder().encode("a", 30, 4, None, cached_tokens=16)[:-1])
    assert record["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": 4,
        "total_tokens": 34,
        "prompt_tokens_details": {"cached_tokens": 16},
    }


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_decoder_does_not_care_where_the_network_cuts(size: int) -> None:
    records = [{"text": text, "error_code": 0} for text in TEXTS]
    stream = b"".join(map(wire.encode, records))
    decoder = wire.RecordDecoder()
    decoded = [record for at in range(0, len(stream), size) for record in decoder.feed(stream[at : at + size])]
    decoder.finish()
    assert decoded == records


def test_decoder_reports_a_stream_that_ends_inside_a_record() -> None:
    decoder = wire.RecordDecoder()
    assert decoder.feed(wire.encode({"text": "a"}) + b'{"text": "b') == [{"text": "a"}]
    with pytest.raises(ValueError, match="ended inside a record"):
        decoder.finish()


@pytest.mark.parametrize("data", [b"not json\0", b"[1, 2]\0", b"\xff\xfe\0"])
def test_decoder_refuses_what_is_not_a_json_object(data: bytes) -> None:
    with pytest.raises(ValueError, match="record"):
        wire.RecordDecoder().feed(data)


def test_error_record_has_a_code_and_no_zero_code() -> None:
    record = json.loads(wire.error_record(wire.ErrorCode.CONTEXT_OVERFLOW, "too long")[:-1])
    assert (record["text"], record["error_code"]) == ("too long", 40303)
    with pytest.raises(ValueError, match="other than 0"):
        wire.error_record(wire.ErrorCode.OK, "fine")


def test_the_records_of_several_samples_say_whose_they_are() -> None:
    encoders = [wire.RecordEncoder("p", True, index) for index in range(2)]
    records = [json.loads(encoder.encode("x", 1, 1, None)[:-1]) for encoder in encoders]
    assert [(record["index"], record["text"]) for record in records] == [(0, "px"), (1, "px")]
    assert "index" not in json.loads(wire.RecordEncoder("p").encode("x", 1, 1, None)[:-1])


def test_log_probabilities_are_a_member_of_the_record() -> None:
    record = json.loads(wire.RecordEncoder().encode("x", 1, 1, "stop", logprobs=b'{"tokens": ["x"]}')[:-1])
    assert record["logprobs"] == {"tokens": ["x"]}
    assert record["finish_reason"] == "stop"


def test_what_is_left_of_one_answer_is_its_last_record() -> None:
    encoder, last = wire.RecordEncoder(), wire.LastRecords()
    for count, text in enumerate(TEXTS, start=1):
        last.add(encoder.encode(text, 7, count, None))
    assert json.loads(last.joined())["text"] == "".join(TEXTS)


def test_what_is_left_of_several_answers_is_a_list_of_each_and_the_newest_totals() -> None:
    last = wire.LastRecords()
    encoders = [wire.RecordEncoder("", True, index) for index in range(11)]
    total = 0
    for count in (1, 2):
        for index in reversed(range(11)):
            total += 1
            reason = None if count == 1 else "stop"
            last.add(encoders[index].encode(f"{index} ", 7, total, reason, logprobs=b"[%d]" % index))
    assert json.loads(last.joined()) == {
        "text": [f"{index} {index} " for index in range(11)],
        "error_code": 0,
        "usage": {"prompt_tokens": 7, "completion_tokens": 22, "total_tokens": 29},
        "finish_reason": ["stop"] * 11,
        "logprobs": [[index] for index in range(11)],
    }


def test_an_error_is_all_that_is_left_of_several_answers() -> None:
    last = wire.LastRecords()
    last.add(wire.RecordEncoder("", True, 0).encode("x", 1, 1, None))
    last.add(wire.error_record(50001, "out of luck"))
    assert json.loads(last.joined()) == {"text": "out of luck", "error_code": 50001, "finish_reason": "error"}
