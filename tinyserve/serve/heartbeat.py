"""How the controller watches its workers: how often it looks, and after how long a silence it gives one up.

The third setting, how often a worker beats, is the worker's (worker_heartbeat.py); other systems have one for all.
Knows no HTTP and no table: what to do at each look is passed in.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeartBeatSettings:
    """In seconds. The defaults let two beats of 30 s get lost, and suit workers that beat every 15 or 45 s as well."""

    sweep: float = 30.0  # between two looks
    expiry: float = 90.0  # of silence, then the worker is removed

    def __post_init__(self) -> None:
        for name in ("sweep", "expiry"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ValueError(f"heart beat {name} must be a number of seconds above 0, got {value!r}")


async def sweep_forever(sweep: Callable[[], object], seconds: float) -> None:
    """Calls `sweep` every `seconds`, until cancelled. One failing sweep does not end the watch."""
    while True:
        await asyncio.sleep(seconds)
        try:
            sweep()
        except Exception:
            logger.exception("a sweep over the workers failed; the next one is in %g s", seconds)
