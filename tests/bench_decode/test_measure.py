"""A whole run on a CPU with models of true architectures and tiny sizes; nothing is asserted about its times."""

import argparse
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_decode_gpu
from benchmarks.decode import measure, process, random_weights, steps, targets
from benchmarks.decode.random_engine import RandomEngine, fill
from benchmarks.decode.task import Row, Task
from benchmarks.decode.variant import Variant
from benchmarks.kernels.limits import Ceilings
from benchmarks.model_configs import MODELS

CEILINGS = Ceilings(1e10, {"float16": 1e12, "bfloat16": 1e12})
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 512,
}  # fmt: skip


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "model": "llama-3-8b", "device": "cpu", "ceilings": CEILINGS, "variants": ("W4A16", "W16A16"),
        "batches": (1, 3), "contexts": (40,), "prompts": (120,), "compared_prompt": 50, "settings": SIZES,
    }  # fmt: skip
    return Task(**fields | changes)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STEPS", 5)
    monkeypatch.setattr(steps, "MIN_STEPS", 5)
    monkeypatch.setattr(steps, "WARM_STEPS", 2)


def test_a_task_travels_as_text() -> None:
    assert Task.from_json(task().to_json()) == task()
    assert task().config.num_hidden_layers == 2


def test_every_figure_of_a_model(tmp_path: Path) -> None:
    rows = list(measure.rows(task(trace=str(tmp_path / "trace.json"))))
    kinds = [(row["kind"], row["variant"]) for row in rows]
    each = ["load", "decode", "decode", "first token"]
    assert kinds == [
        *((kind, "W4A16") for kind in [*each, "trace", "memory"]),
        ("torch prefill", "transformers"),
        *((kind, "W16A16") for kind in [*each, "memory"]),
    ]
    for row in (row for row in rows if row["kind"] == "decode"):
        assert row["context"] == 40
        assert 40 < row["mean_context"] < 60
        assert len(row["intervals_s"]) == row["steps"] == 5
        assert row["of_limit"] > 0
        assert row["tokens_per_s"] == pytest.approx(row["batch"] * 1e3 / row["step_ms"])
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert all(bench_decode_gpu.line({"model": "llama-3-8b", **row}) for row in rows)


@pytest.mark.parametrize("name", ["qwen2.5-7b", "mistral-7b", "llava-1.5-7b"])
def test_other_architectures(name: str) -> None:
    rows = list(measure.rows(task(model=name, variants=("W4A16,int8",), batches=(2,), compared_prompt=None)))
    assert [row["kind"] for row in rows] == ["load", "decode", "first token", "memory"]


def test_contexts_are_there_without_being_computed() -> None:
    """Each request decodes at once behind its prompt, in blocks of its own; afterwards all are free."""
    made = RandomEngine(task().config, Variant(), "cpu", max_batch=3, max_context=120, num_tokens=4096)
    engine = made.engine
    with made.running(3, 40):
        requests = [prepared.request for prepared in engine._requests.values()]
        assert [request.num_output_tokens for request in requests] == [1, 1, 1]
        assert [request.num_prompt_tokens for request in requests] == [40, 40, 40]
        blocks = [block for request in requests for block in request.block_ids]
        assert len(set(blocks)) == len(blocks)
        assert all(cache.k.float().std() > 0.5 for cache in engine._runner._caches)
    stats = engine.stats()
    assert stats.free_blocks == stats.total_blocks
    assert made.fits(3, 40)
    assert not made.fits(100, 40)


def test_steps_that_do_not_decode_for_all_are_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    made = RandomEngine(task().config, Variant(), "cpu", max_batch=3, max_context=120, num_tokens=4096)
    step, calls = made.engine.step, []

    def lossy() -> list[Any]:
        calls.append(1)
        return step() if len(calls) <= 4 else step()[:2]

    monkeypatch.setattr(made.engine, "step", lossy)
    with pytest.raises(RuntimeError, match="some did not decode"):
        steps.decode(made, 3, 40)


def test_an_engine_is_gone_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes most of the memory."""
    made: list[weakref.ref[object]] = []
    make = measure.make

    def watched(*args: Any) -> RandomEngine:
        assert not any(each() for each in made)
        one = make(*args)
        made.extend([weakref.ref(one.engine), weakref.ref(one.model), weakref.ref(one.engine._runner)])
        return one

    monkeypatch.setattr(measure, "make", watched)
    kinds = [row["kind"] for row in measure.rows(task(batches=(1,)))]
    assert kinds.count("load") == 2
    assert len(made) == 6


def test_what_does_not_fit_or_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Row:
        raise RuntimeError("no memory\nsecond line")

    monkeypatch.setattr(measure, "first_token_row", fail)
    monkeypatch.setattr(RandomEngine, "fits", lambda self, batch, context: batch == 1)
    rows = list(measure.rows(task(variants=("W4A16",), compared_prompt=None)))
    assert [row["kind"] for row in rows] == ["load", "decode", "skipped", "failed", "memory"]
    assert rows[2]["what"] == "decode 3 x 40"
    assert rows[3]["why"] == "RuntimeError: no memory"


def test_a_variant_that_cannot_be_made_stops_no_other() -> None:
    rows = list(measure.rows(task(variants=("W4A16,fp8", "W4A16"), batches=(1,), prompts=(120,), compared_prompt=None)))
    assert (rows[0]["kind"], rows[0]["what"]) == ("failed", "load")  # a CPU has no cache of fp8
    assert rows[1]["kind"] == "load"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.float32])
def test_a_cache_is_filled_with_numbers(dtype: torch.dtype) -> None:
    cache = torch.zeros(4, 64, dtype=dtype)
    fill(cache)
    assert cache.float().isfinite().all()
    assert (cache.float() != 0).float().mean() > 0.9


def test_random_weights_are_of_the_models_shapes() -> None:
    made = random_weights.checkpoint(task().config, "cpu", 128)
    assert made.tensor("lm_head.weight").shape == (512, 128)
    weight = made.quantized("model.layers.1.mlp.down_proj")
    assert weight.codes.shape == (128, 256)
    assert weight.codes.float().std() > 4
    assert not made.is_quantized("lm_head")


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(f"import json, sys, time\nrow = dict(model='m', kind='load', variant='v')\n{body}\n")
    monkeypatch.setattr(process, "COMMAND", [sys.executable, str(script)])


def test_rows_of_a_process_that_crashes_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "print(json.dumps(row), flush=True); raise SystemExit('out of luck')")
    rows = list(process.run(task(), 120))
    assert [row["kind"] for row in rows] == ["load", "failed"]
    assert rows[1]["why"] == "its process ended (1): out of luck"


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "print(json.dumps(row), flush=True); time.sleep(600)")
    rows = list(process.run(task(), 20))
    assert [row["kind"] for row in rows] == ["load", "failed"]
    assert rows[1]["why"] == "not done in 20 s"


def arguments(*more: str) -> argparse.Namespace:
    return bench_decode_gpu.parse_arguments(["--device", "cpu", "--models", "llama-3-8b", "smollm2-135m", *more])


def test_a_run_from_arguments_to_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "run", lambda task, limit_s: made_up(task.model))
    args = arguments("--trace", "smollm2-135m", "--layers", "2")
    todo = bench_decode_gpu.tasks(args, CEILINGS, tmp_path)
    assert [(each.trace is not None, each.config.num_hidden_layers) for each in todo] == [(False, 2), (True, 2)]
    found = bench_decode_gpu.report(bench_decode_gpu.run_all(todo, float("inf")))
    assert json.loads(json.dumps(found))["targets"][0]["verdict"] == "PASS"
    printed = capsys.readouterr().out
    assert "PASS         llama-3-8b, batch 1, 1k: >= 600 tokens/s" in printed
    assert "decode   64 x 1024" in printed


def test_no_time_left_is_said() -> None:
    todo = bench_decode_gpu.tasks(arguments(), CEILINGS, Path())
    assert [row["why"] for row in bench_decode_gpu.run_all(todo, 0.0)] == ["no time left"] * 2


@pytest.mark.parametrize("wrong", [("--variants", "W8A8"), ("--trace", "qwen2.5-7b"), ("--models", "gpt-2")])
def test_wrong_arguments_are_refused(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        arguments(*wrong)


def made_up(model: str, step_ms: float = 1.6, prefill_ms: float = 40.0) -> list[Row]:
    """16 bits take 2.8 times as long, torch 38 ms for the prompt."""
    rows: list[Row] = []
    for variant, factor in (("W4A16", 1.0), ("W16A16", 2.8)):
        for batch in (1, 64):
            ms = step_ms * factor
            rows.append(
                {
                    "kind": "decode", "variant": variant, "batch": batch, "context": 1024, "step_ms": ms,
                    "of_limit": 1.119 / ms, "tokens_per_s": batch * 1e3 / ms, "limit_ms": 1.119,
                    "intervals_s": [ms / 1e3], "seconds": ms / 1e3, "steps": 1,
                }
            )  # fmt: skip
        rows.append({"kind": "first token", "variant": variant, "tokens": 2048, "best_ms": prefill_ms, "limit_ms": 37.0, "of_limit": 0.9})  # fmt: skip  # noqa: E501
    rows.append({"kind": "torch prefill", "variant": "transformers", "tokens": 2048, "best_ms": 38.0})
    return [{"model": model, **row} for row in rows]


@pytest.mark.parametrize(("step_ms", "prefill_ms", "word"), [(1.6, 40.0, "PASS"), (2.0, 50.0, "MISS")])
def test_verdicts_follow_the_figures(step_ms: float, prefill_ms: float, word: str) -> None:
    verdicts = targets.verdicts(made_up("llama-3-8b", step_ms, prefill_ms))
    words = [verdict.word for verdict in verdicts]
    assert words == [word, word, "PASS", word, word]  # the speed-up is the same
    assert verdicts[2].worst == pytest.approx(2.8)


def test_what_was_not_measured_is_said() -> None:
    assert {verdict.word for verdict in targets.verdicts([])} == {"NOT MEASURED"}
    assert all(name in MODELS for name in bench_decode_gpu.DEFAULT_MODELS)
