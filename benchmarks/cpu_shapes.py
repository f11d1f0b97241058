"""The products of models on a CPU: data for bench_cpu.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One weight [n, k] of a model; layers that share an input are one weight, as the engine has them."""

    model: str
    layer: str
    k: int
    n: int
    bits: int = 4


SHAPES = [
    Shape("SmolLM2-135M", "qkv", 576, 960),
    Shape("SmolLM2-135M", "o", 576, 576),
    Shape("SmolLM2-135M", "gate_up", 576, 3072),
    Shape("SmolLM2-135M", "down", 1536, 576),
    Shape("SmolLM2-135M", "lm_head", 576, 49152, bits=8),
    Shape("Llama-3.2-1B", "qkv", 2048, 3072),
    Shape("Llama-3.2-1B", "o", 2048, 2048),
    Shape("Llama-3.2-1B", "gate_up", 2048, 16384),
    Shape("Llama-3.2-1B", "down", 8192, 2048),
    Shape("Llama-3.2-1B", "lm_head", 2048, 128256, bits=8),
    Shape("Llama-2-7B", "o", 4096, 4096),
    Shape("Llama-2-7B", "gate", 4096, 11008),
    Shape("Llama-2-7B", "gate_up", 4096, 22016),
    Shape("Llama-2-7B", "down", 11008, 4096),
    Shape("Llama-2-7B", "lm_head", 4096, 32000, bits=8),
]
QUICK = [("SmolLM2-135M", "gate_up"), ("Llama-3.2-1B", "down"), ("Llama-2-7B", "gate")]
ROWS = [1, 4, 16, 64, 128, 512]
QUICK_ROWS = [1, 16, 128]


def chosen(models: list[str], layers: list[str], quick: bool) -> list[Shape]:
    """Those of the named models and layers; an empty list stands for all."""
    return [
        shape
        for shape in SHAPES
        if (not models or shape.model in models)
        and (not layers or shape.layer in layers)
        and (not quick or (shape.model, shape.layer) in QUICK)
    ]
