"""Decides what a readable checkpoint is, whatever its files look like: plain tensors, and quantized modules.

A source gives named tensors, a layout says how the tensors of one quantized module encode its codes, scales and zeros.
Everything that headers can tell is checked when a checkpoint is opened; values are read when they are asked for. Knows
no file format and no model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from awq.errors import UserError
from awq.quantize import QuantConfig, QuantizedTensor, dequantize

# What the kernels multiply with; besides these a group may be a whole row.
GROUP_SIZES = (32, 64, 128)


class CheckpointError(UserError):
    """A checkpoint cannot be read: names the file and the tensor or field, what came and what is supported."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a stored tensor before it is read; dtype is None for one that torch 2.10 does not have."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


class TensorSource(Protocol):
    """Named tensors of one folder or file."""

    def names(self) -> list[str]: ...

    def info(self, name: str) -> TensorInfo: ...

    def tensor(self, name: str) -> Tensor: ...

    def file_of(self, name: str) -> str:
        """The file that holds the tensor, for messages."""
        ...


Dtypes = tuple[torch.dtype, ...]
INT32: Dtypes = (torch.int32,)
FLOAT16: Dtypes = (torch.float16, torch.bfloat16)
FLOATS: Dtypes = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Layout:
    """How one module is stored.

    Attributes:
        name: for messages.
        suffixes: the tensors every module has; the first one, the codes, tells that a module is quantized.
        optional: tensors it may have besides.
        size: from the shape of the codes' tensor to (N, K).
        expected: from (N, K, group) to the dtypes and shape of each tensor that has to fit.
        decode: from the tensors by suffix to the weight; shapes are checked by then. Raises ValueError for values that
            the layout cannot hold.
    """

    name: str
    suffixes: tuple[str, ...]
    size: Callable[[tuple[int, ...]], tuple[int, int]]
    expected: Callable[[int, int, int], Mapping[str, tuple[Dtypes, tuple[int, ...]]]]
    decode: Callable[[Mapping[str, Tensor], QuantConfig], QuantizedTensor]
    optional: tuple[str, ...] = ()


class Checkpoint:
    """A model's tensors.

    Args:
        config: config.json as parsed.
        source: where the tensors are.
        layout: how quantized modules are stored; None for a 16-bit checkpoint.
        quant: how they were rounded; None exactly when layout is None.
        not_converted: parts of module names that must not be quantized.

    Raises:
        CheckpointError: a quantized module is incomplete, or a tensor has another dtype or shape than its layout.
    """

    def __init__(
        self,
        config: dict[str, Any],
        source: TensorSource,
        layout: Layout | None = None,
        quant: QuantConfig | None = None,
        not_converted: tuple[str, ...] = (),
    ) -> None:
        self.config = config
        self.quant = quant
        self._source = source
        self._layout = layout
        names = source.names()
        self._stored = frozenset(names)
        self._modules: dict[str, None] = {}
        packed: set[str] = set()
        if layout and quant:
            self._modules = dict.fromkeys(_prefixes(names, layout.suffixes[0]))
            all_suffixes = layout.suffixes + layout.optional
            packed = {f"{module}.{suffix}" for module in self._modules for suffix in all_suffixes}
            self._refuse_stray(names, packed, layout)
            for module in self._modules:
                self._check_module(module, layout, quant, not_converted)
        self._plain = {name: None for name in names if name not in packed}

    def names(self) -> list[str]:
        """The plain tensors, in self._stored order."""
        return list(self._plain)

    def modules(self) -> list[str]:
        """The quantized modules, in self._stored order."""
        return list(self._modules)

    def has(self, name: str) -> bool:
        """Whether there is such a plain tensor, e.g. "model.norm.weight"."""
        return name in self._plain

    def tensor(self, name: str) -> Tensor:
        """A plain tensor as stored.

        Raises:
            CheckpointError: there is none of that name.
        """
        if name not in self._plain:
            what = "is part of a quantized module" if name.rpartition(".")[0] in self._modules else "is not in it"
            raise CheckpointError(f"{self._source}: tensor {name} {what}")
        return self._source.tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a plain tensor, which is not read for it."""
        return self._source.info(name).shape

    def with_source(self, change: Callable[[TensorSource], TensorSource]) -> "Checkpoint":
        """The same with its tensors changed: renamed, or others added. What may not be quantized has been checked."""
        return Checkpoint(self.config, change(self._source), self._layout, self.quant)

    def is_quantized(self, module: str) -> bool:
        """Whether the module, e.g. "model.layers.0.self_attn.q_proj", is stored as codes."""
        return module in self._modules

    def quantized(self, module: str) -> QuantizedTensor:
        """The codes, scales and zeros of a module.

        Raises:
            CheckpointError: the module is not quantized, or its values cannot be.
        """
        if self._layout is None or self.quant is None or module not in self._modules:
            raise CheckpointError(f"{self._source}: module {module} is not quantized in it")
        suffixes = [*self._layout.suffixes, *self._present_optional(module, self._layout)]
        tensors = {suffix: self._source.tensor(f"{module}.{suffix}") for suffix in suffixes}
        file = self._source.file_of(f"{module}.{suffixes[0]}")
        try:
            weight = self._layout.decode(tensors, self.quant)
        except ValueError as error:
            raise CheckpointError(f"{file}: {module}: {error}") from error
        if not bool(torch.isfinite(weight.scales).all()):
            raise CheckpointError(f"{file}: {module}: scales hold NaN or infinity")
        return weight

    def _present_optional(self, module: str, layout: Layout) -> list[str]:
        return [suffix for suffix in layout.optional if f"{module}.{suffix}" in self._stored]

    def _refuse_stray(self, names: list[str], packed: set[str], layout: Layout) -> None:
        """A tensor of the layout without the codes beside it would otherwise be taken for a plain one."""
        own = tuple(f".{suffix}" for suffix in layout.suffixes + layout.optional)
        for name in names:
            if name.endswith(own) and name not in packed:
                module = name.rpartition(".")[0]
                raise CheckpointError(
                    f"{self._source.file_of(name)}: {name} has no {module}.{layout.suffixes[0]} beside it; a module in "
                    f"{layout.name} format consists of {', '.join(layout.suffixes)}"
                )

    def _check_module(self, module: str, layout: Layout, quant: QuantConfig, not_converted: tuple[str, ...]) -> None:
        codes = f"{module}.{layout.suffixes[0]}"
        file = self._source.file_of(codes)
        excluded = [part for part in not_converted if part in module]
        if excluded:
            raise CheckpointError(f"{file}: {codes} is there, but modules_to_not_convert lists {excluded[0]!r}")
        if f"{module}.weight" in self._stored and "weight" not in layout.suffixes:
            raise CheckpointError(f"{file}: {module} is stored twice, as {codes} and as {module}.weight")
        missing = [f"{module}.{suffix}" for suffix in layout.suffixes if f"{module}.{suffix}" not in self._stored]
        if missing:
            raise CheckpointError(f"{file}: {codes} is there, but {' and '.join(missing)} is missing")
        shape = self._source.info(codes).shape
        if len(shape) != 2 or 0 in shape:
            raise CheckpointError(f"{file}: {codes} must be a matrix, got shape {list(shape)}")
        n, k = layout.size(shape)
        try:
            group = quant.group(k)
        except ValueError as error:
            raise CheckpointError(f"{file}: {codes} with shape {list(shape)}: {error}") from None
        if group not in GROUP_SIZES and group != k:
            raise CheckpointError(
                f"{file}: group size {quant.group_size} is not supported; supported are 32, 64, 128 and -1 (whole rows)"
            )
        for suffix, (dtypes, wanted) in layout.expected(n, k, group).items():
            name = f"{module}.{suffix}"
            if name in self._stored:
                self._check_tensor(name, dtypes, wanted, f"out {n}, in {k}, group size {group}")

    def _check_tensor(self, name: str, dtypes: Dtypes, shape: tuple[int, ...], why: str) -> None:
        info = self._source.info(name)
        if info.dtype not in dtypes or info.shape != shape:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise CheckpointError(
                f"{self._source.file_of(name)}: {name} must be {names} {list(shape)} ({why}), got {info}"
            )


def dequantized_state(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model as a 16-bit checkpoint would hold it: quantized modules become their `.weight`.

    For comparing with transformers, which then needs no 4-bit kernel: `model.load_state_dict(dict(...))`.

    Args:
        checkpoint: of any format.
        dtype: of the floating-point tensors; None keeps each as stored, weights in the dtype of their scales.
    """
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        yield name, tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    for module in checkpoint.modules():
        quantized = checkpoint.quantized(module)
        yield f"{module}.weight", dequantize(quantized, dtype or quantized.scales.dtype)


def _prefixes(names: list[str], suffix: str) -> list[str]:
    return [name[: -len(suffix) - 1] for name in names if name.endswith(f".{suffix}")]
