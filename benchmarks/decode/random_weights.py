"""A checkpoint that is on no disk: a model's true shapes, its tensors made up on the device when they are asked for.

Quantized modules are random codes, which packing needs no search for; a 7B model is there in seconds on a GPU.
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig

from awq.formats.checkpoint import FLOAT16, Checkpoint, Layout, TensorInfo
from awq.quantize import QuantConfig, QuantizedTensor
from benchmarks.synthetic_model import STD, STEP, parameters

CODES, SCALES, ZEROS = "codes", "scales", "zeros"
LAYOUT = Layout(
    name="made up",
    suffixes=(CODES, SCALES, ZEROS),
    size=lambda shape: (shape[0], shape[1]),
    expected=lambda n, k, group: {
        CODES: ((torch.uint8,), (n, k)),
        SCALES: (FLOAT16, (n, k // group)),
        ZEROS: ((torch.uint8,), (n, k // group)),
    },
    decode=lambda tensors, config: QuantizedTensor(tensors[CODES], tensors[SCALES], tensors[ZEROS], config),
)


class RandomTensors:
    """A source of tensors: norms of ones, biases of zeros, the rest random; linear layers as codes with a group."""

    def __init__(self, config: PretrainedConfig, device: str, group: int | None) -> None:
        self._generator = torch.Generator(device).manual_seed(0)
        self._dtype: torch.dtype = getattr(torch, str(config.dtype).removeprefix("torch."))
        self._infos: dict[str, TensorInfo] = {}
        for name, shape in parameters(config):
            if group is None or not name.endswith("_proj.weight"):
                self._infos[name] = TensorInfo(self._dtype, shape)
                continue
            module, (n, k) = name.removesuffix(".weight"), shape
            self._infos[f"{module}.{CODES}"] = TensorInfo(torch.uint8, shape)
            self._infos[f"{module}.{SCALES}"] = TensorInfo(self._dtype, (n, k // group))
            self._infos[f"{module}.{ZEROS}"] = TensorInfo(torch.uint8, (n, k // group))

    def names(self) -> list[str]:
        return list(self._infos)

    def info(self, name: str) -> TensorInfo:
        return self._infos[name]

    def file_of(self, name: str) -> str:
        return "made up"

    def tensor(self, name: str) -> Tensor:
        shape, last = self._infos[name].shape, name.rpartition(".")[2]
        device, generator = self._generator.device, self._generator
        if last == CODES:
            return torch.randint(0, 16, shape, dtype=torch.uint8, device=device, generator=generator)
        if last == ZEROS:
            return torch.full(shape, 8, dtype=torch.uint8, device=device)
        if last == SCALES:
            return ((torch.rand(shape, device=device, generator=generator) + 0.5) * STEP).to(self._dtype)
        if len(shape) == 1:
            return (torch.zeros if last == "bias" else torch.ones)(shape, dtype=self._dtype, device=device)
        return torch.empty(shape, dtype=self._dtype, device=device).normal_(0, STD, generator=generator)


def checkpoint(config: PretrainedConfig, device: str, group: int | None) -> Checkpoint:
    """Of 4 bits in groups of `group`, or None: of 16 bits."""
    source = RandomTensors(config, device, group)
    if group is None:
        return Checkpoint(config.to_dict(), source)
    return Checkpoint(config.to_dict(), source, LAYOUT, QuantConfig(4, group))
