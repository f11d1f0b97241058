"""Streams through the controller when workers fail: each fault is produced by a real process that has it.

All tests share one controller; each has a model name of its own, so that their workers do not mix.
"""

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve.fleet import Fleet, Member, answer, open_stream, records_of, register

from benchmarks.servers import free_port, wait_until
from tinyserve.serve.wire import Record, RecordDecoder

FAST = 1e6  # under shortest_queue the worker with this speed is chosen first


@pytest.fixture(scope="module")
def controller() -> Iterator[Member]:
    flags = ["--heart-beat-sweep", "1", "--next-token-timeout", "2", "--first-token-timeout", "3"]
    with Fleet() as fleet:
        yield fleet.controller(*flags, "--probe-timeout", "0.5")


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def address(controller: Member, model: str) -> str:
    return str(controller.post("/get_worker_address", {"model": model}).json()["address"])


def test_a_worker_that_cannot_be_reached_is_passed_over_until_it_beats(
    fleet: Fleet, controller: Member, model: str
) -> None:
    live = fleet.timed_worker(controller, "--tokens", "3", model=model)
    dead = f"http://127.0.0.1:{free_port()}"
    register(controller, dead, (model,), speed=FAST)
    assert records_of(open_stream(controller, model=model))[-1]["text"] == answer(3)
    assert {address(controller, model) for _ in range(5)} == {live.url}
    controller.post("/receive_heart_beat", {"worker_name": dead, "queue_length": 0})
    assert address(controller, model) == dead


def test_a_worker_registered_by_hand_comes_back_when_it_answers_again(
    fleet: Fleet, controller: Member, model: str
) -> None:
    port = free_port()
    register(controller, f"http://127.0.0.1:{port}", (model,), check_heart_beat=False)
    (record,) = records_of(open_stream(controller, model=model))
    assert record["error_code"] == 3
    assert f":{port}" in record["text"]
    assert address(controller, model) == ""
    fleet.start("tests.serve.faulty_worker", "--fault", "split", "--model", model, port=port)
    wait_until("the controller finds it", lambda: address(controller, model) != "", 10)


def test_a_killed_worker_ends_its_streams_with_a_record_and_the_next_request_goes_elsewhere(
    fleet: Fleet, controller: Member, model: str
) -> None:
    first = fleet.timed_worker(controller, "--tokens", "100000", "--interval", "0.01", model=model)
    stream = open_stream(controller, model=model, max_new_tokens=100000)
    second = fleet.timed_worker(controller, "--tokens", "3", model=model)
    decoder, records = RecordDecoder(), []
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
        assert records_of(open_stream(controller, model=model))[-1]["text"] == answer(3)
    wait_until("the dead worker is not handed out", lambda: address(controller, model) == second.url, 10)


@pytest.mark.parametrize("fault", ["die", "half_record"])
def test_a_broken_stream_keeps_its_whole_records_and_ends_in_an_error(
    fleet: Fleet, controller: Member, model: str, fault: str
) -> None:
    worker = fleet.faulty_worker(controller, fault, model)
    *good, last = records_of(open_stream(controller, model=model))
    assert [record["text"] for record in good] == (["a", "a b"] if fault == "die" else ["a"])
    assert last["error_code"] == 3
    assert worker.url in last["text"]


@pytest.mark.parametrize("fault", ["headers_only", "error_500"])
def test_another_worker_takes_over_before_the_first_record(
    fleet: Fleet, controller: Member, model: str, fault: str
) -> None:
    fleet.timed_worker(controller, "--tokens", "3", model=model)
    fleet.faulty_worker(controller, fault, model, speed=FAST)
    records = records_of(open_stream(controller, model=model))
    assert records[-1]["text"] == answer(3)
    assert {record["error_code"] for record in records} == {0}


def test_a_request_that_kills_workers_does_not_kill_them_all(fleet: Fleet, controller: Member, model: str) -> None:
    workers = [fleet.faulty_worker(controller, "die_first", model) for _ in range(3)]
    (record,) = records_of(open_stream(controller, model=model))
    assert record["error_code"] == 3
    assert sum(worker.server.process.poll() is not None for worker in workers) <= 2


@pytest.mark.parametrize(("fault", "limit"), [("stall", 2), ("hang", 3)])
def test_a_silent_worker_is_given_up_after_its_limit(
    fleet: Fleet, controller: Member, model: str, fault: str, limit: int
) -> None:
    worker = fleet.faulty_worker(controller, fault, model)
    began = time.monotonic()
    *_, last = records_of(open_stream(controller, model=model))
    assert limit <= time.monotonic() - began < limit + 5
    assert last["error_code"] == 3
    assert worker.url in last["text"]
    assert f"{limit} s" in last["text"]


def test_a_workers_refusal_reaches_the_client(fleet: Fleet, controller: Member, model: str) -> None:
    fleet.faulty_worker(controller, "refuse", model)
    response = open_stream(controller, model=model)
    assert response.status_code == 422
    assert response.json() == {"detail": "temperature must be a number"}


@pytest.mark.parametrize("fault", ["web_page", "redirect"])
def test_what_is_no_worker_never_reaches_the_client(fleet: Fleet, controller: Member, model: str, fault: str) -> None:
    fleet.faulty_worker(controller, fault, model)
    (record,) = records_of(open_stream(controller, model=model))
    assert record["error_code"] == 3
    assert "secret" not in record["text"]


def test_records_cut_anywhere_arrive_whole(fleet: Fleet, controller: Member, model: str) -> None:
    fleet.faulty_worker(controller, "split", model)
    pieces = list(open_stream(controller, model=model).raw.stream(1 << 20))
    assert all(piece.endswith(b"\0") for piece in pieces)
    assert b"".join(pieces).count(b"\0") == 2


def test_when_the_client_leaves_the_worker_stops(fleet: Fleet, controller: Member, model: str) -> None:
    worker = fleet.timed_worker(controller, "--tokens", "100000", "--interval", "0.01", model=model)
    stream = open_stream(controller, model=model, max_new_tokens=100000)
    pieces = stream.iter_content(chunk_size=None)  # held: dropping it closes the connection
    next(pieces)
    assert worker.health()["num_running"] == 1
    stream.close()
    wait_until("the worker stops", lambda: worker.health()["num_running"] == 0, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="changes the limits of a running process")
def test_a_controller_out_of_connections_says_so_and_blames_no_worker(fleet: Fleet) -> None:
    controller = fleet.controller()  # one without other tests' workers, which it would be probing meanwhile
    fleet.faulty_worker(controller, "split")
    process = controller.server.process.pid
    limits = resource.prlimit(process, resource.RLIMIT_NOFILE)

    def last_record() -> Record:
        """Of a stream whose client takes the last connection, unless an earlier one was still closing."""
        in_use = {int(file.name) for file in Path(f"/proc/{process}/fd").iterdir()}
        _, second_free, *_ = (number for number in range(max(in_use) + 3) if number not in in_use)
        resource.prlimit(process, resource.RLIMIT_NOFILE, (second_free, limits[1]))
        try:
            return records_of(open_stream(controller))[-1]
        finally:
            resource.prlimit(process, resource.RLIMIT_NOFILE, limits)

    wait_until("no connection left", lambda: "controller cannot open another connection" in last_record()["text"], 10)
    assert records_of(open_stream(controller))[-1]["text"] == "a b"
