"""`Controller` as a library class, with the signatures of its specification."""

import pytest
from serve.fleet import Fleet

from tinyserve.serve.controller import Controller, main
from tinyserve.serve.messages import FieldError

STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}
A, B = "http://localhost:1", "http://localhost:2"


@pytest.mark.parametrize("method", ["lottery", "shortest_queue"])
def test_register_list_look_up_and_remove(method: str) -> None:
    controller = Controller(dispatch_method=method)
    assert controller.register_worker(worker_name=A, check_heart_beat=True, worker_status=STATUS) is True
    assert controller.list_models() == ["m"]
    assert controller.get_worker_address(model_name="m") == A
    assert controller.get_worker_address("other") == ""
    assert controller.receive_heart_beat(A, 0) is True
    controller.remove_worker(A)
    controller.remove_worker(A)
    assert controller.list_models() == []
    assert controller.get_worker_address("m") == ""
    assert controller.receive_heart_beat(A, 0) is False


def test_addresses_handed_out_spread_over_the_workers() -> None:
    controller = Controller("shortest_queue")
    for name in (A, B):
        controller.register_worker(name, True, STATUS)
    assert sorted(controller.get_worker_address("m") for _ in range(10)) == [A] * 5 + [B] * 5


def test_status_is_the_sum_over_the_workers() -> None:
    controller = Controller("shortest_queue")
    controller.register_worker(A, True, {"model_names": ["n", "m"], "speed": 2, "queue_length": 3})
    controller.register_worker(B, True, {"model_names": ["m"], "speed": 1, "queue_length": 1})
    assert controller.get_status() == {"model_names": ["m", "n"], "speed": 3, "queue_length": 4}


def test_a_malformed_registration_and_an_unknown_method_are_refused() -> None:
    with pytest.raises(ValueError, match="lottery, shortest_queue"):
        Controller("random")
    with pytest.raises(FieldError, match=r"worker_status\.speed"):
        Controller("lottery").register_worker(A, True, {**STATUS, "speed": "fast"})


def test_without_a_status_the_worker_is_asked_and_refresh_removes_silent_ones() -> None:
    controller = Controller("shortest_queue")
    with Fleet() as fleet:
        worker = fleet.timed_worker(None)
        assert controller.register_worker(worker.url, True, None) is True
        controller.register_worker("http://127.0.0.1:9", True, STATUS)
        assert controller.register_worker("http://127.0.0.1:9", True, None) is False
        controller.refresh_all_workers()
        assert controller.list_models() == ["timed"]
    controller.refresh_all_workers()
    assert controller.list_models() == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--dispatch-method", "fastest"],
        ["--port", "http"],
        ["--heart-beat-expiration", "0"],
        ["--max-body-bytes", "-1"],
        ["--no-such-flag"],
    ],
    ids=lambda flags: flags[0],
)
def test_wrong_flags_are_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == 2
    assert flags[0] in capsys.readouterr().err
