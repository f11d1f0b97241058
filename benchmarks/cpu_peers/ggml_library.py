"""ggml's functions through ctypes, out of the libraries that llama-cpp-python brings."""

import ctypes
import importlib.util
from collections.abc import Iterator
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

SPARE = 1 << 10  # bytes beyond a tensor's own that its context is asked for


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

SIGNATURES: dict[str, tuple[Any, ...]] = {  # name: result, arguments
    "ggml_log_set": (None, LOG_CALLBACK, c_void_p),
    "ggml_init": (c_void_p, InitParams),
    "ggml_free": (None, c_void_p),
    "ggml_tensor_overhead": (c_size_t,),
    "ggml_graph_overhead_custom": (c_size_t, c_size_t, c_bool),
    "ggml_new_tensor_2d": (c_void_p, c_void_p, c_int, c_int64, c_int64),
    "ggml_mul_mat": (c_void_p, c_void_p, c_void_p, c_void_p),
    "ggml_new_graph_custom": (c_void_p, c_void_p, c_size_t, c_bool),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_backend_cpu_init": (c_void_p,),
    "ggml_backend_cpu_set_n_threads": (None, c_void_p, c_int),
    "ggml_backend_cpu_reg": (c_void_p,),
    "ggml_backend_cpu_buffer_type": (c_void_p,),
    "ggml_backend_reg_dev_get": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_reg_get_proc_address": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_dev_supports_op": (c_bool, c_void_p, c_void_p),
    "ggml_backend_buft_name": (c_char_p, c_void_p),
    "ggml_backend_buft_alloc_buffer": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, c_void_p, c_void_p),
    "ggml_backend_buffer_get_base": (c_void_p, c_void_p),
    "ggml_backend_buffer_free": (None, c_void_p),
    "ggml_backend_tensor_alloc": (c_int, c_void_p, c_void_p, c_void_p),
    "ggml_backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_tensor_get": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
}


@LOG_CALLBACK
def _silent(level: int, text: bytes, user_data: c_void_p) -> None:
    pass


class Library:
    """ggml's functions, and its CPU backend set to a number of threads."""

    def __init__(self, threads: int) -> None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise ImportError("llama-cpp-python is not installed")
        folder = Path(spec.origin).parent / "lib"
        self._libraries = [
            ctypes.CDLL(str(folder / f"lib{name}.so"), ctypes.RTLD_GLOBAL) for name in ("ggml-base", "ggml-cpu")
        ]
        self.ggml_log_set(_silent, None)
        self.backend = self.ggml_backend_cpu_init()
        self.ggml_backend_cpu_set_n_threads(self.backend, threads)
        self.registry = self.ggml_backend_cpu_reg()
        self.device = self.ggml_backend_reg_dev_get(self.registry, 0)

    def __getattr__(self, name: str) -> Any:
        result, *arguments = SIGNATURES[name]
        for library in self._libraries:
            if function := getattr(library, name, None):
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
                return function
        raise ImportError(f"this ggml has no {name}")

    def context(self, tensors: int, graph: int = 0) -> Any:
        """For so many tensors, and a graph of so many nodes; without their data."""
        size = tensors * (self.ggml_tensor_overhead() + SPARE)
        if graph:
            size += self.ggml_graph_overhead_custom(graph, False)
        return self.ggml_init(InitParams(size, None, True))

    def buffer_types(self) -> Iterator[Any]:
        """Where weights may lie, in llama.cpp's order of preference."""
        address = self.ggml_backend_reg_get_proc_address(self.registry, b"ggml_backend_dev_get_extra_bufts")
        if address:
            extra = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.device)
            index = 0
            while extra[index]:
                yield extra[index]
                index += 1
        yield self.ggml_backend_cpu_buffer_type()
