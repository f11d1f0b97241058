"""The search of one block: capture, scales, clips, outputs.

How a scale or a bound is judged is decided in scale_search.py and clip_search.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from awq.apply import Adjustment
from awq.capture import BlockInputs, BlockRecord, recording, run_block
from awq.clip_search import joint_bounds, separate_bounds
from awq.errors import UserError
from awq.groups import Group
from awq.layer_figures import measure
from awq.model_map import ModelMap
from awq.quantize import QuantConfig
from awq.results import ClipItem, ScaleItem, SearchResults
from awq.scale_search import ScaleChoice, best_scale, gram_loss, scaled_error, some_rows

Method = Literal["fast", "exact"]


@dataclass(frozen=True)
class BlockSearch:
    """How every block is searched."""

    mapping: ModelMap
    config: QuantConfig
    method: Method = "fast"

    @torch.inference_mode()
    def __call__(self, block: nn.Module, index: int, inputs: BlockInputs) -> tuple[SearchResults, BlockInputs]:
        """Scales and clips of one block, and what the next block reads.

        Raises:
            UserError: weights or activations are not finite; names the layer.
        """
        name = self.mapping.block(index)
        _check_finite(block, name)
        with recording(block, self.mapping.groups[index], self.method == "exact", name) as record:
            outputs = self.pass_through(block, index, inputs)
        # Experts that no token was sent to are rounded to nearest.
        groups = [group for group in self.mapping.groups[index] if record.statistics[group].num_tokens]
        scales = {group: self._scale(block, group, record, name) for group in groups if group.prev}
        items = [
            ScaleItem(
                f"{name}.{group.prev}",
                tuple(f"{name}.{layer}" for layer in group.layers + group.followers),
                choice.scales.cpu(),
            )
            for group, choice in scales.items()
        ]
        adjust = Adjustment(SearchResults(items), self.mapping.folds(index))
        find_bounds = joint_bounds if self.method == "fast" else separate_bounds
        clips, figures = [], []
        for group in groups:
            unscaled = record.statistics[group].mean_gram()
            choice = scales.get(group)
            t = None if choice is None else choice.scales
            gram = unscaled if t is None else unscaled / t / t[:, None]  # the inputs of the scaled layer are x / t
            for layer in group.layers:
                weight = adjust(f"{name}.{layer}.weight", _weight(block, layer))
                bound = None
                if layer not in self.mapping.unclipped:
                    bound = find_bounds(weight, gram, self.config)
                    clips.append(ClipItem(f"{name}.{layer}", bound.cpu()))
                ratio = None if choice is None else choice.ratio
                mean_abs = record.statistics[group].mean_abs()
                figures.append(
                    measure(
                        f"{name}.{layer}", weight, unscaled, mean_abs, self.config, ratio=ratio, scales=t, bound=bound
                    )
                )
        return SearchResults(items, clips, figures), outputs

    def pass_through(self, block: nn.Module, index: int, inputs: BlockInputs) -> BlockInputs:
        """What the next block reads."""
        return run_block(block, index, inputs, self.mapping.block(index))

    def _scale(self, block: nn.Module, group: Group, record: BlockRecord, name: str) -> ScaleChoice:
        statistics = record.statistics[group]
        mean_abs = group.shared_mean(statistics.mean_abs())
        try:
            if self.method == "fast":
                weight = some_rows(torch.cat([_weight(block, layer) for layer in group.layers])).float()
                gram = statistics.mean_gram()
                choice = best_scale(mean_abs, lambda t: gram_loss(weight, group.spread(t), gram, self.config))
            else:
                with output_loss(block, group, record, self.config) as loss:
                    choice = best_scale(mean_abs, lambda t: loss(group.spread(t)))
            return replace(choice, scales=group.spread(choice.scales))
        except ValueError as error:
            raise UserError(f"{name}.{group.layers[0]}: {error}") from error


@contextmanager
def output_loss(
    block: nn.Module, group: Group, record: BlockRecord, config: QuantConfig
) -> Iterator[Callable[[Tensor], float]]:
    """The paper's loss: the mean squared change of the inspected module's output when the group is scaled and rounded.

    Yields a function of t; the weights are back when the block ends.
    """
    module = block.get_submodule(group.inspect)
    calls = record.inputs[group.inspect]
    linears = [block.get_submodule(layer) for layer in group.layers]
    originals = [_weight(block, layer) for layer in group.layers]
    expected = [_output(module, call) for call in calls]

    def loss(t: Tensor) -> float:
        for linear, weight in zip(linears, originals, strict=True):
            changed = weight.float() + scaled_error(weight.float(), t, config)
            linear.weight = nn.Parameter(changed.to(weight.dtype), requires_grad=False)
        total = count = 0.0
        for call, output in zip(calls, expected, strict=True):
            total += float((_output(module, call) - output).float().square().sum())
            count += output.numel()
        return total / count

    try:
        yield loss
    finally:
        for linear, weight in zip(linears, originals, strict=True):
            linear.weight = nn.Parameter(weight, requires_grad=False)


def _output(module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    result = module(*call[0], **call[1])
    return result[0] if isinstance(result, tuple) else result


def _weight(block: nn.Module, layer: str) -> Tensor:
    return block.get_parameter(f"{layer}.weight").data


def _check_finite(block: nn.Module, name: str) -> None:
    for tensor, value in block.named_parameters():
        if not torch.isfinite(value).all():
            raise UserError(f"{name}.{tensor} holds NaN or infinite values")
