"""Whole models on a GPU, their weights made up: time per token and to the first token, beside what the machine allows.

    python -m benchmarks.bench_decode_gpu [--models llama-3-8b] [--variants W4A16 W4A16,fp8 W4A16,eager W16A16]
    python -m benchmarks.bench_decode_gpu --batches 1 64 --contexts 1024 --trace llama-3-8b

No checkpoint is needed: random codes and random 16-bit weights of a model's true shapes are as fast as trained ones.
Each model has a process of its own. A decode step is timed with so many requests that have so many tokens in the cache
(which are not computed first), a whole engine's step: its plan, the model, greedy sampling, text. `limit` is the
larger of the bytes of weights, keys and values over the copy bandwidth and the products over torch's rate, both
measured before. A prompt of 2048 tokens is given to the same model in transformers too, in 16 bits. `eager` runs
without CUDA graphs. What does not fit in memory is left out and said; what fails is named, and the others go on.

Writes benchmarks/results/decode-<gpu>.json with every step's time; with --trace also a picture and a table of one
token of that model, kernel by kernel (see timeline.py). Without a GPU, `--device cpu --layers 1` shows that it works.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu, timeline
from benchmarks.decode import process, targets
from benchmarks.decode.task import Row, Task
from benchmarks.decode.variant import Variant
from benchmarks.kernels.limits import Ceilings, measure_ceilings
from benchmarks.kernels.timing import CudaGraphTimer, LoopTimer, Timer
from benchmarks.machine import RESULTS, describe, write_results
from benchmarks.model_configs import MODELS
from tinyserve import ops

DEFAULT_MODELS = ("llama-3-8b", "llama-2-7b", "qwen2.5-7b", "mistral-7b", "llava-1.5-7b", "llama-2-13b")
SMALL = {"copy_bytes": 1 << 24, "rate_size": 256}  # what a CPU's ceilings are measured on
LEAST_S = 5.0  # a model with less time than this is not begun


def measure_machine(device: str) -> Ceilings:
    timer: Timer = CudaGraphTimer() if device == "cuda" else LoopTimer()
    ceilings = measure_ceilings(timer, ["bfloat16", "float16"], **({} if device == "cuda" else SMALL))
    if device == "cuda":
        torch.cuda.empty_cache()  # the models' processes need it
    return ceilings


def tasks(args: argparse.Namespace, ceilings: Ceilings, scratch: Path) -> list[Task]:
    settings = {"num_hidden_layers": args.layers} if args.layers else None
    return [
        Task(
            model,
            args.device,
            ceilings,
            tuple(args.variants),
            tuple(args.batches),
            tuple(args.contexts),
            tuple(args.prompts),
            targets.PREFILL_TOKENS if targets.PREFILL_TOKENS in args.prompts else None,
            str(scratch / "trace.json") if model == args.trace else None,
            settings,
        )
        for model in args.models
    ]


def run_all(todo: Sequence[Task], deadline: float) -> list[Row]:
    """Every model gets an equal part of the time that is left when its turn comes."""
    found: list[Row] = []
    for index, task in enumerate(todo):
        limit_s = (deadline - time.monotonic()) / (len(todo) - index)
        rows = iter([process.failure(task, "no time left")]) if limit_s < LEAST_S else process.run(task, limit_s)
        for row in rows:
            found.append(row)
            print(line(row), flush=True)
    return found


def line(row: Row) -> str:
    start = f"{row['model']:<13} {row['variant']:<12}"
    match row["kind"]:
        case "decode":
            spread = max(row["intervals_s"]) / row["seconds"] * row["steps"]
            return (
                f"{start} decode {row['batch']:>4} x {row['context']:<5} {row['step_ms']:>9.3f} ms, limit"
                f" {row['limit_ms']:>8.3f} ms {row['of_limit']:>5.0%} {row['tokens_per_s']:>9.1f} tokens/s, slowest"
                f" step {spread:.2f} x"
            )
        case "first token":
            limit = f", limit {row['limit_ms']:.1f} ms {row['of_limit']:.0%}"
            return f"{start} first token of {row['tokens']}: {row['best_ms']:.1f} ms{limit}"
        case "torch prefill":
            return f"{start} prefill of {row['tokens']}: {row['best_ms']:.1f} ms"
        case "load":
            return f"{start} made in {row['seconds']:.1f} s, cache of {row['kv_cache_tokens']} tokens"
        case "memory":
            peak = row["peak_bytes"]
            return f"{start} at most {peak / 2**30:.1f} GiB" if peak else f"{start} memory not measured"
        case "trace":
            return f"{start} traced at batch {row['batch']}, context {row['context']}"
    return f"{start} {row['kind']}: {row['what']}: {row['why']}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(DEFAULT_MODELS), metavar="NAME")
    parser.add_argument("--variants", nargs="+", default=["W4A16", "W16A16"], help="PRECISION[,int8|,fp8][,eager]")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048, 8192], help="tokens; for the first token")
    parser.add_argument("--trace", metavar="NAME", help="the model whose token is drawn kernel by kernel")
    parser.add_argument("--layers", type=int, help="fewer than the models have")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds; what comes later is left out")
    parser.add_argument("--out", type=Path, help="results file; the picture stands beside it")
    args = parser.parse_args(arguments)
    args.deadline = time.monotonic() + args.time_limit
    for text in args.variants:
        try:
            Variant.parse(text)
        except ValueError as error:
            parser.error(f"--variants: {error}")
    if args.trace and args.trace not in args.models:
        parser.error(f"--trace must be one of --models, got {args.trace}")
    return args


def add_timeline(row: Row, picture: Path) -> None:
    """Prints and draws what the trace says, and puts it in the place of the file's name."""
    path = Path(row.pop("path"))
    try:
        row["timeline"] = timeline.show(path, picture)
    except (ValueError, OSError) as error:
        row["timeline"] = None
        print(f"no timeline: {error}")


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """Prints whether the targets are reached; returns the results file's part."""
    verdicts = targets.verdicts(rows)
    print(*verdicts, sep="\n")
    return {"targets": [{"verdict": verdict.word, **asdict(verdict)} for verdict in verdicts], "rows": list(rows)}


def main() -> None:
    args = parse_arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_decode_gpu needs a GPU and a build of torch for it, or --device cpu for a trial")
    ceilings = measure_machine(args.device)
    facts = gpu.describe_gpu() if args.device == "cuda" else {"name": "cpu"}
    print(f"{facts['name']}: {ceilings}")
    out = args.out or RESULTS / f"decode-{gpu.slug(facts['name'])}.json"
    with tempfile.TemporaryDirectory() as scratch:
        rows = run_all(tasks(args, ceilings, Path(scratch)), args.deadline)
        for row in rows:
            if row["kind"] == "trace":
                add_timeline(row, out.with_name(f"{out.stem}-timeline.png"))
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("deadline", "out")}
    found = {"machine": describe(), "gpu": facts, "build": ops.build_info(), "settings": settings}
    print(f"written to {write_results('decode', found | {'ceilings': asdict(ceilings)} | report(rows), out)}")


if __name__ == "__main__":
    main()
