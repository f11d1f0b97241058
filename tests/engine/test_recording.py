"""Recorded decode steps: which numbers of requests, and that nobody can tell them from steps that are not."""

from collections.abc import Callable

import pytest
import torch
from run_engine import run

from tinyserve.config import SamplingParams
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
