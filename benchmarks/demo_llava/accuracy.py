"""How often the demo's LLaVA names what it sees, through a controller and a worker, in 16 and in 4 bits.

    python -m benchmarks.demo_llava.accuracy [--pictures 530] [--asset FOLDER] [--output FILE]

Objects are rendered in turn, from a seed that no training used, as PNGs larger than the model's input; each picture is
asked about once, in one of the trained questions, and answered greedily. An answer is right if it is the trained
sentence with exactly the object's name. The three precisions get the same requests; the 4-bit folders are what
awq.entry writes, rounded to nearest, and searched on other renderings.
"""

import argparse
import base64
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.demo_llava.chat import Chat
from benchmarks.demo_llava.objects import NAMES
from benchmarks.demo_llava.pictures import HELD_OUT_SEED, Picture, rendered
from benchmarks.machine import describe, write_results
from benchmarks.servers import ROOT, free_port, start, wait_for_health
from tinyserve.demo import llava, smollm2
from tinyserve.serve import client

GROUP_SIZE = 64
CONCURRENCY = 16
LOAD_SECONDS = 300.0  # until the worker has merged and loaded
CALIBRATION_SEED = 7
MAX_NEW_TOKENS = 24
MODEL = "llava"


class Precisions:
    """The asset as it is, and the 4-bit folders made from it: flags of a worker for each."""

    def __init__(self, asset: Path, base: Path, scratch: Path) -> None:
        self._adapter = ["--model-path", str(asset), "--model-base", str(base)]
        self._scratch = scratch
        merged = scratch / "merged"
        _run("tinyserve", "merge", *self._adapter, str(merged))
        self._settings = ["--model_path", str(merged), "--w_bit", "4", "--q_group_size", str(GROUP_SIZE)]

    def whole(self) -> list[str]:
        return self._adapter

    def rounded(self) -> list[str]:
        return self._quantized("rounded")

    def searched(self) -> list[str]:
        scales, pictures = self._scratch / "scales.pt", self._scratch / "calibration"
        _write_calibration(pictures)
        flags = ["--calib_images", str(pictures), "--dump_awq", str(scales)]
        _run("awq.entry", *self._settings, "--run_awq", *flags)
        return self._quantized("searched", "--load_awq", str(scales))

    def _quantized(self, name: str, *flags: str) -> list[str]:
        folder = self._scratch / name
        _run("awq.entry", *self._settings, *flags, "--q_backend", "real", "--dump_quant", str(folder))
        return ["--model-path", str(folder)]


def _write_calibration(folder: Path) -> None:
    """Renderings of their own seed, with the answers as captions."""
    folder.mkdir()
    for number, picture in enumerate(rendered(len(NAMES), CALIBRATION_SEED)):
        (folder / f"{number:03}.png").write_bytes(base64.b64decode(picture.png))
        (folder / f"{number:03}.txt").write_text(picture.answer, encoding="utf-8")


def _run(module: str, *flags: str) -> None:
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


@contextmanager
def served(flags: Sequence[str]) -> Iterator[str]:
    """Address of a controller with one worker behind it."""
    port, worker_port = free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    place = ["--host", "127.0.0.1", "--port"]
    with start("tinyserve.serve.controller", [*place, str(port)]) as controller:
        wait_for_health(address, lambda health: True, controller)
        behind = ["--controller-address", address, "--model-name", MODEL]
        with start("tinyserve.serve.model_worker", [*flags, *place, str(worker_port), *behind]) as worker:
            wait_for_health(f"http://127.0.0.1:{worker_port}", server=worker, seconds=LOAD_SECONDS)
            wait_for_health(address, lambda health: MODEL in health["models"], controller)
            yield address


def ask(address: str, chat: Chat, picture: Picture) -> str:
    """The whole answer about one picture."""
    body = {
        "model": MODEL,
        "prompt": chat.prompt(picture.question),
        "images": [picture.png],
        "temperature": 0,
        "max_new_tokens": MAX_NEW_TOKENS,
        "stream_format": "delta",
    }
    answer = ""
    for record in client.stream(address, body):
        if record["error_code"]:
            raise SystemExit(f"error {record['error_code']}: {record['text']}")
        answer += record["text"]
    return answer


def measure(address: str, chat: Chat, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Share of right answers, how many have the object's name anywhere, and the wrong ones."""
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(lambda picture: ask(address, chat, picture), pictures))
    wrong = [
        {"object": picture.name, "question": picture.question, "answer": answer}
        for picture, answer in zip(pictures, answers, strict=True)
        if answer.strip() != picture.answer
    ]
    right = len(pictures) - len(wrong)
    named = right + sum(miss["object"] in miss["answer"] for miss in wrong)
    return {"right": right, "accuracy": right / len(pictures), "named": named, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2 * len(NAMES), help="every object in turn (%(default)s)")
    parser.add_argument("--asset", type=Path, default=llava.FOLDER, help="a LoRA folder (the demo's)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/demo-llava-<machine>.json")
    args = parser.parse_args()
    base = smollm2.prepare()
    chat = Chat(AutoTokenizer.from_pretrained(base), NAMES)
    pictures = rendered(args.pictures, HELD_OUT_SEED)
    record: dict[str, Any] = {
        "machine": describe(),
        "settings": {"objects": len(NAMES), "pictures": len(pictures), "group_size": GROUP_SIZE, "temperature": 0},
        "weights": llava.version(args.asset),
        "rows": [],
    }
    print(f"{len(pictures)} held-out pictures of {len(NAMES)} objects", flush=True)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as makers:
        precisions = Precisions(args.asset.resolve(), base, Path(scratch))
        ways = {"16 bits": precisions.whole, "W4A16 rounded": precisions.rounded, "W4A16 AWQ": precisions.searched}
        # the search goes on while the others are measured: no time is taken here
        made = {name: makers.submit(make) for name, make in ways.items()}
        for name, flags in made.items():
            with served(flags.result()) as address:
                row = {"precision": name, **measure(address, chat, pictures)}
            record["rows"].append(row)
            print(
                f"{name:15} {row['right']:5} right  {100 * row['accuracy']:6.2f} %  {row['named']:5} with the name",
                flush=True,
            )
    print(write_results("demo-llava", record, args.output))


if __name__ == "__main__":
    main()
