"""The whole path on small real models: quantize, measure, serve, ask, and watch the answer arrive; then with pictures.

Every step is the command a user would type, printed before it runs. This module decides their order and what is kept
between two runs; it quantizes and serves nothing itself.
"""

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tinyserve.demo import llava, smollm2
from tinyserve.demo.half_blocks import can_show, half_blocks
from tinyserve.demo.question import Answer, ask, wait_for_model

GROUP_SIZE = 64  # 576 columns are no multiple of 128
EVAL_WINDOWS_CHARACTERS = 38_000  # about four windows of 2048 tokens
QUESTION = "What is the capital of France?"
EXPECTED = "Paris"
FEW_WINDOWS = ("--n_samples", "4")  # the second search need not take as long as the first
START_SECONDS = 180
PICTURE_COLUMNS = 24


def run(*command: str) -> None:
    """Prints a command and runs it; a failure ends the demo with the command's own message above."""
    print(f"\n$ {shlex.join(shown(command))}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise SystemExit(f"demo: the command above ended with exit code {code}")


def shown(command: tuple[str, ...]) -> list[str]:
    return ["python" if part == sys.executable else part for part in command]


def awq(*arguments: str) -> None:
    run(sys.executable, "-m", "awq.entry", *arguments)


def perplexity(name: str, folder: Path, text: Path, *arguments: str) -> float:
    """Perplexity of one model on `text`, kept in `folder` so that a second run need not measure it again."""
    result = folder / f"perplexity-{name}.json"
    if not result.is_file():
        awq(*arguments, "--eval_file", str(text), "--output_path", str(result))
    return float(json.loads(result.read_text())["results"][str(text)]["perplexity"])


def quantize(model: Path, folder: Path, *search: str) -> Path:
    """AWQ search and 4-bit checkpoint of `model`; each is skipped when an earlier run has left it."""
    scales = folder / f"{model.name}-w4-g{GROUP_SIZE}.pt"
    quantized = folder / f"{model.name}-w4-g{GROUP_SIZE}-awq"
    settings = ["--model_path", str(model), "--w_bit", "4", "--q_group_size", str(GROUP_SIZE)]
    if not scales.is_file():
        awq(*settings, "--run_awq", *search, "--dump_awq", str(scales))
    if not quantized.is_dir():
        awq(*settings, "--load_awq", str(scales), "--q_backend", "real", "--dump_quant", str(quantized))
    return quantized


def merge(adapter: Path, base: Path, folder: Path) -> Path:
    """The model that `adapter` makes of `base`; one that an earlier run has made is kept."""
    merged = folder / f"{adapter.name}-{llava.version()}"
    if not merged.is_dir():
        paths = ("--model-path", str(adapter), "--model-base", str(base), str(merged))
        run(sys.executable, "-m", "tinyserve", "merge", *paths)
    return merged


def measure(model: Path, quantized: Path, folder: Path) -> None:
    text = folder / "northanger_abbey.txt"
    if not text.is_file():
        source = (Path(__file__).parent / "northanger_abbey.txt").read_text(encoding="utf-8")
        text.write_text(source[:EVAL_WINDOWS_CHARACTERS], encoding="utf-8")
    bits = ["--w_bit", "4", "--q_group_size", str(GROUP_SIZE)]
    before = perplexity("16-bit", folder, text, "--model_path", str(model))
    after = perplexity("4-bit", folder, text, "--model_path", str(model), *bits, "--load_quant", str(quantized))
    sizes = [sum(f.stat().st_size for f in path.glob("*.safetensors")) / 1e6 for path in (model, quantized)]
    print(f"\nperplexity on {text.name}:")
    print(f"  16 bits  {before:7.2f}  {sizes[0]:5.0f} MB")
    print(f"   4 bits  {after:7.2f}  {sizes[1]:5.0f} MB", flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "tinyserve", *arguments)
    print(f"\n$ {shlex.join(shown(command))}", flush=True)
    # A session of its own, so that Ctrl-C reaches this process alone and the server is then stopped in order.
    return subprocess.Popen(command, start_new_session=True)


def stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=20)
    except subprocess.TimeoutExpired:
        server.kill()


def report(answer: Answer, expected: str) -> bool:
    print(
        f"\n\n{answer.num_tokens} tokens in {answer.records} records, first after {answer.first_seconds:.2f} s, "
        f"then {answer.tokens_per_second:.1f} tokens/s"
    )
    return expected in answer.text and answer.records > 1


def ask_about_pictures(url: str, model: str) -> bool:
    """Asks about each example picture; True if every answer names what is on it."""
    right = []
    for name, path in llava.examples().items():
        print(f"\n> {path}")
        if can_show(sys.stdout, os.environ):
            with Image.open(path) as image:
                print(half_blocks(image, PICTURE_COLUMNS))
        print(f"> {llava.QUESTION}", flush=True)
        right.append(report(ask(url, model, llava.QUESTION, [path]), name))
    return all(right)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tinyserve demo", description=__doc__.split("\n")[0])
    parser.add_argument("--once", action="store_true", help="end after the answer instead of serving until Ctrl-C")
    args = parser.parse_args(argv)
    started = time.monotonic()
    print(f"== the model: {smollm2.NAME}, kept in {smollm2.cache_dir()}", flush=True)
    model = smollm2.prepare()
    folder = smollm2.cache_dir() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    print("\n== AWQ: search the scales, write the 4-bit checkpoint", flush=True)
    quantized = quantize(model, folder)
    print("\n== how much was lost", flush=True)
    measure(model, quantized, folder)
    print("\n== serve it", flush=True)
    port, worker_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    servers = [start("serve", str(quantized), "--port", str(port), "--worker-port", str(worker_port))]
    try:
        text_model = wait_for_model(url, servers[0], START_SECONDS)
        print(f"\n> {QUESTION}", flush=True)
        ok = report(ask(url, text_model, QUESTION), EXPECTED)
        print(f"\n== a model that sees: what {llava.FOLDER.name}/ adds to {smollm2.NAME}, in 4 bits too", flush=True)
        seeing = quantize(merge(llava.FOLDER, model, folder), folder, *FEW_WINDOWS)
        addresses = ("--port", str(free_port()), "--controller-address", url)
        servers.append(start("worker", "--model-path", str(seeing), *addresses))
        image_model = wait_for_model(url, servers[1], START_SECONDS, known=[text_model])
        ok = ask_about_pictures(url, image_model) and ok
        print(f"{time.monotonic() - started:.0f} s in all", flush=True)
        if args.once:
            return 0 if ok else 1
        print(f"\nserving at {url} until Ctrl-C; ask it something: tinyserve chat --controller {url}", flush=True)
        return servers[0].wait()
    except KeyboardInterrupt:
        return 0
    finally:
        for server in reversed(servers):
            stop(server)


if __name__ == "__main__":
    sys.exit(main())
