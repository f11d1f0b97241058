"""The sampler as it runs on a GPU: by ops.sample, here in the emulator, and without waiting for the device."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from emulator import library
from torch import Tensor

from tinyserve import ops
from tinyserve.config import SamplingParams
from tinyserve.engine.draw import SamplingError
from tinyserve.engine.sampler import Sampled, launch, sample
from tinyserve.engine.sampling_state import SamplingState

VOCAB = 60
PARAMS = [
    SamplingParams(seed=1),
    SamplingParams(temperature=0.0, logprobs=2),
    SamplingParams(seed=2, temperature=0.6, top_k=7, logprobs=0),
    SamplingParams(seed=3, top_p=0.8, repetition_penalty=1.4),
    SamplingParams(temperature=0.0, presence_penalty=1.5, frequency_penalty=0.5, logprobs=3),
    SamplingParams(seed=4, temperature=1.6, min_p=0.1, logit_bias=((3, 4.0), (9, -100.0)), min_tokens=3),
    SamplingParams(temperature=0.0005, seed=5, frequency_penalty=-0.3),
]


def kernel_of_the_emulator(name: str, device: str) -> Callable[..., Any]:
    """What ops._kernel is here."""
    kernel: Callable[..., Any] = getattr(torch.ops.tinyserve_emulated, name).default
    return kernel


@pytest.fixture(
    params=["emulated", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the logits lie; ops.sample draws from them."""
    if request.param == "emulated":
        if why_not := library.load():
            pytest.skip(why_not)
        monkeypatch.setattr(ops, "_kernel", kernel_of_the_emulator)
        monkeypatch.setattr(ops, "can_sample", lambda device: True)
    return "cpu" if request.param == "emulated" else "cuda"


def states() -> list[SamplingState]:
    return [SamplingState(params, [5, 9, 9], seed=0, end_ids=[7]) for params in PARAMS]


def steps(number: int) -> Tensor:
    """Logits [steps, R, V]."""
    return torch.randn(number, len(PARAMS), VOCAB, generator=torch.Generator().manual_seed(2)) * 2


def changed(row: Tensor, params: SamplingParams, output: list[int]) -> Tensor:
    """One row [V] with penalties, bias and min_tokens, in fp64."""
    row = row.double().clone()
    seen = {*output, *([5, 9] if params.repetition_penalty != 1.0 else [])}
    for token in seen:
        row[token] *= params.repetition_penalty if row[token] < 0 else 1 / params.repetition_penalty
        row[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty * (token in output)
    for token, bias in params.logit_bias:
        row[token] += bias
    if len(output) < params.min_tokens:
        row[7] = -math.inf
    return row


@pytest.mark.parametrize("depth", [1, 2])
def test_each_token_is_the_one_that_the_request_s_number_falls_on(depth: int, device: str) -> None:
    """Whether results are waited for or the next step is launched before."""
    logits, ours, launched = steps(6), states(), []
    results: list[list[Sampled | SamplingError]] = []
    for step in logits.to(device):
        launched.append(launch(step, ours))
        if len(launched) == depth:
            results.append(launched.pop(0).result())
    results += [one.result() for one in launched]
    for row, params in enumerate(PARAMS):
        numbers = random.Random(params.seed)
        output: list[int] = []
        for step, found in zip(logits, results, strict=True):
            one = found[row]
            assert isinstance(one, Sampled)
            scores = changed(step[row], params, output)
            if params.greedy:
                assert one.token_id == int(scores.argmax())
            else:
                cuts = params.temperature, params.top_k, params.top_p, params.min_p
                ends = reference.sampling_probabilities(scores, *cuts).cumsum(0)
                assert one.token_id == int(torch.searchsorted(ends, numbers.random(), right=True))
            output.append(one.token_id)
            if params.logprobs is not None:
                expected = step[row].double().log_softmax(-1)
                assert one.logprobs is not None
                assert one.logprobs.chosen == pytest.approx(float(expected[one.token_id]), abs=1e-5)
                assert len(one.logprobs.top) == params.logprobs
        assert len(set(output)) > 1


def test_a_row_that_is_not_finite_fails_alone(device: str) -> None:
    logits = steps(1)[0]
    expected = sample(logits.to(device), states())
    logits[[2, 4], 30] = torch.tensor([math.nan, math.inf])
    launched = launch(logits.to(device), states())
    assert [token < 0 for token in launched.tokens.tolist()] == [row in (2, 4) for row in range(len(PARAMS))]
    for row, (one, other) in enumerate(zip(launched.result(), expected, strict=True)):
        assert isinstance(one, SamplingError) if row in (2, 4) else one == other


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_launch_waits_for_nothing() -> None:
    logits, ours = steps(4).to("cuda"), states()
    launch(logits[0], ours).result()  # loads what is loaded once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = [launch(step, ours) for step in logits[1:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(isinstance(one, Sampled) for each in launched for one in each.result())
