"""The file of search results: llm-awq's {"scale", "clip"} plus keys with the model and settings and with figures.

It decides what is written and what is accepted. A file of another model, bit width or group size is refused; files of
llm-awq carry no such key and are accepted with a warning after their names and shapes were checked.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awq.errors import UserError
from awq.formats.output import new_file, save_pt
from awq.layer_figures import LayerFigures
from awq.quantize import QuantConfig

VERSION = 1  # of the metadata


@dataclass(frozen=True)
class ScaleItem:
    """One scaled group: global names and t [K]."""

    prev: str
    layers: tuple[str, ...]
    scales: Tensor


@dataclass(frozen=True)
class ClipItem:
    """One clipped Linear: global name, lowest and highest weight of each group, [N, K/G, 2], in scaled units."""

    layer: str
    bound: Tensor


@dataclass(frozen=True)
class ModelIdentity:
    """What tells two models apart; `weights` is a digest of the norms, which fine-tuning changes."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    vocab_size: int
    weights: str

    def __str__(self) -> str:
        return (
            f"{self.architecture} with {self.num_layers} layers, hidden size {self.hidden_size}, "
            f"intermediate size {self.intermediate_size}, vocabulary {self.vocab_size}, weights {self.weights}"
        )


@dataclass(frozen=True)
class SearchResults:
    """Scales, clips and figures of a whole model, or of some of its blocks."""

    scales: list[ScaleItem] = field(default_factory=list)
    clips: list[ClipItem] = field(default_factory=list)
    figures: list[LayerFigures] = field(default_factory=list)

    def scales_of(self, prefix: str) -> list[ScaleItem]:
        return [item for item in self.scales if item.layers[0].startswith(prefix)]

    def clips_of(self, prefix: str) -> list[ClipItem]:
        return [item for item in self.clips if item.layer.startswith(prefix)]


def save_atomically(value: object, path: Path) -> None:
    """torch.save to a temporary name beside `path`, then renamed: a reader never sees half a file."""
    with new_file(path, overwrite=True) as scratch:
        save_pt(value, scratch)


def metadata(model: ModelIdentity, config: QuantConfig) -> dict[str, Any]:
    """The extra key of the file; plain values, so that weights_only loading accepts it."""
    return {"version": VERSION, "model": asdict(model), "quant": asdict(config)}


def save_results(results: SearchResults, path: Path, model: ModelIdentity, config: QuantConfig) -> None:
    """Writes llm-awq's format (tuples of names and CPU tensors) with the keys `range`, `metadata` and `figures`."""
    save_atomically({**to_plain(results), "metadata": metadata(model, config)}, path)


def to_plain(results: SearchResults) -> dict[str, list[Any]]:
    """As tuples, strings, numbers and CPU tensors, which weights_only loading accepts."""
    return {
        "scale": [(item.prev, tuple(item.layers), item.scales.cpu()) for item in results.scales],
        "clip": [(item.layer, item.bound.abs().amax(-1, keepdim=True).cpu()) for item in results.clips],
        "range": [(item.layer, item.bound.cpu()) for item in results.clips],
        "figures": [item.to_plain() for item in results.figures],
    }


def from_plain(value: Mapping[str, Any]) -> SearchResults:
    """The inverse of to_plain; `figures` may be missing, as in llm-awq's files.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: not such a value.
    """
    return SearchResults(
        [ScaleItem(str(prev), tuple(map(str, layers)), t.float()) for prev, layers, t in value["scale"]],
        _clips(value),
        [LayerFigures.from_plain(item) for item in value.get("figures", [])],
    )


def _clips(value: Mapping[str, Any]) -> list[ClipItem]:
    """From `range` where it is there; llm-awq has only `clip`, the largest |w| of each group, [N, K/G, 1]."""
    if "range" in value:
        return [ClipItem(str(layer), bound.float()) for layer, bound in value["range"]]
    return [ClipItem(str(layer), torch.cat((-bound, bound), -1).float()) for layer, bound in value["clip"]]


def load_results(
    path: Path,
    model: ModelIdentity,
    config: QuantConfig,
    shapes: Mapping[str, tuple[int, ...]],
    warn: Callable[[str], None],
) -> SearchResults:
    """Reads a file of results and checks that it belongs to this model and these settings.

    Args:
        shapes: of every tensor of the model, by global name.
        warn: is told when the file has no metadata.

    Raises:
        UserError: not such a file, another model or setting (both are named), or names and shapes that do not fit.
    """
    results, known = _read(path)
    if known is None:
        warn(
            f"{path} does not say for which model it was made (a file of llm-awq?); only names and shapes were checked"
        )
    else:
        _check_metadata(path, known, model, config)
    _check_shapes(path, results, config, shapes)
    return results


def _read(path: Path) -> tuple[SearchResults, Any]:
    """The results and the metadata, None where there is none."""
    if not path.is_file():
        raise UserError(f"search results not found: {path}")
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        return from_plain(raw), raw.get("metadata")
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a file of search results: {reason}") from error


def _check_metadata(path: Path, known: Any, model: ModelIdentity, config: QuantConfig) -> None:
    try:
        found_model = ModelIdentity(**known["model"])
        found_config = QuantConfig(**known["quant"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot read its metadata: {error}") from error
    if found_model != model:
        raise UserError(f"{path} was made for another model: it is for {found_model}; this is {model}")
    if found_config != config:
        raise UserError(f"{path} was made for {describe(found_config)}; asked for {describe(config)}")


def describe(config: QuantConfig) -> str:
    """The settings as the flags that choose them."""
    flags = f"--w_bit {config.bits} --q_group_size {config.group_size}"
    return flags if config.zero_point else flags + " --no_zero_point"


def _check_shapes(
    path: Path, results: SearchResults, config: QuantConfig, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    def shape_of(module: str) -> tuple[int, ...]:
        shape = shapes.get(f"{module}.weight")
        if shape is None:
            raise UserError(f"{path} was made for another model: this one has no {module}")
        return shape

    for item in results.scales:
        channels = item.scales.numel()
        if item.scales.dim() != 1 or not bool(((item.scales > 0) & torch.isfinite(item.scales)).all()):
            raise UserError(f"{path}: the scales of {item.prev} are not a vector of positive numbers")
        rows = shape_of(item.prev)[0]
        if rows < channels and channels % rows:  # a value head may serve several query heads
            raise UserError(f"{path}: {channels} scales for {item.prev}, which has {rows} channels")
        for layer in item.layers:
            if shape_of(layer)[-1] != channels:
                raise UserError(
                    f"{path}: {channels} scales for {layer}, which has {shape_of(layer)[-1]} input channels"
                )
    for clip in results.clips:
        n, k = shape_of(clip.layer)
        group = k if config.group_size == -1 else config.group_size
        if tuple(clip.bound.shape) != (n, k // group, 2):
            raise UserError(
                f"{path}: the clips of {clip.layer} are for {tuple(clip.bound.shape[:-1])} groups; "
                f"groups of {group} in [{n}, {k}] are {(n, k // group)}"
            )
