"""Minutes of random requests with random cancels, and whether the worker is afterwards as it was before.

    python -m benchmarks.soak MODEL [--seconds 1800] [--streams 16]

Every client sends prompts of random length, some beginning like earlier ones, and leaves one in three before the end.
At the end no request may be lost or failed, no block in use, and the memory of the last quarter as large as that of the
second (in the first one caches fill).
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import requests

from benchmarks import load
from benchmarks.endpoints import NullByteRecords
from benchmarks.load import Client, Job, Served, random_prompt
from benchmarks.machine import describe, write_results
from benchmarks.servers import all_cores, free_port, start, wait_for_health, wait_until

LEAVES = 0.33  # of the requests
MAX_WORDS, MAX_NEW = 600, 100
MAX_GROWTH = 1.03  # of the resident memory, last quarter over second
SAMPLE_S = 2.0


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


async def one_client(client: Client, random_: random.Random, deadline: float, counts: Counter[str]) -> None:
    prompt = ""
    while time.monotonic() < deadline:
        prompt = prompt[: len(prompt) // 2] if random_.random() < 0.5 else ""
        prompt += " " + random_prompt(random_.randrange(1, MAX_WORDS), random_)
        job = Job(prompt, random_.randrange(1, MAX_NEW))
        request = asyncio.create_task(client.run(job))
        if random_.random() < LEAVES:
            await asyncio.wait({request}, timeout=random_.expovariate(1.0))
            if not request.done():
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)
                counts["left"] += 1
                continue
        counts[verdict(await request, job)] += 1


def verdict(served: Served, job: Job) -> str:
    if served.error is not None:
        return f"failed: {served.error}"
    return "served" if served.num_tokens == job.max_new_tokens else "wrong number of tokens"


async def watch(pid: int, deadline: float, memory: list[int]) -> None:
    while time.monotonic() < deadline:
        memory.append(resident_bytes(pid))
        await asyncio.sleep(SAMPLE_S)


async def soak(url: str, args: argparse.Namespace, pid: int) -> tuple[Counter[str], list[int]]:
    counts: Counter[str] = Counter()
    memory: list[int] = []
    deadline = time.monotonic() + args.seconds
    async with load.client(url, NullByteRecords("soak")) as client:
        clients = [one_client(client, random.Random(seed), deadline, counts) for seed in range(args.streams)]
        await asyncio.gather(watch(pid, deadline, memory), *clients)
    return counts, memory


def health(url: str) -> dict[str, Any]:
    return requests.get(url + "/health", timeout=10).json()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--kv-cache-bytes", type=int, default=60_000_000, help="small, so that blocks run out")
    args = parser.parse_args(argv)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--model-path", str(args.model.resolve()), "--model-name", "soak", "--no-register", "--host", "127.0.0.1"]
    flags += ["--port", str(port), "--kv-cache-bytes", str(args.kv_cache_bytes)]
    with start("tinyserve.serve.model_worker", flags, environment=all_cores()) as server:
        wait_for_health(url, server=server)
        counts, memory = asyncio.run(soak(url, args, server.process.pid))
        wait_until("the last request has left", lambda: health(url)["num_running"] == health(url)["num_waiting"] == 0)
        after = health(url)
        code = server.stop()
    quarter = len(memory) // 4
    growth = statistics.median(memory[-quarter:]) / statistics.median(memory[quarter : 2 * quarter]) if quarter else 1.0
    faults = [f"{number} requests: {what}" for what, number in counts.items() if what not in ("served", "left")]
    if after["free_blocks"] != after["total_blocks"]:
        faults.append(f"{after['total_blocks'] - after['free_blocks']} blocks are lost")
    if growth > MAX_GROWTH:
        faults.append(f"memory has grown by {growth - 1:.1%}")
    if code != 0:
        faults.append(f"the worker ended with code {code}")
    print(f"{counts['served']} served, {counts['left']} left early, {after['preemptions']} preemptions")
    first, last = memory[0] / 1e6, memory[-1] / 1e6
    print(f"memory {first:.0f} MB at first, {last:.0f} MB at last, {growth:.3f} from second to last quarter")
    print("\n".join(faults) or "nothing lost, nothing left behind")
    settings = {name: value.name if isinstance(value, Path) else value for name, value in vars(args).items()}
    results = {"counts": counts, "health": after, "memory_bytes": memory, "growth": growth, "faults": faults}
    print(f"written to {write_results('soak', {'machine': describe(), 'settings': settings, **results})}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
