"""From image files to embeddings: decoding, tiles, runs of the vision tower. No threads and no memory of its own.

It decides how many tiles the tower sees at once. What fails is told for each image, and fails no other.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.request import Timing
from tinyserve.models.image_pixels import pixels
from tinyserve.models.language_model import LanguageModel

_log = logging.getLogger(__name__)

MAX_TILES = 16  # of one run of the tower: 22 MB of pixels at 336 px, and the tower's activations, ten times that


class ImageBatch:
    """Encodes with one model, once. Args: model; on_progress, called after each image decoded and run of the tower."""

    def __init__(self, model: LanguageModel, on_progress: Callable[[], None] = lambda: None) -> None:
        assert model.image_spec is not None
        self._model = model
        self._on_progress = on_progress
        self._spec = model.image_spec
        self._waiting: list[tuple[ImageFile, Tensor]] = []  # tiles fp32 [tiles, 3, S, S]
        self._results: dict[bytes, Tensor | Exception] = {}
        self.timing = Timing()

    def encode(self, images: Iterable[ImageFile]) -> Mapping[bytes, Tensor | Exception]:
        """By digest: the embeddings [P, C] of each image, or why there are none."""
        for image in images:
            try:
                tiles = self._tiles(image)
            except Exception as error:
                self._results[image.digest] = error
                continue
            if sum(len(each) for _, each in self._waiting) + len(tiles) > MAX_TILES:
                self._run()
            self._waiting.append((image, tiles))
        self._run()
        return self._results

    def _tiles(self, image: ImageFile) -> Tensor:
        start = time.perf_counter()
        picture = image.decode()
        decoded = time.perf_counter()
        tiles = pixels(picture, self._spec)
        self.timing.decode_s += decoded - start
        self.timing.preprocess_s += time.perf_counter() - decoded
        self._on_progress()
        return tiles

    def _run(self) -> None:
        batch, self._waiting = self._waiting, []
        start = time.perf_counter()
        try:
            self._tower(batch)
        except Exception:
            if len(batch) > 1:
                _log.exception("encoding %d images at once failed: one at a time now", len(batch))
            for one in batch:
                try:
                    self._tower([one])
                except Exception as error:
                    self._results[one[0].digest] = error
        self.timing.vision_s += time.perf_counter() - start

    def _tower(self, batch: list[tuple[ImageFile, Tensor]]) -> None:
        embeddings = self._model.encode_images([(tiles, (image.width, image.height)) for image, tiles in batch])
        self._results.update(zip((image.digest for image, _ in batch), embeddings, strict=True))
        self._on_progress()
