"""Implementations tried in processes of their own: what a crash or a hang costs."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.kernels import probe, suite
from benchmarks.kernels.limits import Case
from benchmarks.shapes import Shape

CASES = [Case(Shape(64, 128), rows, "bfloat16", 64) for rows in (1, 2, 3, 4)]


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """A process that reads its cases and runs `body` for each, with `rows` set, instead of an implementation."""
    script = tmp_path / "stand_in.py"
    script.write_text(
        "import json, os, sys, time\n"
        "for case in json.load(sys.stdin):\n    rows = case['rows']\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
        + "    print(json.dumps(why), flush=True)\n"
    )
    monkeypatch.setattr(probe, "COMMAND", [sys.executable, str(script)])


def test_a_real_implementation_passes_its_cases() -> None:
    failures = probe.probe_all(suite, ["cublas", "marlin", "tinygemm"], CASES, "cpu", None, patience_s=120)
    assert failures["cublas"] == {}
    assert failures["tinygemm"] == {}
    assert all("no folder of peers given" in failures["marlin"][case] for case in CASES)


def test_a_crash_costs_one_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "if rows == 2: os.abort()\nwhy = 'wrong' if rows == 4 else None")
    failures = probe.probe(suite, "peer", CASES, "cpu", None, patience_s=60)
    assert set(failures) == {CASES[1], CASES[3]}
    assert "(-6)" in failures[CASES[1]]
    assert failures[CASES[3]] == "wrong"


def test_a_hang_costs_its_patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "if rows == 3: time.sleep(600)\nwhy = None")
    failures = probe.probe(suite, "peer", CASES, "cpu", None, patience_s=8)
    assert failures == {CASES[2]: "no answer in 8 s"}


def test_crashes_without_end_are_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "raise SystemExit('out of luck')")
    many = [Case(Shape(64, 128), rows, "bfloat16", 64) for rows in range(1, 9)]
    failures = probe.probe(suite, "peer", many, "cpu", None, patience_s=60)
    assert list(failures) == many
    assert failures[many[0]] == "its process ended (1): out of luck"
    assert failures[many[-1]] == "not tried: before it, its process ended (1): out of luck"


def test_no_process_starts_when_time_is_up() -> None:
    failures = probe.probe_all(suite, ["cublas"], CASES, "cpu", None, patience_s=60, time_limit_s=-1)
    assert failures == {"cublas": dict.fromkeys(CASES, "not tried: before it, time was up")}


def test_the_cases_arrive_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "why = json.dumps(case)")
    failures = probe.probe(suite, "peer", CASES[:1], "cpu", None, patience_s=60)
    case = json.loads(failures[CASES[0]])
    assert (case["shape"]["n"], case["shape"]["k"], case["rows"], case["group_size"]) == (64, 128, 1, 64)
