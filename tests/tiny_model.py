"""A small model folder with random weights and a tokenizer of single bytes, for tests of the whole command line."""

from pathlib import Path
from typing import Any

import tiny_llama
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "


def save(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A Llama of 2 layers, hidden size 64, that knows all bytes; `settings` are LlamaConfig's."""
    tiny_llama.save(
        folder, dtype=dtype, **({"initializer_range": 0.1, "bos_token_id": 256, "eos_token_id": 257} | settings)
    )
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
