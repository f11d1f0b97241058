"""Asks a served model one question over HTTP and prints the answer as it arrives; measures what a client sees."""

import base64
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from tinyserve.serve.wire import RecordDecoder

MAX_NEW_TOKENS = 48
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHATML = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Answer:
    text: str
    num_tokens: int
    records: int
    first_seconds: float  # from the request to the first new text
    seconds: float  # from the request to the end

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first."""
        return (self.num_tokens - 1) / max(self.seconds - self.first_seconds, 1e-9)


def wait_for_model(url: str, server: subprocess.Popen[bytes], seconds: float, known: Collection[str] = ()) -> str:
    """Name of the first model that the controller lists and that is not yet known.

    Raises:
        SystemExit: the server ended, or no model came up in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"demo: the server ended with exit code {server.returncode}")
        try:
            models = requests.post(f"{url}/list_models", timeout=5).json()["models"]
        except requests.ConnectionError:
            models = []  # not listening yet
        for name in models:
            if name not in known:
                return str(name)
        time.sleep(0.2)
    raise SystemExit(f"demo: no model at {url} after {seconds:.0f} s")


def ask(url: str, model: str, question: str, images: Sequence[Path] = ()) -> Answer:
    """Streams one greedy answer from a model behind the controller at `url` and prints it while it comes."""
    body = {
        "model": model,
        "prompt": CHATML.format(SYSTEM, "<image>\n" * len(images) + question),
        "images": [base64.b64encode(path.read_bytes()).decode() for path in images],
        "temperature": 0,
        "max_new_tokens": MAX_NEW_TOKENS,
        "echo": False,
    }
    text, num_tokens, records, first = "", 0, 0, 0.0
    start = time.monotonic()
    decoder = RecordDecoder()
    with requests.post(f"{url}/worker_generate_stream", json=body, stream=True, timeout=60) as response:
        response.raise_for_status()
        for data in response.iter_content(chunk_size=None):
            for record in decoder.feed(data):
                if record["error_code"] != 0:
                    raise SystemExit(f"demo: {record['text']} (error_code {record['error_code']})")
                print(record["text"][len(text) :], end="", flush=True)
                if record["text"] and not text:
                    first = time.monotonic() - start
                text = record["text"]
                num_tokens = record["usage"]["completion_tokens"]
                records += 1
    return Answer(text, num_tokens, records, first, time.monotonic() - start)
