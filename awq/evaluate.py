"""Perplexity of anything that gives logits, on windows of a text.

The protocol is llm-awq's: windows of 2048 tokens without overlap, the rest dropped; the loss of a window is the mean
over its 2047 predictions; perplexity is exp of the mean over windows. It knows no model and no quantization.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from awq.errors import UserError
from awq.progress import track

Logits = Callable[[Tensor], Tensor]  # from one window int64 [L] to [L, V]
ROWS = 512  # of logits turned into fp32 probabilities at once


@dataclass(frozen=True)
class Perplexity:
    perplexity: float
    num_windows: int
    window_tokens: int


@torch.inference_mode()
def network_logits(network: nn.Module, window: Tensor) -> Tensor:
    """[L, V] of a transformers model."""
    device = next(network.parameters()).device
    return network(input_ids=window.unsqueeze(0).to(device), use_cache=False).logits[0]


def window_loss(logits: Tensor, tokens: Tensor) -> float:
    """Mean negative log likelihood of tokens[1:], in nats; logits [L, V] of tokens [L]."""
    total = 0.0
    targets = tokens[1:].to(logits.device)
    for start in range(0, len(targets), ROWS):
        rows = logits[start : min(start + ROWS, len(targets))].float()
        total += float(torch.nn.functional.cross_entropy(rows, targets[start : start + ROWS], reduction="sum"))
    return total / len(targets)


def perplexity(logits: Logits, tokens: Tensor, seqlen: int, limit: int | None = None) -> Perplexity:
    """Perplexity of `logits` on windows of `tokens` [n].

    Args:
        seqlen: tokens in a window; a text that is shorter is one window of its own length.
        limit: use only that many windows.

    Raises:
        UserError: fewer than two tokens, or a loss that is not finite.
    """
    length = min(seqlen, len(tokens))
    if length < 2:
        raise UserError(f"the evaluation text has {len(tokens)} tokens; at least 2 are needed")
    windows = tokens[: len(tokens) // length * length].view(-1, length)[:limit]
    total = 0.0
    for window in track(list(windows), "perplexity: window"):
        total += window_loss(logits(window), window)
    if not math.isfinite(total):
        raise UserError("the perplexity is not finite: the model gives NaN or infinite logits")
    return Perplexity(math.exp(total / len(windows)), len(windows), length)
