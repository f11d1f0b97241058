"""The table of workers with a clock that the test turns."""

import random
from contextlib import suppress

import pytest

from tinyserve.serve.dispatch import shortest_queue
from tinyserve.serve.messages import WorkerStatus
from tinyserve.serve.registry import Registry, Worker

A, B = "http://a:1", "http://b:1"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry(clock, lookup_seconds=30.0)


def status(*models: str, speed: float = 1.0, queue_length: int = 0) -> WorkerStatus:
    return WorkerStatus(models or ("m",), speed, queue_length)


def worker_of(registry: Registry, name: str) -> Worker:
    worker = registry.get(name)
    assert worker is not None
    return worker


def chosen(registry: Registry, model: str = "m") -> str | None:
    worker = registry.choose(model, shortest_queue, random.Random(0))
    return worker.name if worker else None


def test_models_are_listed_sorted_and_once(registry: Registry) -> None:
    registry.register(A, True, status("z", "m"))
    registry.register(B, True, status("m"), multimodal=True)
    assert registry.model_names() == ["m", "z"]
    assert registry.model_names(multimodal=True) == ["m"]
    assert registry.model_names(multimodal=False) == ["m", "z"]


def test_only_silent_workers_that_should_beat_expire(registry: Registry, clock: Clock) -> None:
    registry.register(A, True, status())
    registry.register(B, False, status())
    registry.register("http://c:1", True, status())
    clock.now += 60
    assert registry.heart_beat("http://c:1", 0)
    clock.now += 31
    assert registry.expire(90) == [A]
    assert registry.get(B) is not None
    assert not registry.heart_beat(A, 0)


def test_streams_count_exactly_while_they_run(registry: Registry, clock: Clock) -> None:
    registry.register(A, True, status())
    worker = worker_of(registry, A)
    with registry.stream_through(worker), suppress(RuntimeError), registry.stream_through(worker):
        assert worker.queue_length(clock.now) == 2
        raise RuntimeError
    assert worker.queue_length(clock.now) == 0


def test_a_report_adds_only_what_did_not_come_through_here(registry: Registry, clock: Clock) -> None:
    registry.register(A, True, status())
    worker = worker_of(registry, A)
    with registry.stream_through(worker), registry.stream_through(worker):
        registry.heart_beat(A, 5)
        assert worker.queue_length(clock.now) == 5
    assert worker.queue_length(clock.now) == 3  # ours ended, the others did not
    with registry.stream_through(worker):
        registry.heart_beat(A, 0)  # measured before our request arrived there
        assert worker.queue_length(clock.now) == 1


def test_an_address_handed_out_counts_until_the_next_report_or_a_while(registry: Registry, clock: Clock) -> None:
    registry.register(A, True, status())
    worker = worker_of(registry, A)
    registry.count_lookup(worker)
    registry.count_lookup(worker)
    assert worker.queue_length(clock.now) == 2
    clock.now += 31
    assert worker.queue_length(clock.now) == 0
    registry.count_lookup(worker)
    registry.heart_beat(A, 1)
    assert worker.queue_length(clock.now) == 1


def test_a_suspended_worker_is_hidden_until_it_shows_a_sign_of_life(registry: Registry) -> None:
    registry.register(A, True, status("m"))
    registry.register(B, True, status("m"))
    registry.suspend(worker_of(registry, A), "test")
    assert {chosen(registry) for _ in range(3)} == {B}
    registry.suspend(worker_of(registry, B), "test")
    assert chosen(registry) is None
    assert registry.model_names() == []
    again = registry.choose("m", shortest_queue, random.Random(0), suspended=True)
    assert again is not None
    registry.heart_beat(A, 0)
    assert chosen(registry) == A


def test_registering_again_keeps_the_streams_that_run(registry: Registry, clock: Clock) -> None:
    registry.register(A, True, status())
    with registry.stream_through(worker_of(registry, A)):
        registry.register(A, True, status("m", "n", queue_length=1))
        assert worker_of(registry, A).queue_length(clock.now) == 1
    assert worker_of(registry, A).queue_length(clock.now) == 0
    assert registry.model_names() == ["m", "n"]


def test_speed_zero_takes_no_requests_and_breaks_nothing(registry: Registry) -> None:
    registry.register(A, True, status(speed=0))
    assert chosen(registry) is None
    registry.register(B, True, status(speed=0.5))
    assert chosen(registry) == B


def test_idle_workers_take_turns(registry: Registry) -> None:
    registry.register(A, True, status())
    registry.register(B, True, status())
    assert [chosen(registry) for _ in range(4)] == [A, B, A, B]
