"""Turns one request's growing list of tokens into text that is safe to send.

Two things are held back: bytes that do not yet make a character, and text that may become a stop string. It decides
what may leave and where a stop string ends the text; it does not know why else a request ends.
"""

from collections.abc import Sequence

from tinyserve.engine.tokenizer import PARTIAL, Tokenizer

WINDOW = 16  # tokens decoded together before the window is cut
MAX_WINDOW = 64  # where it is cut even if that costs a character: so many tokens without one are garbage
KEPT = 4  # tokens left at least: a character has at most four bytes, a space rule looks one token back


class IncrementalText:
    """New text for each new token, in constant time per token.

    A short window of the last tokens is decoded anew each time, because a token's text depends on its neighbours: it
    may be part of a character, or lose its leading space at the start of a text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = [i for i in prompt_ids[-KEPT:] if i not in tokenizer.special_ids]
        self._num_sent = len(tokenizer.decode(self._window))  # characters of the window that have left

    def add(self, token_id: int) -> str:
        if token_id in self._tokenizer.special_ids:
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        new = self._take(text, len(text.rstrip(PARTIAL)))
        if len(self._window) >= MAX_WINDOW:
            new += self._take(text, len(text))
            self._cut(KEPT)
        elif len(self._window) >= WINDOW and self._num_sent == len(text):
            self._cut_cleanly(text)
        return new

    def flush(self) -> str:
        """What is left when no more tokens come, bytes of an unfinished character as U+FFFD."""
        text = self._tokenizer.decode(self._window)
        return self._take(text, len(text))

    def _take(self, text: str, end: int) -> str:
        new = text[self._num_sent : end]
        self._num_sent = max(self._num_sent, end)
        return new

    def _cut_cleanly(self, text: str) -> None:
        """Drops the oldest tokens where that leaves the others' text as it is: not in the middle of a character."""
        for kept in range(KEPT, len(self._window)):
            shorter = self._tokenizer.decode(self._window[-kept:])
            if shorter and text.endswith(shorter):
                self._cut(kept)
                return

    def _cut(self, kept: int) -> None:
        self._window = self._window[-kept:]
        self._num_sent = len(self._tokenizer.decode(self._window))


class StopMatcher:
    """Finds the first stop string in text that comes in pieces, by Knuth-Morris-Pratt: each character is seen once."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _failure(stop)) for stop in stops]
        self._matched = [0] * len(stops)  # characters of each stop that the text ends with
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Returns the text that may leave, and whether a stop string was found (what follows it is lost)."""
        if not self._stops:
            return text, False
        self._held += text
        start = len(self._held) - len(text)
        for position in range(start, len(self._held)):
            found = self._advance(self._held[position])
            if found:
                out = self._held[: position + 1 - found]
                self._held = ""
                return out, True
        keep = len(self._held) - max(self._matched)
        out, self._held = self._held[:keep], self._held[keep:]
        return out, False

    def flush(self) -> str:
        """Held text that did not become a stop string."""
        out, self._held = self._held, ""
        return out

    def _advance(self, character: str) -> int:
        """Length of the longest stop string that ends with this character, 0 if none does."""
        found = 0
        for index, (stop, failure) in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = failure[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                found = max(found, matched)
                matched = failure[matched - 1]
            self._matched[index] = matched
        return found


def _failure(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper suffix that is also a prefix of `stop`."""
    table = [0] * len(stop)
    matched = 0
    for position in range(1, len(stop)):
        while matched and stop[position] != stop[matched]:
            matched = table[matched - 1]
        if stop[position] == stop[matched]:
            matched += 1
        table[position] = matched
    return table


class Detokenizer:
    """Both together: tokens in, text that may be sent out."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        self._text = IncrementalText(tokenizer, prompt_ids)
        self._stops = StopMatcher(stops)

    def add(self, token_id: int, may_stop: bool = True) -> tuple[str, bool]:
        """Returns the text that may leave now, and whether a stop string has ended it.

        Args:
            may_stop: False: this token's text is no part of any stop string.
        """
        text = self._text.add(token_id)
        return self._stops.add(text) if may_stop else (text, False)

    def flush(self) -> tuple[str, bool]:
        """The rest when the request has ended for another reason; even that may complete a stop string."""
        text, stopped = self._stops.add(self._text.flush())
        return (text, True) if stopped else (text + self._stops.flush(), False)
