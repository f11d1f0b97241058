"""The whole transformers model with weights, for evaluation and for the calibration text that a model writes itself."""

from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from awq.errors import UserError
from awq.formats import open_checkpoint
from awq.progress import say
from awq.skeleton import Skeleton, build_skeleton

GPUS_BY_BILLIONS = ((20, 1), (50, 4), (float("inf"), 8))  # parameters below -> GPUs, as llm-awq's --auto_parallel


def compute_dtype(stored: torch.dtype) -> torch.dtype:
    """The type to compute in: the 16-bit one on CUDA; fp32 on a CPU, whose 16-bit products are slow and coarse."""
    return stored if torch.cuda.is_available() else torch.float32


def named_dtype(flag: str) -> torch.dtype | None:
    """What --dtype means; None: the checkpoint's own."""
    return {"auto": None, "float16": torch.float16, "bfloat16": torch.bfloat16}[flag]


def load_network(path: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a local folder of 16 (or 32) bits in evaluation mode, without running code from the folder.

    Raises:
        UserError: transformers cannot build it, or tensors are missing.
    """
    checkpoint = open_checkpoint(path)
    skeleton = build_skeleton(path, checkpoint.config, checkpoint.names())
    return fill(skeleton, ((name, checkpoint.tensor(name)) for name in checkpoint.names()), dtype)


@torch.no_grad()
def fill(skeleton: Skeleton, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> nn.Module:
    """The skeleton's network with these weights.

    Args:
        tensors: by name in the checkpoint; those that the network does not have are passed over.
        dtype: to compute in.
    """
    from accelerate.utils import set_module_tensor_to_device

    network = skeleton.network
    for name, tensor in tensors:
        if name in skeleton.parameters:
            set_module_tensor_to_device(network, skeleton.parameters[name], "cpu", value=tensor, dtype=dtype)
    network.tie_weights()  # type: ignore[operator]
    return network


def check_memory(skeleton: Skeleton, dtype: torch.dtype) -> None:
    """Refuses to load a whole model, for the calibration text that it writes itself, where it does not fit.

    Raises:
        UserError: says how much is needed, how much is free, and what works with less.
    """
    wanted = sum(parameter.numel() for parameter in skeleton.network.parameters()) * dtype.itemsize / 2**30
    free = psutil.virtual_memory().available / 2**30
    if wanted > free:
        raise UserError(
            f"without --calib_data the whole model is loaded to write its calibration text: {wanted:.1f} GiB in "
            f"{str(dtype).removeprefix('torch.')}, and {free:.1f} GiB are free. "
            f"With --calib_data FILE only one layer at a time is in memory"
        )


def place(network: nn.Module, max_memory: dict[int | str, str] | None, all_gpus: bool, by_size: bool) -> nn.Module:
    """Moves the network to where it is evaluated: one GPU, several by accelerate, or the CPU where there is none.

    Args:
        max_memory: per device; what does not fit goes to the next one.
        all_gpus: spread over every visible GPU.
        by_size: spread over as many GPUs as llm-awq gives a model of this size.
    """
    count = torch.cuda.device_count()
    if count == 0:
        if max_memory or all_gpus or by_size:
            say("no GPU here: --max_memory, --parallel and --auto_parallel change nothing")
        return network
    if max_memory is None and by_size:
        billions = sum(parameter.numel() for parameter in network.parameters()) / 1e9
        wanted = next(gpus for limit, gpus in GPUS_BY_BILLIONS if billions < limit)
        max_memory = {index: f"{torch.cuda.mem_get_info(index)[0]}B" for index in range(min(wanted, count))}
    if max_memory is None and not all_gpus:
        return network.to("cuda")
    from accelerate import dispatch_model, infer_auto_device_map

    whole = list(getattr(network, "_no_split_modules", None) or [])
    return dispatch_model(network, infer_auto_device_map(network, max_memory, no_split_module_classes=whole))
