"""llama.cpp on the batches of bench_decode.py, run by it in a Python that has llama-cpp-python.

    PYTHON benchmarks/peer_llamacpp.py MODEL.gguf JSON

JSON holds batch, prompt, new, repeats and threads; a line of JSON with `prefill_s`, `decode_steps_s`,
`load_s` and `peak_memory_bytes` is printed.
Random prompts, one sequence for each request, logits for the last tokens alone; no token is chosen from them, which
bench_decode does. Imports nothing of this package.
"""

import ctypes
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as llama

CHUNK = 512  # tokens of one call


def open_context(path: str, settings: dict[str, Any]) -> Any:
    llama.llama_log_set(_silent, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_seq_max = settings["batch"]
    params.n_ctx = settings["batch"] * (settings["prompt"] + settings["new"] + 64)
    params.n_batch = params.n_ubatch = CHUNK
    params.n_threads = params.n_threads_batch = settings["threads"]
    return llama.llama_init_from_model(model, params)


@llama.llama_log_callback
def _silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    pass


def decode(context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
    """One call; a row is token, position, sequence and whether its logits are wanted."""
    batch = llama.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
    code = llama.llama_decode(context, batch)
    llama.llama_synchronize(context)
    llama.llama_batch_free(batch)
    if code:
        raise SystemExit(f"llama_decode gave {code}")


def run(context: Any, settings: dict[str, Any], seed: int) -> tuple[float, list[float]]:
    """Seconds of all prompts, and of each step after them."""
    random_ = random.Random(seed)
    batch, prompt = settings["batch"], settings["prompt"]
    rows = [
        (random_.randrange(100, 30000), position, sequence, position == prompt - 1)
        for sequence in range(batch)
        for position in range(prompt)
    ]
    start = time.perf_counter()
    for first in range(0, len(rows), CHUNK):
        decode(context, rows[first : first + CHUNK])
    prefill = time.perf_counter() - start
    steps = []
    for position in range(prompt, prompt + settings["new"] - 1):
        start = time.perf_counter()
        decode(context, [(random_.randrange(100, 30000), position, sequence, True) for sequence in range(batch)])
        steps.append(time.perf_counter() - start)
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    return prefill, steps


def peak_memory() -> int | None:
    """Bytes, the mapped file included. (getrusage would count the process that this one came from.)"""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else None


def main() -> None:
    settings = json.loads(sys.argv[2])
    start = time.perf_counter()
    context = open_context(sys.argv[1], settings)
    load_s = time.perf_counter() - start
    run(context, {**settings, "new": 4}, seed=-1)  # warms up
    runs = [run(context, settings, seed) for seed in range(settings["repeats"])]
    figures = {"prefill_s": [first for first, _ in runs], "decode_steps_s": [s for _, steps in runs for s in steps]}
    print(json.dumps({"version": llama.__version__, "load_s": load_s, "peak_memory_bytes": peak_memory(), **figures}))


if __name__ == "__main__":
    main()
