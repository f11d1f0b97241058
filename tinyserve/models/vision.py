"""The vision tower: transformers' CLIP or SigLIP, cut off after the layer whose output the model reads.

It decides where a tower's configuration and weights come from: the checkpoint itself, or the folder that the
configuration names. It knows no images and nothing of what is made of the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from awq.formats import open_checkpoint
from awq.formats.json_file import read_json
from tinyserve.models.defaults import with_defaults
from tinyserve.models.names import canonical_names
from tinyserve.models.weights import WeightReader

PREFIX = "vision_tower."
FIELD = "mm_vision_tower"
# model_type of a tower -> its class in transformers, and settings that leave out what no feature passes through
TOWERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "clip_vision_model": ("CLIPVisionModel", {}),
    "siglip_vision_model": ("SiglipVisionModel", {"vision_use_head": False}),
}
WHOLE = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # models of text and images, and their towers


@dataclass(frozen=True)
class TowerFiles:
    """Where a tower is."""

    config: Mapping[str, Any]  # of the tower, with defaults
    preprocessor: Mapping[str, Any] | None  # preprocessor_config.json
    folder: Path | None  # of its weights; None: they are in the model's checkpoint


@dataclass(frozen=True, eq=False)
class VisionTower:
    module: nn.Module
    tile_tokens: int  # features of a tile that count; what the tower gives more, a class token, stands before them
    width: int  # Cv, of one feature

    def __call__(self, tiles: Tensor) -> Tensor:
        """tiles [N, 3, S, S] -> [N, tile_tokens, Cv]."""
        return self.module(tiles).last_hidden_state[:, -self.tile_tokens :].contiguous()


def find_tower(model: Path, vision_config: object, name: object, in_checkpoint: bool) -> TowerFiles:
    """Finds the tower of the model in the folder `model`, whose own preprocessor_config.json counts before the tower's.

    Args:
        model: the model's folder.
        vision_config: of config.json; None: the tower's folder has it.
        name: `mm_vision_tower` of config.json: a folder, relative to the model's or absolute, or a name in the local
            Hugging Face cache; nothing is downloaded.
        in_checkpoint: whether the checkpoint holds the tower's tensors.

    Raises:
        ValueError: what is named is nowhere here, or is no tower that can be run; names the field.
    """
    folder = None if in_checkpoint and vision_config is not None else _folder(model, name)
    config, where = vision_config, "config.json: vision_config"
    if config is None and folder is not None:
        config, where = read_json(folder / "config.json"), str(folder / "config.json")
    return TowerFiles(
        config=_tower_config(config, where),
        preprocessor=_preprocessor(model) or (_preprocessor(folder) if folder else None),
        folder=None if in_checkpoint else folder,
    )


def read_tower(files: TowerFiles, weights: WeightReader, layer: int, tile_tokens: int) -> VisionTower:
    """Builds the tower and reads its weights, on the device and in the dtype of `weights`.

    Args:
        files: from find_tower.
        weights: of the model's checkpoint.
        layer: which hidden state counts; 0 are the embeddings, negative numbers count from the last one.
        tile_tokens: see VisionTower.

    Raises:
        ValueError: there is no such layer, transformers refuses the configuration, or a tensor is missing or has
            another shape.
    """
    import transformers
    from accelerate import init_empty_weights

    class_name, settings = TOWERS[files.config["model_type"]]
    count = files.config["num_hidden_layers"]
    if not -count - 1 <= layer <= count:
        allowed = f"between {-count - 1} and {count}, as it has {count} layers"
        raise ValueError(f"config.json: the layer of the vision tower to read must be {allowed}, got {layer}")
    model_class = getattr(transformers, class_name)
    trimmed = {**files.config, **settings, "num_hidden_layers": layer % (count + 1)}
    try:
        with init_empty_weights(include_buffers=False):  # buffers, the positions' numbers, are computed
            module: Any = model_class(model_class.config_class.from_dict(trimmed))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"vision_config: transformers refuses it: {' '.join(str(error).split())}") from error
    module = getattr(module, "vision_model", module)  # older releases wrap the tower once more
    module.post_layernorm = nn.Identity()  # a hidden state is what comes before it
    if files.folder is not None:
        weights = WeightReader(canonical_names(open_checkpoint(files.folder)), weights.dtype, weights.device)
    state = {name: weights.tensor(PREFIX + name, tuple(empty.shape)) for name, empty in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False).to(weights.device)
    return VisionTower(module, tile_tokens, files.config["hidden_size"])


def _folder(model: Path, name: object) -> Path:
    """The folder that `mm_vision_tower` names."""
    if not isinstance(name, str) or not name:
        wanted = "a folder or a name in the Hugging Face cache, for the checkpoint holds no whole vision tower"
        raise ValueError(f"config.json: {FIELD} must be {wanted}, got {name!r}")
    folder = model / name  # an absolute name stays what it is
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        if partial := getattr(error, "snapshot_path", None):  # files were left out; those that matter may be there
            return Path(partial)
        raise ValueError(
            f"config.json: {FIELD} {name!r} is neither the folder {folder} nor in the Hugging Face cache: "
            "download it, or name its folder"
        ) from error


def _tower_config(config: object, where: str) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        raise ValueError(f"{where} must be an object, got {config!r}")
    kind = str(config.get("model_type"))
    if kind in WHOLE:
        return _tower_config({"model_type": WHOLE[kind], **(config.get("vision_config") or {})}, where)
    if kind not in TOWERS:
        raise ValueError(f"{where}: model_type must be one of {', '.join([*TOWERS, *WHOLE])}, got {kind!r}")
    return with_defaults(config, kind, where)


def _preprocessor(folder: Path) -> Mapping[str, Any] | None:
    """How images are prepared, from whichever of transformers' files there is."""
    if (folder / "preprocessor_config.json").is_file():
        return read_json(folder / "preprocessor_config.json")
    if (folder / "processor_config.json").is_file():
        settings = read_json(folder / "processor_config.json").get("image_processor")
        return settings if isinstance(settings, Mapping) else None
    return None
