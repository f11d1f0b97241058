"""A model whose weights are in memory only while they are used: what stands before the blocks, then block by block.

Weights are read from the mapped files of a folder; the files are opened anew for each part, so that what the system
keeps of them is let go with the part. It decides nothing about scales.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn

from awq.formats import Checkpoint, open_checkpoint
from awq.skeleton import Skeleton


class LazyNetwork:
    """Args: path, the model folder; dtype, to compute in; device, of the blocks, while the rest is on the CPU."""

    def __init__(self, path: Path, skeleton: Skeleton, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self._path = path
        self._skeleton = skeleton
        self._dtype = dtype
        self._device = device
        self._stored = {name: stored for stored, name in skeleton.parameters.items()}
        self.network = skeleton.network
        self.blocks = skeleton.blocks

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """One decoder block with its weights."""
        prefix = f"{_name_in(self.network, self.blocks[index])}."
        names = [name for name in self._stored if name.startswith(prefix)]
        self._load(open_checkpoint(self._path), names, self._device)
        try:
            yield self.blocks[index].to(self._device)  # its buffers
        finally:
            self._forget(names)

    @contextmanager
    def before_blocks(self) -> Iterator[nn.Module]:
        """The network, in which all that is not a block loads its weights when it is called first."""
        checkpoint = open_checkpoint(self._path)
        in_blocks = set(self.blocks.modules())
        embedding = self.network.get_input_embeddings()  # type: ignore[operator]
        loaded: set[str] = set()
        handles = []
        for prefix, module in self.network.named_modules():
            names = [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
            if module not in in_blocks and module is not embedding and names:

                def load(_: nn.Module, __: Any, names: list[str] = names) -> None:
                    self._load(checkpoint, [name for name in names if name not in loaded], "cpu")
                    loaded.update(names)

                handles.append(module.register_forward_pre_hook(load))
        rows = _EmbeddingRows(checkpoint.tensor(self._stored[f"{_name_in(self.network, embedding)}.weight"]))
        handles.append(embedding.register_forward_pre_hook(rows.load))
        embedding.weight = nn.Parameter(rows.table(self._dtype), requires_grad=False)
        try:
            yield self.network
        finally:
            for handle in handles:
                handle.remove()
            self._forget([*loaded, f"{_name_in(self.network, embedding)}.weight"])

    def _load(self, checkpoint: Checkpoint, names: Iterable[str], device: torch.device | str) -> None:
        for name in names:
            tensor = checkpoint.tensor(self._stored[name])
            set_module_tensor_to_device(self.network, name, device, value=tensor, dtype=self._dtype)

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            set_module_tensor_to_device(self.network, name, "meta")


class _EmbeddingRows:
    """Fills the rows of an embedding that are asked for; memory that is never written takes none."""

    def __init__(self, stored: Tensor) -> None:
        self._stored = stored
        self._present = torch.zeros(len(stored), dtype=torch.bool)

    def table(self, dtype: torch.dtype) -> Tensor:
        """Memory for all rows, of which none is there."""
        return torch.empty(self._stored.shape, dtype=dtype)

    def load(self, embedding: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Called before the embedding, with the ids of its rows."""
        rows = args[0].unique()
        rows = rows[~self._present[rows]]
        embedding.get_parameter("weight").data[rows] = self._stored[rows].to(embedding.get_parameter("weight").dtype)
        self._present[rows] = True


def _name_in(network: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if module is wanted)
