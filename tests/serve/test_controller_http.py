"""A controller process and its routes: shapes of replies, mistakes of callers, expiry, restart, the worker's secret."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from serve.fleet import Fleet, Member, answer, open_stream, records_of, register

from benchmarks.servers import free_port, start, wait_until

STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}
REGISTRATION = {"worker_name": "http://127.0.0.1:9", "check_heart_beat": True, "worker_status": STATUS}


@pytest.fixture(scope="module")
def controller() -> Iterator[Member]:
    """For tests that leave no worker behind, or do not care."""
    with Fleet() as fleet:
        yield fleet.controller("--max-body-bytes", "100000")


def models(controller: Member) -> list[str]:
    return list(controller.post("/list_models").json()["models"])


def test_the_replies_of_every_route() -> None:
    with Fleet() as fleet:
        controller = fleet.controller()
        first = fleet.timed_worker(controller, model="b")
        second = fleet.timed_worker(controller, model="a")
        assert models(controller) == ["a", "b"]
        assert controller.post("/list_language_models").json() == {"models": ["a", "b"]}
        assert controller.post("/list_multimodal_models").json() == {"models": []}
        assert controller.post("/get_worker_address", {"model": "b"}).json() == {"address": first.url}
        assert controller.post("/get_worker_address", {"model": "none"}).json() == {"address": ""}
        beat = {"worker_name": second.url, "queue_length": 0}
        assert controller.post("/receive_heart_beat", beat).json() == {"exist": True}
        unknown = {**beat, "worker_name": "http://127.0.0.1:9"}
        assert controller.post("/receive_heart_beat", unknown).json() == {"exist": False}
        assert controller.status()["model_names"] == ["a", "b"]
        assert controller.status()["speed"] == 2
        refreshed = controller.post("/refresh_all_workers")
        assert (refreshed.status_code, refreshed.json()) == (200, None)
        assert requests.get(controller.url + "/test_connection", timeout=5).json() == "success"
        health = controller.health()
        assert health == {"status": "ok", "workers": 2, "models": ["a", "b"]}


def test_many_streams_at_once_each_get_their_own_text() -> None:
    with Fleet() as fleet, ThreadPoolExecutor(32) as pool:
        controller = fleet.controller()
        for _ in range(2):
            fleet.timed_worker(controller, "--tokens", "20", "--interval", "0.02")
        prompts = [f"prompt {index}: " for index in range(32)]
        streams = list(pool.map(lambda prompt: records_of(open_stream(controller, prompt)), prompts))
        for prompt, records in zip(prompts, streams, strict=True):
            assert [record["text"] for record in records] == [answer(index + 1, prompt) for index in range(20)]
            assert {record["error_code"] for record in records} == {0}
        wait_until("the queues are empty", lambda: controller.status()["queue_length"] == 0, 10)


def test_shortest_queue_spreads_running_streams_over_the_workers() -> None:
    with Fleet() as fleet:
        controller = fleet.controller("--dispatch-method", "shortest_queue")
        workers = [fleet.timed_worker(controller, "--tokens", "100000") for _ in range(2)]
        streams = [open_stream(controller, max_new_tokens=100000) for _ in range(6)]
        try:
            counts = [worker.status()["queue_length"] for worker in workers]
            assert counts == [3, 3]
            assert controller.status()["queue_length"] == 6
        finally:
            for stream in streams:
                stream.close()
        for member in (*workers, controller):
            wait_until("streams end with their clients", lambda m=member: m.status()["queue_length"] == 0, 10)  # type: ignore[misc]


def test_lottery_follows_the_speeds() -> None:
    speeds = {"http://127.0.0.1:11": 1.0, "http://127.0.0.1:12": 3.0, "http://127.0.0.1:13": 0.0}
    with Fleet() as fleet, requests.Session() as session:
        controller = fleet.controller("--dispatch-method", "lottery")
        for url, speed in speeds.items():
            register(controller, url, speed=speed)
        url, body = controller.url + "/get_worker_address", {"model": "timed"}
        drawn = Counter(session.post(url, json=body, timeout=5).json()["address"] for _ in range(300))
        assert set(drawn) == {"http://127.0.0.1:11", "http://127.0.0.1:12"}
        assert abs(drawn["http://127.0.0.1:12"] - 225) < 5 * (300 * 0.75 * 0.25) ** 0.5  # five standard deviations


@pytest.mark.parametrize(
    ("route", "body", "status", "names"),
    [
        ("/register_worker", b"", 400, "JSON"),
        ("/register_worker", b"{", 400, "JSON"),
        ("/register_worker", b"\xff\xfe", 400, "JSON"),
        ("/register_worker", b"[" * 100000, 400, "JSON"),
        ("/register_worker", b"[]", 422, "object"),
        ("/register_worker", {}, 422, "worker_name"),
        ("/register_worker", {**REGISTRATION, "worker_name": "http://a/b"}, 422, "worker_name"),
        ("/register_worker", {**REGISTRATION, "check_heart_beat": 1}, 422, "check_heart_beat"),
        ("/register_worker", {**REGISTRATION, "worker_status": {**STATUS, "speed": "1"}}, 422, "worker_status.speed"),
        ("/register_worker", {**REGISTRATION, "worker_status": None}, 400, "worker_name"),  # nobody answers there
        ("/receive_heart_beat", {"worker_name": "http://127.0.0.1:9"}, 422, "queue_length"),
        ("/receive_heart_beat", {"worker_name": 1, "queue_length": 1}, 422, "worker_name"),
        ("/receive_heart_beat", {"worker_name": "http://127.0.0.1:9", "queue_length": "1"}, 422, "queue_length"),
        ("/get_worker_address", {}, 422, "model"),
        ("/get_worker_address", {"model": None}, 422, "model"),
        ("/get_worker_address", b"null", 422, "object"),
        ("/worker_generate_stream", b"not json", 400, "JSON"),
        ("/worker_generate_stream", b'{"model": "m", "prompt": }', 400, "JSON"),
        ("/worker_generate_stream", b'"text"', 422, "object"),
        ("/worker_generate_stream", {"prompt": "hello"}, 422, "model"),
        ("/worker_generate_stream", {"model": ["m"], "prompt": "hello"}, 422, "model"),
        ("/worker_generate_stream", {"model": "m", "prompt": "x" * 100000}, 413, "--max-body-bytes"),
    ],
)
def test_a_callers_mistake_is_a_4xx_that_names_it(
    controller: Member, route: str, body: Any, status: int, names: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = requests.post(controller.url + route, data=data, timeout=30)
    assert response.status_code == status, response.text
    assert names in response.json()["detail"]
    assert controller.health()["status"] == "ok"


def test_an_unknown_route_or_method_is_a_4xx(controller: Member) -> None:
    assert controller.post("/no_such_route").status_code == 404
    assert requests.get(controller.url + "/list_models", timeout=5).status_code == 405
    assert requests.get(controller.url + "/worker_generate_stream", timeout=5).status_code == 405


def test_an_unknown_model_is_one_record_that_names_it_and_the_others(controller: Member) -> None:
    register(controller, "http://127.0.0.1:9", models=("known",))
    (record,) = records_of(open_stream(controller, model="ünknown"))
    assert record["error_code"] == 2
    assert "'ünknown'" in record["text"]
    assert "known" in record["text"]


def test_workers_without_beats_expire_and_others_stay() -> None:
    with Fleet() as fleet:
        controller = fleet.controller("--heart-beat-sweep", "0.1", "--heart-beat-expiration", "1")
        register(controller, "http://127.0.0.1:11", ("silent",))
        register(controller, "http://127.0.0.1:12", ("by hand",), check_heart_beat=False)
        fleet.timed_worker(controller, "--heartbeat-interval", "0.3", model="beating")
        wait_until("the silent worker goes", lambda: "silent" not in models(controller), 10)
        deadline = time.monotonic() + 1.5  # longer than the expiry
        while time.monotonic() < deadline:
            assert models(controller) == ["beating", "by hand"]


def test_workers_come_back_after_a_restart_of_the_controller() -> None:
    port = free_port()
    with Fleet() as fleet:
        controller = fleet.controller(port=port)
        worker = fleet.timed_worker(controller, "--tokens", "3", "--heartbeat-interval", "0.3")
        controller.server.kill()
        time.sleep(0.5)  # more than one beat gets lost
        controller = fleet.controller(port=port)
        wait_until("the worker registers again", lambda: models(controller) == ["timed"], 15)
        assert records_of(open_stream(controller))[-1]["text"] == answer(3)
        assert worker.status()["queue_length"] == 0


def test_only_workers_with_the_secret_may_register_and_beat() -> None:
    with Fleet() as fleet:
        controller = fleet.controller("--worker-token", "open sesame")
        beat = {"worker_name": "http://127.0.0.1:9", "queue_length": 0}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
            for route, body in (("/register_worker", REGISTRATION), ("/receive_heart_beat", beat)):
                response = controller.post(route, body, headers=headers)
                assert response.status_code == 401
                assert "--worker-token" in response.json()["detail"]
        assert models(controller) == []
        assert controller.post("/register_worker", {**REGISTRATION, "worker_token": "open sesame"}).status_code == 200
        fleet.timed_worker(controller, token="open sesame")
        assert models(controller) == ["m", "timed"]


def test_refresh_asks_all_workers_at_once_and_never_empties_the_table() -> None:
    with Fleet() as fleet, ThreadPoolExecutor(2) as pool:
        controller = fleet.controller("--probe-timeout", "1")
        live = fleet.timed_worker(controller)
        for _ in range(3):
            fleet.faulty_worker(controller, "hang")
        began = time.monotonic()
        refreshes = [pool.submit(controller.post, "/refresh_all_workers") for _ in range(2)]
        while not all(refresh.done() for refresh in refreshes):
            assert models(controller) == ["timed"]
        assert time.monotonic() - began < 2.5  # one after the other would be 3 s, twice that for two callers
        health = controller.health()
        assert (health["workers"], health["models"]) == (1, ["timed"])
        assert controller.post("/get_worker_address", {"model": "timed"}).json() == {"address": live.url}


def test_a_controller_can_stand_behind_another_one() -> None:
    with Fleet() as fleet:
        inner, outer = fleet.controller(), fleet.controller()
        fleet.timed_worker(inner, "--tokens", "3")
        body = {"worker_name": inner.url, "check_heart_beat": False, "worker_status": None}
        assert outer.post("/register_worker", body).status_code == 200
        assert records_of(open_stream(outer))[-1]["text"] == answer(3)


def test_a_ring_of_controllers_ends() -> None:
    with Fleet() as fleet:
        controller = fleet.controller()
        register(controller, controller.url)
        response = open_stream(controller)
        assert response.status_code == 422
        assert "ring" in response.json()["detail"]


def test_sigterm_ends_in_order_and_a_taken_port_is_named() -> None:
    with Fleet() as fleet:
        controller = fleet.controller("--grace-period", "1")
        fleet.timed_worker(controller, "--tokens", "100000")
        port = controller.url.rpartition(":")[2]
        with start("tinyserve.serve.controller", ["--host", "127.0.0.1", "--port", port]) as second:
            assert second.process.wait(30) == 1
            assert port in second.output()
            assert "--port" in second.output()
        stream = open_stream(controller, max_new_tokens=100000)
        assert controller.server.stop() == 0
        assert records_of(stream)[-1]["error_code"] == 3
