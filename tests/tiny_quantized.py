"""Rounds a small 16-bit model to 4 bits, as an AWQ folder without a search."""

from pathlib import Path

from awq.formats import open_checkpoint, write_awq_folder
from awq.quantize import QuantConfig, quantize


def save(
    folder: Path, source: Path, group_size: int = 32, excluded: tuple[str, ...] = (), has_lm_head: bool = False
) -> Path:
    """Writes the folder `source` with its linear layers in 4 bits, the output layer only with `has_lm_head`.

    Modules with one of `excluded` in their names stay in 16 bits.
    """
    endings = ("_proj.weight", "lm_head.weight") if has_lm_head else "_proj.weight"
    checkpoint, config = open_checkpoint(source), QuantConfig(group_size=group_size)
    tensors, modules = {}, {}
    for name in checkpoint.names():
        module = name.removesuffix(".weight")
        if name.endswith(endings) and not any(part in module for part in excluded):
            modules[module] = quantize(checkpoint.tensor(name), config)
        else:
            tensors[name] = checkpoint.tensor(name)
    write_awq_folder(folder, source, tensors, modules, config)
    return folder
