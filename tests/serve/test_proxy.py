"""Streams through the controller when workers fail: each fault is produced by a real process that has it."""

import time
from collections.abc import Iterator

import pytest
import requests

from benchmarks.servers import free_port, wait_until
from serve.fleet import Fleet, Member, answer, open_stream, records_of, register
from tinyserve.serve.wire import RecordDecoder

FAST = 1e6  # this worker is chosen first under shortest_queue while both are idle


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet


def address(controller: Member) -> str:
    return str(controller.post("/get_worker_address", {"model": "timed"}).json()["address"])


def test_a_worker_that_cannot_be_reached_is_passed_over_until_it_beats(fleet: Fleet) -> None:
    controller = fleet.controller()
    live = fleet.timed_worker(controller, "--tokens", "3")
    dead = f"http://127.0.0.1:{free_port()}"
    register(controller, dead, speed=FAST)
    assert records_of(open_stream(controller))[-1]["text"] == answer(3)
    assert {address(controller) for _ in range(5)} == {live.url}
    controller.post("/receive_heart_beat", {"worker_name": dead, "queue_length": 0})
    assert address(controller) == dead


def test_a_worker_registered_by_hand_comes_back_when_it_answers_again(fleet: Fleet) -> None:
    controller = fleet.controller("--heart-beat-sweep", "0.1")
    port = free_port()
    register(controller, f"http://127.0.0.1:{port}", check_heart_beat=False)
    (record,) = records_of(open_stream(controller))
    assert record["error_code"] == 3
    assert f":{port}" in record["text"]
    assert address(controller) == ""
    fleet._start("tests.serve.faulty_worker", port, "--fault", "split")
    wait_until("the sweep finds it", lambda: address(controller) != "", 10)


def test_a_killed_worker_ends_its_streams_with_a_record_and_the_next_request_goes_elsewhere(fleet: Fleet) -> None:
    controller = fleet.controller()
    first = fleet.timed_worker(controller, "--tokens", "100000", "--interval", "0.01")
    stream = open_stream(controller, max_new_tokens=100000)
    decoder, records = RecordDecoder(), []
    second = fleet.timed_worker(controller, "--tokens", "3", model="timed")
    for data in stream.iter_content(chunk_size=None):
        records += decoder.feed(data)
        if len(records) >= 3 and first.server.process.poll() is None:
            first.server.kill()
    decoder.finish()
    *good, last = records
    assert {record["error_code"] for record in good} == {0}
    assert last["error_code"] == 3
    assert first.url in last["text"]
    for _ in range(3):
        assert records_of(open_stream(controller))[-1]["text"] == answer(3)
    wait_until("the dead worker is not handed out", lambda: address(controller) == second.url, 10)


@pytest.mark.parametrize("fault", ["die", "half_record"])
def test_a_broken_stream_keeps_its_whole_records_and_ends_in_an_error(fleet: Fleet, fault: str) -> None:
    controller = fleet.controller()
    worker = fleet.faulty_worker(controller, fault)
    *good, last = records_of(open_stream(controller))
    assert [record["text"] for record in good] == (["a", "a b"] if fault == "die" else ["a"])
    assert last["error_code"] == 3
    assert worker.url in last["text"]
    assert controller.status()["queue_length"] == 0


@pytest.mark.parametrize("fault", ["headers_only", "error_500"])
def test_another_worker_takes_over_before_the_first_record(fleet: Fleet, fault: str) -> None:
    controller = fleet.controller()
    fleet.timed_worker(controller, "--tokens", "3")
    fleet.faulty_worker(controller, fault, speed=FAST)
    records = records_of(open_stream(controller))
    assert [record["text"] for record in records] == [answer(index + 1) for index in range(3)]


def test_a_request_that_kills_workers_does_not_kill_them_all(fleet: Fleet) -> None:
    controller = fleet.controller()
    workers = [fleet.faulty_worker(controller, "die_first") for _ in range(3)]
    (record,) = records_of(open_stream(controller))
    assert record["error_code"] == 3
    assert sum(worker.server.process.poll() is not None for worker in workers) <= 2


def test_a_silent_worker_is_given_up_and_named(fleet: Fleet) -> None:
    controller = fleet.controller(
        "--next-token-timeout", "0.3", "--first-token-timeout", "0.6", "--probe-timeout", "0.2"
    )
    stalling = fleet.faulty_worker(controller, "stall")
    *_, last = records_of(open_stream(controller))
    assert (last["error_code"], "0.3 s" in last["text"]) == (3, True)
    stalling.server.kill()
    fleet.faulty_worker(controller, "hang", speed=FAST)
    began = time.monotonic()
    (record,) = records_of(open_stream(controller))
    assert (record["error_code"], "0.6 s" in record["text"]) == (3, True)
    assert time.monotonic() - began < 5


def test_a_workers_refusal_reaches_the_client(fleet: Fleet) -> None:
    controller = fleet.controller()
    fleet.faulty_worker(controller, "refuse")
    response = open_stream(controller)
    assert response.status_code == 422
    assert response.json() == {"detail": "temperature must be a number"}


@pytest.mark.parametrize("fault", ["web_page", "redirect"])
def test_what_is_no_worker_never_reaches_the_client(fleet: Fleet, fault: str) -> None:
    controller = fleet.controller()
    fleet.faulty_worker(controller, fault)
    response = open_stream(controller)
    assert b"secret" not in response.content
    if response.status_code == 200:
        assert b'"error_code": 3' in response.content


def test_records_cut_anywhere_arrive_whole(fleet: Fleet) -> None:
    controller = fleet.controller()
    fleet.faulty_worker(controller, "split")
    response = open_stream(controller)
    pieces = [data for data in response.raw.stream(1 << 20)]
    assert all(piece.endswith(b"\0") for piece in pieces)
    assert b"".join(pieces).count(b"\0") == 2


def test_when_the_client_leaves_the_worker_stops(fleet: Fleet) -> None:
    controller = fleet.controller()
    worker = fleet.timed_worker(controller, "--tokens", "100000", "--interval", "0.01")
    stream = open_stream(controller, max_new_tokens=100000)
    next(stream.iter_content(chunk_size=None))
    assert requests.get(worker.url + "/health", timeout=5).json()["num_running"] == 1
    stream.close()
    for member in (worker, controller):
        wait_until("the stream ends", lambda m=member: m.status()["queue_length"] == 0, 5)  # type: ignore[misc]
