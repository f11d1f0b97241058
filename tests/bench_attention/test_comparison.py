"""What a run does with implementations that work, err, or fail; on the CPU, with torch's attention in their place."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from small_attention import CEILINGS, GROUPED, small_cases

from benchmarks import bench_attention, plot_attention
from benchmarks.attention import comparison, results, suite, targets
from benchmarks.attention.case import GQA, Case
from benchmarks.attention.peers.ours import Fused, NewTokens, PagedAttention, TwoOps
from benchmarks.attention.peers.peer import Attend
from benchmarks.attention.peers.sdpa import Sdpa
from benchmarks.attention.problem import Cache, Problem
from benchmarks.kernels import probe
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Unavailable
from benchmarks.kernels.rivals import Measurement, Result
from benchmarks.kernels.timing import LoopTimer
from tinyserve import fallback, ops


class Wrong(Sdpa):
    name = "wrong"

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        attend = super().prepare(problem, cache)
        return lambda: attend() * 1.1


class Unwritten(Sdpa):
    name = "unwritten"

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        return lambda: torch.full_like(problem.q, float("nan"))


class Failing(Sdpa):
    name = "failing"

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        raise RuntimeError("no such kernel\nsecond line")


@pytest.mark.parametrize("case", small_cases(), ids=str)
def test_ours_and_torchs_compute_the_reference(case: Case, few_copies: None) -> None:
    made = (PagedAttention("cpu"), TwoOps("cpu"), Fused("cpu"), Sdpa())
    result = comparison.compare(case, {each.name: each for each in made}, LoopTimer(), budget_s=0.0)
    expected = {} if case.cache == "bfloat16" else {"sdpa": "has no cache of 8 bits"}
    assert result.failed == (expected if case.is_decode else expected | {"fused": "is for decoding"})
    for measured in result.measured.values():
        assert 0 < measured.error < 1e-2
        assert (measured.copies, measured.copy_bytes) == (2, case.kv_bytes)


@pytest.mark.parametrize("case", [Case(GROUPED, 2, 1, 45, "fp8"), Case(GROUPED, 2, 13, 50, "fp8")], ids=str)
def test_caches_of_fp8_are_as_the_ops_want_them(case: Case, few_copies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has no kernels for them: by the slower definitions."""
    monkeypatch.setattr(ops, "_kernel", lambda name, device: getattr(fallback, name))
    implementations = {made.name: made for made in (PagedAttention("cpu"), TwoOps("cpu"))}
    result = comparison.compare(case, implementations, LoopTimer(), budget_s=0.0)
    assert result.failed == {}
    assert all(0 < measured.error < 1e-2 for measured in result.measured.values())


def test_new_tokens_leave_the_cache_as_it_was() -> None:
    """What two-ops writes at each call is what stands there."""
    problem = Problem.random(Case(GROUPED, 2, 13, 50), "cpu")
    cache = problem.cache()
    before = cache.clone()
    TwoOps("cpu").prepare(problem, cache)()
    assert torch.equal(cache.k, before.k)
    assert torch.equal(cache.v, before.v)
    new = NewTokens(problem, cache)
    assert len(set(new.slots.tolist())) == problem.case.tokens
    assert new.positions.view(2, 13)[1].tolist() == list(range(37, 50))


def test_what_fails_is_named_and_the_others_go_on(few_copies: None) -> None:
    implementations = {made.name: made for made in (Wrong(), Unwritten(), Failing(), Sdpa())}
    result = comparison.compare(Case(GROUPED, 2, 1, 40), implementations, LoopTimer(), budget_s=0.0)
    assert set(result.measured) == {"sdpa"}
    assert result.failed["wrong"].startswith("ArithmeticError: wrong result: relative error 0.")
    assert "nan" in result.failed["unwritten"]
    assert result.failed["failing"] == "RuntimeError: no such kernel"


def measured(microseconds: float) -> Measurement:
    return Measurement(1e-3, 3, 100, 30, [microseconds * 1e-6] * 5)


def made_up_results(ours: float, latency_us: float) -> list[Result[Case]]:
    """Ours at `ours` times the limit's time, FlashAttention-3 at twice it."""
    found = [Result(Case(GQA, 1, 1, 1024), {"tinyserve": measured(latency_us)})]
    for case in (Case(GQA, 64, 1, 1024), Case(GQA, 64, 1, 1024, "fp8"), Case(GQA, 1, 2048, 2048)):
        limit = 1e6 * CEILINGS.limit_s(case)
        rope = {"two-ops": measured(2.2 * limit), "fused": measured(ours * limit)}
        found.append(Result(case, {"tinyserve": measured(ours * limit), "fa3": measured(2 * limit), **rope}))
    return found


@pytest.mark.parametrize(("ours", "latency_us", "word"), [(1.1, 7.9, "PASS"), (2.5, 8.1, "MISS")])
def test_verdicts_follow_the_figures(ours: float, latency_us: float, word: str) -> None:
    verdicts = targets.verdicts(made_up_results(ours, latency_us), CEILINGS)
    assert [verdict.word for verdict in verdicts] == [word] * 6
    assert [verdict.demand for verdict in verdicts] == [
        ">= 0.85 of the limit", ">= 0.80 of the limit", "<= 8 us", ">= 1.00 x two-ops", ">= 1.00 x fa3",
        ">= 1.00 x fa3",
    ]  # fmt: skip
    assert verdicts[2].worst == pytest.approx(latency_us)


def test_what_was_not_measured_is_said() -> None:
    assert {verdict.word for verdict in targets.verdicts([], CEILINGS)} == {"NOT MEASURED"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, few_copies: None) -> None:
    monkeypatch.setattr("benchmarks.attention.case.QUICK", tuple(small_cases()))


def arguments(tmp_path: Path, *more: str) -> argparse.Namespace:
    options = ["--quick", "--budget", "0", "--out", str(tmp_path / "attention.json")]
    names = ["tinyserve", "two-ops", "sdpa", "varlen", "fa3", "flashinfer"]
    return bench_attention.parse_arguments([*options, "--implementations", *names, *more])


def run(args: argparse.Namespace, known: Any = None) -> dict[str, Any]:
    return bench_attention.benchmark(args, LoopTimer(), CEILINGS, known or {})


def test_a_run_from_arguments_to_results_and_a_plot(
    tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(json.dumps(run(arguments(tmp_path))))
    assert len(found["rows"]) == len(small_cases())
    assert "no folder of peers" in found["missing"]["fa3"]
    assert "flashinfer" in found["missing"]
    for row in found["rows"]:
        assert {"tinyserve", "two-ops"} <= set(row["implementations"])
        assert ("sdpa" in row["implementations"]) == (row["cache"] == "bfloat16")
        assert row["limit_us"] > 0
    printed = capsys.readouterr().out
    assert "missing: fa3: vllm_fa3.so.xz: no folder of peers given" in printed
    assert "NOT MEASURED decode, 64k keys or more, bf16" in printed
    pytest.importorskip("matplotlib")
    plot_attention.draw(found | {"gpu": {"name": "made up"}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_phases_can_be_chosen(tmp_path: Path, small: None) -> None:
    rows = run(arguments(tmp_path, "--phases", "prefill", "--implementations", "tinyserve"))["rows"]
    assert [row["queries"] for row in rows] == [40, 13]


def test_what_failed_alone_is_not_tried_again(tmp_path: Path, small: None) -> None:
    cases = small_cases()
    found = run(arguments(tmp_path), {"sdpa": {cases[0]: "crashed"}, "two-ops": dict.fromkeys(cases, "crashes")})
    assert found["missing"]["two-ops"] == "crashes"
    assert found["rows"][0]["failed"]["sdpa"] == "crashed"
    assert "sdpa" in found["rows"][1]["implementations"]


def test_time_that_runs_out_leaves_what_there_is(tmp_path: Path, small: None) -> None:
    found = run(arguments(tmp_path, "--time-limit", "0"))
    assert found["rows"] == []
    assert "0 of 5 cases" in found["ended"]


def test_cases_travel_to_a_process_of_their_own() -> None:
    cases = small_cases()
    assert [suite.read_case(json.loads(json.dumps(asdict(case)))) for case in cases] == cases
    assert suite.parts("fa3", cases) == [cases[:3], cases[3:]]
    failures = probe.probe_all(suite, ["tinyserve", "fa3"], cases[1:3], "cpu", None, patience_s=120)
    assert failures["tinyserve"] == {}
    assert all("no folder of peers given" in why for why in failures["fa3"].values())


def test_a_table_row_has_the_peers_behind_ours() -> None:
    row = results.table_row(made_up_results(1.25, 8.0)[1], CEILINGS)
    assert "80%" in row
    assert "(1.60x)" in row


def test_a_missing_peer_is_named() -> None:
    with pytest.raises(Unavailable, match="no folder of peers given"):
        suite.make("fa3", PeerFolder(None), "cpu")
