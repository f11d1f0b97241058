"""How many prompt tokens may run beside decodes, from what steps have cost so far.

Every running stream waits for the step it is in, so a step that also prefills may take at most `max_slowdown` times a
step that only decodes, or `min_step_s` where that is longer. Such a step costs more than the tokens in it (it is not a
recorded one, and its products are of another shape): where decoding takes a few milliseconds, twice that may leave a
prompt next to nothing, and what a reader cannot tell from a smooth stream is the better limit: 20 ms are 50 tokens a
second, several times as fast as anyone reads. Where several prompts wait, each adds a decode step's time: small steps
would keep all of them waiting, and the batch of decodes small. What both cost differs by a factor of a thousand between
machines and models, so it is measured all the time. It knows numbers of tokens and seconds; the clock is the caller's.
"""

import math

MIN_TOKENS = 2  # a prompt moves on even where one token of it costs more than a whole decode step
SMOOTHING = 0.2  # weight of the newest step
MAX_JUMP = 2.0  # what is further from the estimate was held up, or compared with what was, and counts as so far


class Pace:
    """The cost of a decode step, per number of requests in it, and of a prompt token on top of it.

    Args:
        max_slowdown: above 1; infinity: no limit.
        min_step_s: seconds that a step with prompts in it may always take.
    """

    def __init__(self, max_slowdown: float, min_step_s: float = 0.0) -> None:
        self._extra = max_slowdown - 1.0
        self._min_step_s = min_step_s
        self._decode_s: dict[int, float] = {}  # by the bit length of the number of decodes
        self._token_s: float | None = None

    def observe(self, num_decodes: int, num_prefill: int, seconds: float) -> None:
        """One step: requests that decoded, prompt tokens beside them, how long it took."""
        if num_prefill == 0:
            size = num_decodes.bit_length()
            self._decode_s[size] = _smoothed(self._decode_s.get(size), seconds)
        elif num_decodes == 0:
            if self._token_s is None:
                self._token_s = seconds / num_prefill
        elif (decode_s := self._decode_seconds(num_decodes)) is not None:
            self._token_s = _smoothed(self._token_s, (seconds - decode_s) / num_prefill)

    def max_prefill(self, num_decodes: int, num_prompts: int) -> float:
        """Prompt tokens that a step may take beside `num_decodes` requests, when the prompts of `num_prompts` wait.

        Returns:
            Infinity where nothing is known yet.
        """
        decode_s = self._decode_seconds(num_decodes)
        if num_decodes == 0 or decode_s is None or self._token_s is None:
            return math.inf
        first = max(self._extra * decode_s, self._min_step_s - decode_s)
        return max(MIN_TOKENS, (first + max(0, num_prompts - 1) * decode_s) / self._token_s)

    def _decode_seconds(self, num_decodes: int) -> float | None:
        """Of a step with about so many decodes, or else the nearest smaller one: that is too cautious, not too bold."""
        size = max((size for size in self._decode_s if size <= num_decodes.bit_length()), default=None)
        return None if size is None else self._decode_s[size]


def _smoothed(estimate: float | None, seconds: float) -> float:
    if estimate is None:
        return max(seconds, 1e-9)  # a difference of two noisy times may be below nothing
    return estimate + SMOOTHING * (min(max(seconds, estimate / MAX_JUMP), MAX_JUMP * estimate) - estimate)
