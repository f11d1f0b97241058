"""The W4A16 kernels beside the machine's limits and their peers, over the shapes of real models.

    python -m benchmarks.bench_kernels --quick                        minutes: six shapes, every M, and the targets
    python -m benchmarks.bench_kernels [--models Llama-3-8B] [--rows 1 16 256] [--dtypes float16 bfloat16]
    python -m benchmarks.bench_kernels --peers DIR                    Marlin, Machete, Humming and torchao too

Needs a GPU. First measures what the machine reaches: the bandwidth of a device-to-device copy and the rate of torch's
own 16-bit product. Then, for every shape, each implementation packs the same random weight in its own layout, is
checked against the dequantized weight, and is timed: at least 20 calls in a CUDA graph, over so many copies of the
weight (256 MB) that none waits in a cache, all implementations in turn. The limit is the larger of bytes / bandwidth
and 2 * M * N * K / rate. An implementation that is missing or fails is named with its reason; the others go on. DIR
holds vLLM's op library (vllm_ops_sm90.so, also .xz), its scalar_type.py, and the wheels of humming-kernels and torchao,
whichever are there.

Writes benchmarks/results/kernels-<gpu>.json, with every replay's time, and a plot for each dtype beside it.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from awq.quantize import dequantize
from benchmarks import gpu, plot_kernels, shapes
from benchmarks.kernels import probe, results, targets
from benchmarks.kernels.comparison import DeviceLost, Result, Weights, compare
from benchmarks.kernels.limits import Case, Ceilings, measure_ceilings
from benchmarks.kernels.peers import registry
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Implementation, Unavailable
from benchmarks.kernels.timing import CudaGraphTimer, Timer
from benchmarks.machine import RESULTS, describe, write_results
from tinyserve import ops

PATIENCE_S = 60  # for one case of one implementation, what it compiles included
BUDGET_S = {True: 0.1, False: 0.5}  # quick or not: of replays in one case


@dataclass
class Run:
    """What a run found, complete or not."""

    ceilings: Ceilings
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # implementations, why
    results: list[Result] = field(default_factory=list)
    ended: str = ""  # why before the last case


def select_cases(args: argparse.Namespace) -> list[Case]:
    chosen: Sequence[shapes.Shape] = shapes.QUICK_SHAPES if args.quick else shapes.shapes()
    if args.models:
        chosen = shapes.shapes(tuple(a for a in shapes.ARCHITECTURES if a.name in args.models))
    dtypes = args.dtypes or (["bfloat16"] if args.quick else ["bfloat16", "float16"])
    return [Case(shape, rows, dtype, args.group_size) for shape in chosen for dtype in dtypes for rows in args.rows]


def make_all(
    names: Sequence[str], folder: PeerFolder, known: Mapping[str, probe.Failures], cases: Sequence[Case], run: Run,
    device: str,
) -> dict[str, Implementation]:  # fmt: skip
    """Those that do at least one case."""
    made = {}
    for name in names:
        failures = known.get(name, {})
        if all(case in failures for case in cases):
            run.missing[name] = failures[cases[0]]
            continue
        try:
            made[name] = registry.make(name, folder, device)
            run.versions[name] = made[name].version
        except Unavailable as error:
            run.missing[name] = str(error)
    return made


def measure(
    cases: Sequence[Case],
    implementations: Mapping[str, Implementation],
    known: Mapping[str, probe.Failures],
    timer: Timer,
    budget_s: float,
    deadline: float,
) -> Iterator[Result]:
    """Packs once for neighbouring cases with one weight; raises TimeoutError past the deadline."""
    for (shape, dtype, group_size), same_weight in groupby(cases, lambda c: (c.shape, c.torch_dtype, c.group_size)):
        same = list(same_weight)
        failed = {
            case: {name: known[name][case] for name in implementations if case in known.get(name, {})} for case in same
        }
        weights = Weights(shape, dtype, group_size, timer.device)
        weights.pack({name: i for name, i in implementations.items() if any(name not in failed[c] for c in same)})
        dequantized = dequantize(weights.weight)
        for case in same:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no time left for {case}")
            able = {name: i for name, i in implementations.items() if name not in failed[case]}
            result = compare(case, weights, dequantized, able, timer, budget_s)
            result.failed |= failed[case]
            yield result


def benchmark(args: argparse.Namespace, timer: Timer, ceilings: Ceilings, known: Mapping[str, probe.Failures]) -> Run:
    """Prints a row for each case; ends early, with what it has, where time is up or the GPU is lost."""
    run = Run(ceilings)
    cases = select_cases(args)
    implementations = make_all(args.implementations, PeerFolder(args.peers), known, cases, run, timer.device)
    print(results.HEADER + "  peers' us (so many times ours)", flush=True)
    try:
        for result in measure(cases, implementations, known, timer, args.budget, args.deadline):
            run.results.append(result)
            print(results.table_row(result, ceilings), flush=True)
    except (DeviceLost, TimeoutError, KeyboardInterrupt) as error:
        run.ended = f"{type(error).__name__}: {error} ({len(run.results)} of {len(cases)} cases measured)"
    return run


def report(run: Run) -> dict[str, Any]:
    """Prints what is missing or failed and whether the targets are reached; returns the results file's part."""
    for name, why in run.missing.items():
        print(f"missing: {name}: {why}")
    for line in results.failures(run.results):
        print(f"failed: {line}")
    if run.ended:
        print(f"INCOMPLETE: {run.ended}")
    verdicts = targets.verdicts(run.results, run.ceilings)
    print(*verdicts, sep="\n")
    return {
        "ceilings": asdict(run.ceilings),
        "implementations": run.versions,
        "missing": run.missing,
        "ended": run.ended,
        "targets": [{"verdict": verdict.word, **asdict(verdict)} for verdict in verdicts],
        "rows": results.to_json(run.results, run.ceilings),
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six shapes in bfloat16, for the table of targets")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="folder of peers that are not installed")
    parser.add_argument("--models", nargs="+", choices=[a.name for a in shapes.ARCHITECTURES], help="default: all")
    parser.add_argument("--rows", type=int, nargs="+", default=list(shapes.ROWS), help="M")
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float16"], help="default: both; quick: bfloat16")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--implementations", nargs="+", choices=registry.NAMES, default=list(registry.NAMES))
    parser.add_argument("--budget", type=float, help="seconds of replays in one case")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds; what comes later is left out")
    parser.add_argument("--no-probe", action="store_true", help="do not try everything in processes of its own first")
    parser.add_argument("--out", type=Path, help="results file; the plots stand beside it")
    args = parser.parse_args(arguments)
    args.deadline = time.monotonic() + args.time_limit
    if args.budget is None:
        args.budget = BUDGET_S[args.quick]
    return args


def main() -> None:
    args = parse_arguments()
    if not torch.cuda.is_available():
        raise SystemExit("bench_kernels needs a GPU and a build of torch for it: torch.cuda.is_available() is False")
    cases = select_cases(args)
    known: dict[str, probe.Failures] = {}
    if not args.no_probe:
        print(f"trying {len(args.implementations)} implementations on {len(cases)} cases", flush=True)
        patience_s = min(PATIENCE_S, args.time_limit / 6)
        known = probe.probe_all(args.implementations, cases, "cuda", args.peers, patience_s, args.time_limit / 3)
    timer = CudaGraphTimer()
    ceilings = measure_ceilings(timer, sorted({case.dtype for case in cases}))
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in ceilings.flops_per_s.items())
    facts = gpu.describe_gpu()
    print(f"{facts['name']}: copy {ceilings.copy_bytes_per_s / 1e9:.0f} GB/s, {rates}")
    run = benchmark(args, timer, ceilings, known)
    settings = {name: str(value) for name, value in vars(args).items() if name not in ("deadline", "peers", "out")}
    settings["peers"] = args.peers.name if args.peers else "None"
    found = {"machine": describe(), "gpu": facts, "build": ops.build_info(), "settings": settings} | report(run)
    path = write_results("kernels", found, args.out or RESULTS / f"kernels-{gpu.slug(facts['name'])}.json")
    print(f"written to {path}")
    for dtype in ceilings.flops_per_s:
        picture = path.with_name(f"{path.stem}-{dtype}.png")
        try:
            plot_kernels.draw(found, dtype, picture)
            print(f"drawn in {picture}")
        except ImportError as error:
            print(f"no plot: {error} (pip install 'tinyserve[plots]')")
        except ValueError as error:
            print(f"no plot: {error}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
