"""Where LLaVA's parts may be, what its fields may say, and what is refused: each mistake by the name of its field."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from llava_logits import SIZES, assert_equal, expected, logits, picture
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinyserve.models import llava
from tinyserve.models.image_pixels import pixels
from tinyserve.models.llava import LlavaModel
from tinyserve.models.loader import load_model

BATCH = [[0], [1, 2, 0]]
WEIGHTS = "model.safetensors"


def load(folder: Path, **options: Any) -> LlavaModel:
    model = load_model(folder, precision="W16A16", **options)
    assert isinstance(model, LlavaModel)
    return model


def edit(folder: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> None:
    """Changes config.json; names in `drop` are left out of it."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in drop}))


def edit_weights(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Changes model.safetensors; None removes a tensor."""
    tensors = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)


@pytest.fixture(scope="module")
def reference() -> Any:
    return tiny_llava.make("llava_next")


def check(reference: Any, folder: Path) -> None:
    model = load(folder)
    assert_equal(logits(model, BATCH), expected(reference, model, BATCH))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_tower_in_a_folder_of_its_own(tmp_path: Path, tower: str) -> None:
    reference = tiny_llava.make("llava_next", tower)
    check(reference, tiny_llava.save_original(reference, tmp_path / "relative", "towers/small"))
    absolute = tmp_path / "relative/towers/small"
    tiny_llava.save_original(reference, tmp_path / "absolute", "unused", mm_vision_tower=str(absolute))
    check(reference, tmp_path / "absolute")


def test_a_whole_clip_model_as_the_tower(reference: Any, tmp_path: Path) -> None:
    folder = tiny_llava.save_original(reference, tmp_path / "model", "clip")
    tensors = load_file(folder / "clip" / WEIGHTS)
    save_file({f"vision_model.{name}": tensor for name, tensor in tensors.items()}, folder / "clip" / WEIGHTS)
    config = json.loads((folder / "clip/config.json").read_text())
    (folder / "clip/config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config}))
    check(reference, folder)


def test_a_tower_in_the_hugging_face_cache(reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache/models--someone--small-clip"
    tiny_llava.save_original(reference, repository / "snapshots", "abc123")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc123")
    folder = tiny_llava.save_original(reference, tmp_path / "model", "unused", mm_vision_tower="someone/small-clip")
    check(reference, folder)


def test_tensors_in_the_checkpoint_count_before_the_tower_s_own(reference: Any, tmp_path: Path) -> None:
    folder = tiny_llava.save_original(reference, tmp_path / "model")
    edit(folder, drop=("vision_config",), mm_vision_tower="tower")
    reference.model.vision_tower.save_pretrained(folder / "tower")
    (folder / "tower" / WEIGHTS).unlink()
    check(reference, folder)


def test_shards_and_pickles(reference: Any, tmp_path: Path) -> None:
    sharded = tiny_llava.save(reference, tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    check(reference, sharded)
    pickled = tiny_llava.save_original(reference, tmp_path / "pickled")
    torch.save(load_file(pickled / WEIGHTS), pickled / "pytorch_model.bin")
    (pickled / WEIGHTS).unlink()
    check(reference, pickled)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-2), (torch.bfloat16, 1.5e-1)])
def test_16_bit_checkpoints_run_in_their_own_dtype(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    reference = tiny_llava.make("llava_next")
    reference.to(dtype).float()
    for folder in (
        tiny_llava.save(reference, tmp_path / "hf", dtype),
        tiny_llava.save_original(reference, tmp_path / "original", dtype=dtype),
    ):
        model = load(folder)
        assert model.dtype == dtype
        assert {parameter.dtype for parameter in model._images._tower.module.parameters()} == {dtype}
        got, wanted = torch.cat(logits(model, BATCH)).float(), torch.cat(expected(reference, model, BATCH))
        assert (got - wanted).norm() / wanted.norm() < tolerance


def test_a_processor_s_own_file(tmp_path: Path) -> None:
    """transformers 5 writes the image processor's settings into that of the whole processor."""
    reference = tiny_llava.make("llava")
    folder = tiny_llava.save(reference, tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings, "patch_size": 14}))
    assert load(folder).image_spec.aspect_ratio == "pad"
    check(reference, folder)


def test_tokens_added_to_the_vocabulary(reference: Any, tmp_path: Path) -> None:
    model = tiny_llava.make("llava_next")
    model.resize_token_embeddings(323)
    folder = tiny_llava.save_original(model, tmp_path / "model", vocab_size=320)
    assert load(folder).config.vocab_size == 323
    check(model, folder)


def test_tied_embeddings(tmp_path: Path) -> None:
    model = tiny_llava.make("llava", language="qwen2", text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    model.tie_weights()
    hf = tiny_llava.save(model, tmp_path / "hf")
    assert not any("lm_head" in name for name in load_file(hf / WEIGHTS))
    check(model, hf)
    original = tiny_llava.save_original(model, tmp_path / "original")
    edit_weights(original, {"lm_head.weight": None})
    check(model, original)


@pytest.mark.parametrize("layer", [-1, -4, 2])
def test_any_layer_of_the_tower(tmp_path: Path, layer: int) -> None:
    model = tiny_llava.make("llava", vision_feature_layer=layer)
    check(model, tiny_llava.save(model, tmp_path / "hf"))
    check(model, tiny_llava.save_original(model, tmp_path / "original"))


def test_the_class_token_may_stay(tmp_path: Path) -> None:
    model = tiny_llava.make("llava", vision_feature_select_strategy="full")
    folder = tiny_llava.save(model, tmp_path / "hf")
    assert load(folder).image_spec.tile_tokens == 5
    check(model, folder)
    check(model, tiny_llava.save_original(model, tmp_path / "original", mm_vision_select_feature="cls_patch"))


def test_what_a_configuration_leaves_out(tmp_path: Path) -> None:
    """transformers stores only what differs from the defaults of a part; LLaVA's first models name no projector."""
    model = tiny_llava.make("llava", text={"num_key_value_heads": 4, "rms_norm_eps": 1e-6})
    folder = tiny_llava.save(model, tmp_path / "hf")
    omitted = {
        "text_config": ("num_key_value_heads", "rms_norm_eps", "rope_parameters", "hidden_act", "model_type"),
        "vision_config": ("num_channels", "hidden_act", "layer_norm_eps"),
    }
    config = json.loads((folder / "config.json").read_text())
    for part, names in omitted.items():
        config[part] = {name: value for name, value in config[part].items() if name not in names}
    (folder / "config.json").write_text(json.dumps(config))
    edit(folder, drop=("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act"))
    check(model, folder)


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp3x_gelu", 3), ("identity", 0)])
def test_projectors(tmp_path: Path, kind: str, layers: int) -> None:
    width = 32 if layers else 64
    model = tiny_llava.make("llava", vision={"hidden_size": width})
    folder = tiny_llava.save_original(model, tmp_path / "model", mm_projector_type=kind)
    generator = torch.Generator().manual_seed(5)
    names = ["model.mm_projector"] if kind == "linear" else [f"model.mm_projector.{2 * n}" for n in range(layers)]
    widths = [width, 64, 64][:layers]
    stored = [(torch.randn(64, wide, generator=generator), torch.randn(64, generator=generator)) for wide in widths]
    edit_weights(
        folder,
        {f"model.mm_projector.{index}.{part}": None for index in (0, 2) for part in ("weight", "bias")}
        | {f"{name}.weight": weight for name, (weight, _) in zip(names, stored, strict=True)}
        | {f"{name}.bias": bias for name, (_, bias) in zip(names, stored, strict=True)},
    )
    if kind == "linear":
        edit(folder, drop=("mm_projector_type",))
    own = load(folder)
    tiles = pixels(picture(0), own.image_spec)
    with torch.inference_mode():
        wanted = model.model.vision_tower(tiles, output_hidden_states=True).hidden_states[-2][:, 1:]
    for index, (weight, bias) in enumerate(stored):
        wanted = F.linear(F.gelu(wanted) if index else wanted, weight, bias)
    torch.testing.assert_close(own.encode_images([(tiles, SIZES[0])])[0], wanted[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_other_ways_to_merge_tiles(reference: Any, tmp_path: Path, merge: str) -> None:
    """As LLaVA's llava_arch states them; the order of "spatial" is found patch by patch."""
    folder = tiny_llava.save_original(reference, tmp_path / "model", mm_patch_merge_type=merge)
    model = load(folder)
    (width, height), spec = SIZES[1], model.image_spec
    tiles = pixels(picture(1), spec)
    columns, rows = spec.tiles(width, height)
    assert (columns, rows, spec.grid) == (1, 3, 2)
    features = model._images._encode(tiles)
    wanted = [features[0]]
    if merge == "flat":
        wanted += list(features[1:])
    else:
        for y in range(rows * 2):
            for x in range(columns * 2):
                tile = 1 + y // 2 * columns + x // 2
                wanted.append(features[tile, y % 2 * 2 + x % 2].unsqueeze(0))
    got = model.encode_images([(tiles, (width, height))])[0]
    assert len(got) == spec.num_tokens(width, height)
    torch.testing.assert_close(got, torch.cat(wanted))


def test_images_are_encoded_alike_however_many_come(
    reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_llava.save(reference, tmp_path))
    images = [(pixels(picture(index), model.image_spec), SIZES[index]) for index in (0, 1, 2, 3, 4)]
    alone = [model.encode_images([image])[0] for image in images]
    batches = []
    model._images._tower.module.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    monkeypatch.setattr(llava, "TILES_AT_ONCE", 4)
    for one, other in zip(model.encode_images(images), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert max(batches) == 4
    assert sum(batches) == sum(len(tiles) for tiles, _ in images)
    assert model.encode_images([]) == []


@pytest.mark.parametrize("chunk", [1, 7, 33])
def test_a_chunk_may_end_inside_of_an_image(reference: Any, tmp_path: Path, chunk: int) -> None:
    model = load(tiny_llava.save(reference, tmp_path))
    assert_equal(logits(model, BATCH, chunk), logits(model, BATCH))


def test_pixels_of_another_shape_are_refused(reference: Any, tmp_path: Path) -> None:
    model = load(tiny_llava.save(reference, tmp_path))
    with pytest.raises(ValueError, match=r"an image of 17 x 90 px must be \[4, 3, 28, 28\], got \[1, 3, 28, 28\]"):
        model.encode_images([(torch.zeros(1, 3, 28, 28), (17, 90))])
