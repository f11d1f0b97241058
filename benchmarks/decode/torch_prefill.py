"""How long torch takes for a prompt of the same model in 16 bits, by transformers: our prefill is compared with it."""

import time

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from benchmarks.decode.steps import synchronize

REPEATS = 4  # the first one warms up


@torch.inference_mode()
def seconds(config: PretrainedConfig, tokens: int, device: str) -> list[float]:
    """Of a prompt's pass through the model, its cache kept and its last token's logits computed."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()
        prompt = torch.randint(config.vocab_size, (1, tokens))
    found = []
    for _ in range(REPEATS):
        synchronize(torch.device(device))
        begin = time.perf_counter()
        model(prompt, use_cache=True, logits_to_keep=1).logits.argmax().item()
        found.append(time.perf_counter() - begin)
    return found[1:]
