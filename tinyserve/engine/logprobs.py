"""Log probabilities of chosen tokens and of the likeliest alternatives, for the rows of a batch that ask for them.

They are the model's own: before penalties, bias, grammar and temperature, as FastChat's and vLLM's are. They are looked
up where the logits are, and read when the tokens are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tinyserve.engine.draw import take

LOWEST = -9999.0  # for a probability of zero: JSON knows no infinity, and OpenAI's clients know this number


@dataclass(frozen=True)
class Logprobs:
    """Of one token: natural logarithms."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # token ids and theirs, the likeliest first


@dataclass(frozen=True)
class Likelihoods:
    """Of the tokens of some rows, on the device.

    Attributes:
        tensors: fp32 [N] of the chosen tokens, int64 [N, A] the likeliest tokens, fp32 [N, A] theirs.
    """

    rows: Sequence[int]
    numbers: Sequence[int]  # of alternatives for each of `rows`
    tensors: tuple[Tensor, Tensor, Tensor]

    def read(self, tensors: Sequence[Tensor]) -> dict[int, Logprobs]:
        """By row, from what `tensors` are on the host."""
        chosen, top_ids, top = (tensor.tolist() for tensor in tensors)
        return {
            row: Logprobs(mine, tuple(zip(ids[:number], likely[:number], strict=True)))
            for row, number, mine, ids, likely in zip(self.rows, self.numbers, chosen, top_ids, top, strict=True)
        }


def look_up(logits: Tensor, rows: Sequence[int], tokens: Tensor, numbers: Sequence[int]) -> Likelihoods:
    """
    Args:
        logits: [R, V] as the model gave them.
        rows: those that are asked about.
        tokens: int32 [R], chosen in each row; where it is -1, what is found means nothing.
        numbers: of alternatives for each of `rows`.
    """
    values = take(logits, rows).float()
    total = values.logsumexp(dim=-1, keepdim=True)
    top, top_ids = values.topk(min(max(numbers), values.shape[1]), dim=-1)
    chosen = values.gather(1, take(tokens, rows).long().clamp(min=0).unsqueeze(1))
    of_chosen, of_top = ((each - total).clamp(min=LOWEST) for each in (chosen, top))
    return Likelihoods(rows, numbers, (of_chosen[:, 0], top_ids, of_top))
