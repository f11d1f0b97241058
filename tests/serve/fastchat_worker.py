"""FastChat's own worker process around a few words: `python -m tests.serve.fastchat_worker --port N --controller URL`.

The HTTP routes, registration and heartbeats are FastChat's, unmodified; only the model is missing.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastchat.conversation import get_conv_template
from fastchat.serve import base_model_worker

WORDS = ("one ", "two ", "three")


class WordWorker(base_model_worker.BaseModelWorker):
    def make_conv_template(self, conv_template: str | None = None, model_path: str | None = None) -> Any:
        return get_conv_template("one_shot")

    def generate_stream_gate(self, params: dict[str, Any]) -> Iterator[bytes]:
        text = params["prompt"]
        for word in WORDS:
            text += word
            yield json.dumps({"text": text, "error_code": 0}).encode() + b"\0"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--controller", required=True)
    args = parser.parse_args()
    worker = WordWorker(args.controller, f"http://127.0.0.1:{args.port}", "fc", "words", ["words"], 5)
    worker.init_heart_beat()
    uvicorn.run(base_model_worker.app, host="127.0.0.1", port=args.port, log_level="warning")
