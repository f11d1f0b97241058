"""How long a real model's greedy text on the emulated CUDA kernels stays that of the CPU's exact ones. Slow: no test.

    PYTHONPATH=. python tests/emulated_greedy.py FOLDER [--prompt TEXT] [--seconds 600] [--tokens 256]

FOLDER is quantized (W4A16). Both see the same tokens, the CPU's choices: a near tie does not end the comparison.
"""

import argparse
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from emulator import library
from llama_model import load_llama
from models.test_emulated import emulated_where_there_is
from torch import Tensor

from tinyserve import ops
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.layers.attention import BatchLayout, LayerCache
from tinyserve.models.llama import LlamaModel

BLOCK_SIZE = 32


def steps(model: LlamaModel, prompt: list[int], size: int) -> Generator[Tensor, int | None, None]:
    """The logits [V] after the prompt, then after each token that is sent; at most `size` tokens in all."""
    config = model.config
    blocks = torch.arange(-(-size // BLOCK_SIZE), dtype=torch.int32)
    heads = (len(blocks), config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    caches = [LayerCache(*torch.zeros(2, *heads, dtype=model.dtype)) for _ in range(config.num_layers)]
    tokens, length = torch.tensor(prompt, dtype=torch.int32), 0
    while True:
        positions = torch.arange(length, length + len(tokens), dtype=torch.int32)
        length += len(tokens)
        ends = torch.tensor([0, len(tokens)], dtype=torch.int32), torch.tensor([length], dtype=torch.int32)
        layout = BatchLayout(positions, positions, blocks[None], *ends)
        token = yield model.logits(model.forward(tokens, layout, caches)[-1:])[0]
        tokens = torch.tensor([token], dtype=torch.int32)


def use(kernels: Callable[[str, str], Callable[..., Any]]) -> None:
    ops._kernel = kernels  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", default="The history of the lighthouse begins with")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    if why_not := library.load():
        raise SystemExit(why_not)
    prompt = list(Tokenizer(arguments.folder).encode(arguments.prompt))
    size = len(prompt) + arguments.tokens
    exact = steps(load_llama(arguments.folder, dtype=arguments.dtype), prompt, size)
    compiled, agreed, differed = ops._kernel, 0, 0
    use(emulated_where_there_is)
    emulated = steps(load_llama(arguments.folder, dtype=arguments.dtype), prompt, size)
    end = time.monotonic() + arguments.seconds
    token: int | None = None
    while agreed + differed < arguments.tokens and time.monotonic() < end:
        use(compiled)
        expected = exact.send(token)
        use(emulated_where_there_is)
        got = emulated.send(token)
        token = int(expected.argmax())
        if int(got.argmax()) == token:
            agreed += 1
        else:
            differed += 1
            margin = float(expected[token] - expected[got.argmax()])
            print(
                f"token {agreed + differed}: {int(got.argmax())} for {token}, {margin:.4f} nats behind it", flush=True
            )
    print(f"{agreed} of {agreed + differed} tokens agreed")


if __name__ == "__main__":
    main()
