"""One name for each tensor of a model, whichever code has stored it.

Definitions ask for a language model's tensors by the names of its own class (`model.layers.0...`, `lm_head`), for what
images need by `vision_tower.`, `mm_projector` and `image_newline`. Knows names only, no shapes and no files.
"""

import re
from functools import partial
from pathlib import Path

from awq.formats import Checkpoint
from awq.formats.overlay import Overlay, Renamed
from awq.formats.weights_folder import WeightsFolder, find_weights

# What a stored name may begin with, and what it is called here; the first that fits counts, other names stay.
PREFIXES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        # LlavaForConditionalGeneration and its like, as transformers saves them, and as it calls them in memory
        (r"language_model\.model\.", "model."),
        (r"language_model\.lm_head\b", "lm_head"),
        (r"model\.language_model\.", "model."),
        (r"(model\.)?multi_modal_projector\.linear_1\b", "mm_projector.0"),
        (r"(model\.)?multi_modal_projector\.linear_2\b", "mm_projector.2"),
        # both, with LLaVA's own wrapper around the tower and that of transformers 4
        (r"(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?", "vision_tower."),
        (r"(model\.)?mm_projector\b", "mm_projector"),
        (r"(model\.)?image_newline$", "image_newline"),
        # a folder of the tower alone
        (r"vision_model\.", "vision_tower."),
        (r"(?=(embeddings|encoder|pre_layrnorm|post_layernorm)\.)", "vision_tower."),
    )
)
IMAGES = re.compile(r"vision_tower\.|mm_projector\b|image_newline$")


def canonical(stored: str) -> str:
    """The name of a tensor or module here, from the name in a checkpoint."""
    for pattern, name in PREFIXES:
        match = pattern.match(stored)
        if match:
            return name + stored[match.end() :]
    return stored


def canonical_names(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with every tensor under its name here."""
    return checkpoint.with_source(partial(Renamed.by, canonical))


def with_images_of(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint with these names that takes from a model folder what it lacks of what images need.

    That is so with a quantized language model beside the whole model. The language model's own tensors are never mixed:
    what quantization has folded into one belongs to the others.
    """
    if find_weights(folder) is None:
        return checkpoint
    source = Renamed.by(canonical, WeightsFolder(folder))
    images = Renamed(source, {name: name for name in source.names() if IMAGES.match(name)})
    return checkpoint.with_source(lambda own: Overlay(own, images))
