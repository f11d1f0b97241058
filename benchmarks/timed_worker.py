"""A worker process around TimedGenerator, for the controller's benchmark and for tests of faults and load."""

import argparse
import logging
import sys

from benchmarks.timed_generator import TimedGenerator
from tinyserve.serve import http_server
from tinyserve.serve.worker import MAX_WAITING, ModelWorker
from tinyserve.serve.worker_app import create_app


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--controller-address", default="http://127.0.0.1:21001")
    parser.add_argument("--model-name", default="timed")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--interval", type=float, default=0.05, help="seconds between two tokens")
    parser.add_argument("--limit-model-concurrency", type=int, default=4096)
    parser.add_argument("--heartbeat-interval", type=float, default=30.0)
    parser.add_argument("--no-register", action="store_true")
    parser.add_argument("--shutdown-timeout", type=int, default=5)
    parser.add_argument("--worker-token")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    sockets = http_server.bind(args.host, args.port)
    http_server.listen(sockets)
    worker = ModelWorker(
        args.controller_address,
        http_server.address_of(args.host, sockets),
        "timed",
        args.no_register,
        model_path=args.model_name,
        model_name=args.model_name,
        generator=TimedGenerator(args.model_name, args.tokens, args.interval),
        limit_model_concurrency=args.limit_model_concurrency,
        max_open=args.limit_model_concurrency + MAX_WAITING,
        heartbeat_interval=args.heartbeat_interval,
        worker_token=args.worker_token,
    )
    http_server.serve(create_app(worker), sockets, shutdown_s=args.shutdown_timeout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
