"""The flags of awq.entry: names and meanings are llm-awq's where it has them. What they cause stands in entry.py."""

import argparse
import re
from pathlib import Path
from typing import Any

from awq.flag_combinations import check_combinations, check_format

MAX_SAMPLES = 1 << 16
MAX_SEQLEN = 1 << 17
FORMATS = ("awq-gemm", "compressed-tensors", "llm-awq-v2")  # awq.formats.WRITERS, which imports torch
DTYPES = ("auto", "float16", "bfloat16")


def parse(argv: list[str]) -> argparse.Namespace:
    """The checked command line: `command` is "convert" or "quantize", `argv` what came. Exits with 2 on a mistake."""
    if argv[:1] == ["convert"]:
        parser = build_convert_parser()
        args = parser.parse_args(argv[1:], argparse.Namespace(command="convert", argv=argv))
        check_format(parser, "--format", args.format, args.output)
        return args
    parser = build_parser()
    args = parser.parse_args(argv, argparse.Namespace(command="quantize", argv=argv))
    check_combinations(parser, args)
    return args


def build_parser() -> argparse.ArgumentParser:
    """Every flag; names and meanings are llm-awq's where it has them."""
    parser = argparse.ArgumentParser(
        prog="awq.entry",
        description="AWQ: search, evaluate and write 4-bit checkpoints.",
        epilog="awq.entry convert IN OUT rewrites a 4-bit checkpoint in another format; see awq.entry convert --help",
    )
    for add in (_add_model, _add_quantization, _add_search, _add_files, _add_evaluation):
        add(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model_path", type=Path, required=True, help="local Hugging Face model folder")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the 16-bit tensors; auto: the checkpoint's",
    )
    group.add_argument("--parallel", action="store_true", help="evaluate on all visible GPUs")
    group.add_argument(
        "--auto_parallel", action="store_true", help="evaluate on as many GPUs as the model's size asks for"
    )
    group.add_argument(
        "--max_memory",
        nargs="+",
        type=_memory,
        metavar="DEVICE:SIZE",
        help="for evaluation, e.g. 0:10GiB 1:10GiB cpu:30GiB",
    )


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization")
    group.add_argument("--w_bit", type=_integer(2, 8), help="bits of a weight; without it nothing is quantized")
    group.add_argument("--q_group_size", type=_group_size, default=-1, help="input channels per scale; -1: a whole row")
    group.add_argument("--no_zero_point", action="store_true", help="symmetric: the zero is fixed")
    group.add_argument(
        "--q_backend", choices=("fake", "real"), help="fake: rounded 16-bit weights; real: 4-bit kernels"
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument("--run_awq", action="store_true", help="search scales and clips; needs --dump_awq")
    group.add_argument(
        "--search", choices=("fast", "exact"), default="fast", help="closed form, or the paper's grid search"
    )
    group.add_argument(
        "--calib_data", help="a .txt, .jsonl or .parquet file or a dataset name; default: the model writes it"
    )
    group.add_argument(
        "--calib_images",
        type=Path,
        metavar="DIR",
        help="pictures for a model that reads images, with captions in X.txt or captions.json if there are any",
    )
    group.add_argument("--n_samples", type=_integer(1, MAX_SAMPLES), default=16, help="calibration windows")
    group.add_argument("--seqlen", type=_integer(8, MAX_SEQLEN), default=512, help="tokens in a calibration window")
    group.add_argument("--seed", type=_integer(0, 2**63 - 1), default=42, help="of the calibration text")
    group.add_argument("--layers", type=_layers, metavar="A:B", help="search only blocks A to B-1")


def _add_files(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results and checkpoints")
    group.add_argument("--dump_awq", type=Path, metavar="FILE.pt", help="where the search writes its results")
    group.add_argument("--load_awq", type=Path, metavar="FILE.pt", help="results of an earlier search")
    group.add_argument(
        "--dump_quant", type=Path, metavar="PATH", help="4-bit checkpoint: X.pt (llm-awq v2) or a folder"
    )
    group.add_argument(
        "--dump_format", choices=FORMATS, help="of --dump_quant; default: llm-awq-v2 for X.pt, else awq-gemm"
    )
    group.add_argument("--dump_fake", type=Path, metavar="FOLDER", help="16-bit model folder with rounded weights")
    group.add_argument("--load_quant", type=Path, metavar="PATH", help="evaluate this 4-bit checkpoint")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--tasks", help="wikitext, tasks of lm-eval or their YAML files, with commas")
    group.add_argument("--eval_file", type=Path, metavar="TEXT", help="perplexity on a local text file")
    group.add_argument(
        "--kl", action="store_true", help="also compare with the 16-bit model: KL divergence and top-1 agreement"
    )
    group.add_argument("--include_path", type=Path, metavar="FOLDER", help="of further task files for lm-eval")
    group.add_argument("--eval_seqlen", type=_integer(8, MAX_SEQLEN), default=2048, help="tokens in a window")
    group.add_argument("--eval_windows", type=_integer(1, MAX_SAMPLES), help="use only the first windows")
    group.add_argument("--batch_size", type=_integer(1, 4096), default=1, help="of lm-eval")
    group.add_argument("--num_fewshot", type=_integer(0, 1000), default=0, help="of lm-eval")
    group.add_argument("--output_path", type=Path, metavar="FILE.json", help="where evaluation results are written")
    group.add_argument(
        "--report", type=Path, metavar="FOLDER", help="where report.html is written: layers, sizes, quality"
    )


def build_convert_parser() -> argparse.ArgumentParser:
    """The flags of `convert`."""
    parser = argparse.ArgumentParser(
        prog="awq.entry convert",
        description="Rewrites a 4-bit checkpoint (AWQ, GPTQ, compressed-tensors or llm-awq) in another format: codes "
        "and zeros bit for bit, tensor by tensor, without loading a model.",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="a quantized model folder, or llm-awq's X.pt")
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder to make, or X.pt for llm-awq-v2")
    parser.add_argument("--format", choices=FORMATS, help="of OUT; default: llm-awq-v2 for X.pt, else awq-gemm")
    parser.add_argument(
        "--model_path", type=Path, help="folder that config and tokenizer are taken from; needed where IN is X.pt"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of scales and 16-bit tensors; auto: IN's")
    return parser


def _integer(low: int, high: int) -> Any:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {low} to {high}, got {value}")
        return value

    return parse


def _group_size(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value != -1 and value < 1:
        raise argparse.ArgumentTypeError(f"must be -1 (a whole row) or a positive integer, got {text!r}")
    return value


def _layers(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"must be A:B with 0 <= A < B, got {text!r}")
    return int(first), int(last)


def _memory(text: str) -> tuple[int | str, str]:
    device, _, size = text.partition(":")
    if not (device.isdigit() or device in ("cpu", "disk")) or not re.fullmatch(r"\d+(\.\d+)?([KMGT]i?B|B)", size):
        raise argparse.ArgumentTypeError(f"must be DEVICE:SIZE like 0:10GiB or cpu:30GiB, got {text!r}")
    return (int(device) if device.isdigit() else device), size
