"""The flags of awq.entry: names and meanings are llm-awq's where it has them. What they cause stands in entry.py."""

import argparse
import re
from pathlib import Path
from typing import Any

MAX_SAMPLES = 1 << 16
MAX_SEQLEN = 1 << 17
FORMATS = ("awq-gemm", "compressed-tensors", "llm-awq-v2")  # awq.formats.WRITERS, which imports torch
DTYPES = ("auto", "float16", "bfloat16")


def parse(argv: list[str]) -> argparse.Namespace:
    """The checked command line: `command` is "convert" or "quantize", `argv` what came. Exits with 2 on a mistake."""
    if argv[:1] == ["convert"]:
        parser = build_convert_parser()
        args = parser.parse_args(argv[1:], argparse.Namespace(command="convert", argv=argv))
        _check_format(parser, "--format", args.format, args.output)
        return args
    parser = build_parser()
    args = parser.parse_args(argv, argparse.Namespace(command="quantize", argv=argv))
    check_flags(parser, args)
    return args


def build_parser() -> argparse.ArgumentParser:
    """Every flag; names and meanings are llm-awq's where it has them."""
    parser = argparse.ArgumentParser(
        prog="awq.entry",
        description="AWQ: search, evaluate and write 4-bit checkpoints.",
        epilog="awq.entry convert IN OUT rewrites a 4-bit checkpoint in another format; see awq.entry convert --help",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model_path", type=Path, required=True, help="local Hugging Face model folder")
    model.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the 16-bit tensors; auto: the checkpoint's",
    )
    model.add_argument("--parallel", action="store_true", help="evaluate on all visible GPUs")
    model.add_argument(
        "--auto_parallel", action="store_true", help="evaluate on as many GPUs as the model's size asks for"
    )
    model.add_argument(
        "--max_memory",
        nargs="+",
        type=_memory,
        metavar="DEVICE:SIZE",
        help="for evaluation, e.g. 0:10GiB 1:10GiB cpu:30GiB",
    )
    quant = parser.add_argument_group("quantization")
    quant.add_argument("--w_bit", type=_integer(2, 8), help="bits of a weight; without it nothing is quantized")
    quant.add_argument("--q_group_size", type=_group_size, default=-1, help="input channels per scale; -1: a whole row")
    quant.add_argument("--no_zero_point", action="store_true", help="symmetric: the zero is fixed")
    quant.add_argument(
        "--q_backend", choices=("fake", "real"), help="fake: rounded 16-bit weights; real: 4-bit kernels"
    )
    search = parser.add_argument_group("search")
    search.add_argument("--run_awq", action="store_true", help="search scales and clips; needs --dump_awq")
    search.add_argument(
        "--search", choices=("fast", "exact"), default="fast", help="closed form, or the paper's grid search"
    )
    search.add_argument(
        "--calib_data", help="a .txt, .jsonl or .parquet file or a dataset name; default: the model writes it"
    )
    search.add_argument("--n_samples", type=_integer(1, MAX_SAMPLES), default=16, help="calibration windows")
    search.add_argument("--seqlen", type=_integer(8, MAX_SEQLEN), default=512, help="tokens in a calibration window")
    search.add_argument("--seed", type=_integer(0, 2**63 - 1), default=42, help="of the calibration text")
    search.add_argument("--layers", type=_layers, metavar="A:B", help="search only blocks A to B-1")
    files = parser.add_argument_group("results and checkpoints")
    files.add_argument("--dump_awq", type=Path, metavar="FILE.pt", help="where the search writes its results")
    files.add_argument("--load_awq", type=Path, metavar="FILE.pt", help="results of an earlier search")
    files.add_argument(
        "--dump_quant", type=Path, metavar="PATH", help="4-bit checkpoint: X.pt (llm-awq v2) or a folder"
    )
    files.add_argument(
        "--dump_format", choices=FORMATS, help="of --dump_quant; default: llm-awq-v2 for X.pt, else awq-gemm"
    )
    files.add_argument("--dump_fake", type=Path, metavar="FOLDER", help="16-bit model folder with rounded weights")
    files.add_argument("--load_quant", type=Path, metavar="PATH", help="evaluate this 4-bit checkpoint")
    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--tasks", help="wikitext, tasks of lm-eval or their YAML files, with commas")
    evaluation.add_argument("--eval_file", type=Path, metavar="TEXT", help="perplexity on a local text file")
    evaluation.add_argument(
        "--kl", action="store_true", help="also compare with the 16-bit model: KL divergence and top-1 agreement"
    )
    evaluation.add_argument("--include_path", type=Path, metavar="FOLDER", help="of further task files for lm-eval")
    evaluation.add_argument("--eval_seqlen", type=_integer(8, MAX_SEQLEN), default=2048, help="tokens in a window")
    evaluation.add_argument("--eval_windows", type=_integer(1, MAX_SAMPLES), help="use only the first windows")
    evaluation.add_argument("--batch_size", type=_integer(1, 4096), default=1, help="of lm-eval")
    evaluation.add_argument("--num_fewshot", type=_integer(0, 1000), default=0, help="of lm-eval")
    evaluation.add_argument(
        "--output_path", type=Path, metavar="FILE.json", help="where evaluation results are written"
    )
    evaluation.add_argument(
        "--report", type=Path, metavar="FOLDER", help="where report.html is written: layers, sizes, quality"
    )
    return parser


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


def _check_format(parser: argparse.ArgumentParser, flag: str, name: str | None, output: Path) -> None:
    if name is not None and (name == "llm-awq-v2") != (output.suffix == ".pt"):
        kind = (
            "one file, which must be named X.pt" if name == "llm-awq-v2" else "a folder, which must not be named X.pt"
        )
        parser.error(f"{flag} {name} makes {kind}, got {output}")


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


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses combinations that mean nothing, before anything is loaded; exits with code 2 like argparse itself."""
    wants_evaluation = bool(args.tasks or args.eval_file)
    steps = (args.run_awq, args.dump_quant, args.dump_fake, args.report, wants_evaluation)
    if not any(steps):
        parser.error("nothing to do: give --run_awq, --dump_quant, --dump_fake, --tasks or --eval_file")
    for flag in ("run_awq", "load_awq", "dump_quant", "dump_fake", "load_quant", "q_backend"):
        if getattr(args, flag) and args.w_bit is None:
            parser.error(f"--{flag} needs --w_bit")
    if args.run_awq and args.load_awq is None and args.dump_awq is None:
        parser.error("--run_awq needs --dump_awq FILE.pt")
    if args.dump_awq and not args.run_awq:
        parser.error("--dump_awq needs --run_awq")
    if args.load_quant and (args.load_awq or args.dump_quant or args.dump_fake or args.run_awq):
        parser.error(
            "--load_quant evaluates a finished checkpoint; give it without --load_awq, --run_awq and --dump_..."
        )
    if args.dump_quant and args.q_backend == "fake":
        parser.error("--dump_quant needs --q_backend real")
    has_text = args.eval_file or "wikitext" in (args.tasks or "").split(",")
    if args.kl and (args.w_bit is None or not has_text):
        parser.error("--kl needs --w_bit, and --eval_file or --tasks wikitext")
    if args.include_path and not args.tasks:
        parser.error("--include_path needs --tasks")
    if args.dump_format and not args.dump_quant:
        parser.error("--dump_format needs --dump_quant")
    if args.dump_quant:
        _check_format(parser, "--dump_format", args.dump_format, args.dump_quant)
    if args.dump_fake and args.q_backend == "real":
        parser.error("--dump_fake needs --q_backend fake")
    if (args.q_backend == "real" or args.dump_quant) and args.w_bit != 4:
        parser.error(f"--q_backend real stores 4 bits, got --w_bit {args.w_bit}; others work with --q_backend fake")
    if args.report and args.w_bit is None:
        parser.error("--report needs --w_bit")
    if args.report and not (args.run_awq or args.load_awq or wants_evaluation):
        parser.error("--report needs something to show: --run_awq, --load_awq, --tasks or --eval_file")
    if args.output_path and not wants_evaluation:
        parser.error("--output_path needs --tasks or --eval_file")
