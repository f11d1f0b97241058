"""What Python costs per step: a model without layers and with a small vocabulary, so that all else is bookkeeping.

Planning, filling the batch, sampling, detokenizing: the processor time of the engine's thread, which others on the
machine hardly change; the best of several runs.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import byte_tokenizer
from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine.engine import Engine

LIMITS_MS = {1: 0.5, 64: 2.0}  # by batch size
HIDDEN = 64
STEPS = 200
RUNS = 7


def measure() -> list[dict[str, Any]]:
    """Milliseconds per decode step, by batch size, greedy and drawn."""
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(Path(folder))
    cases = [
        (batch, name, temperature) for batch in LIMITS_MS for name, temperature in (("greedy", 0.0), ("drawn", 1.0))
    ]
    return [
        {"batch": batch, "sampling": name, "ms": 1e3 * min(_seconds(engine, batch, temperature) for _ in range(RUNS))}
        for batch, name, temperature in cases
    ]


def _seconds(engine: Engine, batch: int, temperature: float) -> float:
    """Per step, over a run of STEPS with every request decoding."""
    params = SamplingParams(max_new_tokens=STEPS + 10, temperature=temperature, ignore_eos=True)
    ids = [engine.add(engine.prepare([index % byte_tokenizer.VOCABULARY, 1], params)) for index in range(batch)]
    for _ in range(5):
        engine.step()
    start = time.thread_time()
    for _ in range(STEPS):
        engine.step()
    seconds = time.thread_time() - start
    for request_id in ids:
        engine.abort(request_id)
    return seconds / STEPS


def _engine(folder: Path) -> Engine:
    config = LlamaConfig(
        vocab_size=byte_tokenizer.VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=0,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    byte_tokenizer.save(folder)
    return Engine.create(EngineConfig(folder, precision="W16A16", dtype="float32", max_num_requests=max(LIMITS_MS)))
