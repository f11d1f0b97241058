"""llama.cpp's products: ggml's CPU backend through ctypes, the weights in the buffer type that llama.cpp would choose.

That is the first one of the CPU's extra buffer types (which rearrange weights for the processor) that takes the
product, else the plain one. Needs llama-cpp-python, of which only the libraries are used.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cpu_peers.ggml_library import Library
from benchmarks.cpu_peers.product import Array, Case, Product

LIBRARY = "llama-cpp-python"
BLOCK = 32  # weights
F32 = 0  # ggml's number of a type, like those below
SPARE = 1 << 10  # bytes of a buffer, and nodes of a graph, beyond what is needed


@dataclass(frozen=True)
class Format:
    number: int
    bits: int
    has_minimum: bool  # w = code * scale + minimum, else w = (code - middle) * scale


FORMATS = {"Q4_0": Format(2, 4, False), "Q4_1": Format(3, 4, True), "Q8_0": Format(8, 8, False)}


class Ggml(Product):
    def __init__(self, library: Library, name: str) -> None:
        self.name = name
        self._format = FORMATS[name]
        self.bits = self._format.bits
        self._ggml = library
        self._kept: list[Any] = []  # (free, what) of the present rows' graphs
        self._weights_kept: list[Any] = []

    def prepare(self, case: Case) -> float:
        self._release(self._kept)
        self._release(self._weights_kept)
        self._case = case
        if case.k % BLOCK:
            raise ValueError(f"{self.name} needs K divisible by {BLOCK}")
        self._blocks = random_blocks(case, self._format)
        for buffer_type in self._ggml.buffer_types():
            if self._place(buffer_type):
                return self._blocks.nbytes
        raise ValueError(f"{self.name}: no buffer type takes it")

    def _place(self, buffer_type: Any) -> bool:
        """Weights in buffers of this type; False if the CPU does not multiply from there."""
        ggml, case = self._ggml, self._case
        number = case.products * case.rotation
        context = ggml.context(number + 2)
        self._weights = [ggml.ggml_new_tensor_2d(context, self._format.number, case.k, case.n) for _ in range(number)]
        rows = ggml.ggml_new_tensor_2d(context, F32, case.k, 1)
        product = ggml.ggml_mul_mat(context, self._weights[0], rows)
        # The weights get their place first: whether the product is possible depends on it.
        weights_size = self._blocks.nbytes
        buffers = []
        for weight in self._weights:
            buffer = ggml.ggml_backend_buft_alloc_buffer(buffer_type, weights_size + SPARE)
            ggml.ggml_backend_tensor_alloc(buffer, weight, ggml.ggml_backend_buffer_get_base(buffer))
            buffers.append(buffer)
            if len(buffers) == 1 and not ggml.ggml_backend_dev_supports_op(ggml.device, product):
                break
        self._weights_kept = [(ggml.ggml_backend_buffer_free, b) for b in buffers] + [(ggml.ggml_free, context)]
        if len(buffers) < number:
            self._release(self._weights_kept)
            return False
        for weight in self._weights:
            ggml.ggml_backend_tensor_set(weight, self._blocks.ctypes.data, 0, weights_size)
        self.place = ggml.ggml_backend_buft_name(buffer_type).decode()
        return True

    def set_rows(self, x: Array) -> None:
        self._release(self._kept)
        ggml, case, m = self._ggml, self._case, len(x)
        context = ggml.context(1 + len(self._weights), 0)
        plain = ggml.ggml_backend_cpu_buffer_type()
        rows = ggml.ggml_new_tensor_2d(context, F32, case.k, m)
        buffers = [ggml.ggml_backend_buft_alloc_buffer(plain, 4 * m * size + SPARE) for size in (case.k, case.n)]
        self._kept = [(ggml.ggml_backend_buffer_free, buffer) for buffer in buffers] + [(ggml.ggml_free, context)]
        x_at, self._y_at = (ggml.ggml_backend_buffer_get_base(buffer) for buffer in buffers)
        ggml.ggml_backend_tensor_alloc(buffers[0], rows, x_at)
        ggml.ggml_backend_tensor_set(rows, np.ascontiguousarray(x).ctypes.data, 0, x.nbytes)
        self._m, self._graphs = m, []
        for first in range(0, len(self._weights), case.products):
            graph_context = ggml.context(0, case.products + SPARE)
            self._kept.append((ggml.ggml_free, graph_context))
            graph = ggml.ggml_new_graph_custom(graph_context, case.products + SPARE, False)
            for weight in self._weights[first : first + case.products]:
                product = ggml.ggml_mul_mat(context, weight, rows)
                ggml.ggml_backend_tensor_alloc(buffers[1], product, self._y_at)  # every result in the same place
                ggml.ggml_build_forward_expand(graph, product)
            self._graphs.append(graph)

    def call(self, index: int) -> None:
        if self._ggml.ggml_backend_graph_compute(self._ggml.backend, self._graphs[index]):
            raise RuntimeError(f"{self.name}: ggml_backend_graph_compute failed")

    def result(self) -> Array:
        values = ctypes.cast(self._y_at, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(values, (self._m, self._case.n)).copy()

    def weight(self) -> Array:
        return dequantized(self._blocks, self._format).reshape(self._case.n, self._case.k)

    @staticmethod
    def _release(kept: list[Any]) -> None:
        for free, what in kept:
            free(what)
        kept.clear()


def random_blocks(case: Case, form: Format) -> Array:
    """A weight in ggml's format, uint8 [N * K / 32, bytes of a block]: fp16 scale (and minimum), then the codes."""
    random = np.random.default_rng(0)
    blocks = case.n * case.k // BLOCK
    parts = [random.uniform(0.005, 0.025, (blocks, 1)).astype(np.float16).view(np.uint8)]
    if form.has_minimum:
        parts.append(random.uniform(-0.2, 0, (blocks, 1)).astype(np.float16).view(np.uint8))
    parts.append(random.integers(0, 256, (blocks, BLOCK * form.bits // 8), dtype=np.uint8))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def dequantized(blocks: Array, form: Format) -> Array:
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if form.bits == 8:
        return blocks[:, 2:].view(np.int8) * scale
    bytes_ = blocks[:, 4 if form.has_minimum else 2 :]
    codes = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=1).astype(np.float32)
    if not form.has_minimum:
        return (codes - 8) * scale
    return codes * scale + blocks[:, 2:4].copy().view(np.float16).astype(np.float32)


def products(threads: int) -> list[Product]:
    library = Library(threads)
    return [Ggml(library, name) for name in FORMATS]
