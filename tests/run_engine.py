"""Drives a synchronous engine to the end of its requests and collects what each of them said."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tinyserve.config import SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.engine.request import Chunk, TokenLogprobs


@dataclass
class Result:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    last: Chunk | None = None

    def take(self, chunk: Chunk) -> None:
        assert self.last is None or self.last.finish_reason is None, "a chunk came after the last one"
        self.text += chunk.text
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        self.last = chunk
        assert chunk.num_completion_tokens == len(self.token_ids)

    @property
    def finish_reason(self) -> str | None:
        return self.last.finish_reason if self.last else None


def run(
    engine: Engine, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
) -> list[Result]:
    """Submits all prompts at once; one SamplingParams for all, or one each."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    ids = [engine.add(engine.prepare(prompt, param)) for prompt, param in zip(prompts, each, strict=True)]
    results = {request_id: Result() for request_id in ids}
    while engine.has_work:
        for output in engine.step():
            results[output.request_id].take(output.chunk)
    stats = engine.stats()
    assert stats.free_blocks == stats.total_blocks, "a block has leaked"
    assert stats.num_running == stats.num_waiting == 0
    return [results[request_id] for request_id in ids]
