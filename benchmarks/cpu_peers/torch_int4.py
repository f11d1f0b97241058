"""torch's own products with quantized weights on the CPU, with bf16 activations: what its compiled int4 models call."""

import torch

from benchmarks.cpu_peers.product import Array, Case, Product

LIBRARY = "torch"
DTYPE = torch.bfloat16  # with fp32 it runs a scalar reference


class TorchInt4(Product):
    """_weight_int4pack_mm_for_cpu: w = (code - 8) * scale + offset in groups."""

    name = "torch"
    bits = 4

    def __init__(self) -> None:
        self._weights: list[tuple[torch.Tensor, torch.Tensor]] = []

    def prepare(self, case: Case) -> float:
        self._weights = []
        generator = torch.Generator().manual_seed(0)
        shape = (case.k // case.group, case.n)
        self._codes = torch.randint(0, 16, (case.n, case.k), generator=generator, dtype=torch.int32)
        scales = torch.rand(shape, generator=generator) * 0.02 + 0.005
        offsets = torch.randn(shape, generator=generator) * 0.01
        self._params = torch.stack([scales, offsets], dim=-1).to(DTYPE)  # [K/G, N, 2]
        try:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(self._codes, 1)
        except RuntimeError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self._case = case
        self._weights = [(packed.clone(), self._params.clone()) for _ in range(case.products * case.rotation)]
        return packed.nbytes + self._params.nbytes

    def set_rows(self, x: Array) -> None:
        self._x = torch.from_numpy(x).to(DTYPE)

    def call(self, index: int) -> None:
        products = self._case.products
        for packed, params in self._weights[index * products : (index + 1) * products]:
            self._y = torch.ops.aten._weight_int4pack_mm_for_cpu(self._x, packed, self._case.group, params)

    def result(self) -> Array:
        return self._y.float().numpy()

    def weight(self) -> Array:
        scales, offsets = self._params.float().permute(2, 1, 0)[..., None]  # [N, K/G, 1] each
        groups = self._codes.float().view(self._case.n, -1, self._case.group)
        return ((groups - 8) * scales + offsets).view(self._case.n, self._case.k).numpy()


def products(threads: int) -> list[Product]:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return [TorchInt4()]
