"""The whole path on a small real model: quantize it, measure it, serve it, ask it and watch the answer arrive.

Every step is the command a user would type, printed before it runs. This module decides their order and what is kept
between two runs; it quantizes and serves nothing itself.
"""

import argparse
import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

from tinyserve.demo import smollm2
from tinyserve.demo.question import Answer, ask

GROUP_SIZE = 64  # 576 columns are no multiple of 128
EVAL_WINDOWS_CHARACTERS = 38_000  # about four windows of 2048 tokens
QUESTION = "What is the capital of France?"
EXPECTED = "Paris"
START_SECONDS = 180


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


def quantize(model: Path, folder: Path) -> Path:
    """AWQ search and 4-bit checkpoint of `model`; each is skipped when an earlier run has left it."""
    scales = folder / f"{model.name}-w4-g{GROUP_SIZE}.pt"
    quantized = folder / f"{model.name}-w4-g{GROUP_SIZE}-awq"
    settings = ["--model_path", str(model), "--w_bit", "4", "--q_group_size", str(GROUP_SIZE)]
    if not scales.is_file():
        awq(*settings, "--run_awq", "--dump_awq", str(scales))
    if not quantized.is_dir():
        awq(*settings, "--load_awq", str(scales), "--q_backend", "real", "--dump_quant", str(quantized))
    return quantized


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


def start_server(model: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts controller and worker on free ports; returns the process and the controller's address."""
    port, worker_port = free_port(), free_port()
    command = (
        sys.executable,
        "-m",
        "tinyserve",
        "serve",
        str(model),
        "--port",
        str(port),
        "--worker-port",
        str(worker_port),
    )
    print(f"\n$ {shlex.join(shown(command))}", flush=True)
    # A session of its own, so that Ctrl-C reaches this process alone and the server is then stopped in order.
    return subprocess.Popen(command, start_new_session=True), f"http://127.0.0.1:{port}"


def report(answer: Answer) -> bool:
    print(
        f"\n\n{answer.num_tokens} tokens in {answer.records} records, first after {answer.first_seconds:.2f} s, "
        f"then {answer.tokens_per_second:.1f} tokens/s"
    )
    return EXPECTED in answer.text and answer.records > 1


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
    server, url = start_server(quantized)
    try:
        print(f"\n> {QUESTION}", flush=True)
        ok = report(ask(url, QUESTION, server, START_SECONDS))
        print(f"{time.monotonic() - started:.0f} s in all", flush=True)
        if args.once:
            return 0 if ok else 1
        print(f"\nserving at {url} until Ctrl-C; ask it something: tinyserve chat --controller {url}", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
