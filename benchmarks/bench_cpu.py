"""Products with quantized weights on the CPU, ours beside llama.cpp's, ONNX Runtime's and torch's, and the limits.

    python -m benchmarks.bench_cpu --llamacpp PYTHON --onnxruntime PYTHON [--quick] [--models Llama-2-7B] [--rows 1 128]

PYTHON is one that has llama-cpp-python, or onnxruntime and onnx; by default the one that runs this. What is missing is
named and left out. Each peer has a process of its own, whose threads wait as its library would have them. All work on
equally many threads, one after the other, in rounds: a round gives every implementation a turn at the same product, so
that whatever else the machine does hits all of them. Before it is timed each one's result is compared with its own
weights multiplied out; weights are rotated, past the caches.

A row shows our best and median time, the rate at which bytes of weights came in and multiply-adds were done at the
best, their shares of what was measured in the same run (cpu_limits.py), and the other times over ours: best over best.
The last column is the fastest peer's over ours, by medians.
"""

import tinyserve  # noqa: F401  before torch: it says how OpenMP's threads wait

# isort: split
import argparse
import sys
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import cpu_limits
from benchmarks.cpu_peers import ours
from benchmarks.cpu_peers.contender import Contender, Times, local, remote
from benchmarks.cpu_peers.product import Case
from benchmarks.cpu_peers.remote import MissingPeerError, Process
from benchmarks.cpu_shapes import QUICK_ROWS, ROWS, SHAPES, Shape, chosen
from benchmarks.machine import describe, write_results
from tinyserve import ops

ROTATION_BYTES = 256 << 20  # of weights before one comes again
CALL_BYTES = 32 << 20  # of weights in one call
MAX_ERROR = 0.03  # relative; rounding activations to int8 or bf16 makes less than 0.01
ERROR_ROWS = 4
OURS, EXACT = "ours", "exact"


def contenders(bits: int, processes: list[Process]) -> list[Contender]:
    """Ours first."""
    here = [local(product) for product in ours.products(bits)]
    there = [remote(process, name, b) for process in processes for name, b in process.products if b == bits]
    return [*here, *there]


def case_of(shape: Shape, group_size: int) -> Case:
    group = group_size if shape.k % group_size == 0 else 64
    weight_bytes = shape.n * shape.k * shape.bits // 8
    products = -(-CALL_BYTES // weight_bytes)
    rotation = max(2, -(-ROTATION_BYTES // (products * weight_bytes)))
    return Case(shape.n, shape.k, group, shape.bits, products, rotation)


def prepared(case: Case, everyone: list[Contender]) -> tuple[list[Contender], dict[str, dict[str, float]]]:
    """Those who have such a product and compute it rightly, and what is known of each: error and bytes."""
    able, facts = [], {}
    for contender in everyone:
        try:
            num_bytes = contender.prepare(case)
        except ValueError as why:
            print(f"  {contender.name} is left out: {why}")
            continue
        error = contender.error(ERROR_ROWS)
        if not error < MAX_ERROR:
            raise SystemExit(f"{contender.name} computes something else: relative error {error:.3g}")
        able.append(contender)
        facts[contender.name] = {"error": error, "bytes": num_bytes}
    print("  relative errors: " + "  ".join(f"{name} {fact['error']:.1e}" for name, fact in facts.items()), flush=True)
    return able, facts


def measure(able: list[Contender], m: int, rounds: int, turn: float) -> dict[str, Times]:
    clocks = {contender.name: contender.start(m) for contender in able}
    turns: dict[str, list[list[float]]] = {name: [] for name in clocks}
    for _ in range(rounds):
        for name, seconds in clocks.items():
            turns[name].append(seconds(turn))
    return {name: Times.of(all_turns) for name, all_turns in turns.items()}


def report(m: int, case: Case, num_bytes: float, times: dict[str, Times], limits: cpu_limits.Limits | None) -> Any:
    """Prints a row of the table; returns it with the raw figures."""
    mine = times[OURS]
    macs = m * case.n * case.k
    peers = {name: result for name, result in times.items() if name not in (OURS, EXACT)}
    figures: dict[str, Any] = {"bytes_per_s": num_bytes / mine.shortest, "macs_per_s": macs / mine.shortest}
    shares = f"{'-':>7} {'-':>7}"
    if limits:
        figures["of_bandwidth"] = figures["bytes_per_s"] / limits.read_bytes_per_s
        figures["of_peak"] = figures["macs_per_s"] / limits.macs_per_s
        figures["limit_s"] = limits.seconds(num_bytes, macs)
        shares = f"{figures['of_bandwidth']:>7.0%} {figures['of_peak']:>7.0%}"
    figures["ratios"] = {name: result.shortest / mine.shortest for name, result in times.items() if name != OURS}
    if peers:
        figures["best_peer"] = min(result.shortest for result in peers.values()) / mine.shortest
        figures["best_peer_by_medians"] = min(result.typical for result in peers.values()) / mine.typical
    print(
        f"{m:>5} {1e6 * mine.shortest:>9.1f} {1e6 * mine.typical:>9.1f} {figures['bytes_per_s'] / 1e9:>6.1f}"
        f" {figures['macs_per_s'] / 1e9:>7.1f} {shares}"
        + "".join(f" {ratio:>8.2f}" for ratio in figures["ratios"].values())
        + (f" {figures['best_peer']:>8.2f} {figures['best_peer_by_medians']:>8.2f}" if peers else ""),
        flush=True,
    )
    return {"m": m, **figures, "times": {name: asdict(result) for name, result in times.items()}}


def measure_shape(
    shape: Shape, everyone: list[Contender], limits: cpu_limits.Limits | None, args: argparse.Namespace
) -> dict[str, Any]:
    case = case_of(shape, args.group_size)
    groups = f", groups of {case.group}" if case.bits == 4 else ""
    print(f"\n{shape.model} {shape.layer}: {shape.k} x {shape.n}, {shape.bits} bits{groups}")
    able, facts = prepared(case, everyone)
    others = [contender.name for contender in able if contender.name != OURS]
    peers = len(set(others) - {EXACT}) > 0
    columns = [*others, *(["best", "median"] if peers else [])]
    print(
        f"{'M':>5} {'best us':>9} {'median us':>9} {'GB/s':>6} {'GMAC/s':>7} {'of bw':>7} {'of peak':>7}"
        + "".join(f" {name:>8}" for name in columns)
    )
    rows = []
    for m in args.rows:
        times = measure(able, m, args.rounds, args.turn)
        rows.append(report(m, case, facts[OURS]["bytes"], times, limits))
    return {**asdict(shape), **asdict(case), "contenders": facts, "rows": rows}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamacpp", default=sys.executable, metavar="PYTHON", help="one with llama-cpp-python")
    parser.add_argument("--onnxruntime", default=sys.executable, metavar="PYTHON", help="one with onnxruntime and onnx")
    parser.add_argument("--models", nargs="+", default=[], choices=sorted({shape.model for shape in SHAPES}))
    parser.add_argument("--layers", nargs="+", default=[], choices=sorted({shape.layer for shape in SHAPES}))
    parser.add_argument("--rows", type=int, nargs="+", help=f"M; default: {ROWS}")
    parser.add_argument(
        "--group-size", type=int, choices=[32, 64, 128], default=128, help="64 where it does not divide K"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, help="turns of every implementation at one product; default: 5")
    parser.add_argument("--turn", type=float, default=0.2, metavar="SECONDS", help="no call of a turn begins later")
    parser.add_argument("--quick", action="store_true", help="few shapes, few M, two rounds")
    parser.add_argument("--name", default="cpu", help="of the results file")
    args = parser.parse_args()
    args.rows = args.rows or (QUICK_ROWS if args.quick else ROWS)
    args.rounds = args.rounds or (2 if args.quick else 5)
    return args


def started(args: argparse.Namespace) -> list[Process]:
    processes = []
    for library, python, module in (
        ("torch's int4", sys.executable, "torch_int4"),
        ("llama.cpp", args.llamacpp, "ggml"),
        ("ONNX Runtime", args.onnxruntime, "onnxruntime_nbits"),
    ):
        try:
            processes.append(Process(python, module, args.threads))
        except MissingPeerError as error:
            print(f"{library} is left out: {error}")
    return processes


def measured_limits(threads: int) -> cpu_limits.Limits | None:
    try:
        limits = cpu_limits.measure(threads)
    except RuntimeError as error:
        print(f"no limits: {error}")
        return None
    print(f"limits: read {limits.read_bytes_per_s / 1e9:.1f} GB/s, {limits.macs_per_s / 1e9:.0f} GMAC/s of bytes")
    return limits


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    print(f"{ops.build_info()['cpu_isa']}, {args.threads} threads")
    limits = measured_limits(args.threads)
    processes = started(args)
    shapes = chosen(args.models, args.layers, args.quick)
    everyone = {bits: contenders(bits, processes) for bits in (4, 8)}
    results = [measure_shape(shape, everyone[shape.bits], limits, args) for shape in shapes]
    for process in processes:
        process.close()
    settings = {"threads": args.threads, "rounds": args.rounds, "turn_s": args.turn, "group_size": args.group_size}
    settings["peers"] = {process.library: process.version for process in processes}
    path = write_results(
        args.name,
        {
            "machine": describe(),
            "build": ops.build_info(),
            "settings": settings,
            "limits": asdict(limits) if limits else None,
            "shapes": results,
        },
    )
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
