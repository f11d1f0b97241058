"""Runs a model's decoder blocks one after another and records what the search needs of each.

The inputs of the first block are taken from the model itself, so positions, masks and embedding scales are its own. It
decides nothing about scales and knows no quantization.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from awq.errors import UserError
from awq.mappings import Architecture, Group


class _FirstBlockReached(Exception):
    """Ends the forward pass once the inputs of the first block are known."""


@dataclass
class InputStatistics:
    """What the closed-form search needs of a group's input x [tokens, K]."""

    gram: Tensor  # X^T X, fp32 [K, K]
    abs_sum: Tensor  # sum of |x| over the tokens, fp32 [K]
    num_tokens: int = 0

    @classmethod
    def empty(cls, k: int, device: torch.device) -> "InputStatistics":
        return cls(torch.zeros(k, k, device=device), torch.zeros(k, device=device))

    def add(self, x: Tensor) -> None:
        """Adds the tokens of x [..., K]."""
        x = x.reshape(-1, x.shape[-1]).float()
        self.gram.addmm_(x.T, x)
        self.abs_sum.add_(x.abs().sum(0))
        self.num_tokens += x.shape[0]

    def mean_gram(self) -> Tensor:
        return self.gram / self.num_tokens

    def mean_abs(self) -> Tensor:
        return self.abs_sum / self.num_tokens


@dataclass
class BlockRecord:
    """What one pass through a block leaves.

    `inputs` holds, where asked for, the arguments of every call of a group's inspected module, keyed by its name.
    """

    statistics: dict[Group, InputStatistics] = field(default_factory=dict)
    inputs: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=dict)


@dataclass
class BlockInputs:
    """The hidden states [n, L, C] that enter the next block, and the other arguments of every block."""

    hidden: Tensor
    arguments: dict[str, Any]


def blocks_of(model: nn.Module, architecture: Architecture) -> nn.ModuleList:
    """The model's list of decoder blocks."""
    blocks = model.get_submodule(architecture.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


@torch.inference_mode()
def first_inputs(model: nn.Module, architecture: Architecture, windows: Tensor) -> BlockInputs:
    """What the model hands to its first block for `windows` int64 [n, L]."""
    hidden: list[Tensor] = []
    arguments: dict[str, Any] = {}

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden.append(args[0] if args else kwargs.pop("hidden_states"))
        arguments.update(kwargs)
        raise _FirstBlockReached

    handle = blocks_of(model, architecture)[0].register_forward_pre_hook(keep, with_kwargs=True)
    device = next(model.parameters()).device
    try:
        # One window at a time: masks and positions then have a batch of 1 and serve batches of any size.
        for window in windows:
            try:
                model(input_ids=window.unsqueeze(0).to(device), use_cache=False)
            except _FirstBlockReached:
                continue
    finally:
        handle.remove()
    return BlockInputs(torch.cat(hidden), arguments)


@torch.inference_mode()
def run_block(block: nn.Module, inputs: BlockInputs, batch: int, name: str) -> BlockInputs:
    """The block's outputs, as the inputs of the next one.

    Raises:
        UserError: an output is NaN or infinite; names the block.
    """
    outputs = torch.empty_like(inputs.hidden)
    for start in range(0, len(inputs.hidden), batch):
        result = block(inputs.hidden[start : start + batch], **inputs.arguments)
        outputs[start : start + batch] = result[0] if isinstance(result, tuple) else result
    if not torch.isfinite(outputs).all():
        raise UserError(f"the activations of {name} are NaN or infinite; the weights may need another --dtype")
    return BlockInputs(outputs, inputs.arguments)


@contextmanager
def recording(block: nn.Module, groups: tuple[Group, ...], keep_inputs: bool) -> Iterator[BlockRecord]:
    """Fills the record it yields while the block runs.

    Args:
        keep_inputs: also keep the arguments of the modules that the exact search inspects.
    """
    record = BlockRecord()
    handles = []
    for group in groups:
        linear = block.get_submodule(group.layers[0])
        device = next(linear.parameters()).device
        record.statistics[group] = InputStatistics.empty(int(linear.in_features), device)  # type: ignore[arg-type]

        def add(_: nn.Module, args: tuple[Any, ...], statistics: InputStatistics = record.statistics[group]) -> None:
            statistics.add(args[0])

        handles.append(linear.register_forward_pre_hook(add))
        if keep_inputs:
            calls = record.inputs.setdefault(group.inspect, [])

            def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], calls: list[Any] = calls) -> None:
                calls.append((args, kwargs))

            handles.append(block.get_submodule(group.inspect).register_forward_pre_hook(keep, with_kwargs=True))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
