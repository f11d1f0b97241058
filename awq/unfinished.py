"""What an interrupted search leaves behind, so that the same command goes on from the last finished layer.

A folder beside the results file: the calibration tokens, and one file per finished block, each renamed into place. It
is tied to model and settings; a folder of other ones is thrown away, with a message. It does not know how blocks are
searched.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awq.results import SearchResults, from_plain, save_atomically, to_plain


class UnfinishedSearch:
    """Args: results, the file the search will end in; fingerprint, plain values that say what is searched and how."""

    def __init__(self, results: Path, fingerprint: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.folder = results.with_name(results.name + ".unfinished")
        known = _load(self.folder / "search.pt")
        if self.folder.exists() and known != dict(fingerprint):
            say(f"{self.folder} is from a search of another model or other settings: starting again")
            self.remove()
        elif self.folder.exists():
            say(f"going on with {self.folder}: {len(list(self.folder.glob('block-*.pt')))} layers are done")
        save_atomically(dict(fingerprint), self.folder / "search.pt")

    def tokens(self) -> Tensor | None:
        """The calibration windows int64 [n, L], if they were already made."""
        value = _load(self.folder / "tokens.pt")
        return value if isinstance(value, Tensor) else None

    def keep_tokens(self, tokens: Tensor) -> None:
        save_atomically(tokens, self.folder / "tokens.pt")

    def block(self, index: int) -> SearchResults | None:
        """What was found for a block; None if it is not finished."""
        value = _load(self._block_file(index))
        return None if value is None else from_plain(value)

    def keep_block(self, index: int, found: SearchResults) -> None:
        save_atomically(to_plain(found), self._block_file(index))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _block_file(self, index: int) -> Path:
        return self.folder / f"block-{index:04}.pt"


def _load(path: Path) -> Any:
    """The value of a file; None if it is missing. Files are renamed into place, so one that is there is whole."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
