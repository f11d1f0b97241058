"""How far a quantized model's next-token distributions are from those of the 16-bit model, on the same windows of text.

The 16-bit model goes through all windows first. What stays of it are its final hidden states, C numbers a token instead
of V logits, and its output layer; its blocks are freed before the quantized model is loaded. It knows no quantization.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from awq.errors import UserError
from awq.evaluate import ROWS, Perplexity, mean_loss, network_logits, window_loss
from awq.progress import track


@dataclass(frozen=True)
class Divergence:
    """Over all predictions, one per token but the first of each window.

    Attributes:
        kl_mean: mean of KL(16-bit || quantized), in nats.
        kl_p99: its 99th percentile: the worst prediction in a hundred.
        top1_agreement: share of predictions whose most likely token is the same.
    """

    kl_mean: float
    kl_p99: float
    top1_agreement: float


class Reference:
    """The 16-bit model on windows of named texts.

    Args:
        network: a transformers model; its blocks are gone afterwards.
        blocks: its list of decoder blocks.
        texts: windows int64 [n, L] by name.

    Attributes:
        perplexities: its own, by name of the text.
    """

    @torch.inference_mode()
    def __init__(self, network: nn.Module, blocks: nn.ModuleList, texts: Mapping[str, Tensor]) -> None:
        self._network = network
        self._head: nn.Module = network.get_output_embeddings()  # type: ignore[operator]
        self._states: dict[str, list[Tensor]] = {}  # of each window, [1, L, C]
        self.perplexities: dict[str, Perplexity] = {}
        for name, windows in texts.items():
            states = self._states[name] = []

            def keep(_: nn.Module, args: tuple[Tensor, ...], states: list[Tensor] = states) -> None:
                states.append(args[0].cpu())

            handle = self._head.register_forward_pre_hook(keep)
            try:
                losses = [
                    window_loss(network_logits(network, window), window)
                    for window in track(list(windows), "16-bit model: window")
                ]
            finally:
                handle.remove()
            self.perplexities[name] = mean_loss(losses, windows.shape[1])
        del blocks[:]

    def logits(self, name: str, index: int, window: Tensor) -> Tensor:
        """[L, V] of one window, as the whole model gave them.

        What the model does around its output layer (norms, capped logits) runs again; the states are put in between.
        """
        states = self._states[name][index]
        handle = self._head.register_forward_pre_hook(lambda _, args: (states.to(args[0].device),))
        try:
            return network_logits(self._network, window)
        finally:
            handle.remove()


@dataclass
class DivergenceMeter:
    """Compares window after window; keeps two numbers for each prediction."""

    reference: Reference
    text: str
    _kl: list[Tensor] = field(default_factory=list)
    _same: list[Tensor] = field(default_factory=list)

    def add(self, index: int, window: Tensor, logits: Tensor) -> None:
        """Args: index of the window int64 [L] in its text, logits [L, V] of the quantized model."""
        expected = self.reference.logits(self.text, index, window).to(logits.device)
        for start in range(0, len(window) - 1, ROWS):
            rows = slice(start, min(start + ROWS, len(window) - 1))
            kl, same = compare(expected[rows], logits[rows])
            self._kl.append(kl.cpu())
            self._same.append(same.cpu())

    def result(self) -> Divergence:
        """Of all windows so far.

        Raises:
            UserError: a distribution is not finite.
        """
        kl = torch.cat(self._kl)
        if not bool(torch.isfinite(kl).all()):
            raise UserError("the KL divergence is not finite: one of the models gives NaN or infinite logits")
        return Divergence(float(kl.mean()), percentile(kl, 0.99), float(torch.cat(self._same).float().mean()))


def compare(expected: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
    """KL(expected || actual) in nats, fp32 [n], and whether the largest logit is the same, bool [n]; logits [n, V]."""
    p, q = (log_softmax(logits.float(), dim=-1) for logits in (expected, actual))
    kl = kl_div(q, p, reduction="none", log_target=True).sum(-1)
    return kl.clamp(min=0), expected.argmax(-1) == actual.argmax(-1)


def percentile(values: Tensor, share: float) -> float:
    """The smallest of the values [n] that at least `share` of them do not exceed."""
    return float(values.sort().values[math.ceil(share * len(values)) - 1])
