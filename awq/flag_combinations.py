"""Which flags of awq.entry go together; each refusal names the flag and exits with code 2, like argparse itself."""

import argparse
from pathlib import Path


def check_format(parser: argparse.ArgumentParser, flag: str, name: str | None, output: Path) -> None:
    """Refuses a format whose kind of output, file or folder, is not what the name says."""
    if name is not None and (name == "llm-awq-v2") != (output.suffix == ".pt"):
        kind = (
            "one file, which must be named X.pt" if name == "llm-awq-v2" else "a folder, which must not be named X.pt"
        )
        parser.error(f"{flag} {name} makes {kind}, got {output}")


def check_combinations(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses combinations that mean nothing, before anything is loaded."""
    wants_evaluation = bool(args.tasks or args.eval_file)
    steps = (args.run_awq, args.dump_quant, args.dump_fake, args.report, wants_evaluation)
    if not any(steps):
        parser.error("nothing to do: give --run_awq, --dump_quant, --dump_fake, --tasks or --eval_file")
    for flag in ("run_awq", "load_awq", "dump_quant", "dump_fake", "load_quant", "q_backend"):
        if getattr(args, flag) and args.w_bit is None:
            parser.error(f"--{flag} needs --w_bit")
    if args.run_awq and args.load_awq is None and args.dump_awq is None:
        parser.error("--run_awq needs --dump_awq FILE.pt")
    if args.calib_images and args.calib_data:
        parser.error("--calib_images and --calib_data: give one of them")
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
        check_format(parser, "--dump_format", args.dump_format, args.dump_quant)
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
