"""Which tile configuration of w4a16_gemm is fastest on this GPU, for the shapes of a model and every number of rows.

    python -m benchmarks.tune_gemm --models Llama-3-8B Qwen2.5-7B
    python -m benchmarks.tune_gemm --checkpoint DIR [--rows 16 64 256] [--dtype bfloat16] [--out table.json]

Times every configuration that runs here, in turn, in CUDA graphs over copies of the weight that no cache holds, and
writes benchmarks/results/gemm-table-<gpu>.json: the fastest of each shape and every time. Serve with

    TINYSERVE_GEMM_TABLE=benchmarks/results/gemm-table-<gpu>.json

and the table decides; on another GPU it is refused. --checkpoint takes the shapes from a folder's config.json.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import gpu
from benchmarks.kernels.timing import CudaGraphTimer, Timer, num_calls, num_copies, take_turns
from benchmarks.kernels.weights import random_activations, random_weight
from benchmarks.machine import RESULTS, describe, write_results
from benchmarks.shapes import ARCHITECTURES, Architecture, Shape, shapes
from tinyserve import ops

ROWS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)
BUDGET_S = 0.2  # of replays for one shape and number of rows


def architecture_of(folder: Path) -> Architecture:
    """What the config.json of a checkpoint says of its language model."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Architecture(
        folder.name,
        hidden,
        config["intermediate_size"],
        heads,
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or hidden // heads,
    )


def time_configs(
    shape: Shape, rows: Sequence[int], group_size: int, dtype: torch.dtype, timer: Timer, num: int | None = None
) -> dict[int, dict[str, float]]:
    """For each number of rows, the median seconds of a call with each configuration.

    `num` copies of the weight take turns, by default as many as no cache holds.
    """
    weight = random_weight(shape.n, shape.k, group_size, dtype, timer.device)
    packed = ops.w4a16_pack(weight.codes, weight.scales, weight.zeros, dtype=dtype)
    num = num or num_copies(packed.qweight.nbytes + packed.qparams.nbytes)
    copies = [replace(packed, qweight=packed.qweight.clone(), qparams=packed.qparams.clone()) for _ in range(num)]
    times = {}
    for m in rows:
        x = random_activations(m, shape.k, dtype, timer.device)
        prepared = {}
        for name, index in ops.w4a16_gemm_configs(timer.device).items():
            calls = [partial(ops.w4a16_gemm, x, copy, config=index) for copy in copies]
            calls[0]()
            rounds = num_calls(len(copies), timer.estimate(calls[0])) // len(copies)
            prepared[name] = timer.prepare(calls * rounds)
        times[m] = {name: statistics.median(all_of) for name, all_of in take_turns(prepared, BUDGET_S).items()}
    return times


def as_table(times: dict[Shape, dict[int, dict[str, float]]]) -> dict[str, Any]:
    """What tinyserve/gemm_table.py reads, and every time beside it."""
    best, every = [], []
    for shape, by_rows in times.items():
        fastest = [[m, min(found, key=found.__getitem__)] for m, found in by_rows.items()]
        best.append({"n": shape.n, "k": shape.k, "layers": list(shape.layers), "rows": fastest})
        every += [{"n": shape.n, "k": shape.k, "m": m, "seconds": found} for m, found in by_rows.items()]
    return {"best": best, "times": every}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--models", nargs="+", choices=[a.name for a in ARCHITECTURES], metavar="NAME")
    source.add_argument("--checkpoint", type=Path, metavar="DIR")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, metavar="M")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gemm-table-<gpu>.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tune_gemm needs a GPU")
    if args.checkpoint:
        architectures: tuple[Architecture, ...] = (architecture_of(args.checkpoint),)
    else:
        architectures = tuple(a for a in ARCHITECTURES if a.name in args.models)
    facts, timer = gpu.describe_gpu(), CudaGraphTimer()
    times = {}
    for shape in tqdm(shapes(architectures), desc="shapes"):
        times[shape] = time_configs(shape, sorted(args.rows), args.group_size, getattr(torch, args.dtype), timer)
        for m, found in times[shape].items():
            ranked = sorted(found.items(), key=lambda item: item[1])
            tqdm.write(f"{shape} M={m}: " + ", ".join(f"{name} {s * 1e6:.1f} us" for name, s in ranked[:3]))
    settings = {"group_size": args.group_size, "dtype": args.dtype}
    path = args.out or RESULTS / f"gemm-table-{gpu.slug(facts['name'])}.json"
    results = {"machine": describe(), "gpu": facts, "settings": settings, **as_table(times)}
    print(write_results("gemm-table", results, path))


if __name__ == "__main__":
    main()
