"""How many streams a controller carries: a timed worker, a controller and a load generator, each a process of its own.

    python -m benchmarks.bench_controller [--streams 100 500] [--repeats 3]

The worker's generator yields 40 tokens, one every 50 ms, to every request at once, so a stream that nothing holds up
takes 2.0 s; all else is what the HTTP layers of worker and controller cost. Every stream is checked. The same load on
the worker directly shows the controller's share.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.machine import describe, write_results
from benchmarks.servers import free_port, start, wait_for_health
from tinyserve.serve.http_server import raise_file_limit
from tinyserve.serve.wire import SEPARATOR

NUM_TOKENS = 40
INTERVAL_S = 0.05
LIMITS_S = {100: 2.6, 500: 4.0}  # what the controller must reach; LLaVA's needed 6.8 s for 100 on the same machine
PROMPT = "USER: how are you? ASSISTANT:"
EXPECTED = PROMPT + "".join(f"w{index} " for index in range(NUM_TOKENS))


@dataclass(frozen=True)
class Stream:
    """What one client saw; times in seconds since all clients started."""

    first_s: float
    last_s: float
    error: str | None


async def one_stream(session: aiohttp.ClientSession, url: str, start_time: float) -> Stream:
    clock = time.perf_counter
    first, num_records, rest, last = 0.0, 0, b"", b""
    body = {"model": "timed", "prompt": PROMPT, "max_new_tokens": NUM_TOKENS, "temperature": 0}
    try:
        async with session.post(url + "/worker_generate_stream", json=body) as response:
            async for data in response.content.iter_any():
                *complete, rest = (rest + data).split(SEPARATOR)
                if complete:
                    first = first or clock() - start_time
                    num_records += len(complete)
                    last = complete[-1]
        text = json.loads(last)["text"]
    except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
        return Stream(first, clock() - start_time, f"{type(error).__name__}: {error}")
    good = text == EXPECTED and num_records == NUM_TOKENS and not rest
    wrong = None if good else f"{num_records} records, the last {last!r}, then {rest!r}"
    return Stream(first, clock() - start_time, wrong)


async def load(url: str, num_streams: int) -> list[Stream]:
    """`num_streams` clients at once."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        start_time = time.perf_counter()
        return await asyncio.gather(*(one_stream(session, url, start_time) for _ in range(num_streams)))


def summary(streams: list[Stream]) -> dict[str, Any]:
    firsts = sorted(stream.first_s for stream in streams)
    errors = [stream.error for stream in streams if stream.error]
    return {
        "total_s": max(stream.last_s for stream in streams),
        "ttft_p50_s": firsts[len(firsts) // 2],
        "ttft_p99_s": firsts[int(len(firsts) * 0.99)],
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
        "last_s": [round(stream.last_s, 4) for stream in streams],
    }


def measure(targets: dict[str, str], counts: list[int], repeats: int) -> list[dict[str, Any]]:
    """Every target under every number of streams, in turn, so that a noisy moment hits all of them."""
    for url in targets.values():
        asyncio.run(load(url, 10))  # warm
    return [
        {"target": name, "streams": count, "repeat": repeat, **summary(asyncio.run(load(url, count)))}
        for repeat in range(repeats)
        for count in counts
        for name, url in targets.items()
    ]


def report(rows: list[dict[str, Any]]) -> bool:
    """Prints the table; True when every limit holds for the median and no stream failed."""
    ideal = NUM_TOKENS * INTERVAL_S
    print(f"{NUM_TOKENS} tokens, one every {INTERVAL_S * 1000:g} ms: {ideal:g} s when nothing is held up\n")
    print(
        f"{'through':<12}{'streams':>8}{'total s: median (all)':>36}{'limit':>8}{'ttft p50':>10}{'p99':>8}{'errors':>8}"
    )
    good = True
    for target, count in dict.fromkeys((row["target"], row["streams"]) for row in rows):
        runs = [row for row in rows if (row["target"], row["streams"]) == (target, count)]
        totals = [row["total_s"] for row in runs]
        median, errors = statistics.median(totals), sum(row["errors"] for row in runs)
        limit = LIMITS_S.get(count) if target == "controller" else None
        good = good and errors == 0 and (limit is None or median <= limit)
        shown = f"{median:.2f} ({', '.join(f'{total:.2f}' for total in totals)})"
        p50, p99 = (statistics.median(row[key] for row in runs) for key in ("ttft_p50_s", "ttft_p99_s"))
        print(f"{target:<12}{count:>8}{shown:>36}{limit or '':>8}{p50:>10.3f}{p99:>8.3f}{errors:>8}")
        for row in runs:
            if row["first_error"]:
                print(f"    {row['first_error'][:200]}")
    return good


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/controller-<machine>.json")
    args = parser.parse_args(argv)
    raise_file_limit()
    controller_port, worker_port = free_port(), free_port()
    controller, worker = f"http://127.0.0.1:{controller_port}", f"http://127.0.0.1:{worker_port}"
    flags = ["--tokens", str(NUM_TOKENS), "--interval", str(INTERVAL_S), "--controller-address", controller]
    with (
        start("tinyserve.serve.controller", ["--host", "127.0.0.1", "--port", str(controller_port)]),
        start("benchmarks.timed_worker", ["--port", str(worker_port), *flags]),
    ):
        wait_for_health(controller, lambda health: health["models"] == ["timed"])
        rows = measure({"controller": controller, "worker": worker}, args.streams, args.repeats)
    good = report(rows)
    settings = {"num_tokens": NUM_TOKENS, "interval_s": INTERVAL_S, "limits_s": LIMITS_S, "repeats": args.repeats}
    path = write_results("controller", {**describe(), "settings": settings, "runs": rows}, args.output)
    print(f"\nwritten to {path}")
    print("every limit holds" if good else "A LIMIT IS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
