"""Makes small Llama checkpoints with random weights, for tests of loading, layers and the engine's bookkeeping."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def save(folder: Path, tokenizer: Path | None = None, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """Writes a Hugging Face folder; `settings` are LlamaConfig's, `tokenizer` a folder to take the tokenizer from."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 320,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,  # large: logits far apart, so that no test hangs on a near tie
    }
    model: Any = LlamaForCausalLM(LlamaConfig(**(defaults | settings)))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model.to(dtype).save_pretrained(folder)
    if tokenizer is not None:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            if (tokenizer / name).is_file():
                shutil.copy(tokenizer / name, folder / name)
    return folder
