"""ONNX Runtime's MatMulNBits with int8 activations (accuracy_level 4), blocks of 32 and of 128.

A call is one session's graph of several products, with all results bound to the same memory. Needs onnxruntime and
onnx.
"""

from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cpu_peers.product import Array, Case, Product

LIBRARY = "onnxruntime"
INT8_ACTIVATIONS = 4  # accuracy_level
DOMAIN = "com.microsoft"
OPSET, IR_VERSION = 17, 9


class MatMulNBits(Product):
    def __init__(self, bits: int, block: int) -> None:
        self.name = f"ort-{block}" if bits == 4 else f"ort-int{bits}"
        self.bits = bits
        self._block = block
        self._sessions: list[Any] = []
        self._bindings: list[Any] = []
        self._options = onnxruntime.SessionOptions()
        self._options.use_per_session_threads = False  # else the threads of the sessions wait against each other
        self._options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def prepare(self, case: Case) -> float:
        self._sessions, self._bindings = [], []
        random = np.random.default_rng(0)
        blocks = -(-case.k // self._block)
        shape = (case.n, blocks, self._block * self.bits // 8)
        self._codes = random.integers(0, 256, shape, dtype=np.uint8)
        self._scales = random.uniform(0.005, 0.025, (case.n, blocks)).astype(np.float32)
        self._case = case
        model = self._model().SerializeToString()
        self._sessions = [
            onnxruntime.InferenceSession(model, self._options, ["CPUExecutionProvider"]) for _ in range(case.rotation)
        ]
        return self._codes.nbytes + self._scales.nbytes

    def _model(self) -> Any:
        """Products of one input with initializers of their own, else they could become one."""
        case = self._case
        nodes, initializers, outputs = [], [], []
        for i in range(case.products):
            parts = {f"codes{i}": self._codes, f"scales{i}": self._scales.reshape(-1)}
            initializers += [numpy_helper.from_array(value, name) for name, value in parts.items()]
            attributes = {"K": case.k, "N": case.n, "bits": self.bits, "block_size": self._block}
            attributes["accuracy_level"] = INT8_ACTIVATIONS
            nodes.append(helper.make_node("MatMulNBits", ["x", *parts], [f"y{i}"], domain=DOMAIN, **attributes))
            outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["M", case.n]))
        rows = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", case.k])
        graph = helper.make_graph(nodes, "products", [rows], outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def set_rows(self, x: Array) -> None:
        self._x = np.ascontiguousarray(x)
        self._y = np.empty((len(x), self._case.n), np.float32)
        self._bindings = [self._binding(session) for session in self._sessions]

    def _binding(self, session: Any) -> Any:
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, np.float32, self._x.shape, self._x.ctypes.data)
        for i in range(self._case.products):
            binding.bind_output(f"y{i}", "cpu", 0, np.float32, self._y.shape, self._y.ctypes.data)
        return binding

    def call(self, index: int) -> None:
        self._sessions[index].run_with_iobinding(self._bindings[index])

    def result(self) -> Array:
        return self._y

    def weight(self) -> Array:
        """The zero is the middle of the codes where, as here, none is given."""
        codes = self._codes
        if self.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
        middle = np.float32(1 << (self.bits - 1))
        weight = (codes.astype(np.float32) - middle) * self._scales[..., None]
        return weight.reshape(self._case.n, -1)[:, : self._case.k]


def products(threads: int) -> list[Product]:
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    return [MatMulNBits(4, 32), MatMulNBits(4, 128), MatMulNBits(8, 32)]
