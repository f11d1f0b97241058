"""Prefill and decode tokens per second of one model, beside what the machine's memory and arithmetic allow.

    python -m benchmarks.bench_decode MODEL [--precision W16A16] [--cpu-compute exact] [--batches 1 4 16] [--prompt 512]
    python -m benchmarks.bench_decode MODEL --peer PYTHON MODEL.gguf     llama.cpp too, in turn, on as many threads

The engine runs alone, without HTTP, on random prompts; on a GPU where there is one. The limits are measured first, on
the same threads: a decode step has to read every weight once and the keys and values of every request, so its limit is
bytes over read bandwidth (a GPU's: of a copy); prefill's is multiplications over what torch's own matrix product
reaches, in fp32, on a GPU in bfloat16. A step is timed until its tokens are on the host. bench_decode_gpu.py needs no
checkpoint, but a GPU.
"""

import tinyserve  # noqa: F401  before torch: it says how OpenMP's threads wait

# isort: split
import argparse
import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, write_results
from benchmarks.machine_limits import DTYPE, Limits, measure_limits
from benchmarks.peak_memory import forget_peak_memory, peak_memory_bytes
from tinyserve import ops
from tinyserve.config import EngineConfig, KvCacheDtype, SamplingParams
from tinyserve.engine import kv_cache
from tinyserve.engine.engine import Engine
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.engine.warm_up import warm_up
from tinyserve.layers.linear import W4A8Linear
from tinyserve.models.language_model import LanguageModel
from tinyserve.models.loader import load_model

INT8_RATE = 4  # products of bytes in the place of one of fp32
PEER = Path(__file__).parent / "peer_llamacpp.py"


@dataclass(frozen=True)
class Measurement:
    """One batch size; times are raw, one per engine step."""

    batch: int
    prompt_tokens: int  # of each request
    prefill_s: list[float]  # one per repetition: first step to the last request's first token
    decode_steps_s: list[float]  # of all repetitions
    weight_bytes: int  # read by one decode step
    kv_bytes: int  # read by one decode step, at the mean context length

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.batch * self.prompt_tokens / statistics.median(self.prefill_s)

    @property
    def decode_tokens_per_s(self) -> float:
        return self.batch / statistics.median(self.decode_steps_s)

    def decode_limit(self, limits: Limits) -> float:
        """Tokens per second if a step took no longer than reading its bytes."""
        return self.batch * limits.read_bytes_per_s / (self.weight_bytes + self.kv_bytes)


def measure(
    engine: Engine, model: LanguageModel, batch: int, prompt: int, new: int, repeats: int, kv_cache_dtype: KvCacheDtype
) -> Measurement:
    prefill_s: list[float] = []
    decode_s: list[float] = []
    for repeat in range(-1, repeats):  # -1 warms up
        first, steps = _run(engine, batch, prompt, new if repeat >= 0 else 4, seed=repeat)
        if repeat >= 0:
            prefill_s.append(first)
            decode_s += steps
    kv_token = kv_cache.block_bytes(model, 1, kv_cache_dtype)
    weight_bytes = sum(linear.num_bytes for linear in model.linears)
    mean_context = prompt + new // 2
    return Measurement(batch, prompt, prefill_s, decode_s, weight_bytes, batch * mean_context * kv_token)


def _run(
    engine: Engine,
    batch: int,
    prompt: int,
    new: int,
    seed: int,
    kernels: list[ops.KernelTime] | None = None,
) -> tuple[float, list[float]]:
    """Seconds until every request has its first token, and of each step after that in which all of them decode.

    What the kernels take in the latter is added to `kernels`.
    """
    random_ = random.Random(seed)
    params = SamplingParams(max_new_tokens=engine.context_length - prompt, temperature=0.0, ignore_eos=True)
    ids = set()
    for _ in range(batch):
        token_ids = [random_.randrange(100, 30000) for _ in range(prompt)]
        ids.add(engine.add(engine.prepare(token_ids, params)))
    everyone = set(ids)
    start = time.perf_counter()
    while ids:
        ids -= {output.request_id for output in engine.step()}
    prefill = time.perf_counter() - start
    steps = []
    with contextlib.ExitStack() as profiled:
        times = profiled.enter_context(ops.profile_cpu()) if kernels is not None else []
        for _ in range(new - 1):
            start = time.perf_counter()
            outputs = engine.step()
            steps.append(time.perf_counter() - start)
            assert len(outputs) == batch, "a request ended early: the step would look faster than it is"
    if kernels is not None:
        kernels += times
    for request_id in everyone:
        engine.abort(request_id)
    return prefill, steps


def profile(engine: Engine, batch: int, prompt: int, new: int) -> dict[str, Any]:
    """Where a decode step's time goes: prints each kernel's calls and time, and what is outside of all kernels.

    Returns:
        The same in milliseconds per step.
    """
    kernels: list[ops.KernelTime] = []
    _, steps = _run(engine, batch, prompt, new, seed=0, kernels=kernels)
    total, count = sum(steps), len(steps)
    print(f"      profile of {count} steps of {batch} requests from {prompt} tokens on:")
    for one in kernels:
        print(f"      {one.name:>18} {one.calls / count:7.1f} calls {1e3 * one.seconds / count:8.3f} ms a step")
    outside = total - sum(one.seconds for one in kernels)
    print(f"      {'outside':>18} {'':13} {1e3 * outside / count:8.3f} ms a step, {outside / total:.1%}", flush=True)
    milliseconds = {one.name: 1e3 * one.seconds / count for one in kernels}
    return {"ms_per_step": milliseconds, "outside_ms": 1e3 * outside / count, "outside_share": outside / total}


def measure_peer(ours: Measurement, args: argparse.Namespace) -> Measurement:
    """The same batch by llama.cpp; its bytes are not known, and stand as ours."""
    python, gguf = args.peer
    numbers = {"batch": ours.batch, "prompt": args.prompt, "new": args.new, "repeats": args.repeats}
    settings = json.dumps({**numbers, "threads": torch.get_num_threads()})
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}  # that is ours
    command = [python, PEER, gguf, settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{PEER.name} failed:\n{done.stderr[-2000:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    print(f"      llama.cpp: {cost(figures)}")
    return replace(ours, prefill_s=figures["prefill_s"], decode_steps_s=figures["decode_steps_s"])


def compare(ours: Measurement, peer: Measurement) -> dict[str, Any]:
    """Prints the peer's figures and how many times as fast we are, by medians and by the best of both."""
    figures = {
        "prefill_tokens_per_s": peer.prefill_tokens_per_s,
        "decode_tokens_per_s": peer.decode_tokens_per_s,
        "prefill_ratio": ours.prefill_tokens_per_s / peer.prefill_tokens_per_s,
        "decode_ratio": ours.decode_tokens_per_s / peer.decode_tokens_per_s,
        "prefill_ratio_of_best": min(peer.prefill_s) / min(ours.prefill_s),
        "decode_ratio_of_best": min(peer.decode_steps_s) / min(ours.decode_steps_s),
    }
    print("      llama.cpp: " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
    return {**figures, "prefill_s": peer.prefill_s, "decode_steps_s": peer.decode_steps_s}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--quant-path", type=Path)
    parser.add_argument("--precision", choices=["W4A16", "W16A16"], default="W4A16")
    parser.add_argument("--cpu-compute", choices=["int8", "exact"], default="int8")
    parser.add_argument("--kv-cache-dtype", choices=["auto", "int8", "fp8"], default="auto")
    parser.add_argument("--enforce-eager", action="store_true", help="no CUDA graphs, no tapes on a CPU")
    parser.add_argument("--dtype", choices=["auto", "float16", "bfloat16", "float32"], default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens decoded for each request")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--peer", nargs=2, metavar=("PYTHON", "GGUF"), help="one with llama-cpp-python, and its model")
    parser.add_argument("--profile", action="store_true", help="the time of each CPU kernel in a decode step, too")
    parser.add_argument("--name", default="decode", help="of the results file")
    return parser.parse_args()


def report(result: Measurement, limits: Limits, flops_per_token: float) -> dict[str, Any]:
    """Prints one row of the table; returns it with the raw figures."""
    figures = {
        "prefill_tokens_per_s": result.prefill_tokens_per_s,
        "prefill_limit_tokens_per_s": limits.flops_per_s / flops_per_token,
        "decode_tokens_per_s": result.decode_tokens_per_s,
        "decode_limit_tokens_per_s": result.decode_limit(limits),
    }
    prefill_share = figures["prefill_tokens_per_s"] / figures["prefill_limit_tokens_per_s"]
    decode_share = figures["decode_tokens_per_s"] / figures["decode_limit_tokens_per_s"]
    print(
        f"{result.batch:>5} {result.prompt_tokens:>6} {result.prefill_tokens_per_s:>14.1f} {prefill_share:>8.0%}"
        f" {result.decode_tokens_per_s:>13.1f} {decode_share:>8.0%}"
        f" {1e3 * statistics.median(result.decode_steps_s):>8.2f}",
        flush=True,
    )
    return asdict(result) | figures


def cost(figures: dict[str, Any]) -> str:
    """Of having the model: the time once, and the memory at its highest."""
    memory = figures["peak_memory_bytes"]
    return f"loaded in {figures['load_s']:.1f} s" + (f", at most {memory / 2**30:.2f} GiB of memory" if memory else "")


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = EngineConfig(
        arguments.model,
        arguments.quant_path,
        arguments.precision,
        arguments.dtype,
        cpu_compute=arguments.cpu_compute,
        kv_cache_dtype=arguments.kv_cache_dtype,
        max_num_requests=max(arguments.batches),
        prefix_cache=False,  # every repetition computes its prompts
        max_slowdown=math.inf,  # prompts as fast as they go: nobody reads beside them
        enforce_eager=arguments.enforce_eager,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limits = measure_limits(device)
    forget_peak_memory(device)  # that was not the model's
    start = time.perf_counter()
    model = load_model(
        config.model_path,
        config.quant_path,
        config.precision,
        config.dtype,
        device,
        cpu_compute=config.cpu_compute,
    )
    load_s = time.perf_counter() - start
    engine = Engine(config, model, Tokenizer(config.model_path))
    if device == "cuda":  # CUDA graphs
        warm_up(engine._scheduler, engine._runner, engine._pace, engine.context_length)
    settings = {k: v.name if isinstance(v, Path) else str(v) for k, v in vars(arguments).items()}
    settings |= {"threads": str(torch.get_num_threads()), "dtype": str(model.dtype)}
    settings["peer"] = Path(arguments.peer[1]).name if arguments.peer else "None"
    print(f"{arguments.model}, {config.precision}, {model.dtype}, {torch.get_num_threads()} threads")
    print(
        f"limits: read {limits.read_bytes_per_s / 1e9:.1f} GB/s, {DTYPE[device]} {limits.flops_per_s / 1e9:.0f} GFLOP/s"
    )
    print("batch prompt  prefill tok/s of limit  decode tok/s of limit  step ms")
    # of a prompt's tokens only the last passes lm_head
    flops_per_token = 2.0 * sum(linear.num_weights for linear in model.linears[:-1])
    if isinstance(model.linears[0], W4A8Linear):
        flops_per_token /= INT8_RATE
    rows = []
    for batch in arguments.batches:
        result = measure(
            engine, model, batch, arguments.prompt, arguments.new, arguments.repeats, arguments.kv_cache_dtype
        )
        rows.append(report(result, limits, flops_per_token))
        if arguments.peer:
            rows[-1]["llama.cpp"] = compare(result, measure_peer(result, arguments))
        if arguments.profile and device == "cpu":
            rows[-1]["profile"] = profile(engine, batch, arguments.prompt, arguments.new)
    memory = {"load_s": load_s, "peak_memory_bytes": peak_memory_bytes(device)}
    print(cost(memory))
    results = {"machine": describe(), "build": ops.build_info(), "settings": settings, **memory}
    path = write_results(arguments.name, results | {"limits": asdict(limits), "batches": rows})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
