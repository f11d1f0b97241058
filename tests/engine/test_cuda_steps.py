"""An engine on a GPU: CUDA graphs, eager steps and the CPU's kernels say the same, and no step waits for the GPU."""

import logging
from pathlib import Path

import flat_batch
import pytest
import tiny_model
import torch
from llama_model import load_llama
from run_engine import Result, run

from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.engine.recording import Graphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="for a GPU")

PARAMS = SamplingParams(max_new_tokens=256, temperature=0.0, ignore_eos=True)
PROMPTS = ["Once upon a time", "def fibonacci(n):", "The capital of France is"]
NEAR = 0.05  # of the standard deviation of logits: what rounding to 16 bits may exchange


def make_engine(folder: Path, enforce_eager: bool = False) -> Engine:
    config = EngineConfig(
        folder,
        precision="W16A16",
        dtype="float16",
        device="cuda",
        kv_cache_bytes=1 << 29,
        max_num_requests=16,
        enforce_eager=enforce_eager,
    )
    return Engine.create(config)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2; where its package is missing, a tiny model of random weights."""
    try:
        smollm2: Path = request.getfixturevalue("smollm2")
    except FileNotFoundError:
        return tiny_model.save(tmp_path_factory.mktemp("tiny") / "llama", torch.float16, max_position_embeddings=512)
    return smollm2


@pytest.fixture(scope="module")
def graphs(folder: Path) -> Engine:
    return make_engine(folder)


@pytest.mark.parametrize("count", [1, 3])  # a graph of that very size, and one with a padded row
def test_graphs_and_eager_steps_choose_what_the_cpu_does(graphs: Engine, folder: Path, count: int) -> None:
    recordings = graphs._runner._recordings
    assert isinstance(recordings, Graphs)
    assert recordings.size(count) == (1 if count == 1 else 4)
    assert graphs._looks_ahead
    eager = make_engine(folder, enforce_eager=True)
    assert eager._runner._recordings is None
    model = load_llama(folder, precision="W16A16", dtype="float32")
    for engine in (graphs, eager):
        results = run(engine, PROMPTS[:count], PARAMS)
        for prompt, result in zip(PROMPTS, results, strict=False):
            assert len(result.token_ids) == 256
            ids = [*engine.tokenizer.encode(prompt), *result.token_ids]
            logits = flat_batch.logits(model, [torch.tensor(ids[:-1])])[0][-256:]
            lost = logits.max(dim=-1).values - logits[torch.arange(256), torch.tensor(result.token_ids)]
            assert (lost <= NEAR * logits.std()).all()


def test_requests_that_come_and_go_are_as_alone(graphs: Engine) -> None:
    """Steps of every size, padded and not, and prompts in between. The same kernels give a row the same bits."""
    lengths = [3, 9, 5, 30, 17, 2, 25, 12, 40]
    params = [SamplingParams(max_new_tokens=length, temperature=0.9, seed=7, ignore_eos=True) for length in lengths]
    alone = [run(graphs, ["Hello"], each)[0].token_ids for each in params]
    ids = []
    results: dict[int, Result] = {}
    for each in params:
        ids.append(graphs.add(graphs.prepare("Hello", each)))
        results[ids[-1]] = Result()
        for output in graphs.step():
            results[output.request_id].take(output.chunk)
    while graphs.has_work:
        for output in graphs.step():
            results[output.request_id].take(output.chunk)
    same = [results[request_id].token_ids == tokens for request_id, tokens in zip(ids, alone, strict=True)]
    assert sum(same) >= len(same) - 2, "more than near ties explain"
    assert [len(results[request_id].token_ids) for request_id in ids] == lengths


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_step_is_launched_without_waiting(graphs: Engine, temperature: float) -> None:
    params = SamplingParams(max_new_tokens=40, temperature=temperature, top_p=0.9, ignore_eos=True, seed=1)
    for prompt in PROMPTS:
        graphs.add(graphs.prepare(prompt, params))
    graphs.step()
    for _ in range(20):
        torch.cuda.set_sync_debug_mode("error")
        try:
            launched = graphs._launch()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graphs._take_tokens()
        graphs._in_flight = launched
    while graphs.has_work:
        graphs.step()


def test_the_memory_of_the_graphs_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        make_engine(folder)
    said = [record.getMessage() for record in caplog.records if "CUDA graphs take" in record.getMessage()]
    assert len(said) == 1
    assert "5 CUDA graphs take" in said[0]  # of 1, 2, 4, 8 and 16 requests
