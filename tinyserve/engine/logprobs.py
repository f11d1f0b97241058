"""Log probabilities of chosen tokens and of the likeliest alternatives, for the rows of a batch that ask for them.

They are the model's own: before penalties, bias, grammar and temperature, as FastChat's and vLLM's are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyserve.engine.draw import take

LOWEST = -9999.0  # for a probability of zero: JSON knows no infinity, and OpenAI's clients know this number


@dataclass(frozen=True)
class Logprobs:
    """Of one token: natural logarithms."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # token ids and theirs, the likeliest first


def logprobs_of(
    logits: Tensor, rows: Sequence[int], token_ids: Sequence[int], numbers: Sequence[int]
) -> list[Logprobs]:
    """
    Args:
        logits: [R, V] as the model gave them.
        rows: those that are asked about.
        token_ids: the token chosen in each of `rows`.
        numbers: of alternatives for each of `rows`.
    """
    values = take(logits, rows).float()
    total = values.logsumexp(dim=-1, keepdim=True)
    top, top_ids = values.topk(min(max(numbers), values.shape[1]), dim=-1)
    chosen = values.gather(1, torch.tensor(token_ids, device=values.device).unsqueeze(1))
    each = zip(
        numbers,
        (chosen - total)[:, 0].clamp(min=LOWEST).tolist(),
        top_ids.tolist(),
        (top - total).clamp(min=LOWEST).tolist(),
        strict=True,
    )
    return [
        Logprobs(mine, tuple(zip(ids[:number], likely[:number], strict=True))) for number, mine, ids, likely in each
    ]
