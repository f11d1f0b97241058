"""Our layers as torch modules, for networks that transformers has built: any leading dimensions, one row per token."""

from torch import Tensor, nn

from tinyserve import ops
from tinyserve.layers.embedding import Embedding, W8Embedding
from tinyserve.layers.linear import LinearLayer
from tinyserve.layers.norm import LayerNorm, RMSNorm


def rows_of(x: Tensor) -> Tensor:
    """[..., C] -> [T, C], contiguous as the ops want it."""
    return x.reshape(-1, x.shape[-1]).contiguous()


class QuantLinear(nn.Module):
    """In place of nn.Linear. The layer's tensors are not parameters: packed weights stay on their device."""

    def __init__(self, layer: LinearLayer, in_features: int) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        return self.layer(rows_of(x)).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{type(self.layer).__name__}, in_features={self.in_features}, out_features={self.out_features}"


class QuantNorm(nn.Module):
    """In place of a norm over the last dimension."""

    def __init__(self, norm: RMSNorm | LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C], normed."""
        return self.norm(rows_of(x)).view(x.shape)

    def extra_repr(self) -> str:
        return f"{type(self.norm).__name__}, {self.norm.weight.shape[0]}, eps={self.norm.eps}"


class QuantEmbedding(nn.Module):
    """In place of nn.Embedding."""

    def __init__(self, embedding: Embedding | W8Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, token_ids: Tensor) -> Tensor:
        """int [...] -> [..., C]."""
        rows = self.embedding(token_ids.flatten())
        return rows.view(*token_ids.shape, rows.shape[-1])


class FusedMLP(nn.Module):
    """In place of a gated feed-forward block: gate and up are one product.

    Args:
        gate_up: [2I, C], gate rows, then up rows.
        down: [C, I].
        activation: of the gate; None: SiLU, by one kernel with the multiplication.
    """

    def __init__(self, gate_up: LinearLayer, down: LinearLayer, activation: nn.Module | None) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., C]."""
        gate_up = self.gate_up(rows_of(x))
        if self.activation is None:
            inner = ops.silu_mul(gate_up)
        else:
            gate, up = gate_up.chunk(2, dim=-1)
            inner = self.activation(gate) * up
        return self.down(inner).view(*x.shape[:-1], self.down.out_features)
