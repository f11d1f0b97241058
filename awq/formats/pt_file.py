"""llm-awq's `.pt` files: one pickled state dict of the whole model, layouts as in llm_awq.py.

The group size is in no field: it follows from how many groups have scales. Knows no model.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from awq.formats.checkpoint import CheckpointError, Layout
from awq.formats.contents import check_config, plain_tensors, quantized_tensors, storage_dtype
from awq.formats.llm_awq import INTERLEAVE, K_STRIDE, V1, V2, encode_v2
from awq.formats.output import new_file, own_memory, save_pt
from awq.formats.pickled_file import PickledFile
from awq.quantize import QuantConfig, QuantizedTensor


def read_llm_awq(path: Path) -> tuple[PickledFile, Layout, QuantConfig]:
    """Opens a `.pt` file and finds out its layout and group size.

    Raises:
        CheckpointError: as PickledFile, or nothing in it is quantized.
    """
    source = PickledFile(path)
    codes = [name for name in source.names() if name.endswith(".qweight")]
    if not codes:
        raise CheckpointError(f"{path}: no tensor ends in .qweight, so nothing in it is quantized")
    layout = V2 if source.info(codes[0]).dtype == torch.int16 else V1
    in_features = {name.removesuffix(".qweight"): layout.size(_matrix_shape(source, name))[1] for name in codes}
    module = max(in_features, key=lambda name: in_features[name])
    k, name = in_features[module], f"{module}.scales"
    if name not in source.names():
        raise CheckpointError(f"{path}: {module}.qweight is there, but {name} is missing")
    _matrix_shape(source, name)
    scales = source.tensor(name) if layout is V2 else source.tensor(name).t()
    used = scales.ne(0).any(dim=1).nonzero()
    groups = int(used.max()) + 1 if used.numel() else 0
    if groups == 0 or k % groups:
        raise CheckpointError(f"{path}: {name} has {groups} groups, which do not divide {k} in features")
    return source, layout, QuantConfig(4, -1 if groups == 1 else k // groups)


def _matrix_shape(source: PickledFile, name: str) -> tuple[int, int]:
    shape = source.info(name).shape
    if len(shape) != 2:
        raise CheckpointError(f"{source}: {name} must be a matrix, got shape {list(shape)}")
    return shape[0], shape[1]


def write_llm_awq_v2(
    output: Path,
    state: Mapping[str, Tensor],
    quantized: Mapping[str, QuantizedTensor],
    config: QuantConfig,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a v2 `.pt` that llm-awq's and TinyChat's --load_quant read.

    The layout has no place for symmetric zeros to be absent: they are stored as 8. One tensor is in memory at a time;
    the others wait in files beside the output, which needs twice its size on the disk for that time.

    Args:
        output: the file to make; an existing one is refused.
        state: every tensor that is not quantized, biases of quantized modules included; cast to the scales' dtype.
            A tied lm_head stays a second name of the embedding and takes no space.
        quantized: module name -> its weight; N must be a multiple of 4 and K of 64.
        config: how all of them were rounded.
        overwrite: replace an existing file, once the new one is complete.

    Raises:
        UserError: the output exists, or a layer cannot be stored: names it, its shape and what the layout needs.
    """
    check_config(config)
    with new_file(output, overwrite) as path:
        dtype = storage_dtype(quantized)
        tensors: dict[str, Tensor] = {}
        for name, tensor in plain_tensors(state, quantized, dtype):
            twin = _equal_matrix(tensor, tensors.values())
            tensors[name] = _spooled(tensor, path) if twin is None else twin
        for module, weight in quantized_tensors(quantized, config, dtype, multiple_n=INTERLEAVE, multiple_k=K_STRIDE):
            for suffix, tensor in encode_v2(weight).items():
                tensors[f"{module}.{suffix}"] = _spooled(tensor, path)
        save_pt(tensors, path)


def _equal_matrix(tensor: Tensor, others: Iterable[Tensor]) -> Tensor | None:
    """The one among others that has the same values: a tied weight, which the file then stores once."""
    matrices = (other for other in others if other.shape == tensor.shape and tensor.ndim == 2)
    return next((other for other in matrices if torch.equal(other, tensor)), None)


def _spooled(tensor: Tensor, output: Path) -> Tensor:
    """The tensor, mapped from a new file in the temporary folder of `output`."""
    own = own_memory(tensor)
    if own.numel() == 0:
        return own  # no file can be mapped
    with tempfile.NamedTemporaryFile(dir=output.parent, delete=False) as file:
        own.flatten().view(torch.uint8).numpy().tofile(file)
    return torch.from_file(file.name, size=own.numel(), dtype=own.dtype).view(own.shape)
