"""Tokens and tiles of an image of any size are as many as transformers says; both configurations are read."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor
from transformers.image_processing_utils import select_best_resolution

from tinyserve.models.image_spec import ImageSpec

CLIP = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
SIGLIP = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}
HF: dict[str, Any] = {"text_config": {}, "vision_feature_select_strategy": "default"}
ORIGINAL: dict[str, Any] = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_vision_select_feature": "patch",
}
# (height, width) in tiles; 1.6's own, and one with the same areas in another order
GRIDS = {
    "1.6": [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)],
    "not symmetric": [(3, 1), (1, 2), (2, 2), (4, 1), (1, 4), (2, 3)],
}


def sizes(count: int) -> Iterator[tuple[int, int]]:
    """(width, height), usual ones and extreme ones."""
    yield from [(1, 1), (1, 4000), (4000, 1), (336, 336), (672, 672), (335, 337), (10000, 10000)]
    generator = random.Random(0)
    for index in range(count):
        largest = (40, 700, 4000)[index % 3]
        yield generator.randint(1, largest), generator.randint(1, largest)


@pytest.mark.parametrize("tower", [CLIP, SIGLIP], ids=["clip", "siglip"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_anyres_is_counted_as_transformers_does(grid: list[tuple[int, int]], tower: dict[str, Any]) -> None:
    side = tower["image_size"]
    pinpoints = [[height * side, width * side] for height, width in grid]
    strategy = "default" if tower is CLIP else "full"
    spec = ImageSpec.from_hf(
        HF | {"image_grid_pinpoints": pinpoints, "vision_feature_select_strategy": strategy}, None, tower
    )
    assert spec.newline
    processor = object.__new__(LlavaNextProcessor)  # its arithmetic alone, without a tokenizer
    processor.patch_size, processor.vision_feature_select_strategy = 14, strategy
    processor.num_additional_image_tokens = int(tower is CLIP)
    processor.image_processor = LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints)
    for width, height in sizes(500):
        expected = processor._get_number_of_features(height, width, side, side) - (tower is CLIP)
        assert spec.num_tokens(width, height) == expected, (width, height)
        best_height, best_width = select_best_resolution((height, width), pinpoints)
        assert spec.best_resolution(width, height) == (best_width, best_height)
        assert spec.num_tiles(width, height) == 1 + best_width * best_height // side**2


@pytest.mark.parametrize("as_text", [False, True])
def test_llavas_own_configuration_counts_alike(as_text: bool) -> None:
    pairs = [[height * 336, width * 336] for height, width in GRIDS["not symmetric"]]
    hf = ImageSpec.from_hf(HF | {"image_grid_pinpoints": pairs}, None, CLIP)
    turned: Any = [[width, height] for height, width in pairs]  # LLaVA writes the width first
    original = ImageSpec.from_hf(ORIGINAL | {"image_grid_pinpoints": str(turned) if as_text else turned}, None, CLIP)
    assert original == hf


def test_without_anyres_an_image_is_one_tile() -> None:
    spec = ImageSpec.from_hf({"mm_patch_merge_type": "spatial_unpad"}, None, CLIP)
    assert (spec.aspect_ratio, spec.merge, spec.newline) == ("square", "flat", False)
    assert {spec.num_tokens(*size) for size in sizes(10)} == {576}
    assert {spec.num_tiles(*size) for size in sizes(10)} == {1}
    assert ImageSpec.from_hf({"image_aspect_ratio": "pad"}, None, SIGLIP).num_tokens(5, 5) == 729


@pytest.mark.parametrize(
    ("config", "tower", "tokens"),
    [
        ({"mm_vision_select_feature": "cls_patch"}, CLIP, 577),
        ({"mm_vision_select_feature": "cls_patch"}, SIGLIP, 729),
        ({"mm_vision_select_feature": "patch"}, SIGLIP, 729),
        (HF | {"vision_feature_select_strategy": "full"}, CLIP, 577),
        (HF | {"vision_feature_select_strategy": "full"}, SIGLIP, 729),
        (HF, SIGLIP, 728),  # transformers drops the first feature whatever it is
    ],
)
def test_which_features_count(config: dict[str, Any], tower: dict[str, Any], tokens: int) -> None:
    assert ImageSpec.from_hf(config, None, tower).tile_tokens == tokens


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_tiles_merged_with_their_padding(merge: str) -> None:
    pinpoints = [[672, 336], [336, 672]]
    spec = ImageSpec.from_hf(ORIGINAL | {"mm_patch_merge_type": merge, "image_grid_pinpoints": pinpoints}, None, CLIP)
    assert not spec.newline
    assert {spec.num_tokens(*size) for size in sizes(10)} == {3 * 576}


def test_what_a_tower_s_kind_says_without_a_file() -> None:
    clip, siglip = (ImageSpec.from_hf({}, None, tower) for tower in (CLIP, SIGLIP))
    assert (clip.center_crop, clip.mean[0], clip.std[2]) == (True, 0.48145466, 0.27577711)
    assert (siglip.center_crop, siglip.mean, siglip.std) == (False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert clip.resample == siglip.resample == 3
    assert clip.rescale == siglip.rescale == 1 / 255


def test_an_old_preprocessor_file() -> None:
    """OpenAI's own: sizes are numbers."""
    old = {"crop_size": 336, "size": 336, "do_center_crop": True, "resample": 2, "image_mean": [0.1, 0.2, 0.3]}
    spec = ImageSpec.from_hf({}, old, CLIP)
    assert (spec.image_size, spec.resample, spec.mean) == (336, 2, (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("settings", "aspect_ratio"),
    [
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": True}, "pad"),
        ({"image_processor_type": "LlavaImageProcessorPil", "do_pad": True}, "pad"),
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": False}, "square"),
        ({"image_processor_type": "CLIPImageProcessor"}, "square"),
        (None, "square"),
    ],
)
def test_hugging_face_pads_where_its_processor_does(settings: dict[str, Any] | None, aspect_ratio: str) -> None:
    assert ImageSpec.from_hf(HF, settings, CLIP).aspect_ratio == aspect_ratio


def test_marks_around_an_image_are_llavas_own_field() -> None:
    assert not ImageSpec.from_hf({}, None, CLIP).start_end
    assert ImageSpec.from_hf({"mm_use_im_start_end": True}, None, CLIP).start_end
