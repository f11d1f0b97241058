"""Writes the trained parts as a LLaVA LoRA folder: what LLaVA's own training leaves, in safetensors.

    config.json                      LlavaLlamaForCausalLM, the language model's fields and the mm_ ones
    adapter_config.json, adapter_model.safetensors          the LoRA, written by peft
    non_lora_trainables.safetensors  the projector
    vision_tower/                    the tower and its image processor, written by transformers
    examples/NAME.png                renderings that were never trained on

It decides names and precision: fp16, to which it rounds the modules that it is given as well.
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil

from benchmarks.demo_llava.image_encoder import MEAN, SELECT_LAYER, SIDE, STD, ImageEncoder
from benchmarks.demo_llava.objects import NAMES
from benchmarks.demo_llava.renderings import Renderings, to_images

TOWER = "vision_tower"
EXAMPLES = ("red apple", "penguin", "bicycle")
EXAMPLE_SIDE = 160  # px
EXAMPLE_SEED = 5


def write(folder: Path, encoder: ImageEncoder, language: PeftModel, renderings: Renderings, base: Path) -> None:
    """Fills `folder`; `base` is the language model that the adapter belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.tower.half().save_pretrained(folder / TOWER)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    processor.save_pretrained(folder / TOWER)
    projector = {
        f"base_model.model.model.mm_projector.{name}": tensor.half().contiguous()
        for name, tensor in encoder.projector.state_dict().items()
    }
    save_file(projector, folder / "non_lora_trainables.safetensors", metadata={"format": "pt"})
    for parameter in language.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    language.peft_config["default"].base_model_name_or_path = base.name
    language.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft's form for a model card
    config = json.loads((base / "config.json").read_text()) | {
        "_name_or_path": base.name,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "mm_vision_tower": TOWER,
        "mm_hidden_size": encoder.tower.config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": SELECT_LAYER,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _write_examples(folder / "examples", renderings)


def _write_examples(folder: Path, renderings: Renderings) -> None:
    folder.mkdir(exist_ok=True)
    labels = torch.tensor([NAMES.index(name) for name in EXAMPLES])
    pictures = renderings.draw(labels, EXAMPLE_SIDE, torch.Generator().manual_seed(EXAMPLE_SEED))
    for name, image in zip(EXAMPLES, to_images(pictures), strict=True):
        image.save(folder / f"{name.replace(' ', '_')}.png")
