"""How a LLaVA model wants its images, and how many tokens of a prompt each becomes.

It decides sizes and counts only, from the checkpoint's configuration; it knows no pixels, no weights and no tensors.
Both of LLaVA's configurations are read: the original one (`image_aspect_ratio`, `mm_patch_merge_type`) and Hugging
Face's (`text_config`, `vision_config`, with the image processor's own file).
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyserve.models.preprocessor import BICUBIC, Preprocessor, Triple

ASPECT_RATIOS = ("square", "pad", "anyres")
MERGES = ("flat", "spatial", "spatial_unpad")


@dataclass(frozen=True)
class ImageSpec:
    """Pixels are counted as (width, height) everywhere; a tile is one square input of the vision tower."""

    image_size: int  # S, side of a tile in px
    grid: int  # patches along a side of a tile
    tile_tokens: int  # features that the tower gives for a tile: grid * grid, one more with the class token
    mean: Triple
    std: Triple
    resample: int = BICUBIC  # PIL.Image.Resampling
    rescale: float = 1 / 255
    center_crop: bool = True  # the shortest edge becomes S, then the middle is cut out; else both sides become S
    aspect_ratio: str = "square"  # ASPECT_RATIOS
    pinpoints: tuple[tuple[int, int], ...] = ()  # anyres: the (width, height) that an image may be fitted into, in px
    merge: str = "flat"  # MERGES: how the tiles of an anyres image become one sequence
    newline: bool = False  # a learnt vector after every row of the merged tiles
    start_end: bool = False  # the tokens <im_start> and <im_end> stand around every image of a prompt

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        preprocessor: Mapping[str, Any] | None = None,
        vision_config: Mapping[str, Any] | None = None,
    ) -> "ImageSpec":
        """Reads config.json of either layout.

        Args:
            config: the model's.
            preprocessor: preprocessor_config.json, beside the model or its tower; None: what the tower's kind uses.
            vision_config: the tower's own; None: `config["vision_config"]`.

        Raises:
            ValueError: a field is missing, of the wrong type, or asks for something that is not supported.
        """
        tower = vision_config or config.get("vision_config") or {}
        size, patch = (_positive(tower, name) for name in ("image_size", "patch_size"))
        grid = size // patch
        is_siglip = str(tower.get("model_type")).startswith("siglip")
        prepared = Preprocessor.from_hf(preprocessor or {}, size, is_siglip)
        is_hf = isinstance(config.get("text_config"), Mapping)
        if is_hf:
            padded = "pad" if prepared.pad else "square"
            aspect_ratio, merge = "anyres" if config.get("image_grid_pinpoints") else padded, "spatial_unpad"
        else:
            aspect_ratio = config.get("image_aspect_ratio") or "square"
            merge = config.get("mm_patch_merge_type") or "flat"
        _check_one_of("image_aspect_ratio", aspect_ratio, ASPECT_RATIOS)
        _check_one_of("mm_patch_merge_type", merge, MERGES)
        anyres = aspect_ratio == "anyres"
        tile_tokens = _tile_tokens(config, grid, is_siglip)
        if anyres and merge != "flat" and tile_tokens != grid * grid:
            needed = f"mm_patch_merge_type {merge} needs the features of all {grid * grid} patches of a tile"
            raise ValueError(f"config.json: {needed} and no others, the selected ones are {tile_tokens}")
        return cls(
            image_size=size,
            grid=grid,
            tile_tokens=tile_tokens,
            mean=prepared.mean,
            std=prepared.std,
            resample=prepared.resample,
            rescale=prepared.rescale,
            center_crop=prepared.center_crop,
            aspect_ratio=aspect_ratio,
            pinpoints=_pinpoints(config, size, height_first=is_hf) if anyres else (),
            merge=merge if anyres else "flat",
            newline=anyres and merge == "spatial_unpad",
            start_end=bool(config.get("mm_use_im_start_end", False)),
        )

    def num_tokens(self, width: int, height: int) -> int:
        """Tokens that an image of this size (px, before any processing) becomes."""
        if self.aspect_ratio != "anyres":
            return self.tile_tokens
        if self.merge != "spatial_unpad":
            return self.tile_tokens * self.num_tiles(width, height)
        _, _, rows, columns = self.unpadded(width, height)
        return self.tile_tokens + rows * (columns + int(self.newline))

    def num_tiles(self, width: int, height: int) -> int:
        """Inputs of the tower: the whole image, and with anyres the tiles of its best resolution."""
        if self.aspect_ratio != "anyres":
            return 1
        columns, rows = self.tiles(width, height)
        return 1 + columns * rows

    def tiles(self, width: int, height: int) -> tuple[int, int]:
        """anyres: (columns, rows) of tiles that the fitted image is cut into."""
        best_width, best_height = self.best_resolution(width, height)
        return best_width // self.image_size, best_height // self.image_size

    def best_resolution(self, width: int, height: int) -> tuple[int, int]:
        """anyres: the pinpoint (width, height) that keeps most of the image's pixels, then wastes the fewest.

        The rule is LLaVA's select_best_resolution; of equals the first wins.
        """

        def kept_and_wasted(pinpoint: tuple[int, int]) -> tuple[int, int]:
            scale = min(pinpoint[0] / width, pinpoint[1] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - pinpoint[0] * pinpoint[1]

        return max(self.pinpoints, key=kept_and_wasted)

    def unpadded(self, width: int, height: int) -> tuple[int, int, int, int]:
        """spatial_unpad: (top, left, rows, columns) of the patches that show the image and not its padding.

        The rule is that of unpad_image in transformers' modeling_llava_next (LLaVA's own without the rounding to 7
        digits, which only undoes errors of the floating point division).
        """
        tiles_x, tiles_y = self.tiles(width, height)
        columns, rows = tiles_x * self.grid, tiles_y * self.grid
        if width / height > columns / rows:
            top = (rows - int(round(height * (columns / width), 7))) // 2
            return top, 0, rows - 2 * top, columns
        left = (columns - int(round(width * (rows / height), 7))) // 2
        return 0, left, rows, columns - 2 * left


def _tile_tokens(config: Mapping[str, Any], grid: int, is_siglip: bool) -> int:
    """Patches of a tile, with the class token or without the first feature as the configuration's field says."""
    patches, with_class = grid * grid, grid * grid + int(not is_siglip)
    if "vision_feature_select_strategy" in config:
        strategy = config["vision_feature_select_strategy"]
        _check_one_of("vision_feature_select_strategy", strategy, ("default", "full"))
        return with_class - 1 if strategy == "default" else with_class
    feature = config.get("mm_vision_select_feature") or "patch"
    _check_one_of("mm_vision_select_feature", feature, ("patch", "cls_patch"))
    return patches if feature == "patch" else with_class


def _pinpoints(config: Mapping[str, Any], size: int, height_first: bool) -> tuple[tuple[int, int], ...]:
    """(width, height) of each; LLaVA stores that order, Hugging Face's configuration (height, width)."""
    stored = config.get("image_grid_pinpoints")
    pairs = stored
    if isinstance(stored, str):
        try:
            pairs = ast.literal_eval(stored)
        except (ValueError, SyntaxError):
            pairs = None
    allowed = f"a list of pairs of multiples of the tower's {size} px"
    if not isinstance(pairs, list | tuple) or not pairs:
        raise ValueError(f"config.json: image_grid_pinpoints must be {allowed}, got {stored!r}")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(_is_multiple(side, size) for side in pair):
            raise ValueError(f"config.json: image_grid_pinpoints must be {allowed}, got {pair!r}")
    return tuple((pair[1], pair[0]) if height_first else (pair[0], pair[1]) for pair in pairs)


def _is_multiple(side: object, size: int) -> bool:
    return isinstance(side, int) and side > 0 and side % size == 0


def _positive(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"vision_config: {name} must be a positive integer, got {value!r}")
    return value


def _check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"config.json: {name} must be one of {', '.join(allowed)}, got {value!r}")
