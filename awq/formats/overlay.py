"""Tensor sources made of others: several over one another, and one under other names. Values are read on access."""

from collections.abc import Callable, Mapping

from torch import Tensor

from awq.formats.checkpoint import TensorInfo, TensorSource


class Joined:
    """The tensors of several sources as one. Args: source_of: tensor name -> the source it is read from."""

    def __init__(self, source_of: dict[str, TensorSource]) -> None:
        self._source_of = source_of

    def names(self) -> list[str]:
        return list(self._source_of)

    def info(self, name: str) -> TensorInfo:
        return self._source_of[name].info(name)

    def tensor(self, name: str) -> Tensor:
        return self._source_of[name].tensor(name)

    def file_of(self, name: str) -> str:
        return self._source_of[name].file_of(name)


class Overlay(Joined):
    """The tensors of several sources; where they share a name, the first one's."""

    def __init__(self, *sources: TensorSource) -> None:
        self._sources = sources
        super().__init__({name: source for source in reversed(sources) for name in source.names()})

    def __str__(self) -> str:
        return " over ".join(map(str, self._sources))


class Renamed:
    """Some tensors of a source under other names.

    Args:
        names: new name -> name in the source.
    """

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self._source = source
        self._names = dict(names)

    @classmethod
    def by(cls, rename: Callable[[str], str], source: TensorSource) -> "Renamed":
        """All tensors of a source, each under the name that `rename` gives it."""
        return cls(source, {rename(name): name for name in source.names()})

    def __str__(self) -> str:
        return str(self._source)

    def names(self) -> list[str]:
        return list(self._names)

    def info(self, name: str) -> TensorInfo:
        return self._source.info(self._names[name])

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(self._names[name])

    def file_of(self, name: str) -> str:
        return self._source.file_of(self._names[name])
