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
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch

from awq.quantize import dequantize
from benchmarks import plot_kernels, shapes
from benchmarks.kernels import probe, results, run, suite, targets
from benchmarks.kernels.comparison import Weights, compare
from benchmarks.kernels.limits import Case, Ceilings
from benchmarks.kernels.peers import registry
from benchmarks.kernels.peers.peer import Implementation
from benchmarks.kernels.rivals import Result
from benchmarks.kernels.timing import Timer


def select_cases(args: argparse.Namespace) -> list[Case]:
    chosen: Sequence[shapes.Shape] = shapes.QUICK_SHAPES if args.quick else shapes.shapes()
    if args.models:
        chosen = shapes.shapes(tuple(a for a in shapes.ARCHITECTURES if a.name in args.models))
    dtypes = args.dtypes or (["bfloat16"] if args.quick else ["bfloat16", "float16"])
    return [Case(shape, rows, dtype, args.group_size) for shape in chosen for dtype in dtypes for rows in args.rows]


def measure(
    cases: Sequence[Case],
    implementations: Mapping[str, Implementation],
    known: Mapping[str, probe.Failures],
    timer: Timer,
    budget_s: float,
    deadline: float,
) -> Iterator[Result[Case]]:
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


def benchmark(
    args: argparse.Namespace, timer: Timer, ceilings: Ceilings, known: Mapping[str, probe.Failures]
) -> dict[str, Any]:
    """Prints a row for each case and the verdicts; returns the results file's part."""
    done: run.Run[Case] = run.Run(ceilings)
    cases = select_cases(args)
    implementations = run.make_all(suite, args, known, cases, done, timer.device)
    print(results.HEADER + "  peers' us (so many times ours)", flush=True)
    found = measure(cases, implementations, known, timer, args.budget, args.deadline)
    run.collect(done, found, len(cases), partial(results.table_row, ceilings=ceilings))
    return run.report(done, targets.verdicts(done.results, ceilings), results.to_json(done.results, ceilings))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six shapes in bfloat16, for the table of targets")
    parser.add_argument("--models", nargs="+", choices=[a.name for a in shapes.ARCHITECTURES], help="default: all")
    parser.add_argument("--rows", type=int, nargs="+", default=list(shapes.ROWS), help="M")
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float16"], help="default: both; quick: bfloat16")
    parser.add_argument("--group-size", type=int, default=128)
    run.add_arguments(parser, registry.NAMES)
    return run.parsed(parser, arguments)


def main() -> None:
    args = parse_arguments()
    if not torch.cuda.is_available():
        raise SystemExit("bench_kernels needs a GPU and a build of torch for it: torch.cuda.is_available() is False")
    cases = select_cases(args)
    path, found = run.on_gpu(suite, args, cases, partial(benchmark, args), "kernels")
    for dtype in sorted({case.dtype for case in cases}):
        run.draw(path.with_name(f"{path.stem}-{dtype}.png"), partial(plot_kernels.draw, found, dtype))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
