"""The shapes of real models' linear layers, as data: what a matrix product of a decoder layer is asked to do.

Query, key and value are one matrix, gate and up too, as the models in tinyserve/models have them. A weight is [N, K].
"""

from dataclasses import dataclass

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # M: tokens of a step


@dataclass(frozen=True)
class Architecture:
    """What decides the shapes of a decoder layer."""

    name: str
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128

    def linears(self) -> dict[str, tuple[int, int]]:
        """(N, K) by the layer's name."""
        heads = self.num_heads * self.head_dim
        return {
            "qkv": (heads + 2 * self.num_kv_heads * self.head_dim, self.hidden),
            "o": (self.hidden, heads),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }


ARCHITECTURES = (
    Architecture("Llama-2-7B", 4096, 11008, 32, 32),
    Architecture("Llama-2-13B", 5120, 13824, 40, 40),
    Architecture("Llama-2-70B", 8192, 28672, 64, 8),
    Architecture("Llama-3-8B", 4096, 14336, 32, 8),
    Architecture("Llama-3-70B", 8192, 28672, 64, 8),
    Architecture("Qwen2.5-7B", 3584, 18944, 28, 4),
    Architecture("Mistral-7B", 4096, 14336, 32, 8),
)


@dataclass(frozen=True)
class Shape:
    """A weight [N, K] and the layers that have it, as "Llama-3-8B qkv"."""

    n: int
    k: int
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.n}x{self.k}"


def shapes(architectures: tuple[Architecture, ...] = ARCHITECTURES) -> list[Shape]:
    """Every shape once, in the order of the architectures."""
    layers: dict[tuple[int, int], list[str]] = {}
    for architecture in architectures:
        for layer, size in architecture.linears().items():
            layers.setdefault(size, []).append(f"{architecture.name} {layer}")
    return [Shape(n, k, tuple(names)) for (n, k), names in layers.items()]


def shape(n: int, k: int) -> Shape:
    """The shape of that size among those of the architectures."""
    return next(shape for shape in shapes() if (shape.n, shape.k) == (n, k))


# What a run of a few minutes measures: Llama-3-8B, and of the 70B models one matrix that a second-level cache of 60 MB
# holds and one of more than 120 MB.
QUICK_SHAPES = (*shapes((ARCHITECTURES[3],)), shape(8192, 8192), shape(8192, 28672))
