"""Sends one message through a controller's worker and prints the answer as it comes: a quick look whether all is well.

Flags and steps are those of LLaVA's script of the same name: refresh, list the models, ask for a worker's address,
stream from that worker. The prompt is built as the worker says, or in LLaVA's way where it does not say.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from tinyserve.serve.client import ServerError, model_names, post, stream
from tinyserve.serve.conversation import NO_COLON_TWO
from tinyserve.serve.conversation import prompt as build_prompt

LLAVA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def find_worker(controller_address: str, model_name: str | None) -> tuple[str, str]:
    """Address of a worker and the model to ask it for: the named one, or the first that the controller lists.

    Raises:
        ServerError: the controller does not answer, or has no worker for the model.
    """
    post(controller_address, "/refresh_all_workers")
    models = sorted(model_names(controller_address, None))
    print(f"Models: {models}")
    if model_name is None and not models:
        raise ServerError(f"no worker is registered at {controller_address}")
    model_name = model_name or models[0]
    address = post(controller_address, "/get_worker_address", {"model": model_name})["address"]
    print(f"worker_addr: {address}")
    if not address:
        raise ServerError(f"no worker serves --model-name {model_name!r}; available: {', '.join(models) or 'none'}")
    return address, model_name


def prompt_and_stop(worker_address: str, model_name: str, message: str) -> tuple[str, str | None]:
    """The prompt for one message and where its answer ends."""
    try:
        conv = post(worker_address, "/worker_get_conv_template", {"model": model_name})["conv"]
        if conv["sep_style"] == NO_COLON_TWO:
            return build_prompt(conv, [{"role": "user", "content": message}]), conv["stop_str"]
    except (ServerError, KeyError, TypeError):
        pass  # LLaVA's workers have no such route
    return f"{LLAVA_SYSTEM} USER: {message} ASSISTANT:", "</s>"


def answer(worker_address: str, request: dict[str, Any]) -> Iterator[str]:
    """The pieces of the answer.

    Raises:
        ServerError: the worker cannot be reached, or a record says what went wrong.
    """
    seen = len(request["prompt"])
    for record in stream(worker_address, request):
        if record["error_code"] != 0:
            raise ServerError(f"{record['text']} (error_code: {record['error_code']})")
        yield record["text"][seen:]
        seen = max(seen, len(record["text"]))


def main(argv: list[str] | None = None) -> int:
    """Sends the message; 1 when it got no answer."""
    parser = argparse.ArgumentParser(description="Send one message and print the answer.", allow_abbrev=False)
    parser.add_argument("--controller-address", "--controller", default="http://localhost:21001")
    parser.add_argument("--worker-address", "--worker", help="ask this worker without a controller")
    parser.add_argument("--model-name", help="default: the first model of the controller or the worker")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--message", default="Tell me a story with more than 1000 words.")
    args = parser.parse_args(argv)
    try:
        if args.worker_address:
            address = args.worker_address.rstrip("/")
            model = args.model_name or model_names(None, address)[0]
        else:
            address, model = find_worker(args.controller_address.rstrip("/"), args.model_name)
        prompt, stop = prompt_and_stop(address, model, args.message)
        print(prompt, end="", flush=True)
        request = {"model": model, "prompt": prompt, "max_new_tokens": args.max_new_tokens, "temperature": 0.7}
        for piece in answer(address, {**request, "stop": stop}):
            print(piece, end="", flush=True)
        print()
    except ServerError as error:
        print(f"\ntinyserve test-message: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
