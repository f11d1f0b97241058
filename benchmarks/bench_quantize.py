"""What a search costs and what it is worth: perplexity, KL divergence and wall time of several ways to 4 bits.

    python -m benchmarks.bench_quantize MODEL [--groups 64 32] [--peer PYTHON] [--methods rounding exact fast]

Calibration and evaluation text are the two halves of the documentation that comes with Python; the peer,
llm-compressor in the Python named by --peer, gets the same calibration windows. A second evaluation text, a novel,
shows what is left when the calibration text was of another kind. Every step is the command that a user would type, and
its time is the whole command's.
"""

import argparse
import json
import pydoc_data.topics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awq import calibration
from awq.model import load_tokenizer
from benchmarks.machine import describe, write_results

ROOT = Path(__file__).resolve().parent.parent
NOVEL = ROOT / "tinyserve" / "demo" / "northanger_abbey.txt"
WINDOWS = (16, 512)  # calibration windows and their tokens
SEED = 42
EVALUATION = ("--eval_seqlen", "512", "--eval_windows", "24", "--kl")


class Bench:
    """One model, its texts and a folder for what the commands write."""

    def __init__(self, model: Path, scratch: Path) -> None:
        self.model, self.scratch = model, scratch
        topics: dict[str, str] = pydoc_data.topics.topics
        text = "\n\n".join(topics[name] for name in sorted(topics))
        middle = text.index("\n\n", len(text) // 2)
        self.calibration, self.documentation = scratch / "calibration.txt", scratch / "documentation.txt"
        self.calibration.write_text(text[:middle], encoding="utf-8")
        self.documentation.write_text(text[middle:], encoding="utf-8")
        self.tokens = scratch / "tokens.json"
        windows = calibration.from_source(str(self.calibration), load_tokenizer(model), *WINDOWS, SEED)
        self.tokens.write_text(json.dumps(windows.tolist()), encoding="utf-8")

    def rounding(self, group: int) -> tuple[float, list[str]]:
        """Seconds, and the flags with which the result is evaluated."""
        return 0.0, self._bits(group)

    def search(self, group: int, method: str) -> tuple[float, list[str]]:
        results = self.scratch / f"{method}-{group}.pt"
        count, length = WINDOWS
        flags = ["--run_awq", "--dump_awq", results, "--search", method, "--calib_data", self.calibration]
        flags += ["--n_samples", count, "--seqlen", length, "--seed", SEED]
        seconds = _run([sys.executable, "-m", "awq.entry", "--model_path", self.model, *self._bits(group), *flags])
        return seconds, [*self._bits(group), "--load_awq", str(results), "--q_backend", "fake"]

    def llm_compressor(self, group: int, python: Path) -> tuple[float, list[str]]:
        out = self.scratch / f"llm-compressor-{group}"
        script = ROOT / "benchmarks" / "peer_llmcompressor.py"
        seconds = _run([python, script, self.model, self.tokens, out, group])
        return seconds, [*self._bits(group), "--load_quant", str(out), "--q_backend", "fake"]

    def evaluate(self, flags: list[str]) -> dict[str, dict[str, float]]:
        """Scores by text."""
        scores = {}
        compare = EVALUATION if flags else EVALUATION[:-1]  # the 16-bit model is what the others are compared with
        for name, text in (("documentation", self.documentation), ("novel", NOVEL)):
            out = self.scratch / "scores.json"
            command = [sys.executable, "-m", "awq.entry", "--model_path", self.model, *flags, "--eval_file", text]
            _run([*command, *compare, "--output_path", out])
            (scores[name],) = json.loads(out.read_text(encoding="utf-8"))["results"].values()
        return scores

    @staticmethod
    def _bits(group: int) -> list[str]:
        return ["--w_bit", "4", "--q_group_size", str(group)]


def _run(command: list[Any]) -> float:
    """Seconds that a command took; its output is shown only if it fails."""
    start = time.perf_counter()
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="local 16-bit model folder")
    parser.add_argument("--groups", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--methods", nargs="+", default=["rounding", "exact", "fast"])
    parser.add_argument("--peer", type=Path, help="a Python that has llm-compressor")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/quantize-<machine>.json")
    args = parser.parse_args()
    record: dict[str, Any] = {"machine": describe(), "settings": vars(args), "windows": WINDOWS, "rows": []}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args.model.resolve(), Path(scratch))
        ways: dict[str, Callable[[int], tuple[float, list[str]]]] = {
            "rounding": bench.rounding,
            "exact": lambda group: bench.search(group, "exact"),
            "fast": lambda group: bench.search(group, "fast"),
        }
        if args.peer:
            ways["llm-compressor"] = lambda group: bench.llm_compressor(group, args.peer)
            args.methods.append("llm-compressor")
        whole = bench.evaluate([])
        _show(record, {"group": None, "method": "16 bits", "seconds": 0.0, "scores": whole})
        for group in args.groups:
            rounding: dict[str, dict[str, float]] | None = None
            for method in args.methods:
                seconds, flags = ways[method](group)
                scores = bench.evaluate(flags)
                rounding = rounding or scores
                for text, values in scores.items():
                    base = whole[text]["perplexity"]
                    values["left"] = (values["perplexity"] - base) / (rounding[text]["perplexity"] - base)
                _show(record, {"group": group, "method": method, "seconds": seconds, "scores": scores})
    record["settings"] = {name: str(value) for name, value in record["settings"].items()}
    print(write_results("quantize", record, args.output))


def _show(record: dict[str, Any], row: dict[str, Any]) -> None:
    record["rows"].append(row)
    texts = "   ".join(
        f"{text}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, float))
        for text, values in row["scores"].items()
    )
    print(f"group {row['group']}  {row['method']:15} {row['seconds']:7.1f} s   {texts}", flush=True)


if __name__ == "__main__":
    main()
