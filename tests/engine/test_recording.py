"""Recorded decode steps: which numbers of requests, and that nobody can tell them from steps that are not."""

import logging
from collections.abc import Callable

import pytest
import torch
from run_engine import run

from tinyserve.config import SamplingParams
from tinyserve.engine import recording
from tinyserve.engine.engine import Engine
from tinyserve.engine.recording import Graphs, Tapes, bucket_sizes

PARAMS = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)
PROMPTS = [[11], [300, 5, 900], list(range(1000, 1017)), list(range(40, 73)), list(range(500, 560))]


@pytest.mark.parametrize("max_requests", [1, 2, 3, 7, 8, 9, 64, 65, 100, 255, 256, 257, 4096])
def test_a_step_is_padded_by_a_few_rows(max_requests: int) -> None:
    sizes = bucket_sizes(max_requests)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] == min(max_requests, 256)
    for number in range(1, sizes[-1] + 1):
        size = next(size for size in sizes if size >= number)
        assert size - number < (8 if number <= 64 else 16)
        assert size < 2 * number


def test_tapes_are_of_the_very_number_of_requests() -> None:
    assert [Tapes().size(number) for number in (1, 7, 64, 65)] == [1, 7, 64, None]


def test_without_a_capture_nothing_is_recorded() -> None:
    assert Graphs(torch.device("cuda"), 64).size(1) is None


def test_recorded_steps_give_the_same_tokens(make_engine: Callable[..., Engine]) -> None:
    recorded, eager = make_engine(), make_engine(enforce_eager=True)
    assert isinstance(recorded._runner._recordings, Tapes)
    assert eager._runner._recordings is None
    results = [run(engine, PROMPTS, PARAMS) for engine in (recorded, eager)]
    assert [one.token_ids for one in results[0]] == [one.token_ids for one in results[1]]
    assert set(recorded._runner._recordings._tapes) == {5}


def test_a_capture_that_does_not_fit_leaves_larger_steps_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def capture(work: Callable[[], int], pool: object, stream: object) -> int:
        asked.append(work())
        if asked[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return asked[-1]

    free = iter([5_000_000, 2_000_000])
    monkeypatch.setattr(recording, "CudaGraph", capture)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(free), 0))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    graphs = Graphs(torch.device("cuda"), 24)
    with caplog.at_level(logging.INFO):
        graphs.prepare(lambda size: lambda: size)  # type: ignore[arg-type, return-value]
    assert asked == [24, 16, 8, 4, 2, 1]
    assert [graphs.size(number) for number in (1, 3, 8, 9, 24)] == [1, 4, 8, None, None]
    assert [record.getMessage() for record in caplog.records] == [
        "4 CUDA graphs take 3 MB, for decode steps of 1, 2, 4, 8 requests",
        "decode steps of more than 8 requests run without CUDA graphs, slower: CUDA out of memory",
    ]


def test_a_chunk_of_a_prompt_computes_no_logits(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_batch_tokens=16)
    engine.add(engine.prepare(list(range(40)), PARAMS))
    step = engine._scheduler.next_step()
    assert step is not None
    due, logits = engine._runner.run(step)
    assert (due, len(logits)) == ([], 0)
