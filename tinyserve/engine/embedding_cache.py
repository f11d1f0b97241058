"""What images have become, by the digest of their files: kept while a request uses it, then as long as there is room.

One limit holds for both together. What is used is never given up; of the rest, the least recently used goes first. It
knows no threads: image_encoder.py guards it.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor


@dataclass
class _Entry:
    embeddings: Tensor  # [P, C]
    num_users: int = 0


class EmbeddingCache:
    """Args: max_bytes of all embeddings, those in use too."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # least recently used first
        self.num_bytes = 0
        self.used_bytes = 0

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._entries

    def is_used(self, digest: bytes) -> bool:
        return digest in self._entries and self._entries[digest].num_users > 0

    def add(self, digest: bytes, embeddings: Tensor) -> None:
        """Makes an image known that was not; nobody uses it yet."""
        self._entries[digest] = _Entry(embeddings)
        self.num_bytes += embeddings.nbytes

    def use(self, digest: bytes) -> Tensor:
        """The embeddings [P, C] of an image that is known, which stay until `release`."""
        entry = self._entries[digest]
        if entry.num_users == 0:
            self.used_bytes += entry.embeddings.nbytes
        entry.num_users += 1
        self._entries.move_to_end(digest)
        return entry.embeddings

    def release(self, digest: bytes) -> None:
        """To be called once for each `use`."""
        entry = self._entries[digest]
        entry.num_users -= 1
        if entry.num_users == 0:
            self.used_bytes -= entry.embeddings.nbytes

    def trim(self) -> None:
        """Forgets what nobody uses, as far as the limit asks for it."""
        idle = [digest for digest, entry in self._entries.items() if entry.num_users == 0]
        for digest in idle:
            if self.num_bytes <= self._max_bytes:
                return
            self.num_bytes -= self._entries.pop(digest).embeddings.nbytes
