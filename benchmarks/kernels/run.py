"""A run over all cases of a suite, complete or not: who takes part, what came of it, how it ended."""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic

from benchmarks import gpu
from benchmarks.kernels import probe, results
from benchmarks.kernels.limits import Ceilings, measure_ceilings
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Unavailable
from benchmarks.kernels.rivals import CaseT, DeviceLost, Result
from benchmarks.kernels.timing import CudaGraphTimer
from benchmarks.machine import RESULTS, describe, write_results
from benchmarks.verdict import Verdict
from tinyserve import ops

PATIENCE_S = 60  # for one case of one implementation, what it compiles included
BUDGET_S = {True: 0.1, False: 0.5}  # quick or not: of replays in one case
UNSAID = ("deadline", "peers", "out")  # arguments that say more of the machine than of the run


@dataclass
class Run(Generic[CaseT]):
    ceilings: Ceilings
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # implementations, why
    results: list[Result[CaseT]] = field(default_factory=list)
    ended: str = ""  # why before the last case


def make_all(
    suite: probe.Suite,
    args: argparse.Namespace,
    known: Mapping[str, probe.Failures],
    cases: Sequence[CaseT],
    run: Run[CaseT],
    device: str,
) -> dict[str, Any]:
    """Those of args.implementations that do at least one case; why the others do not is in the run."""
    folder = PeerFolder(args.peers)
    made = {}
    for name in args.implementations:
        failures = known.get(name, {})
        if cases and all(case in failures for case in cases):
            run.missing[name] = failures[cases[0]]
            continue
        try:
            made[name] = suite.make(name, folder, device)
            run.versions[name] = made[name].version
        except Unavailable as error:
            run.missing[name] = str(error)
    return made


def collect(run: Run[CaseT], found: Iterable[Result[CaseT]], num_cases: int, row: Callable[[Any], str]) -> None:
    """Prints a row for each case; ends early, with what there is, where time is up or the GPU is lost."""
    try:
        for result in found:
            run.results.append(result)
            print(row(result), flush=True)
    except (DeviceLost, TimeoutError, KeyboardInterrupt) as error:
        run.ended = f"{type(error).__name__}: {error} ({len(run.results)} of {num_cases} cases measured)"


def report(run: Run[CaseT], verdicts: Sequence[Verdict], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints what is missing or failed and whether the targets are reached; returns the results file's part."""
    for name, why in run.missing.items():
        print(f"missing: {name}: {why}")
    for line in results.failures(run.results):
        print(f"failed: {line}")
    if run.ended:
        print(f"INCOMPLETE: {run.ended}")
    print(*verdicts, sep="\n")
    return {
        "ceilings": asdict(run.ceilings),
        "implementations": run.versions,
        "missing": run.missing,
        "ended": run.ended,
        "targets": [{"verdict": verdict.word, **asdict(verdict)} for verdict in verdicts],
        "rows": rows,
    }


def add_arguments(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Those that every suite has."""
    parser.add_argument("--peers", type=Path, metavar="DIR", help="folder of peers that are not installed")
    parser.add_argument("--implementations", nargs="+", choices=names, default=list(names))
    parser.add_argument("--budget", type=float, help="seconds of replays in one case")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds; what comes later is left out")
    parser.add_argument("--no-probe", action="store_true", help="do not try everything in processes of its own first")
    parser.add_argument("--out", type=Path, help="results file; the plots stand beside it")


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """With `deadline` for the time limit, by time.monotonic, and a budget."""
    args = parser.parse_args(arguments)
    args.deadline = time.monotonic() + args.time_limit
    if args.budget is None:
        args.budget = BUDGET_S[args.quick]
    return args


def on_gpu(
    suite: probe.Suite,
    args: argparse.Namespace,
    cases: Sequence[Any],
    work: Callable[[CudaGraphTimer, Ceilings, Mapping[str, probe.Failures]], dict[str, Any]],
    name: str,
) -> tuple[Path, dict[str, Any]]:
    """The whole of a run on the GPU: tries everyone alone, measures the ceilings, does `work`, writes its results.

    Returns:
        The results file `<name>-<gpu>.json`, or args.out, and what is in it.
    """
    known: dict[str, probe.Failures] = {}
    if not args.no_probe:
        print(f"trying {len(args.implementations)} implementations on {len(cases)} cases", flush=True)
        patience_s = min(PATIENCE_S, args.time_limit / 6)
        known = probe.probe_all(suite, args.implementations, cases, "cuda", args.peers, patience_s, args.time_limit / 3)
    timer = CudaGraphTimer()
    ceilings = measure_ceilings(timer, sorted({case.dtype for case in cases}))
    facts = gpu.describe_gpu()
    print(f"{facts['name']}: {ceilings}")
    found = work(timer, ceilings, known)
    settings = {key: str(value) for key, value in vars(args).items() if key not in UNSAID}
    settings["peers"] = args.peers.name if args.peers else "None"
    found = {"machine": describe(), "gpu": facts, "build": ops.build_info(), "settings": settings} | found
    path = write_results(name, found, args.out or RESULTS / f"{name}-{gpu.slug(facts['name'])}.json")
    print(f"written to {path}")
    return path, found


def draw(picture: Path, work: Callable[[Path], None]) -> None:
    """Says why where nothing can be drawn."""
    try:
        work(picture)
        print(f"drawn in {picture}")
    except ImportError as error:
        print(f"no plot: {error} (pip install 'tinyserve[plots]')")
    except ValueError as error:
        print(f"no plot: {error}")
