"""Small LLaVA models with random weights, as transformers saves them and as LLaVA's own code does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_model
import torch
import transformers
from safetensors.torch import save_file
from tiny_architectures import CLIP, SIGLIP, TEXT
from torch import Tensor
from transformers import AutoConfig, LlavaNextImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

TOWERS = {"clip": CLIP, "siglip": SIGLIP}
ARCHITECTURES = {
    "llama": "LlavaLlamaForCausalLM",
    "mistral": "LlavaMistralForCausalLM",
    "qwen2": "LlavaQwenForCausalLM",
}
IMAGE_TOKEN = 319
CONTEXT = 2048
# of tiles of 28 px; (height, width) as Hugging Face has them, not symmetric
PINPOINTS = [[28, 56], [56, 28], [56, 56], [28, 84], [84, 28], [84, 56]]


def make(kind: str = "llava", tower: str = "clip", language: str = "llama", **settings: Any) -> Any:
    """LlavaForConditionalGeneration, or with kind "llava_next" LlavaNextForConditionalGeneration, fp32."""
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    text = {**TEXT, "max_position_embeddings": CONTEXT, "model_type": language, **settings.pop("text", {})}
    if kind == "llava_next":
        settings = {"image_grid_pinpoints": PINPOINTS, **settings}
    strategy = "default" if tower == "clip" else "full"
    config = AutoConfig.for_model(
        kind,
        text_config=text,
        vision_config={**TOWERS[tower], "num_hidden_layers": 3, **settings.pop("vision", {})},
        image_token_index=IMAGE_TOKEN,
        **{"vision_feature_select_strategy": strategy, **settings},
    )
    names = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}
    model = getattr(transformers, names[kind])(config).eval()
    for parameter in model.parameters():  # biases start as zeros, norms as ones: random values show more
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def processor(model: Any) -> Any:
    """The image processor that fits: LLaVA's with padding to a square for CLIP, SigLIP's own without, anyres's."""
    is_siglip = model.config.vision_config.model_type == "siglip_vision_model"
    settings: dict[str, Any] = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    if is_siglip:
        settings |= {"size": settings["crop_size"], "do_center_crop": False}
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if model.config.model_type == "llava_next":
        return LlavaNextImageProcessorPil(**settings, image_grid_pinpoints=PINPOINTS)
    return LlavaImageProcessorPil(**settings, do_pad=not is_siglip)


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """As transformers saves it; `settings` are save_pretrained's."""
    model.to(dtype).save_pretrained(folder, **settings)
    model.float()
    processor(model).save_pretrained(folder)
    tiny_model.save_tokenizer(folder)
    return folder


def save_original(
    model: Any, folder: Path, tower: str | None = None, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """As LLaVA's own code saves it: the language model's names and config.json, with those for images among them.

    Args:
        model: from `make`.
        folder: to write.
        tower: None: the tower's tensors are in the checkpoint, and its settings in `vision_config`; else the name of a
            folder in `folder` that holds the tower.
        dtype: of all tensors.
        changes: to config.json.
    """
    config, state = model.config, model.state_dict()
    text = config.text_config.to_dict()
    is_next = config.model_type == "llava_next"
    fields: dict[str, Any] = {
        **text,
        "architectures": [ARCHITECTURES[text["model_type"]]],
        "model_type": f"llava_{text['model_type']}",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": tower or "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": config.vision_config.hidden_size,
        "image_aspect_ratio": "anyres" if is_next else "pad" if processor(model).do_pad else None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if is_next:
        fields["image_grid_pinpoints"] = [[width, height] for height, width in config.image_grid_pinpoints]
        fields["mm_patch_merge_type"] = "spatial_unpad"
    tensors = {original_name(name): tensor.to(dtype).contiguous() for name, tensor in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if tower is None:
        fields["vision_config"] = config.vision_config.to_dict()
    else:
        model.model.vision_tower.save_pretrained(folder / tower)
        processor(model).save_pretrained(folder / tower)
        tensors = {name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}
    fields |= changes
    write(folder, tensors, fields)
    return folder


def write(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    own = {name: tensor.clone() for name, tensor in tensors.items()}  # tied ones share memory, which is refused
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tiny_model.save_tokenizer(folder)


def original_name(name: str) -> str:
    """The name in a checkpoint of LLaVA's own code, from that in transformers' module."""
    return _renamed(
        name,
        {
            "model.language_model.": "model.",
            "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
            "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
            "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        },
    )


def hf_name(name: str) -> str:
    """The name in a checkpoint of transformers 4."""
    return _renamed(
        name,
        {
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.vision_tower.": "vision_tower.vision_model.",
            "model.multi_modal_projector.": "multi_modal_projector.",
            "model.image_newline": "image_newline",
        },
    )


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for ours, theirs in prefixes.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
