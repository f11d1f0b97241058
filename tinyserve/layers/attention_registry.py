"""The libraries for attention of prompts, by name and in the order in which one is chosen.

None of them was ever measured beside the own kernel on a GPU, so one is used only where a user asks for it.
"""

import logging
from collections.abc import Callable

import torch

from tinyserve.layers.attention_library import DTYPES, Library, LibraryAttention
from tinyserve.layers.flashinfer_attention import load_flashinfer
from tinyserve.layers.varlen_attention import load_flash_attn, load_varlen_attn

_log = logging.getLogger(__name__)

FLAG = "--use-flash-attn"
LIBRARIES: dict[str, Callable[[torch.device], Library]] = {
    "flash-attn": load_flash_attn,
    "flashinfer": load_flashinfer,
    "torch.nn.attention.varlen": load_varlen_attn,
}


def choose(device: torch.device, dtype: torch.dtype, cache_dtype: str) -> LibraryAttention | None:
    """What computes the attention of prompts where the flag is given; None: the own kernel, and the log says why.

    Args:
        device: of the model.
        dtype: of activations.
        cache_dtype: as EngineConfig.kv_cache_dtype.

    Raises:
        ValueError: no library can be imported.
    """
    if device.type != "cuda":
        _log.info("%s has no effect on a CPU: the own kernel computes attention", FLAG)
        return None
    if cache_dtype != "auto" or dtype not in DTYPES:
        kind = cache_dtype if cache_dtype != "auto" else str(dtype).removeprefix("torch.")
        _log.warning("%s has no effect with a KV cache of %s: the libraries read 16 bits", FLAG, kind)
        return None
    library = first(device)
    _log.info("%s: %s computes the attention of prompts", FLAG, library.name)
    return LibraryAttention(library)


def first(device: torch.device) -> Library:
    """The first that can be imported. Raises ValueError, with the reasons, where none can."""
    reasons: list[str] = []
    for name, load in LIBRARIES.items():
        try:
            return load(device)
        except (ImportError, OSError, AttributeError) as error:  # also: built for another torch, another package
            reasons.append(f"{name} ({error})")
    raise ValueError(f"{FLAG} needs one of these libraries, and none can be imported: {'; '.join(reasons)}")
