"""Tells a controller about a worker that does not register itself, with LLaVA's and FastChat's flags.

    python -m tinyserve.serve.register_worker --controller-address http://localhost:21001 \\
        --worker-name http://localhost:21002 --check-heart-beat
"""

import argparse
import os
import sys

import requests

TIMEOUT_SECONDS = 30.0  # more than the controller's own limit for asking the worker


def register(
    controller_address: str,
    worker_name: str,
    check_heart_beat: bool,
    token: str | None = None,
    multimodal: bool = False,
) -> None:
    """Has the controller ask the worker for its status and list it.

    Raises:
        RuntimeError: the controller cannot be reached or refused; the text says which and why.
    """
    url = controller_address.rstrip("/") + "/register_worker"
    body = {
        "worker_name": worker_name,
        "check_heart_beat": check_heart_beat,
        "worker_status": None,
        "multimodal": multimodal,
    }
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        response = requests.post(url, json=body, headers=headers, timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise RuntimeError(f"no controller answers at --controller-address {controller_address}: {error}") from None
    if response.status_code != 200:
        raise RuntimeError(f"the controller refused {worker_name} ({response.status_code}): {response.text[:500]}")


def main(argv: list[str] | None = None) -> int:
    """Registers once; 1 when that failed."""
    parser = argparse.ArgumentParser(description="Register a worker at a controller.", allow_abbrev=False)
    parser.add_argument("--controller-address", "--controller", default="http://localhost:21001")
    parser.add_argument("--worker-name", required=True, metavar="URL", help="http(s)://host:port of the worker")
    parser.add_argument(
        "--check-heart-beat", action="store_true", help="remove the worker when its heart beats stop; else it stays"
    )
    parser.add_argument("--multimodal", action="store_true", help="the worker takes images")
    parser.add_argument(
        "--worker-token", default=os.environ.get("TINYSERVE_WORKER_TOKEN"), help="the controller's secret"
    )
    args = parser.parse_args(argv)
    try:
        register(args.controller_address, args.worker_name, args.check_heart_beat, args.worker_token, args.multimodal)
    except RuntimeError as error:
        print(f"tinyserve register-worker: {error}", file=sys.stderr)
        return 1
    print(f"registered {args.worker_name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
