"""Attention over the paged cache beside the machine's limits and its peers: decoding and prefill of real models' heads.

    python -m benchmarks.bench_attention --quick [--peers DIR]        minutes: the cases of the targets
    python -m benchmarks.bench_attention [--phases decode prefill] [--implementations tinyserve fa3]

Needs a GPU. Measures the machine's ceilings first, then each case: every implementation gets the same queries and the
same random cache, is checked against attention in fp32 and is timed in CUDA graphs, over so many copies of the cache
(256 MB) that none waits in the GPU's own, all in turn. The limit is the larger of the bytes of queries, keys, values
and results over the copy bandwidth, and the products over torch's own rate. `tinyserve` is the op paged_attention
alone, as the peers are; `two-ops` has the rotation and the cache's update before it, `fused` has all in one. An
implementation that is missing or fails is named with its reason; the others go on. DIR holds vLLM's library of
FlashAttention-3 (vllm_fa3.so, also .xz) and FlashInfer's wheel, whichever are there.

Writes benchmarks/results/attention-<gpu>.json, with every replay's time, and a plot beside it.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import plot_attention
from benchmarks.attention import case as sizes
from benchmarks.attention import results, suite, targets
from benchmarks.attention.case import Case
from benchmarks.attention.comparison import compare
from benchmarks.attention.peers import registry
from benchmarks.attention.peers.peer import Implementation
from benchmarks.kernels import probe, run
from benchmarks.kernels.limits import Ceilings
from benchmarks.kernels.rivals import Result
from benchmarks.kernels.timing import Timer

PHASES = ("decode", "prefill")


def select_cases(args: argparse.Namespace) -> list[Case]:
    chosen = sizes.QUICK if args.quick else sizes.ALL
    return [case for case in chosen if PHASES[not case.is_decode] in args.phases]


def measure(
    cases: Sequence[Case],
    implementations: Mapping[str, Implementation],
    known: Mapping[str, probe.Failures],
    timer: Timer,
    budget_s: float,
    deadline: float,
) -> Iterator[Result[Case]]:
    """Raises TimeoutError past the deadline."""
    for case in cases:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no time left for {case}")
        failed = {name: known[name][case] for name in implementations if case in known.get(name, {})}
        able = {name: made for name, made in implementations.items() if name not in failed}
        result = compare(case, able, timer, budget_s)
        result.failed |= failed
        yield result


def benchmark(
    args: argparse.Namespace, timer: Timer, ceilings: Ceilings, known: Mapping[str, probe.Failures]
) -> dict[str, Any]:
    """Prints a row for each case and the verdicts; returns the results file's part."""
    done: run.Run[Case] = run.Run(ceilings)
    cases = select_cases(args)
    implementations = run.make_all(suite, args, known, cases, done, timer.device)
    print(results.HEADER + "  others' us (so many times ours)", flush=True)
    found = measure(cases, implementations, known, timer, args.budget, args.deadline)
    run.collect(done, found, len(cases), partial(results.table_row, ceilings=ceilings))
    return run.report(done, targets.verdicts(done.results, ceilings), results.to_json(done.results, ceilings))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the cases of the targets")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    run.add_arguments(parser, registry.NAMES)
    return run.parsed(parser, arguments)


def main() -> None:
    args = parse_arguments()
    if not torch.cuda.is_available():
        raise SystemExit("bench_attention needs a GPU and a build of torch for it: torch.cuda.is_available() is False")
    path, found = run.on_gpu(suite, args, select_cases(args), partial(benchmark, args), "attention")
    run.draw(path.with_suffix(".png"), partial(plot_attention.draw, found))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
