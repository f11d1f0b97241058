"""The mapping of one model: the groups of each of its blocks, under the names of its checkpoint.

Rules are resolved against what every block holds, as the blocks of one model may differ. Knows no weights.
"""

from dataclasses import dataclass

from torch import nn

from awq.groups import Fold, Group, groups_of
from awq.mappings import ARCHITECTURES, GENERIC
from awq.skeleton import Skeleton


@dataclass(frozen=True)
class ModelMap:
    """The groups of every block of one model, with the names of its checkpoint.

    Attributes:
        blocks: the common part of the blocks' names, e.g. `model.layers`.
        groups: of each block.
        unclipped: as of Architecture.
        known: whether the architecture has a mapping of its own.
    """

    blocks: str
    groups: tuple[tuple[Group, ...], ...]
    unclipped: tuple[str, ...]
    known: bool = True

    def block(self, index: int) -> str:
        """Global name of one block, e.g. `model.layers.3`."""
        return f"{self.blocks}.{index}"

    def block_of(self, name: str) -> int | None:
        """The block that a global tensor or module name lies in; None outside of the blocks."""
        index = name.removeprefix(f"{self.blocks}.").partition(".")[0]
        return int(index) if name.startswith(f"{self.blocks}.") and index.isdigit() else None

    def linears(self, index: int) -> tuple[str, ...]:
        """Every quantized Linear of a block, relative to it."""
        return tuple(layer for group in self.groups[index] for layer in group.layers)

    def folds(self, index: int) -> dict[str, Fold]:
        """By global name of what takes the inverse of a scale, in one block."""
        return {f"{self.block(index)}.{group.prev}": group.fold for group in self.groups[index] if group.prev}


def model_map(skeleton: Skeleton) -> ModelMap:
    """The groups of every block, by the entry of the text model's model_type; generic where there is none."""
    architecture = ARCHITECTURES.get(skeleton.config.model_type, GENERIC)
    linears: list[dict[str, tuple[int, int]]] = [{} for _ in skeleton.blocks]
    rows: list[dict[str, int]] = [{} for _ in skeleton.blocks]
    for stored, name in skeleton.parameters.items():
        before, _, inner = stored.removeprefix(f"{skeleton.stored_blocks}.").partition(".")
        if not stored.startswith(f"{skeleton.stored_blocks}.") or not inner.endswith(".weight"):
            continue
        module = skeleton.network.get_submodule(name.removesuffix(".weight"))
        rows[int(before)][inner.removesuffix(".weight")] = len(skeleton.network.get_parameter(name))
        if isinstance(module, nn.Linear):
            linears[int(before)][inner.removesuffix(".weight")] = (module.out_features, module.in_features)
    groups = tuple(groups_of(architecture, *block, skeleton.config) for block in zip(linears, rows, strict=True))
    return ModelMap(skeleton.stored_blocks, groups, architecture.unclipped, known=architecture is not GENERIC)
