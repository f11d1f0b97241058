"""One answer on its way: gathers the engine's chunks and turns them into the records of the wire.

It decides when a record is due. What a record looks like is decided in wire.py and logprobs_encoder.py.
"""

from tinyserve.engine.request import Chunk, TokenLogprobs
from tinyserve.serve.generate_params import GenerateParams
from tinyserve.serve.logprobs_encoder import LogprobsEncoder
from tinyserve.serve.wire import RecordEncoder


class Answer:
    """
    Args:
        request: which asks for it.
        prompt: the text in front of it.
        index: which of several samples it is; told in its records where there are several.
        interval: tokens between two records.
    """

    def __init__(self, request: GenerateParams, prompt: str, index: int, interval: int) -> None:
        prefix = prompt if request.echo else ""
        self._records = RecordEncoder(prefix, request.cumulative, index if request.n > 1 else None)
        self._asks_logprobs = request.sampling.logprobs is not None
        self._logprobs = LogprobsEncoder(len(prefix) if request.cumulative else 0, request.cumulative)
        self._interval = interval
        self._text, self._num_new = "", 0  # since the last record
        self._new_logprobs: list[TokenLogprobs] = []
        self.num_tokens = 0  # of the answer so far

    def add(self, chunk: Chunk) -> bool:
        """Takes what became new. True: a record is due."""
        self._text += chunk.text
        self._num_new += len(chunk.token_ids)
        self._new_logprobs += chunk.logprobs
        self.num_tokens = chunk.num_completion_tokens
        return chunk.finish_reason is not None or self._num_new >= self._interval

    def record(self, last: Chunk, completion_tokens: int) -> bytes:
        """The record that is due after the chunk `last`; `completion_tokens` are those of all samples."""
        logprobs = self._logprobs.encode(self._new_logprobs) if self._asks_logprobs else None
        record = self._records.encode(
            self._text,
            last.num_prompt_tokens,
            completion_tokens,
            last.finish_reason,
            last.num_cached_tokens,
            logprobs,
            last.timing,
        )
        self._text, self._num_new = "", 0
        self._new_logprobs = []
        return record
