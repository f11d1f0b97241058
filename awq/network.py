"""The transformers model that is searched and evaluated: loading it, and filling it with other weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from awq.errors import UserError
from awq.progress import say

GPUS_BY_BILLIONS = ((20, 1), (50, 4), (float("inf"), 8))  # parameters below -> GPUs, as llm-awq's --auto_parallel


def compute_dtype(stored: torch.dtype) -> torch.dtype:
    """The type to compute in: the 16-bit one on CUDA; fp32 on a CPU, whose 16-bit products are slow and coarse."""
    return stored if torch.cuda.is_available() else torch.float32


def named_dtype(flag: str) -> torch.dtype | None:
    """What --dtype means; None: the checkpoint's own."""
    return {"auto": None, "float16": torch.float16, "bfloat16": torch.bfloat16}[flag]


def load_network(path: Path, dtype: torch.dtype, **options: Any) -> nn.Module:
    """The model of a local folder in evaluation mode, without running code from the folder.

    Raises:
        UserError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model.eval().requires_grad_(False)


@torch.no_grad()
def fill(network: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Replaces weights by name. A name the network does not have (a buffer that is computed) is passed over."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, tensor in tensors:
        if name in parameters:
            parameters[name].copy_(tensor)


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
