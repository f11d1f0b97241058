"""The residual stream: the sum that runs through a model's blocks, read through norms and added to by linear layers.

It decides which kernel normalises and which one adds. A linear layer that can (`fused`) normalises what it reads, or
adds to the sum, within its own product. For all others the addition waits until the next norm, whose kernel does both.
It knows neither blocks nor what is computed between a norm and an addition.
"""

from torch import Tensor

from tinyserve.layers.linear import LinearLayer
from tinyserve.layers.norm import RMSNorm


class ResidualStream:
    """Args: x [T, C], the embeddings; the stream's own from now on, to be changed in place."""

    def __init__(self, x: Tensor) -> None:
        self._sum = x
        self._addend: Tensor | None = None  # [T, C], belongs to the sum, which the next norm will bring up to date

    def normed(self, norm: RMSNorm) -> Tensor:
        """norm(stream), [T, C]."""
        addend, self._addend = self._addend, None
        return norm(self._sum) if addend is None else norm(addend, self._sum)

    def through(self, norm: RMSNorm, linear: LinearLayer) -> Tensor:
        """linear(norm(stream)), [T, N]."""
        if linear.fused is None or self._addend is not None:
            return linear(self.normed(norm))
        return linear.fused(self._sum, norm=norm)

    def add(self, linear: LinearLayer, x: Tensor) -> None:
        """Adds linear(x), x [T, K]; between two additions the stream goes through a norm."""
        assert self._addend is None, "nothing has read the stream since the last addition"
        if linear.fused is None:
            self._addend = linear(x)
        else:
            self._sum = linear.fused(x, residual=self._sum)

    def select(self, rows: Tensor) -> "ResidualStream":
        """The stream of some tokens only, int [R]."""
        stream = ResidualStream(self._sum.index_select(0, rows))
        stream._addend = None if self._addend is None else self._addend.index_select(0, rows)
        return stream
