"""LLaVA-1.5 and LLaVA-NeXT: a language model of Llama's kind, a vision tower, and a projector between them.

It decides what of a configuration means what, in Hugging Face's layout and in LLaVA's own, and in which order images
pass through. Everything about text is llama.py's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyserve.models import projector, tiles, vision
from tinyserve.models.defaults import with_defaults
from tinyserve.models.image_spec import ImageSpec
from tinyserve.models.llama import LlamaConfig, LlamaModel
from tinyserve.models.weights import WeightReader

LANGUAGES = ("llama", "mistral", "qwen2")  # model_types that LlamaModel runs
TILES_AT_ONCE = 16  # in the tower; bounds its memory, however many images come together
NEWLINE = "image_newline"


@dataclass(frozen=True)
class LlavaConfig:
    folder: Path  # the model's, for the files beside its config.json
    text: LlamaConfig
    hf: Mapping[str, Any]  # the whole of config.json, with the defaults of its class
    vision_config: Mapping[str, Any] | None  # None: the tower's folder has it
    vision_tower: str | None  # its name or folder, where the checkpoint does not hold all of it
    vision_layer: int  # whose output is read, see vision.read_tower
    projector: tuple[str, ...]  # names of its layers

    @property
    def context_length(self) -> int:
        return self.text.context_length

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], folder: Path) -> "LlavaConfig":
        """Reads config.json of LlavaForConditionalGeneration or LlavaNextForConditionalGeneration.

        Raises:
            ValueError: a field is wrong, or asks for something this definition does not compute.
        """
        whole = with_defaults(config, str(config.get("model_type")))
        text = whole["text_config"]
        _check("text_config.model_type", text.get("model_type"), LANGUAGES)
        _check("projector_hidden_act", whole["projector_hidden_act"], ("gelu",))
        return cls(
            folder=folder,
            text=LlamaConfig.from_hf({**text, "tie_word_embeddings": whole["tie_word_embeddings"]}),
            hf=whole,
            vision_config=whole["vision_config"],
            vision_tower=None,
            vision_layer=_integer(whole, "vision_feature_layer"),
            projector=projector.modules("mlp2x_gelu"),
        )

    @classmethod
    def from_original(cls, config: Mapping[str, Any], folder: Path, language: str) -> "LlavaConfig":
        """Reads config.json as LLaVA's own code writes it: that of the language model with fields for images.

        Args:
            config: as parsed.
            folder: the model's.
            language: model_type of the language model.

        Raises:
            ValueError: as from_hf.
        """
        for field in ("mm_resampler_type", "s2"):
            if config.get(field):
                raise ValueError(f"config.json: {field} is not supported, got {config[field]!r}")
        return cls(
            folder=folder,
            text=LlamaConfig.from_hf(with_defaults(config, language)),
            hf=config,
            vision_config=config.get("vision_config"),
            vision_tower=config.get(vision.FIELD),
            vision_layer=_integer({"mm_vision_select_layer": -2, **config}, "mm_vision_select_layer"),
            projector=projector.modules(config.get("mm_projector_type", "linear")),
        )


class LlavaImages:
    """What turns images into embeddings; works without the language model."""

    def __init__(self, config: LlavaConfig, weights: WeightReader) -> None:
        self.device = weights.device
        self.dtype = weights.dtype
        in_checkpoint = weights.has_any(vision.PREFIX)
        files = vision.find_tower(config.folder, config.vision_config, config.vision_tower, in_checkpoint)
        self.image_spec = ImageSpec.from_hf(config.hf, files.preprocessor, files.config)
        self._tower = vision.read_tower(files, weights, config.vision_layer, self.image_spec.tile_tokens)
        hidden = config.text.hidden_size
        self._projector = projector.read_projector(config.projector, weights, self._tower.width, hidden)
        self._newline = weights.tensor(NEWLINE, (hidden,)) if self.image_spec.newline else None

    @torch.inference_mode()
    def encode_images(self, images: Sequence[tuple[Tensor, tuple[int, int]]]) -> list[Tensor]:
        """See LlamaModel.encode_images; all images go through the tower together, TILES_AT_ONCE at a time.

        Raises:
            ValueError: pixels do not have the shape that `image_spec` gives for the image's size.
        """
        for pixels, size in images:
            wanted = (self.image_spec.num_tiles(*size), 3, self.image_spec.image_size, self.image_spec.image_size)
            if tuple(pixels.shape) != wanted:
                raise ValueError(
                    f"an image of {size[0]} x {size[1]} px must be {list(wanted)}, got {list(pixels.shape)}"
                )
        if not images:
            return []
        counts = [len(pixels) for pixels, _ in images]
        parts = torch.cat([pixels for pixels, _ in images]).split(TILES_AT_ONCE)
        features = torch.cat([self._encode(part.to(self.device, self.dtype)) for part in parts]).split(counts)
        return [
            tiles.merge(own, size, self.image_spec, self._newline)
            for own, (_, size) in zip(features, images, strict=True)
        ]

    def _encode(self, pixels: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, n, C]."""
        features = self._tower(pixels)
        return self._projector(features.flatten(0, 1)).view(*features.shape[:2], -1)


class LlavaModel(LlamaModel):
    """A language model that also reads images. Embeddings of images come from `encode_images`, see models/llama.py."""

    image_spec: ImageSpec

    def __init__(self, config: LlavaConfig, weights: WeightReader, num_positions: int) -> None:
        # LLaVA's code adds tokens for images to a vocabulary without always saying so in the configuration.
        vocab_size = weights.num_rows("model.embed_tokens.weight")
        self._images = LlavaImages(config, weights.as_stored())
        self.image_spec = self._images.image_spec
        super().__init__(replace(config.text, vocab_size=vocab_size), weights, num_positions)

    def encode_images(self, images: Sequence[tuple[Tensor, tuple[int, int]]]) -> list[Tensor]:
        return self._images.encode_images(images)


def _integer(config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"config.json: {name} must be an integer, got {value!r}")
    return value


def _check(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"config.json: {name} must be one of {', '.join(allowed)}, got {value!r}")
