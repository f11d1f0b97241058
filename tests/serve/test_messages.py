"""What the messages of the control plane must contain."""

from typing import Any

import pytest

from tinyserve.serve.address import check_worker_address
from tinyserve.serve.messages import FieldError, HeartBeat, Registration, WorkerStatus, parse_model

STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}
REGISTRATION = {"worker_name": "http://localhost:21002", "check_heart_beat": True, "worker_status": STATUS}


@pytest.mark.parametrize(
    "address",
    ["http://localhost:21002", "https://10.0.0.1:1", "http://model_worker-1.local", "http://[::1]:65535"],
)
def test_addresses_that_workers_have(address: str) -> None:
    assert check_worker_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost:21002",
        "ftp://localhost:21002",
        "http://",
        "http://localhost:21002/",
        "http://localhost:21002/path",
        "http://user@localhost:21002",
        "http://localhost:21002?x=1",
        "http://localhost:21002#x",
        "http://localhost:0",
        "http://localhost:65536",
        "http://localhost:",
        "http://local host:1",
        "http://localhost\\@evil:1",
        "http://localhost:1\n",
        "http://[::1",
        "file:///etc/passwd",
        "http://" + "a" * 400,
    ],
)
def test_addresses_that_no_worker_has(address: str) -> None:
    with pytest.raises(ValueError, match=r"http\(s\)://host\[:port\]"):
        check_worker_address(address)


def test_a_registration_of_each_kind_of_worker() -> None:
    llava = Registration.parse(REGISTRATION)
    assert llava.worker_status == WorkerStatus(("m",), 1, 0)
    assert not llava.multimodal
    assert Registration.parse({**REGISTRATION, "multimodal": True}).multimodal  # FastChat's
    assert Registration.parse({**REGISTRATION, "worker_status": None}).worker_status is None  # register_worker.py


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"worker_name": 5}, "worker_name"),
        ({"worker_name": "localhost"}, "worker_name"),
        ({"check_heart_beat": "yes"}, "check_heart_beat"),
        ({"multimodal": 1}, "multimodal"),
        ({"worker_status": [1]}, "worker_status"),
        ({"worker_status": {"speed": 1, "queue_length": 0}}, "worker_status.model_names"),
        ({"worker_status": {**STATUS, "model_names": "m"}}, "worker_status.model_names"),
        ({"worker_status": {**STATUS, "model_names": [""]}}, "worker_status.model_names"),
        ({"worker_status": {**STATUS, "model_names": ["\ud800"]}}, "worker_status.model_names"),
        ({"worker_status": {**STATUS, "model_names": ["m"] * 1000}}, "worker_status.model_names"),
        ({"worker_status": {**STATUS, "speed": -1}}, "worker_status.speed"),
        ({"worker_status": {**STATUS, "speed": float("nan")}}, "worker_status.speed"),
        ({"worker_status": {**STATUS, "speed": 10**400}}, "worker_status.speed"),
        ({"worker_status": {**STATUS, "speed": True}}, "worker_status.speed"),
        ({"worker_status": {**STATUS, "queue_length": -1}}, "worker_status.queue_length"),
        ({"worker_status": {**STATUS, "queue_length": 1.5}}, "worker_status.queue_length"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        Registration.parse({**REGISTRATION, **change})
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize("field", ["worker_name", "check_heart_beat"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(FieldError, match=f"{field} is missing"):
        Registration.parse({name: value for name, value in REGISTRATION.items() if name != field})


def test_heart_beats_and_lookups() -> None:
    assert HeartBeat.parse({"worker_name": "http://a:1", "queue_length": 3}) == HeartBeat("http://a:1", 3)
    with pytest.raises(FieldError, match="queue_length is missing"):
        HeartBeat.parse({"worker_name": "http://a:1"})
    assert parse_model({"model": "m"}) == "m"
    for wrong in ({}, {"model": None}, {"model": ""}, {"model": ["m"]}, {"model": "x" * 600}):
        with pytest.raises(FieldError, match=r"^model "):
            parse_model(wrong)
