"""What is wrong with a LLaVA folder is said by the name of the field or tensor, with what came and what is allowed."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
import torch
from safetensors.torch import load_file, save_file

from tinyserve.models.loader import load_model


@pytest.fixture(scope="module")
def reference() -> Any:
    return tiny_llava.make("llava_next")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(folder, precision="W16A16")


ORIGINAL: list[tuple[dict[str, Any], str]] = [
    ({"mm_projector_type": "resampler"}, "mm_projector_type must be one of linear, mlpNx_gelu .*, got 'resampler'"),
    ({"mm_projector_type": 2}, "mm_projector_type must be one of linear, mlpNx_gelu .*, got 2"),
    ({"mm_projector_type": "identity"}, "identity needs a vision tower as wide as the language model's 64, got 32"),
    ({"mm_projector_type": "mlp3x_gelu"}, r"the checkpoint has no tensor mm_projector\.4\.weight"),
    ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer must be an integer, got '-2'"),
    ({"mm_vision_select_layer": 4}, "layer of the vision tower to read must be between -4 and 3, .*, got 4"),
    ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature must be one of patch, cls_patch, got 'cls'"),
    (
        {"mm_vision_select_feature": "cls_patch"},
        "mm_patch_merge_type spatial_unpad needs .* all 4 .* ones are 5",
    ),
    ({"mm_patch_merge_type": "maxpool2x2"}, "mm_patch_merge_type must be one of flat, .*, got 'maxpool2x2'"),
    ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio must be one of square, pad, anyres, got"),
    ({"image_grid_pinpoints": [[28, 30]]}, r"image_grid_pinpoints must be .* multiples .* 28 px, got \[28, 30\]"),
    ({"image_grid_pinpoints": "(1x1)"}, r"image_grid_pinpoints must be .*, got '\(1x1\)'"),
    ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type is not supported, got 'spatial_pool'"),
    ({"s2": True}, "s2 is not supported, got True"),
    ({"vision_config": {"model_type": "eva"}}, "vision_config: model_type must be one of clip_vision_model, .*'eva'"),
    ({"vision_config": 3}, "config.json: vision_config must be an object, got 3"),
    (
        {"vision_config": None},
        "mm_vision_tower 'openai/clip-vit-large-patch14-336' is neither the folder .* nor in",
    ),
    ({"vision_config": None, "mm_vision_tower": None}, "mm_vision_tower must be a folder or a name .*, got None"),
    ({"vision_config": None, "mm_vision_tower": ".."}, "config.json: the file is missing"),
    ({"hidden_size": "64"}, "hidden_size"),
]


@pytest.mark.parametrize(("changes", "message"), ORIGINAL, ids=[message[:40] for _, message in ORIGINAL])
def test_llavas_own_configuration(reference: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refused(tiny_llava.save_original(reference, tmp_path / "models/model", **changes), message)


HUGGING_FACE: list[tuple[str, dict[str, Any], str]] = [
    ("", {"vision_feature_layer": [-2, -5]}, r"vision_feature_layer must be an integer, got \[-2, -5\]"),
    ("", {"vision_feature_layer": "last"}, "vision_feature_layer"),
    ("", {"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy"),
    ("", {"projector_hidden_act": "relu"}, "projector_hidden_act must be one of gelu, got 'relu'"),
    ("", {"image_grid_pinpoints": [[30, 28]]}, "image_grid_pinpoints must be a list of pairs of multiples"),
    (
        "text_config",
        {"model_type": "gemma"},
        "text_config.model_type must be one of llama, .*, got 'gemma'",
    ),
    ("text_config", {"num_attention_heads": "4"}, "num_attention_heads"),
    ("vision_config", {"model_type": "siglip2_vision_model"}, "model_type must be one of clip_vision_model, siglip_"),
    ("vision_config", {"patch_size": "14"}, "patch_size"),
    ("vision_config", {"hidden_size": 33}, "transformers refuses it .*hidden size .33. is not a multiple"),
    ("vision_config", {"hidden_act": "gelo"}, "vision_config: transformers refuses it: .*gelo"),
    ("vision_config", {"num_hidden_layers": 9}, r"no tensor vision_tower\.encoder\.layers\.3\."),
    ("vision_config", {"intermediate_size": 80}, r"fc1\.weight must have the shape \[80, 32\] by .*, got \[64, 32\]"),
]


@pytest.mark.parametrize(("part", "changes", "message"), HUGGING_FACE, ids=[case[2][:40] for case in HUGGING_FACE])
def test_hugging_faces_configuration(
    reference: Any, tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    folder = tiny_llava.save(reference, tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config[part] if part else config).update(changes)
    path.write_text(json.dumps(config))
    refused(folder, message)


@pytest.mark.parametrize(
    "name", ["mm_projector.0.weight", "mm_projector.2.bias", "image_newline", "embed_tokens.weight", "layers.1.mlp"]
)
def test_missing_and_misshapen_tensors(reference: Any, tmp_path: Path, name: str) -> None:
    folder = tiny_llava.save_original(reference, tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    victim = next(stored for stored in tensors if name in stored)
    save_file(tensors | {victim: torch.zeros(3, 5)}, path)
    refused(
        folder, rf"{name}.* must have the shape .* by config\.json, got \[3, 5\]" if name[0] != "e" else r"\[3, 64\]"
    )
    if name != "mm_projector.2.bias":  # biases are there or not
        save_file({stored: tensor for stored, tensor in tensors.items() if stored != victim}, path)
        refused(folder, f"the checkpoint has no tensor .*{name}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean must be three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std must be three numbers other than 0"),
        ({"resample": "bicubic"}, "resample must be a number from 0 to 5, got 'bicubic'"),
        ({"rescale_factor": None}, "rescale_factor must be a number, got None"),
        ({"size": {"shortest_edge": 336}}, "size must be the vision tower's 28 px, got {'shortest_edge': 336}"),
        ({"do_rescale": False}, "do_rescale must be true, got False"),
        ({"crop_size": 224}, "crop_size must be the vision tower's 28 px, got 224"),
    ],
)
def test_the_image_processors_configuration(
    reference: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = tiny_llava.save(reference, tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(folder, f"preprocessor_config.json: {message}")
