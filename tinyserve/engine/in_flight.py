"""A step that has been launched and whose tokens nobody has taken yet: the next one may run already.

It keeps what the step will give until the engine asks for it, errors too: one at the launch and one of the GPU, which
shows when somebody waits, are the same to whoever takes the tokens. It decides whether the next step can be planned
before. It knows no scheduler and no text.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyserve.engine import sampler
from tinyserve.engine.model_runner import Due
from tinyserve.engine.request import Request
from tinyserve.engine.sampler import Launched, Sampled
from tinyserve.engine.sampling_state import SamplingState

_log = logging.getLogger(__name__)


class Choice:
    """The next tokens of some rows of logits, chosen all at once; where that fails, one at a time by `results`.

    Args:
        logits: [R, V]; unchanged until `results` where it has failed.
        states: R of them.
    """

    def __init__(self, logits: Tensor, states: Sequence[SamplingState]) -> None:
        self._logits = logits
        self._states = states
        self._launched: Launched | None = None
        self.has_failed = False
        if not states:
            return
        try:
            self._launched = sampler.launch(logits, states)
        except Exception:
            _log.exception("sampling %d requests at once failed: one at a time now", len(states))
            self.has_failed = True

    @property
    def tokens(self) -> Tensor | None:
        """int32 [R] on the device, not waited for; None where there are none yet."""
        return None if self._launched is None else self._launched.tokens

    @property
    def decides_the_next(self) -> bool:
        """Whether a token of one of the rows must be known before the one behind it can be chosen."""
        return self.has_failed or any(state.needs_result for state in self._states)

    def results(self) -> list[Sampled | Exception]:
        """Waits for a token for each row; where a row cannot be sampled from, its error."""
        if self._launched is not None:
            return list(self._launched.result())
        results: list[Sampled | Exception] = []
        for row, state in enumerate(self._states):
            try:
                results += sampler.sample(self._logits[row : row + 1], [state])
            except Exception as error:
                results.append(error)
        return results


@dataclass(frozen=True, eq=False)
class Computed:
    """What a step gives: the logits [R, V] of the requests that are due and of their drafts, and the tokens behind."""

    due: Sequence[Due]
    logits: Tensor
    choice: Choice
    done: torch.cuda.Event | None  # recorded behind it all; None: it is done already

    @classmethod
    def of(cls, due: Sequence[Due], logits: Tensor, choice: Choice) -> "Computed":
        if not logits.is_cuda:
            return cls(due, logits, choice, None)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(logits.device))
        return cls(due, logits, choice, done)


@dataclass(frozen=True, eq=False)
class InFlight:
    """A launched step."""

    requests: Sequence[Request]  # that run in it
    outcome: Computed | Exception  # what it gives, or why it gives nothing
    num_decodes: int = 0
    num_prefill: int = 0  # tokens of prompts
    started: float = 0.0  # seconds, when its planning began

    @property
    def decides_the_next(self) -> bool:
        """Whether the next step can be planned only when this one's tokens are known.

        So it is with a grammar, whose mask for the next token follows from this one, and after a failure. All else goes
        on with tokens that are on the device only. (Drafts follow from the text so far: with them on, engine.py never
        looks ahead.)
        """
        return isinstance(self.outcome, Exception) or self.outcome.choice.decides_the_next

    @property
    def due(self) -> Sequence[Due]:
        """The requests that it chooses a token for."""
        return () if isinstance(self.outcome, Exception) else self.outcome.due

    def wait(self) -> Computed:
        """Waits until the step is done. Raises what went wrong in it."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome.done is not None:
            self.outcome.done.synchronize()
        return self.outcome
