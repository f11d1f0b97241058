"""The folder of peers that are not installed: wheels and compressed libraries, unpacked once where they can be loaded.

Several processes may unpack at once: each does it beside the final place and renames.
"""

import importlib.util
import lzma
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from benchmarks.kernels.peers.peer import Unavailable


class PeerFolder:
    def __init__(self, folder: Path | None) -> None:
        """`folder` may be None: then it holds nothing."""
        self._folder = folder
        self._unpacked = Path(tempfile.gettempdir()) / f"tinyserve-peers-{os.getuid()}"

    def library(self, name: str) -> Path:
        """`name`.so, or what `name`.so.xz holds."""
        if plain := self._find(f"{name}.so"):
            return plain
        compressed = self._require(f"{name}.so.xz")

        def unpack(place: Path) -> None:
            with lzma.open(compressed) as source, place.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 24)

        return self._unpack(compressed, f"{name}.so", unpack)

    def use_wheel(self, package: str) -> str:
        """Makes the package of a wheel importable, where it is not installed; returns its version."""
        wheel = self._require(f"{package}-*.whl")

        def unpack(place: Path) -> None:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place)
                for info in archive.infolist():
                    if info.external_attr >> 16 & 0o100:  # a program; zipfile forgets that
                        (place / info.filename).chmod(0o755)

        sys.path.insert(0, str(self._unpack(wheel, wheel.stem, unpack)))
        importlib.invalidate_caches()
        return wheel.name.split("-")[1]

    def module(self, name: str) -> ModuleType:
        """A single Python file."""
        path = self._require(f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"peer_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    def _find(self, pattern: str) -> Path | None:
        if self._folder is None:
            return None
        return next(iter(sorted(self._folder.glob(pattern))), None)

    def _require(self, pattern: str) -> Path:
        found = self._find(pattern)
        if found is None:
            where = f"not in {self._folder}" if self._folder else "no folder of peers given (--peers)"
            raise Unavailable(f"{pattern}: {where}")
        return found

    def _unpack(self, source: Path, name: str, unpack: Callable[[Path], None]) -> Path:
        stamp = f"{source.stat().st_size}-{source.stat().st_mtime_ns}"
        target = self._unpacked / f"{stamp}-{name}"
        if not target.exists():
            self._unpacked.mkdir(exist_ok=True)
            partial = self._unpacked / f"{os.getpid()}-{name}"
            unpack(partial)
            try:
                partial.rename(target)
            except OSError:  # another process was first
                assert target.exists(), target
        return target
