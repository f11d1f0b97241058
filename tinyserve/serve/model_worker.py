"""The command line of a model worker: `python -m tinyserve.serve.model_worker --model-path FOLDER`.

Understands the flags of LLaVA's worker and of llm-awq's, in both spellings, and starts `ModelWorker` behind HTTP.
"""

import argparse
import logging
import os
import sys
import uuid
from pathlib import Path
from typing import get_args

from tinyserve.config import CpuCompute, DtypeName, EngineConfig, KvCacheDtype, LmHeadDtype, Precision
from tinyserve.serve import http_server
from tinyserve.serve.address import check_worker_address
from tinyserve.serve.llava_templates import TEMPLATES
from tinyserve.serve.served_model import default_precision, load_generator, load_in
from tinyserve.serve.worker import MAX_WAITING, ModelWorker
from tinyserve.serve.worker_app import MAX_BODY_BYTES, STALL_S, create_app

__all__ = ["ModelWorker", "create_app", "main"]

log = logging.getLogger(__name__)


class WorkerFailure(RuntimeError):
    """The engine died while serving."""


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="tinyserve worker", description="Serves one model to a controller.", allow_abbrev=False
    )
    add_address_flags(flags)
    add_model_flags(flags)
    serving = flags.add_argument_group("serving")
    serving.add_argument("--limit-model-concurrency", type=int, metavar="N", help="requests in service at once (all)")
    serving.add_argument(
        "--max-waiting", type=int, default=MAX_WAITING, metavar="N", help="requests beyond those that run (1024)"
    )
    serving.add_argument("--stream-interval", type=int, default=1, metavar="N", help="tokens between two records (1)")
    serving.add_argument("--speed", type=float, default=1.0, help="relative to other workers of the model (1)")
    serving.add_argument("--shutdown-timeout", type=int, default=30, help="seconds that open streams get at the end")
    serving.add_argument("--max-body-bytes", type=int, default=MAX_BODY_BYTES, help="of one request")
    serving.add_argument("--stall-seconds", type=float, default=STALL_S, help="without a token until /health says 503")
    return flags


def add_address_flags(flags: argparse.ArgumentParser) -> None:
    group = flags.add_argument_group("addresses")
    group.add_argument("--host", default="localhost")
    group.add_argument("--port", type=int, default=21002)
    group.add_argument("--worker-address", "--worker", help="how others reach this worker (http://HOST:PORT)")
    group.add_argument("--controller-address", "--controller", default="http://localhost:21001")
    group.add_argument("--no-register", action="store_true", help="serve without a controller")
    group.add_argument("--heartbeat-interval", type=float, default=30.0, metavar="SECONDS")
    group.add_argument(
        "--worker-token",
        default=os.environ.get("TINYSERVE_WORKER_TOKEN"),
        help="the secret that the controller asks of its workers (TINYSERVE_WORKER_TOKEN)",
    )


def add_model_flags(flags: argparse.ArgumentParser, model_path: bool = True) -> None:
    """All that says which model is loaded and how; `model_path` False leaves out the path itself."""
    group = flags.add_argument_group("model")
    if model_path:
        group.add_argument("--model-path", type=Path, required=True, help="a Hugging Face folder, 16-bit or quantized")
    group.add_argument("--model-name", "--model-names", help="one name or several with commas (from the path)")
    group.add_argument("--quant-path", type=Path, help="AWQ checkpoint with the linear layers of --model-path")
    group.add_argument("--precision", choices=get_args(Precision), help="default: what the checkpoint holds")
    group.add_argument("--dtype", choices=get_args(DtypeName), default="auto", help="of activations")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda")
    group.add_argument(
        "--cpu-compute",
        choices=get_args(CpuCompute),
        default=EngineConfig.cpu_compute,
        help="4-bit weights on a CPU by activations rounded to int8 (default), or exact: slower",
    )
    group.add_argument(
        "--packed-cache",
        type=Path,
        nargs="?",
        const=True,
        default=False,
        metavar="DIR",
        help="on a CPU: keep packed 4-bit weights for the next start, in DIR or beside the checkpoint",
    )
    group.add_argument(
        "--lm-head-dtype",
        choices=get_args(LmHeadDtype),
        default="auto",
        help="int8: an output layer of 16 bits is rounded to 8, half the bytes of every token (auto: --cpu-compute's)",
    )
    group.add_argument("--max-context", type=int, metavar="TOKENS", help="default: the model's")
    group.add_argument(
        "--kv-cache-dtype",
        choices=get_args(KvCacheDtype),
        default="auto",
        help="of keys and values; int8, on a GPU also fp8: half the memory, rounded (the activations')",
    )
    group.add_argument("--kv-cache-bytes", type=int, metavar="BYTES", help="default: a share of the free memory")
    group.add_argument("--block-size", type=int, default=EngineConfig.block_size, help="tokens in a block of it (32)")
    group.add_argument("--no-prefix-cache", action="store_true", help="requests that begin alike share nothing")
    group.add_argument(
        "--image-memory-bytes",
        type=int,
        default=EngineConfig.image_memory_bytes,
        metavar="BYTES",
        help="for what images become: those in use, and the latest others, which are not encoded again (512 MiB)",
    )
    group.add_argument(
        "--conv-mode",
        choices=tuple(TEMPLATES),
        metavar="NAME",
        help="LLaVA's conversation template: " + ", ".join(TEMPLATES),
    )
    group.add_argument("--max-num-requests", type=int, default=EngineConfig.max_num_requests, help="in one batch (64)")
    group.add_argument(
        "--num-speculative-tokens", type=int, default=0, metavar="N", help="guessed from the text so far (0: off)"
    )
    group.add_argument("--max-batch-tokens", type=int, metavar="TOKENS", help="of one step; default: by device")
    group.add_argument(
        "--max-slowdown",
        type=float,
        default=EngineConfig.max_slowdown,
        metavar="FACTOR",
        help="of running streams while a prompt is computed beside them; inf: no limit (2)",
    )
    group.add_argument(
        "--min-step-ms",
        type=float,
        default=EngineConfig.min_step_ms,
        metavar="MS",
        help="that a step with a prompt in it may take even where that is slower than --max-slowdown (20)",
    )
    group.add_argument(
        "--enforce-eager",
        action="store_true",
        help="decode steps are not recorded (CUDA graphs; tapes on a CPU): slower, and less memory",
    )
    group.add_argument("--model-base", type=Path, help="what the LoRA adapter or projector in --model-path belongs to")
    group.add_argument("--load-8bit", action="store_true", help="16-bit linear layers by bitsandbytes in LLM.int8")
    group.add_argument("--load-4bit", action="store_true", help="the same in NF4; what awq.entry writes is faster")
    group.add_argument("--model-type", help="accepted for llm-awq's sake; the checkpoint says its type")
    group.add_argument(
        "--use-flash-attn",
        action="store_true",
        help="on a GPU: prompts' attention by flash-attn, FlashInfer or torch, the first that is installed (the own "
        "kernel; none was measured beside it, so none is chosen unasked); no effect on a CPU",
    )
    group.add_argument(
        "--multi-modal", action="store_true", help="accepted for LLaVA's sake; has no effect there either"
    )


def run(args: argparse.Namespace) -> None:
    """Loads and serves until a signal. Raises ValueError, OSError or WorkerFailure with a message for the user."""
    check_flags(args)
    sockets = http_server.bind(args.host, args.port)  # before the model is loaded, which takes long to fail
    address = args.worker_address or http_server.address_of(args.host, sockets)
    precision = args.precision or default_precision(args.model_path, args.quant_path, args.model_base)
    log.info("loading %s in %s", args.model_path, precision)
    generator = load_generator(
        EngineConfig(
            model_path=args.model_path,
            quant_path=args.quant_path,
            precision=precision,
            model_base=args.model_base,
            load_in=load_in(args.load_8bit, args.load_4bit),
            dtype=args.dtype,
            device=args.device,
            packed_cache=args.packed_cache,
            cpu_compute=args.cpu_compute,
            lm_head_dtype=args.lm_head_dtype,
            max_context=args.max_context,
            kv_cache_dtype=args.kv_cache_dtype,
            kv_cache_bytes=args.kv_cache_bytes,
            block_size=args.block_size,
            prefix_cache=not args.no_prefix_cache,
            image_memory_bytes=args.image_memory_bytes,
            max_num_requests=args.max_num_requests,
            max_batch_tokens=args.max_batch_tokens,
            max_slowdown=args.max_slowdown,
            min_step_ms=args.min_step_ms,
            num_speculative_tokens=args.num_speculative_tokens,
            enforce_eager=args.enforce_eager,
            use_flash_attn=args.use_flash_attn,
        )
    )
    http_server.listen(sockets)  # before the worker registers: a request may follow at once
    worker = ModelWorker(
        args.controller_address,
        address,
        uuid.uuid4().hex[:6],
        args.no_register,
        args.model_path,
        args.model_base,
        model_name=[name for name in (args.model_name or "").split(",") if name] or None,
        quant_path=args.quant_path,
        precision=precision,
        generator=generator,
        limit_model_concurrency=args.limit_model_concurrency,
        max_open=args.max_num_requests + args.max_waiting,
        stream_interval=args.stream_interval,
        speed=args.speed,
        heartbeat_interval=args.heartbeat_interval,
        worker_token=args.worker_token,
        conv_mode=args.conv_mode,
    )
    log.info("worker %s serves %s at %s", worker.worker_id, ", ".join(worker.model_names), address)
    http_server.serve(
        create_app(worker, args.max_body_bytes, args.stall_seconds), sockets, shutdown_s=args.shutdown_timeout
    )
    if worker.failure is not None:
        raise WorkerFailure(worker.failure)


def check_flags(args: argparse.Namespace) -> None:
    """Raises ValueError naming the flag."""
    load_in(args.load_8bit, args.load_4bit)
    for flag, address in (
        ("--controller-address", args.controller_address),
        ("--worker-address", args.worker_address),
    ):
        if address is not None:
            try:
                check_worker_address(address.rstrip("/"))
            except ValueError as error:
                raise ValueError(f"{flag} {error}") from error
    least = {
        "--limit-model-concurrency": (args.limit_model_concurrency, 1),
        "--max-waiting": (args.max_waiting, 0),
        "--stream-interval": (args.stream_interval, 1),
        "--shutdown-timeout": (args.shutdown_timeout, 0),
        "--max-body-bytes": (args.max_body_bytes, 1),
        "--speed": (args.speed, 0),
        "--stall-seconds": (args.stall_seconds, 1),
        "--heartbeat-interval": (args.heartbeat_interval, 0.05),
    }
    for flag, (value, low) in least.items():
        if value is not None and not value >= low:
            raise ValueError(f"{flag} must be at least {low}, got {value}")


def main(argv: list[str] | None = None) -> int:
    """Exit code 1, and one line that says why, when the model or the port cannot be had."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        run(args)
    except (ValueError, OSError, WorkerFailure) as error:
        message = " ".join(str(error).split())
        print(f"tinyserve worker: error: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
