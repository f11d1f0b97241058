"""Health means that tokens move."""

from tinyserve.engine.generator import EngineStats
from tinyserve.serve.health import ProgressWatch


def stats(running: int = 1, waiting: int = 0, generated: int = 0, free: int = 9) -> EngineStats:
    return EngineStats(running, waiting, free, 10, generated)


def test_an_idle_engine_is_healthy_for_ever() -> None:
    watch = ProgressWatch(10, now=0)
    assert watch.observe(stats(running=0), 1) is None
    assert watch.observe(stats(running=0), 1e6) is None


def test_an_engine_that_has_work_and_does_not_move_is_stalled() -> None:
    watch = ProgressWatch(10, now=0)
    assert watch.observe(stats(generated=5), 100) is None
    assert watch.observe(stats(generated=5), 109) is None
    assert watch.observe(stats(generated=5), 110) == 10
    assert watch.observe(stats(generated=6), 111) is None


def test_work_that_waits_and_is_never_begun_counts_as_a_stall() -> None:
    watch = ProgressWatch(10, now=0)
    watch.observe(stats(running=0, waiting=1), 0)
    assert watch.observe(stats(running=0, waiting=1), 20) == 20


def test_a_long_prefill_moves_blocks_before_tokens() -> None:
    watch = ProgressWatch(10, now=0)
    for second in range(0, 60, 5):
        assert watch.observe(stats(free=100 - second), second) is None


def test_time_spent_idle_does_not_count() -> None:
    watch = ProgressWatch(10, now=0)
    watch.observe(stats(running=0, generated=5), 1000)
    assert watch.observe(stats(running=1, generated=5), 1005) is None
