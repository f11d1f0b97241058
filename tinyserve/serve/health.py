"""Tells a worker that produces tokens from one that only answers its port.

A worker is stalled when requests run, wait or have their images encoded, and nothing about the engine has changed for a
while. Knows the engine's counters, not the engine; the clock comes from outside.
"""

from tinyserve.engine.generator import EngineStats


class ProgressWatch:
    """Looks at an engine's counters from time to time and remembers when they last changed."""

    def __init__(self, stall_s: float, now: float) -> None:
        """
        Args:
            stall_s: seconds without any change, with work to do, after which the engine counts as stalled. Above the
                longest single step: a prefill step of `max_batch_tokens` of a large model takes a minute on a CPU.
            now: seconds on the caller's clock.
        """
        self._stall_s = stall_s
        self._last: EngineStats | None = None
        self._changed_at = now

    def observe(self, stats: EngineStats, now: float) -> float | None:
        """Seconds since the engine stalled, None when it is idle or moves."""
        idle = stats.num_running == stats.num_waiting == stats.num_encoding == 0
        if idle or stats != self._last:
            self._last, self._changed_at = stats, now
        silent = now - self._changed_at
        return silent if silent >= self._stall_s else None
