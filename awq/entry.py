"""python -m awq.entry: search AWQ scales and clips, evaluate, write 4-bit checkpoints. Flags as in llm-awq and more.

Only the order of the steps; heavy modules are imported by the step that needs them, so that --help and a mistyped flag
answer at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq.errors import UserError
from awq.flags import parse

if TYPE_CHECKING:
    from torch import Tensor

    from awq.evaluate import Logits
    from awq.image_calibration import Embed
    from awq.model import ModelFolder
    from awq.quantize import QuantConfig
    from awq.results import SearchResults


def main(argv: list[str] | None = None) -> None:
    """Runs one command line.

    Raises:
        SystemExit: a mistake of the user's (code 2 for flags, 1 for files and models), with a message on stderr.
    """
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        convert(args) if args.command == "convert" else run(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; the same command takes a search up after its last finished layer", file=sys.stderr)
        raise SystemExit(130) from None


def run(args: argparse.Namespace) -> None:
    """The steps that were asked for, in order."""
    from awq.quantize import QuantConfig

    config = None if args.w_bit is None else QuantConfig(args.w_bit, args.q_group_size, not args.no_zero_point)
    results_file = args.load_awq
    if config is not None and args.run_awq and results_file is None:
        search(args, config)
        results_file = args.dump_awq
    if config is not None and args.dump_quant:
        dump_quant(args, config, results_file)
    if config is not None and args.dump_fake:
        dump_fake(args, config, results_file)
    scores = evaluate(args, config, results_file) if args.tasks or args.eval_file else {}
    if config is not None and args.report:
        write_report(args, config, results_file, scores)


def convert(args: argparse.Namespace) -> None:
    """A quantized checkpoint in another format."""
    from awq.convert import convert_checkpoint
    from awq.dump import format_of
    from awq.network import named_dtype
    from awq.progress import say

    name = format_of(args.output, args.format)
    convert_checkpoint(args.source, args.output, name, args.model_path, named_dtype(args.dtype))
    say(f"{name} checkpoint saved: {args.output}")


def search(args: argparse.Namespace, config: QuantConfig) -> None:
    """Scales and clips, written to --dump_awq."""
    from awq.search_run import run_search

    run_search(args, config, image_embedder)


def dump_quant(args: argparse.Namespace, config: QuantConfig, results_file: Path | None) -> None:
    """4-bit checkpoint."""
    from awq import dump
    from awq.model import open_model
    from awq.network import named_dtype
    from awq.progress import say

    dump.check_dump(args.dump_quant)
    model = open_model(args.model_path)
    found = load_results(results_file, model, config)
    dtype = named_dtype(args.dtype)
    say(f"4-bit checkpoint saved: {dump.write_dump(args.dump_quant, model, config, found, dtype, args.dump_format)}")


def dump_fake(args: argparse.Namespace, config: QuantConfig, results_file: Path | None) -> None:
    """16-bit model folder with the weights that the codes stand for."""
    from awq import dump
    from awq.model import open_model
    from awq.network import named_dtype
    from awq.progress import say

    dump.check_dump(args.dump_fake)
    model = open_model(args.model_path)
    dump.write_fake(args.dump_fake, model, config, load_results(results_file, model, config), named_dtype(args.dtype))
    say(f"fake-quantized model saved: {args.dump_fake}")


def load_results(path: Path | None, model: ModelFolder, config: QuantConfig) -> SearchResults | None:
    """What a results file holds for this model; None without a file: round to nearest."""
    from awq import results
    from awq.progress import say

    return None if path is None else results.load_results(path, model.identity(), config, model.shapes(), say)


def evaluate(args: argparse.Namespace, config: QuantConfig | None, results_file: Path | None) -> dict[str, Any]:
    """Perplexities, divergences and task scores; printed, and written to --output_path."""
    from awq import quality, report
    from awq.model import open_model

    found = None if config is None else load_results(results_file, open_model(args.model_path), config)
    scores = quality.measure(args, config, found, real_logits)
    report.show(scores)
    if args.output_path:
        settings = {name: value for name, value in vars(args).items() if name not in ("command", "argv")}
        report.write(args.output_path, scores, settings, report.command_line(args.argv))
    return scores


def write_report(
    args: argparse.Namespace, config: QuantConfig, results_file: Path | None, scores: dict[str, Any]
) -> None:
    """The page of --report."""
    from awq import dump, report
    from awq.model import open_model
    from awq.progress import say

    model = open_model(args.model_path)
    found = load_results(results_file, model, config)
    checkpoint = args.load_quant or args.dump_quant
    content = report.Report(
        model=args.model_path.resolve().name,
        config=config,
        scores=scores,
        figures=found.figures if found else [],
        sizes=report.sizes(model, config, dump.find_dump(checkpoint) if checkpoint else None),
        command=report.command_line(args.argv),
        versions=report.versions(),
    )
    say(f"report saved: {report.write_page(args.report, content)}")


def real_logits(model_path: Path, checkpoint: Path) -> Logits:
    """Logits through tinyserve's own layers and kernels.

    Raises:
        UserError: tinyserve cannot load this model.
    """
    import torch

    from tinyserve.models import evaluation, loader

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = loader.load_model(model_path, checkpoint, "W4A16", device=device)
    except ValueError as error:
        raise UserError(f"--q_backend real: {error}; --q_backend fake evaluates it with transformers") from error
    return lambda window: evaluation.logits(model, window.unsqueeze(0))[0]


def image_embedder(model_path: Path) -> Embed:
    """What makes embeddings of a picture: tinyserve's image processing, vision tower and projector.

    Raises:
        UserError: tinyserve cannot load these, or cannot read a picture.
    """
    import torch

    from tinyserve.engine.image_file import ImageFile
    from tinyserve.models.image_pixels import pixels
    from tinyserve.models.loader import load_images

    try:
        images = load_images(model_path, "cuda" if torch.cuda.is_available() else "cpu")
    except ValueError as error:
        raise UserError(f"--calib_images: {error}") from error

    def embed(path: Path) -> Tensor:
        try:
            picture = ImageFile.read(path.read_bytes()).decode()
        except ValueError as error:
            raise UserError(f"--calib_images: {path} {error}") from error
        return images.encode_images([(pixels(picture, images.image_spec), picture.size)])[0].cpu()

    return embed


if __name__ == "__main__":
    main()
