"""A text model that takes images, each as the embeddings of tokens which the picture's colours choose.

So a prompt with an image must give exactly what the prompt with those tokens gives.
"""

import threading
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from tinyserve.engine.image_file import ImageFile
from tinyserve.models.image_pixels import pixels
from tinyserve.models.image_spec import ImageSpec
from tinyserve.models.llama import LlamaModel

SPEC = ImageSpec(
    image_size=8,
    grid=3,
    tile_tokens=9,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    aspect_ratio="anyres",
    pinpoints=((8, 16), (16, 8)),
)


class SeeingModel(LlamaModel):
    """Shares all weights with `model`. A test may hold the tower back, or let it fail."""

    def __init__(self, model: LlamaModel, spec: ImageSpec = SPEC) -> None:
        self.__dict__.update(model.__dict__)
        self.image_spec = spec
        self.may_run = threading.Event()
        self.may_run.set()
        self.runs: list[int] = []  # images in each run of the tower
        self.failure: Exception | None = None

    def encode_images(self, images: Sequence[tuple[Tensor, tuple[int, int]]]) -> list[Tensor]:
        self.runs.append(len(images))
        assert self.may_run.wait(20)
        if self.failure is not None:
            raise self.failure
        return [self.embedding(token_ids_of(tiles, self.config.vocab_size)) for tiles, _ in images]

    def tokens(self, image: ImageFile) -> list[int]:
        """The tokens that the image stands for."""
        assert self.image_spec is not None
        tiles = pixels(image.decode(), self.image_spec)
        ids: list[int] = token_ids_of(tiles, self.config.vocab_size).tolist()
        assert len(ids) == self.image_spec.num_tokens(image.width, image.height)
        return ids


def token_ids_of(tiles: Tensor, vocab_size: int) -> Tensor:
    """[tiles * 9]"""
    patches = F.adaptive_avg_pool2d(tiles, 3).flatten(2)  # [tiles, 3, 9]
    return ((patches.sum(dim=1) + 4) * 9973).long().flatten() % vocab_size
