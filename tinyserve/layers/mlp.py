"""The gated feed-forward block: down(silu(gate(x)) * up(x)), gate and up in one matrix."""

from dataclasses import dataclass

from tinyserve import ops
from tinyserve.layers.linear import LinearLayer
from tinyserve.layers.norm import RMSNorm
from tinyserve.layers.residual import ResidualStream


@dataclass(frozen=True, eq=False)
class GatedMLP:
    gate_up: LinearLayer  # [2I, C]: gate rows, then up rows; or, where its kernel multiplies both, in its own order
    down: LinearLayer  # [C, I]

    def __call__(self, stream: ResidualStream, norm: RMSNorm) -> None:
        """Adds the block's output for norm(stream) to the stream."""
        x = stream.through(norm, self.gate_up)
        fused = self.gate_up.fused
        stream.add(self.down, x if fused is not None and fused.silu_mul else ops.silu_mul(x))
