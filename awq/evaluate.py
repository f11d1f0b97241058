"""Perplexity of anything that gives logits, on windows of a text.

The protocol is llm-awq's: windows of 2048 tokens without overlap, the rest dropped; the loss of a window is the mean
over its 2047 predictions; perplexity is exp of the mean over windows. It knows no model and no quantization.
"""

import math
from collections.abc import Callable, Sequence
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


def split_windows(tokens: Tensor, seqlen: int, limit: int | None = None) -> Tensor:
    """Windows int64 [m, L] of a text int64 [n].

    Args:
        seqlen: tokens in a window; a text that is shorter is one window of its own length.
        limit: use only that many windows.

    Raises:
        UserError: fewer than two tokens.
    """
    length = min(seqlen, len(tokens))
    if length < 2:
        raise UserError(f"the evaluation text has {len(tokens)} tokens; at least 2 are needed")
    return tokens[: len(tokens) // length * length].view(-1, length)[:limit]


def perplexity(logits: Logits, windows: Tensor, see: Callable[[int, Tensor, Tensor], None] | None = None) -> Perplexity:
    """Perplexity of `logits` on windows int64 [m, L].

    Args:
        see: is given the index of each window, the window and its logits [L, V].

    Raises:
        UserError: a loss that is not finite.
    """
    losses = []
    for index, window in enumerate(track(list(windows), "perplexity: window")):
        rows = logits(window)
        losses.append(window_loss(rows, window))
        if see is not None:
            see(index, window, rows)
    return mean_loss(losses, windows.shape[1])


def mean_loss(losses: Sequence[float], window_tokens: int) -> Perplexity:
    """The perplexity of the mean loss of windows.

    Raises:
        UserError: a loss is not finite.
    """
    mean = sum(losses) / len(losses)
    if not math.isfinite(mean):
        raise UserError("the perplexity is not finite: the model gives NaN or infinite logits")
    return Perplexity(math.exp(mean), len(losses), window_tokens)
