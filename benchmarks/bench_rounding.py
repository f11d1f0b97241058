"""What rounding inside the engine costs: perplexity and KL divergence of a 4-bit model with its int8 settings.

    python -m benchmarks.bench_rounding MODEL [--windows 9]

The first row computes with activations, output layer and KV cache as they are; the others round some of these to int8,
as `--cpu-compute int8` and `--kv-cache-dtype int8` of a worker do. The text is the novel that the demo measures with.
"""

import argparse
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from awq.evaluate import perplexity, split_windows
from awq.model import load_tokenizer
from benchmarks.machine import describe, write_results
from tinyserve.config import CpuCompute, KvCacheDtype
from tinyserve.models import evaluation
from tinyserve.models.language_model import LanguageModel
from tinyserve.models.loader import load_model

NOVEL = Path(__file__).resolve().parent.parent / "tinyserve" / "demo" / "northanger_abbey.txt"


class Divergence:
    """Mean KL divergence of what it is shown from the first pass over the same windows, in nats per token."""

    def __init__(self) -> None:
        self._reference: dict[int, Tensor] = {}  # log probabilities [L, V] by window, fp16
        self.total, self.count = 0.0, 0

    def see(self, index: int, window: Tensor, logits: Tensor) -> None:
        log_probabilities = logits.float().log_softmax(-1)
        reference = self._reference.setdefault(index, log_probabilities.half()).float()
        self.total += float((reference.exp() * (reference - log_probabilities)).sum())
        self.count += len(window)


def measure(model: LanguageModel, windows: Tensor, cache: KvCacheDtype, divergence: Divergence) -> dict[str, float]:
    divergence.total, divergence.count = 0.0, 0

    def logits(window: Tensor) -> Tensor:
        return evaluation.logits(model, window.unsqueeze(0), cache)[0]

    result = perplexity(logits, windows, divergence.see)
    return {"perplexity": result.perplexity, "kl": divergence.total / divergence.count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="4-bit folder")
    parser.add_argument("--windows", type=int, default=9)
    parser.add_argument("--seqlen", type=int, default=2048)
    args = parser.parse_args()
    tokens = load_tokenizer(args.model)(NOVEL.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    windows = split_windows(tokens, args.seqlen, args.windows)
    divergence = Divergence()
    rows: list[dict[str, Any]] = []
    for compute in reversed(get_args(CpuCompute)):  # exact first: the others are compared with it
        model = load_model(args.model, cpu_compute=compute)
        for cache in get_args(KvCacheDtype):
            figures = measure(model, windows, cache, divergence)
            rows.append({"cpu_compute": compute, "kv_cache_dtype": cache, **figures})
            print(
                f"{compute:6} KV {cache:5} perplexity {figures['perplexity']:.3f}  KL {figures['kl']:.5f}", flush=True
            )
    settings = {"model": args.model.name, "windows": len(windows), "seqlen": windows.shape[1]}
    print(write_results("rounding", {"machine": describe(), "settings": settings, "rows": rows}))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
