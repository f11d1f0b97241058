"""A training run that was stopped goes on as if it had not been."""

import json
from pathlib import Path

import torch
from torch import nn

from benchmarks.demo_llava.training import LOG, Training, groups

STEPS, INTERVAL = 12, 4


def train(folder: Path, last: int = STEPS) -> nn.Linear:
    """Fits a linear layer to random rows up to step `last`, with whatever `folder` holds of an earlier run."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    training = Training(folder, "fit", model, groups(model, 0.1, 0.5), STEPS, 2, 0.5, INTERVAL, seed=1)
    for step in training.steps():
        if step == last:
            break
        rows = torch.randn(5, 3, generator=training.generator)
        if training.update((model(rows) - rows[:, :2]).square().mean()):
            training.save(weight=float(model.weight.detach().sum()))
    return model


def test_a_stopped_run_goes_on_where_its_last_checkpoint_is(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "stopped", last=6)  # two steps beyond the checkpoint: they are done again
    resumed = train(tmp_path / "stopped")
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)
    logs = [
        [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for line in (tmp_path / name / LOG).read_text().splitlines()
        ]
        for name in ("whole", "stopped")
    ]
    assert logs[0] == logs[1]
    assert [record["step"] for record in logs[0]] == [4, 8, 12]


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = train(tmp_path)
    assert torch.equal(train(tmp_path).weight, first.weight)
    assert len((tmp_path / LOG).read_text().splitlines()) == STEPS // INTERVAL


def test_the_rate_warms_up_stays_and_falls_to_nothing(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    training = Training(tmp_path, "fit", model, groups(model, 1.0, 0.5), 10, 2, 0.4, 100, seed=1)
    rates = []
    for _ in training.steps():
        rates.append(training.rates[0])
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_only_weight_matrices_decay() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(3, 2), "position_embedding": nn.Embedding(4, 3), "norm": nn.LayerNorm(3)})
    decayed, others = groups(model, 0.1, 0.5)
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert decayed["weight_decay"] == 0.5
    assert len(others["params"]) == 4
    assert others["weight_decay"] == 0
