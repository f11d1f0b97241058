"""`tinyserve merge`: an adapter or a projector and its base as one 16-bit model folder, which everything reads.

A vision tower that config.json only names is written into the checkpoint, so that the folder stands alone. How weights
are merged is lora.py's business, what a folder is opening.py's.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from awq.formats.checkpoint import Checkpoint, TensorSource
from awq.formats.output import (
    BESIDE_TOKENIZER,
    COMPANIONS,
    check_output,
    copy_companions,
    new_folder,
    write_config,
    write_shards,
)
from awq.formats.overlay import Overlay, Renamed
from awq.formats.weights_folder import WeightsFolder
from tinyserve.models import vision
from tinyserve.models.loader import stored_dtype
from tinyserve.models.names import canonical
from tinyserve.models.opening import config_folder, open_model, tokenizer_folder

ORIGINAL_TOWER = "model.vision_tower.vision_tower.vision_model."  # LLaVA's names of a tower's tensors
PREPROCESSOR = "preprocessor_config.json"


def merge(model_path: Path, model_base: Path, output: Path) -> None:
    """Writes the folder; one weight is merged at a time, and a shard is in memory until it is written.

    Args:
        model_path: a LoRA adapter, or a projector.
        model_base: the 16-bit model that it belongs to.
        output: the folder to make; an existing one is refused unless it is empty.

    Raises:
        ValueError: as of opening.open_model, or the vision tower cannot be found.
    """
    check_output(output)
    checkpoint = open_model(model_path, model_base)
    config, tower, preprocessor = dict(checkpoint.config), None, None
    if config.get(vision.FIELD):
        held = any(canonical(name).startswith(vision.PREFIX) for name in checkpoint.names())
        files = vision.find_tower(
            config_folder(model_path, model_base), config.get("vision_config"), config[vision.FIELD], held
        )
        config["vision_config"] = dict(files.config)
        tower, preprocessor = _tower(files.folder), files.preprocessor
    dtype = stored_dtype(config)
    name = str(dtype).removeprefix("torch.")
    with new_folder(output) as folder:
        write_shards(folder, _tensors(checkpoint, tower, dtype))
        write_config(folder, config | {"torch_dtype": name, "dtype": name})
        has_tokenizer = tokenizer_folder(model_path, model_base) == model_path
        copy_companions(model_base, folder, BESIDE_TOKENIZER if has_tokenizer else COMPANIONS)
        copy_companions(model_path, folder)
        if preprocessor is not None and not (folder / PREPROCESSOR).is_file():
            (folder / PREPROCESSOR).write_text(json.dumps(dict(preprocessor), indent=2) + "\n", encoding="utf-8")


def _tower(folder: Path | None) -> TensorSource | None:
    """A tower's own folder under LLaVA's names; None where the checkpoint holds the tower."""
    if folder is None:
        return None
    source = Renamed.by(canonical, WeightsFolder(folder))
    own = [name for name in source.names() if name.startswith(vision.PREFIX)]  # there may be a model of texts as well
    return Renamed(source, {ORIGINAL_TOWER + name.removeprefix(vision.PREFIX): name for name in own})


def _tensors(checkpoint: Checkpoint, tower: TensorSource | None, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    if tower is not None:
        checkpoint = checkpoint.with_source(lambda own: Overlay(own, tower))
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor


def main(argv: list[str] | None = None) -> int:
    """Exit code 1, and one line that says why, when the folder cannot be written."""
    parser = argparse.ArgumentParser(prog="tinyserve merge", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model-path", type=Path, required=True, help="a LoRA adapter or a projector")
    parser.add_argument("--model-base", type=Path, required=True, help="the 16-bit model that it belongs to")
    parser.add_argument("output", type=Path, metavar="OUT", help="the model folder to make")
    args = parser.parse_args(argv)
    try:
        merge(args.model_path, args.model_base, args.output)
    except (ValueError, OSError) as error:
        print(f"tinyserve merge: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"merged model saved: {args.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
