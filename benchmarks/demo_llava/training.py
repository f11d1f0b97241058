"""One stage of training: learning rates by step, updates, the log, and a checkpoint from which a stopped run goes on.

Knows neither what is trained nor on what.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LOG = "training_log.jsonl"
CLIP = 1.0  # largest norm of a step's gradient
BETAS = (0.9, 0.98)


class Training:
    """AdamW over a module's parameters; also the source of the stage's random numbers."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        model: nn.Module,
        groups: list[dict[str, Any]],
        steps: int,
        warm_up: int,
        decay: float,
        interval: int,
        seed: int,
    ) -> None:
        """
        Args:
            folder: for LOG and `stage`.pt, which is read when it is there.
            model: everything that is trained, and so kept.
            groups: parameter groups of the optimizer; `lr` is the peak.
            warm_up: steps. The rate then stays, and falls linearly to zero over the last `decay` part of `steps`;
                until then nothing depends on how long the run will be.
            interval: steps between two checkpoints.
        """
        self._state, self._log, self._stage = folder / f"{stage}.pt", folder / LOG, stage
        self._model, self._steps, self._warm_up, self._decay = model, steps, warm_up, decay
        self._interval = interval
        self._peaks = [group["lr"] for group in groups]
        self._optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
        self._losses: list[float] = []
        self._first, self._step, spent = 0, 0, 0.0
        self.generator = torch.Generator().manual_seed(seed)
        if self._state.is_file():
            saved = torch.load(self._state, weights_only=True)
            model.load_state_dict(saved["model"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.generator.set_state(saved["generator"])
            self._first, spent = saved["step"], saved["seconds"]
        self._started = time.monotonic() - spent

    @property
    def rates(self) -> list[float]:
        """The current learning rate of each parameter group."""
        return [group["lr"] for group in self._optimizer.param_groups]

    def steps(self) -> Iterator[int]:
        """The steps that are left to do, each with its learning rate set."""
        for step in range(self._first, self._steps):
            self._step = step
            left = (self._steps - step) / (self._decay * self._steps)
            share = min((step + 1) / self._warm_up, 1.0, left)
            for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = share * peak
            yield step

    def update(self, loss: Tensor) -> bool:
        """One step down the gradient of `loss`. True: time to measure and to `save`."""
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in self._optimizer.param_groups for p in group["params"]], CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._losses.append(loss.item())
        return (self._step + 1) % self._interval == 0 or self._step + 1 == self._steps

    def save(self, **figures: float) -> None:
        """Logs what was measured and keeps the state."""
        record = {
            "stage": self._stage,
            "step": self._step + 1,
            "seconds": round(time.monotonic() - self._started),
            "loss": round(sum(self._losses) / len(self._losses), 4),
            **{name: round(value, 4) for name, value in figures.items()},
        }
        self._losses.clear()
        print(json.dumps(record), flush=True)
        with self._log.open("a") as log:
            log.write(json.dumps(record) + "\n")
        partial = self._state.with_suffix(".partial")
        state = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self._step + 1,
            "seconds": time.monotonic() - self._started,
        }
        torch.save(state, partial)
        partial.replace(self._state)


def groups(module: nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with weight decay for weight matrices and without for biases, norms and embeddings."""
    named = list(module.named_parameters())
    decayed = [p for name, p in named if p.ndim >= 2 and "embedding" not in name]
    others = [p for name, p in named if p.ndim < 2 or "embedding" in name]
    return [
        {"params": decayed, "lr": rate, "weight_decay": weight_decay},
        {"params": others, "lr": rate, "weight_decay": 0.0},
    ]
