"""The `logprobs` of a stream's records, in the form of FastChat's workers, which is that of OpenAI's completions.

    {"text_offset": [...], "tokens": [...], "token_logprobs": [...], "top_logprobs": [{token: logprob, ...}, ...]}

It concerns the answer's tokens; the prompt's have no log probabilities, echoed or not. It knows no records.
"""

import json
from collections.abc import Sequence

from tinyserve.engine.request import TokenLogprobs


class LogprobsEncoder:
    """Encodes each token once; cumulative records copy what is there, as they do with the text.

    Args:
        offset: characters in front of the first token: the length of an echoed prompt.
        cumulative: False gives the new tokens alone.
    """

    def __init__(self, offset: int, cumulative: bool) -> None:
        self._offset = offset
        self._cumulative = cumulative
        self._offsets, self._tokens, self._logprobs, self._tops = (bytearray() for _ in range(4))

    def encode(self, new: Sequence[TokenLogprobs]) -> bytes:
        """The JSON object that tells about `new`, and in a cumulative stream about all before."""
        if not self._cumulative:
            self._offsets, self._tokens, self._logprobs, self._tops = (bytearray() for _ in range(4))
        for one in new:
            # Two tokens may have the same text: the likelier one is shown. The token itself is always there.
            top = dict(reversed([*one.top, (one.token, one.logprob)]))
            for items, value in (
                (self._offsets, self._offset),
                (self._tokens, one.token),
                (self._logprobs, one.logprob),
                (self._tops, dict(sorted(top.items(), key=lambda item: -item[1]))),
            ):
                items += (b", " if items else b"") + json.dumps(value).encode("ascii")
            self._offset += len(one.token)
        lists = (self._offsets, self._tokens, self._logprobs, self._tops)
        return b'{"text_offset": [%b], "tokens": [%b], "token_logprobs": [%b], "top_logprobs": [%b]}' % tuple(
            bytes(items) for items in lists
        )
