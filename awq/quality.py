"""Which model the flags of an evaluation mean, and all of its scores: perplexity, divergence, lm-eval's tasks.

How each score is computed is decided in evaluate.py, divergence.py and tasks.py.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from awq import dump, network, tasks
from awq.apply import QuantizedModel
from awq.divergence import DivergenceMeter, Reference
from awq.evaluate import Logits, network_logits, perplexity, split_windows
from awq.formats import dequantized_state, open_checkpoint
from awq.model import encode, load_tokenizer, open_model, window_limit
from awq.quantize import QuantConfig
from awq.results import SearchResults

Scores = dict[str, dict[str, Any]]  # text or task -> score -> value


def measure(
    args: argparse.Namespace,
    config: QuantConfig | None,
    found: SearchResults | None,
    load_real: Callable[[Path, Path], Logits],
) -> Scores:
    """The scores that the flags ask for.

    Args:
        args: parsed by awq.flags.
        config: how the model is rounded; None: it is evaluated in 16 bits.
        found: scales and clips; None: round to nearest.
        load_real: from the model's folder and a 4-bit checkpoint to its logits on 4-bit kernels.

    Raises:
        UserError: a text, model, checkpoint or task that cannot be had, or scores that are not finite.
    """
    named_texts, others = tasks.texts(args.tasks, args.eval_file)
    tokenizer = load_tokenizer(args.model_path)
    seqlen = min(args.eval_seqlen, window_limit(args.model_path))
    texts = {
        name: split_windows(encode(tokenizer, text), seqlen, args.eval_windows) for name, text in named_texts.items()
    }
    scores: Scores = {}
    reference = read_reference(args, texts) if args.kl else None
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = real_checkpoint(args, config, found, Path(scratch))
        if checkpoint is None or args.q_backend == "fake" or others:
            model = fake_network(args, config, found, checkpoint)
            logits: Logits = partial(network_logits, model)
            if others:
                options = {"batch_size": args.batch_size, "num_fewshot": args.num_fewshot}
                scores |= tasks.lm_eval(model, tokenizer, others, args.include_path, **options)
        if checkpoint is not None and args.q_backend != "fake":
            logits = load_real(args.model_path, checkpoint)
        for name, windows in texts.items():
            scores[name] = score_text(name, windows, logits, reference)
    return scores


def score_text(name: str, windows: Tensor, logits: Logits, reference: Reference | None) -> dict[str, Any]:
    """Perplexity on a text, and where there is a reference its perplexity and the divergence from it."""
    if reference is None:
        return asdict(perplexity(logits, windows))
    meter = DivergenceMeter(reference, name)
    scores = asdict(perplexity(logits, windows, meter.add))
    return {**scores, "perplexity_16_bit": reference.perplexities[name].perplexity, **asdict(meter.result())}


def read_reference(args: argparse.Namespace, texts: Mapping[str, Tensor]) -> Reference:
    """The 16-bit model, gone through the texts."""
    model = open_model(args.model_path)
    whole = placed(args, network.fill(model.skeleton, model.tensors(), model.compute_dtype(args.dtype)))
    return Reference(whole, model.skeleton.blocks, texts)


def real_checkpoint(
    args: argparse.Namespace, config: QuantConfig | None, found: SearchResults | None, scratch: Path
) -> Path | None:
    """The 4-bit checkpoint to evaluate: the one that is named, or for --q_backend real a temporary one."""
    if config is None:
        return None
    if args.load_quant or args.dump_quant:
        path = dump.find_dump(args.load_quant or args.dump_quant)
        dump.check_settings(path, args.model_path, config)
        return path
    if args.q_backend != "real":
        return None
    dtype = network.named_dtype(args.dtype)
    return dump.write_dump(scratch / "checkpoint", open_model(args.model_path), config, found, dtype)


def fake_network(
    args: argparse.Namespace, config: QuantConfig | None, found: SearchResults | None, checkpoint: Path | None
) -> nn.Module:
    """The transformers model, with the weights that the codes stand for where there is a `config`."""
    model = open_model(args.model_path)
    tensors = model.tensors()
    if checkpoint is not None:
        tensors = dequantized_state(open_checkpoint(args.model_path, checkpoint))
    elif config is not None:
        tensors = QuantizedModel(model, config, found, network.named_dtype(args.dtype)).weights()
    return placed(args, network.fill(model.skeleton, tensors, model.compute_dtype(args.dtype)))


def placed(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    """The model where the flags want it."""
    return network.place(model, dict(args.max_memory or []) or None, args.parallel, args.auto_parallel)
