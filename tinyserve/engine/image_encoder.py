"""Images to embeddings, beside the steps of the engine: one thread, which any other may ask.

It decides whose images are encoded next, and which together. A request asks for all of its images at once and holds
what it gets until it ends; the memory in use is bounded, so who would exceed it waits. Which images stay known after
that is embedding_cache.py's decision; how they are encoded, image_batch.py's.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import torch
from torch import Tensor

from tinyserve.engine.embedding_cache import EmbeddingCache
from tinyserve.engine.generator import VALIDATION, RequestError
from tinyserve.engine.image_batch import MAX_TILES, ImageBatch
from tinyserve.engine.image_file import ImageError, ImageFile
from tinyserve.engine.memory import is_out_of_memory
from tinyserve.engine.request import Timing
from tinyserve.models.language_model import LanguageModel


class Lease:
    """The images of one request, from the moment it asks for them until it needs them no more."""

    def __init__(self, encoder: "ImageEncoder", images: Sequence[ImageFile]) -> None:
        self.images = tuple(images)
        self.embeddings: Future[Sequence[Tensor]] = Future()  # [P, C] of each image, or a RequestError among others
        self.timing = Timing()
        self.is_granted = self.is_released = False
        self._encoder = encoder

    def release(self) -> None:
        """At any moment, and harmless the second time."""
        self._encoder.release(self)


class ImageEncoder:
    """Args: model, one that takes images; max_bytes of all embeddings that are kept, in use or not."""

    def __init__(self, model: LanguageModel, max_bytes: int) -> None:
        assert model.image_spec is not None
        self._spec = model.image_spec
        self._model = model
        self._token_bytes = model.config.hidden_size * model.dtype.itemsize
        self._max_bytes = max_bytes
        self._cache = EmbeddingCache(max_bytes)
        self._queue: deque[Lease] = deque()
        self._in_work: list[Lease] = []
        self._wake = threading.Condition()  # guards all of this
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self.num_encoded = 0  # images, since the start
        self.progress = 0  # grows while images are encoded, many of which may take minutes together

    @property
    def num_pending(self) -> int:
        """Requests whose images are not encoded yet."""
        return len(self._queue) + len(self._in_work)

    def warm_up(self) -> None:
        """Encodes one black image, so that what cannot work is an error at the start."""
        size = self._spec.image_size
        tiles = torch.zeros(self._spec.num_tiles(size, size), 3, size, size)
        self._model.encode_images([(tiles, (size, size))])

    def submit(self, images: Sequence[ImageFile]) -> Lease:
        """Asks for the embeddings of one request's images; `release` the lease when it ends.

        Raises:
            RuntimeError: closed.
        """
        lease = Lease(self, images)
        with self._wake:
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            if not self._queue and self._is_known(lease) and self._has_room(self._num_new_bytes(lease)):
                self._grant(lease)
                return lease
            self._queue.append(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="image-encoder", daemon=True)
                self._thread.start()
            self._wake.notify()
        return lease

    def release(self, lease: Lease) -> None:
        """See Lease.release."""
        with self._wake:
            if lease.is_released:
                return
            lease.is_released = True
            if lease.is_granted:
                self._give_back(lease)
            elif lease in self._queue:
                self._queue.remove(lease)
                lease.embeddings.cancel()
                self._wake.notify()  # who stood behind it may have room

    def close(self) -> None:
        """Fails what waits and ends the thread."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._is_closed and not self._take():
                    self._wake.wait()
                if self._is_closed:
                    break
                images = {image.digest: image for lease in self._in_work for image in lease.images}
                new = [image for digest, image in images.items() if digest not in self._cache]
            batch = ImageBatch(self._model, self._count_progress)
            results = batch.encode(new)
            with self._wake:
                self._finish(results, batch.timing)
        for lease in (*self._in_work, *self._queue):
            if not lease.embeddings.done():
                lease.embeddings.set_exception(RuntimeError("the engine is closed"))

    def _count_progress(self) -> None:
        self.progress += 1  # by the one thread

    def _take(self) -> bool:
        """Moves the first of the queue into work, as many as may be encoded together. False: none.

        Those whose images have become known meanwhile are served on the way.
        """
        num_bytes = num_tiles = 0  # of those in work
        while self._queue:
            lease = self._queue[0]
            is_known = self._is_known(lease)
            size = num_bytes + self._num_new_bytes(lease)  # twins are counted twice: too cautious, not too bold
            tiles = num_tiles + sum(self._spec.num_tiles(image.width, image.height) for image in lease.images)
            if not self._has_room(size) or (self._in_work and not is_known and tiles > MAX_TILES):
                break
            self._queue.popleft()
            if not lease.embeddings.set_running_or_notify_cancel():
                continue
            if is_known:
                self._grant(lease)
            else:
                self._in_work.append(lease)
                num_bytes, num_tiles = size, tiles
        return bool(self._in_work)

    def _is_known(self, lease: Lease) -> bool:
        return all(image.digest in self._cache for image in lease.images)

    def _has_room(self, num_bytes: int) -> bool:
        """Whether so much may come into use; alone anything may, or a large request could never be served."""
        is_alone = self._cache.used_bytes == 0 and not self._in_work
        return is_alone or self._cache.used_bytes + num_bytes <= self._max_bytes

    def _num_new_bytes(self, lease: Lease) -> int:
        """Of the images that would come into use."""
        new = {image.digest: image for image in lease.images if not self._cache.is_used(image.digest)}
        num_tokens = sum(self._spec.num_tokens(image.width, image.height) for image in new.values())
        return num_tokens * self._token_bytes

    def _finish(self, results: Mapping[bytes, Tensor | Exception], timing: Timing) -> None:
        for digest, result in results.items():
            if isinstance(result, Tensor):
                self._cache.add(digest, result)
                self.num_encoded += 1
        for lease in self._in_work:
            lease.timing = replace(timing)
            each = enumerate(results.get(image.digest) for image in lease.images)
            error = next((_told(result, index) for index, result in each if isinstance(result, Exception)), None)
            if error is not None:
                lease.embeddings.set_exception(error)
            else:
                self._grant(lease)
        self._in_work = []
        self._cache.trim()

    def _grant(self, lease: Lease) -> None:
        lease.is_granted = True
        lease.embeddings.set_result([self._cache.use(image.digest) for image in lease.images])
        if lease.is_released:
            self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        for image in lease.images:
            self._cache.release(image.digest)
        if not self._in_work:  # else what they need would be lost; `_finish` trims
            self._cache.trim()
        self._wake.notify()


def _told(error: Exception, index: int) -> Exception:
    """What a request is told about its image number `index`."""
    if isinstance(error, ImageError):
        return RequestError(VALIDATION, f"images[{index}] {error}")
    if is_out_of_memory(error):
        return MemoryError(f"images[{index}] does not fit in memory")
    return RuntimeError(f"images[{index}] cannot be encoded: {type(error).__name__}: {error}")
