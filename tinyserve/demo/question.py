"""Asks a served model one question over HTTP and prints the answer as it arrives; measures what a client sees."""

import subprocess
import time
from dataclasses import dataclass

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


def wait_for_model(url: str, server: subprocess.Popen[bytes], seconds: float) -> str:
    """Name of the first model that the controller lists.

    Raises:
        SystemExit: the server ended, or no model came up in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"demo: the server ended with exit code {server.returncode}")
        try:
            models = requests.post(f"{url}/list_models", timeout=5).json()["models"]
            if models:
                return str(models[0])
        except requests.ConnectionError:
            pass  # not listening yet
        time.sleep(0.2)
    raise SystemExit(f"demo: no model at {url} after {seconds:.0f} s")


def ask(url: str, question: str, server: subprocess.Popen[bytes], start_seconds: float) -> Answer:
    """Waits for a model behind the controller at `url`, streams one greedy answer from it, prints it while it comes."""
    body = {
        "model": wait_for_model(url, server, start_seconds),
        "prompt": CHATML.format(SYSTEM, question),
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
