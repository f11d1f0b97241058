"""Guesses the next tokens of a text: what followed the last time its last tokens stood there.

Summaries, code and answers that quote their prompt repeat whole phrases (prompt lookup decoding, Saxena 2023). Whether
a guess was right is decided by the model, see engine.py; here are only tokens.
"""

import itertools
from collections.abc import Sequence

SIZE = 3  # tokens that must have stood together before; fewer guess more often, and wrong


class NgramIndex:
    """Where each run of SIZE tokens of one request has last ended. Constant time per token."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = SIZE  # every run that ends before this position is known

    def guess(self, token_ids: Sequence[int], limit: int) -> tuple[int, ...]:
        """At most `limit` tokens that may come next; none when the last tokens are new.

        Args:
            token_ids: all tokens so far; those of the last call and more.
        """
        for end in range(self._num_indexed, len(token_ids)):
            self._ends[tuple(token_ids[end - SIZE : end])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids))
        end = self._ends.get(tuple(token_ids[-SIZE:]), len(token_ids))
        # No guess is an image: the ids of placeholders are below 0.
        return tuple(itertools.takewhile(lambda token_id: token_id >= 0, token_ids[end : end + limit]))
