"""An architecture without a definition of its own, from a real worker over HTTP."""

from pathlib import Path

import tiny_architectures
import torch
from serve.fleet import Fleet, records_of
from transformers import AutoTokenizer

PROMPT = "It was the best of times"


def test_a_worker_serves_what_transformers_runs(tmp_path: Path) -> None:
    reference = tiny_architectures.save("gemma2", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        tokens = reference.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = PROMPT + str(tokenizer.decode(tokens[0, ids.shape[1] :]))
    flags = (
        "--host",
        "127.0.0.1",
        "--precision",
        "W16A16",
        "--dtype",
        "float32",
        "--kv-cache-bytes",
        "4000000",
        "--no-register",
    )
    body = {"prompt": PROMPT, "max_new_tokens": 24, "temperature": 0, "ignore_eos": True}
    with Fleet() as fleet:
        worker = fleet.start("tinyserve.serve.model_worker", "--model-path", str(tmp_path), *flags)
        records = records_of(worker.post("/worker_generate_stream", body, stream=True))
    assert records[-1]["text"] == expected
    assert records[-1]["usage"]["completion_tokens"] == 24
    assert records[-1]["finish_reason"] == "length"
