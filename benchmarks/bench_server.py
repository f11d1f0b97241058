"""How a server holds up: throughput by concurrency, prefix hits, streams beside a long prompt, Poisson arrivals.

    python -m benchmarks.bench_server MODEL                      starts a worker of ours on that folder
    python -m benchmarks.bench_server --url URL --name NAME      any worker or controller that runs already
    python -m benchmarks.bench_server --url URL --api openai ... any OpenAI-style server: peers are measured alike
    python -m benchmarks.bench_server MODEL --images FILE...     questions about pictures, and nothing else

Prompts are random words, temperature 0, outputs of fixed length. Every scenario runs on a warm server. The lines at the
end compare with what is aimed at; a peer gets the same lines.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import image_requests, load, scenarios, step_overhead
from benchmarks.endpoints import ENDPOINTS
from benchmarks.load import Job, random_prompt
from benchmarks.machine import describe, write_results
from benchmarks.servers import all_cores, free_port, start, wait_for_health

MIN_SPEEDUP = 4.0  # tokens/s of the most streams over one
MIN_PREFIX_GAIN = 8.0  # TTFT of a prompt of PREFIX_WORDS over that of one whose prefix is known
MAX_STALL = 3.0  # ITL p99 beside a prompt of LONG_WORDS over the median without it


async def run_all(url: str, args: argparse.Namespace) -> dict[str, Any]:
    random_ = random.Random(args.seed)
    async with load.client(url, ENDPOINTS[args.api](args.name)) as client:
        for _ in range(2):  # warm
            scenarios.checked(await client.run(Job(random_prompt(args.prompt, random_), 8)))
        if args.images:
            return {"images": await image_requests.image_requests(client, random_, args.images)}
        results: dict[str, Any] = {"closed": []}
        for concurrency in args.concurrency:
            served = await scenarios.closed(client, random_, concurrency, args.prompt, args.new)
            row = {"concurrency": concurrency, **load.summary(served, args.max_ttft, args.max_tpot)}
            show(f"closed, {concurrency} clients", row)
            results["closed"].append(row)
        results["prefix"] = await scenarios.prefix_hits(client, random_)
        if "stall" not in args.skip:
            results["stall"] = await scenarios.stall(client, random_)
        if "open" not in args.skip:
            served = await scenarios.poisson(client, random_, args.rate, args.seconds, args.prompt, args.new)
            results["open"] = {"rate": args.rate, **load.summary(served, args.max_ttft, args.max_tpot)}
            show(f"open, {args.rate:g} requests/s", results["open"])
        return results


def show(what: str, row: dict[str, Any]) -> None:
    print(f"{what}: {row['requests']} requests, {row['errors']} errors", end="")
    if row["requests"]:
        print(f", {row['output_tokens_per_s']:.1f} output tokens/s, goodput {row['goodput_requests_per_s']:.2f}/s")
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            if name in row:
                values = "  ".join(f"{key} {1e3 * value:.1f}" for key, value in row[name].items())
                print(f"    {name.removesuffix('_s'):<5} ms  {values}")
    else:
        print(f": {row['first_error']}")
    sys.stdout.flush()


def verdicts(results: dict[str, Any]) -> bool:
    """Prints each figure beside its aim; True when all are met."""
    closed, prefix = results["closed"], results["prefix"]
    most, one = (choose(closed, key=lambda row: row["concurrency"]) for choose in (max, min))
    lines = []
    if most is not one and most["requests"] and one["requests"]:
        gain = most["output_tokens_per_s"] / one["output_tokens_per_s"]
        what = f"tokens/s at {most['concurrency']} streams over {one['concurrency']}"
        lines.append((what, gain, ">=", MIN_SPEEDUP))
    lines.append((f"TTFT of {prefix['prompt_tokens']} tokens over a prefix hit", prefix["gain"], ">=", MIN_PREFIX_GAIN))
    if "stall" in results:
        stall = results["stall"]["stall"]
        lines.append(("ITL p99 beside a long prompt over the median without", stall, "<=", MAX_STALL))
    for row in results.get("overhead", ()):
        what = f"Python ms per step, batch {row['batch']}, {row['sampling']}"
        lines.append((what, row["ms"], "<=", step_overhead.LIMITS_MS[row["batch"]]))
    met = [value >= aim if sign == ">=" else value <= aim for _, value, sign, aim in lines]
    print()
    for (what, value, sign, aim), good in zip(lines, met, strict=True):
        print(f"{what:<56}{value:>8.2f}  {sign} {aim:g}  {'ok' if good else 'MISSED'}")
    return all(met)


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[str]:
    """The URL to measure: the one given, or a worker's that is started for it."""
    if args.url:
        yield args.url
        return
    port = free_port()
    flags = ["--model-path", str(args.model.resolve()), "--model-name", args.name, "--no-register"]
    flags += ["--host", "127.0.0.1", "--port", str(port), "--kv-cache-dtype", args.kv_cache_dtype]
    with start("tinyserve.serve.model_worker", flags, environment=all_cores()) as process:
        wait_for_health(f"http://127.0.0.1:{port}", server=process)
        yield f"http://127.0.0.1:{port}"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="folder; a worker is started on it")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--api", choices=sorted(ENDPOINTS), default="tinyserve")
    parser.add_argument("--name", help="what the server calls the model (the folder's name)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=32, help="words of a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--rate", type=float, default=1.0, help="requests per second of the open loop")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the open loop")
    parser.add_argument("--max-ttft", type=float, default=2.0, help="seconds; goodput counts what kept both limits")
    parser.add_argument("--max-tpot", type=float, default=0.1, help="seconds")
    parser.add_argument("--skip", choices=["stall", "open"], nargs="+", default=[], help="of a serial server")
    parser.add_argument("--kv-cache-dtype", default="auto", help="of the worker that is started")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FILE", help="ask about these pictures")
    parser.add_argument("--results", help="name of the results file (server, with --images server-images)")
    args = parser.parse_args(argv)
    if (args.model is None) == (args.url is None):
        parser.error("give either MODEL or --url")
    if args.images and args.api != "tinyserve":
        parser.error("--images needs --api tinyserve: the parts of the time are what our worker tells")
    if args.url and not args.name:
        parser.error("--url needs --name")
    args.name = args.name or args.model.name
    args.results = args.results or ("server-images" if args.images else "server")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    start_time = time.monotonic()
    overhead = {} if args.url or args.images else {"overhead": step_overhead.measure()}
    with server(args) as url:
        results = {**asyncio.run(run_all(url, args)), **overhead}
    if args.images:
        image_requests.show(results["images"])
    good = bool(args.images) or verdicts(results)
    settings = {name: value.name if isinstance(value, Path) else value for name, value in vars(args).items()}
    settings["images"] = [path.name for path in args.images]
    path = write_results(args.results, {"machine": describe(), "settings": settings, **results})
    print(f"written to {path} after {time.monotonic() - start_time:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
