"""What one request's sampling remembers from token to token. It does nothing to logits; sampler.py reads it."""

import random
from collections.abc import Collection, Sequence

from torch import Tensor

from tinyserve.config import SamplingParams
from tinyserve.engine.bias import TokenBias
from tinyserve.engine.constraint import Constraint
from tinyserve.engine.penalties import SeenTokens, has_penalties


class SamplingState:
    """
    Args:
        params: the request's.
        prompt_ids: for the repetition penalty, which counts the prompt.
        seed: used where the parameters have none.
        end_ids: tokens that end the text, which `min_tokens` keeps away.
        constraint: the request's grammar; it knows about ends and `min_tokens` itself.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        seed: int,
        end_ids: Collection[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.num_output_tokens = 0  # that are known
        self.ahead: list[tuple[Tensor, int]] = []  # launched, and not known yet: Launched.tokens and the row
        self.seen = SeenTokens(params, prompt_ids) if has_penalties(params) else None
        held_ids = end_ids if params.min_tokens and constraint is None else ()
        self.bias = TokenBias(params, held_ids) if params.logit_bias or held_ids else None
        self.constraint = constraint
        self._random = random.Random(seed if params.seed is None else params.seed)

    @property
    def needs_result(self) -> bool:
        """Whether a token can be launched only once the one before it is known."""
        return self.constraint is not None

    @property
    def changes_logits(self) -> bool:
        return self.seen is not None or self.bias is not None or self.constraint is not None

    @property
    def is_complete(self) -> bool:
        """The grammar allows nothing more."""
        return self.constraint is not None and self.constraint.is_complete

    def draw(self) -> float:
        """The next token's number in [0, 1); greedy choice takes none."""
        return 0.0 if self.params.greedy else self._random.random()

    def add(self, token_id: int) -> None:
        """Remembers a token of the output, which `Launched.result` does. Raises SamplingError when the grammar cannot
        go on."""
        self.num_output_tokens += 1
        if self.constraint is not None:
            self.constraint.accept(token_id)
        if self.seen is not None:
            self.seen.add(token_id)
