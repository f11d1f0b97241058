"""This project's products of packed weights, on the CPU: with int8 activations, and exact ones."""

import torch

from benchmarks.cpu_peers.product import Array, Case, Product
from tinyserve import ops
from tinyserve.layers.huge_pages import HugePages

DTYPE = torch.bfloat16  # of the activations, as in the models


class Ours(Product):
    """4-bit weights in groups, asymmetric; `exact`: activations are not rounded."""

    bits = 4

    def __init__(self, exact: bool) -> None:
        self.name = "exact" if exact else "ours"
        self._weights: list[ops.PackedWeight] = []
        self._multiply = ops.w4a16_linear if exact else ops.w4a8_linear

    def prepare(self, case: Case) -> float:
        self._weights = []
        generator = torch.Generator().manual_seed(0)
        groups = case.k // case.group
        codes = torch.randint(0, 16, (case.n, case.k), generator=generator, dtype=torch.uint8)
        scales = (torch.rand(case.n, groups, generator=generator) * 0.02 + 0.005).half()
        zeros = torch.randint(4, 12, (case.n, groups), generator=generator, dtype=torch.uint8)
        self._parts = codes, scales, zeros
        packed = ops.w4a16_pack(codes, scales, zeros)
        pages, self._products = HugePages(), case.products  # placed as in a model
        self._weights = [
            ops.PackedWeight(pages.place(packed.qweight), pages.place(packed.qparams), case.n, case.k, case.group)
            for _ in range(case.products * case.rotation)
        ]
        return packed.qweight.nbytes + packed.qparams.nbytes

    def set_rows(self, x: Array) -> None:
        self._x = torch.from_numpy(x).to(DTYPE)

    def call(self, index: int) -> None:
        for weight in self._weights[index * self._products : (index + 1) * self._products]:
            self._y = self._multiply(self._x, weight)

    def result(self) -> Array:
        return self._y.float().numpy()

    def weight(self) -> Array:
        codes, scales, zeros = (part.float().numpy() for part in self._parts)
        groups = codes.reshape(*scales.shape, -1)
        return ((groups - zeros[..., None]) * scales[..., None]).reshape(codes.shape)


class Ours8(Product):
    """8-bit weights, as of the output layer, with int8 activations; its error is that of rounding the weights too."""

    name = "ours"
    bits = 8

    def __init__(self) -> None:
        self._weights: list[ops.PackedWeight8] = []

    def prepare(self, case: Case) -> float:
        self._weights = []
        weight = torch.randn(case.n, case.k, generator=torch.Generator().manual_seed(0)) * 0.02
        self._weight = weight.numpy()
        packed = ops.w8_pack(weight)
        pages, self._products = HugePages(), case.products  # placed as in a model
        self._weights = [
            ops.PackedWeight8(pages.place(packed.qweight), pages.place(packed.scales), case.n, case.k)
            for _ in range(case.products * case.rotation)
        ]
        return packed.qweight.nbytes + packed.scales.nbytes

    def set_rows(self, x: Array) -> None:
        self._x = torch.from_numpy(x).to(DTYPE)

    def call(self, index: int) -> None:
        for weight in self._weights[index * self._products : (index + 1) * self._products]:
            self._y = ops.w8a8_linear(self._x, weight)

    def result(self) -> Array:
        return self._y.float().numpy()

    def weight(self) -> Array:
        return self._weight


def products(bits: int) -> list[Product]:
    return [Ours(exact=False), Ours(exact=True)] if bits == 4 else [Ours8()]
