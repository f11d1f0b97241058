"""What a run does with implementations that work, err, or fail; on the CPU, with torch's products in their place."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from awq.quantize import QuantizedTensor, dequantize
from benchmarks import bench_kernels, plot_kernels
from benchmarks.kernels import comparison, results, targets
from benchmarks.kernels.limits import Case, Ceilings
from benchmarks.kernels.peers import registry
from benchmarks.kernels.peers.cublas import Cublas
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Packed, Unavailable
from benchmarks.kernels.rivals import Measurement, Result
from benchmarks.kernels.timing import LoopTimer
from benchmarks.shapes import Shape

CEILINGS = Ceilings(1e10, {"float16": 1e12, "bfloat16": 1e12})
SHAPE = Shape(64, 128)
CASE = Case(SHAPE, 3, "bfloat16", 64)


class Named(Cublas):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class Wrong(Named):
    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        y = super().multiply(x, packed, case)
        y[-1, -1] += y.float().norm()  # one element of all
        return y


class Unwritten(Named):
    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        return torch.full((case.rows, case.shape.n), float("nan"), dtype=x.dtype)


class Failing(Named):
    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        raise RuntimeError("no such kernel\nsecond line")


class Choosy(Named):
    def pack(self, weight: QuantizedTensor) -> Packed:
        raise Unavailable("takes other shapes")


@pytest.fixture(autouse=True)
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kernels.timing.num_copies", lambda copy_bytes: 3)


def compare(*implementations: Named) -> Result[Case]:
    by_name = {made.name: made for made in implementations}
    weights = comparison.Weights(SHAPE, torch.bfloat16, 64, "cpu")
    weights.pack(by_name)
    return comparison.compare(CASE, weights, dequantize(weights.weight), by_name, LoopTimer(), budget_s=0.0)


def test_each_is_checked_and_timed_on_copies_of_its_own() -> None:
    result = compare(Named("one"), Named("other"))
    assert not result.failed
    for measured in result.measured.values():
        assert 0 < measured.error < 1e-2
        assert (measured.copies, measured.copy_bytes) == (3, 2 * 64 * 128)
        assert measured.calls % 3 == 0
        assert len(measured.seconds) >= 5


def test_what_fails_is_named_and_the_others_go_on() -> None:
    result = compare(Wrong("wrong"), Unwritten("unwritten"), Failing("failing"), Choosy("choosy"), Named("good"))
    assert set(result.measured) == {"good"}
    assert result.failed["wrong"].startswith("ArithmeticError: wrong result")
    assert "nan" in result.failed["unwritten"]
    assert result.failed["failing"] == "RuntimeError: no such kernel"
    assert result.failed["choosy"] == "takes other shapes"


def test_a_missing_peer_is_no_failure_of_the_run() -> None:
    for name in ("marlin", "machete", "humming", "torchao"):
        with pytest.raises(Unavailable, match="no folder of peers given"):
            registry.make(name, PeerFolder(None), "cpu")


def measured(microseconds: float) -> Measurement:
    return Measurement(1e-3, 3, 100, 30, [microseconds * 1e-6] * 5)


def made_up_results(ours: float) -> list[Result[Case]]:
    """Ours at `ours` times the limit's time, the peers at twice the limit's."""
    found = []
    for shape in (Shape(8192, 8192), Shape(8192, 28672)):
        for rows in (1, 8, 16, 64, 128, 512, 1024):
            case = Case(shape, rows, "bfloat16")
            limit = 1e6 * CEILINGS.limit_s(case)
            peers = {name: measured(2 * limit) for name in ("cublas", "marlin", "humming")}
            found.append(Result(case, {"tinyserve": measured(ours * limit), **peers}))
    return found


@pytest.mark.parametrize(("ours", "word"), [(1.1, "PASS"), (2.5, "MISS")])
def test_verdicts_follow_the_figures(ours: float, word: str) -> None:
    verdicts = {(v.regime, v.demand): v for v in targets.verdicts(made_up_results(ours), CEILINGS)}
    assert len(verdicts) == 8
    for (_, demand), verdict in verdicts.items():
        assert verdict.word == ("NOT MEASURED" if "machete" in demand else word), demand
    cold = verdicts["M 1-8, 8192x8192, cold cache", ">= 0.65 of the limit"]
    assert cold.cases == 2
    assert cold.worst == pytest.approx(1 / ours)
    assert verdicts["M 16-64", ">= 1.10 x marlin"].worst == pytest.approx(2 / ours)
    assert "8192x28672" in verdicts["M 1-8, matrices >= 120 MB", ">= 0.85 of the limit"].worst_case


def test_one_case_that_misses_is_a_miss() -> None:
    found = made_up_results(1.1)
    found[0].measured["tinyserve"] = measured(1e9)
    verdict = targets.verdicts(found, CEILINGS)[0]
    assert (verdict.word, verdict.reached, verdict.cases) == ("MISS", 1, 2)


def test_failures_are_told_once_with_their_cases() -> None:
    same = Result(CASE, failed={"peer": "no such kernel"})
    other = Result(Case(SHAPE, 9, "bfloat16", 64), failed={"peer": "no such kernel", "second": "wrong"})
    lines = results.failures([same, other])
    assert lines[0] == "peer: no such kernel [2 of 2 cases]"
    assert "second: wrong" in lines[1]
    assert "M=9" in lines[1]


def arguments(tmp_path: Path, *more: str) -> argparse.Namespace:
    options = ["--group-size", "64", "--rows", "1", "5", "--budget", "0", "--out", str(tmp_path / "kernels.json")]
    names = ["tinyserve", "cublas", "tinygemm", "marlin"]
    return bench_kernels.parse_arguments([*options, "--implementations", *names, *more])


def run(args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, known: Any = None) -> dict[str, Any]:
    monkeypatch.setattr("benchmarks.shapes.shapes", lambda *_: [SHAPE, Shape(128, 256)])
    return bench_kernels.benchmark(args, LoopTimer(), CEILINGS, known or {})


def test_a_run_from_arguments_to_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(arguments(tmp_path), monkeypatch)
    assert len(found["rows"]) == 8  # two shapes, two dtypes, two M
    assert "no folder of peers" in found["missing"]["marlin"]
    for row in json.loads(json.dumps(found))["rows"]:
        assert {"tinyserve", "cublas"} <= set(row["implementations"])
        assert ("tinygemm" in row["implementations"]) == (row["dtype"] == "bfloat16")
        assert row["limit_us"] > 0
        for figures in row["implementations"].values():
            assert figures["us"] > 0
            assert figures["error"] < 1e-2
    printed = capsys.readouterr().out
    assert "missing: marlin" in printed
    assert "failed: tinygemm: takes bfloat16 only [4 of 8 cases]" in printed
    assert "NOT MEASURED M 128-512" in printed


def test_what_failed_alone_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path, "--dtypes", "bfloat16")
    cases = [Case(shape, rows, "bfloat16", 64) for shape in (SHAPE, Shape(128, 256)) for rows in (1, 5)]
    known = {"tinygemm": {cases[0]: "crashed"}, "cublas": dict.fromkeys(cases, "crashes always")}
    found = run(args, monkeypatch, known)
    assert found["missing"]["cublas"] == "crashes always"
    assert found["rows"][0]["failed"] == {"tinygemm": "crashed"}
    assert [set(row["implementations"]) for row in found["rows"][1:]] == [{"tinyserve", "tinygemm"}] * 3


def test_time_that_runs_out_leaves_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(arguments(tmp_path, "--time-limit", "0"), monkeypatch)
    assert found["rows"] == []
    assert "no time left" in found["ended"]
    assert "0 of 8 cases" in found["ended"]


def test_speedups_are_over_cublas() -> None:
    rows = results.to_json(made_up_results(1.25)[:7], CEILINGS)
    lines = plot_kernels.speedups(rows)
    assert [m for m, _ in lines["limit"]] == [1, 8, 16, 64, 128, 512, 1024]
    assert all(math.isclose(speedup, 2.0, rel_tol=1e-3) for _, speedup in lines["limit"])
    assert all(math.isclose(speedup, 1.6, rel_tol=1e-3) for _, speedup in lines["tinyserve"])


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = {"rows": results.to_json(made_up_results(1.25), CEILINGS), "gpu": {"name": "made up"}}
    plot_kernels.draw(found, "bfloat16", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_kernels.draw(found, "float16", tmp_path / "none.png")
