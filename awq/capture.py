"""Runs a model's decoder blocks one after another and records what the search needs of each.

The inputs of the first block are taken from the model itself, so positions, masks and embedding scales are its own. It
decides nothing about scales and knows no quantization.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from awq.errors import UserError
from awq.groups import Group
from awq.lazy_network import LazyNetwork

BATCH_TOKENS = 2048  # of one pass through a block


class _LastBlockReached(Exception):
    """Ends the forward pass once the arguments of all blocks are known."""


@dataclass
class InputStatistics:
    """What the closed-form search needs of a group's input x [tokens, K].

    The mean is kept, not the sum: H of a wide layer takes most of a block's memory, and a copy would double it.
    """

    gram: Tensor  # mean of x x^T over the tokens, fp32 [K, K]
    abs_sum: Tensor  # sum of |x| over the tokens, fp32 [K]
    num_tokens: int = 0

    @classmethod
    def empty(cls, k: int, device: torch.device) -> "InputStatistics":
        return cls(torch.zeros(k, k, device=device), torch.zeros(k, device=device))

    def add(self, x: Tensor) -> None:
        """Adds the tokens of x [..., K]."""
        x = x.reshape(-1, x.shape[-1]).float()
        before, self.num_tokens = self.num_tokens, self.num_tokens + len(x)
        self.gram.addmm_(x.T, x, beta=before / self.num_tokens, alpha=1 / self.num_tokens)
        self.abs_sum.add_(x.abs().sum(0))

    def mean_gram(self) -> Tensor:
        """H [K, K]; the memory of the statistics themselves, not to be changed."""
        return self.gram

    def mean_abs(self) -> Tensor:
        return self.abs_sum / self.num_tokens


@dataclass
class BlockRecord:
    """What one pass through a block leaves.

    `inputs` holds, where asked for, the arguments of every call of a group's inspected module, keyed by its name.
    """

    statistics: dict[Group, InputStatistics] = field(default_factory=dict)
    inputs: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """The arguments of a block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class BlockInputs:
    """The hidden states [n, L, C] that enter the next block, on the CPU, and the other arguments of every block.

    Blocks differ in their arguments where some see all tokens before and others a window of them. `calls` has for
    every block its arguments by the number of sequences in a call: some models put the sequences into the masks.
    """

    hidden: Tensor
    calls: tuple[dict[int, Call], ...]

    def batches(self, index: int) -> Iterator[tuple[slice, Call]]:
        """The sequences of each call of a block, and its arguments."""
        size = max(self.calls[index])
        for start in range(0, len(self.hidden), size):
            end = min(start + size, len(self.hidden))
            yield slice(start, end), self.calls[index][end - start]


@torch.inference_mode()
def first_inputs(network: LazyNetwork, windows: Tensor, images: Tensor | None = None) -> BlockInputs:
    """What the model hands to its first block, and to all blocks besides.

    Args:
        windows: int64 [n, L].
        images: embeddings [P, C]: ids beyond the rows of the model's own embedding stand for these, in their order.
    """
    hidden: list[Tensor] = []
    calls: tuple[dict[int, Call], ...] = tuple({} for _ in network.blocks)

    def stand_in(index: int, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        """In place of a block's forward: keeps the arguments and hands on the input."""
        x, *others = args or (kwargs.pop("hidden_states"),)
        if index == 0:
            hidden.append(x)
        calls[index].setdefault(len(hidden[-1]), Call(tuple(others), kwargs))
        if index == len(calls) - 1:
            raise _LastBlockReached
        return (x,)

    with network.before_blocks() as model:
        for index, block in enumerate(network.blocks):
            block.forward = partial(stand_in, index)
        try:
            for batch in windows.split(max(1, BATCH_TOKENS // windows.shape[1])):
                with suppress(_LastBlockReached):
                    model(**_read(model, batch, images), use_cache=False)
        finally:
            for block in network.blocks:
                del block.forward
    return BlockInputs(torch.cat(hidden), calls)


def _read(model: nn.Module, ids: Tensor, images: Tensor | None) -> dict[str, Tensor]:
    """The argument that brings ids [B, L] into the model, as they are or, with images among them, embedded."""
    if images is None:
        return {"input_ids": ids}
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    own = len(embedding.weight)
    is_image = ids >= own
    embedded = embedding(ids.where(~is_image, 0))
    embedded[is_image] = images[ids[is_image] - own].to(embedded)
    return {"inputs_embeds": embedded}


@torch.inference_mode()
def run_block(block: nn.Module, index: int, inputs: BlockInputs, name: str) -> BlockInputs:
    """The block's outputs, as the inputs of the next one.

    Raises:
        UserError: an output is NaN or infinite; names the block.
    """
    device = next(block.parameters()).device
    outputs = torch.empty_like(inputs.hidden)
    for sequences, call in inputs.batches(index):
        args, kwargs = send_to_device((call.args, call.kwargs), device)
        result = block(inputs.hidden[sequences].to(device), *args, **kwargs)
        outputs[sequences] = (result[0] if isinstance(result, tuple) else result).to(outputs.device)
    if not torch.isfinite(outputs).all():
        raise UserError(f"the activations of {name} are NaN or infinite; the weights may need another --dtype")
    return BlockInputs(outputs, inputs.calls)


@contextmanager
def recording(block: nn.Module, groups: tuple[Group, ...], keep_inputs: bool, name: str) -> Iterator[BlockRecord]:
    """Fills the record it yields while the block runs.

    Args:
        keep_inputs: also keep the arguments of the modules that the exact search inspects.
        name: of the block, for messages.

    Raises:
        UserError: an input is NaN or infinite; names the Linear.
    """
    record = BlockRecord()
    handles = []
    for group in groups:
        linear = block.get_submodule(group.layers[0])
        device = next(linear.parameters()).device
        record.statistics[group] = InputStatistics.empty(int(linear.in_features), device)  # type: ignore[arg-type]

        def add(_: nn.Module, args: tuple[Any, ...], group: Group = group) -> None:
            record.statistics[group].add(args[0])
            if not torch.isfinite(record.statistics[group].abs_sum).all():
                raise UserError(f"the inputs of {name}.{group.layers[0]} are NaN or infinite in the calibration text")

        handles.append(block.get_submodule(group.reader).register_forward_pre_hook(add))
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
