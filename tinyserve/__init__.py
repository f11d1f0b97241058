"""Serving of quantized models.

Imported before torch, it makes OpenMP's threads sleep while they have nothing to do: torch's would otherwise go on
spinning for milliseconds after each of its parallel operations, beside the threads of the CPU kernels
(csrc/cpu/pool.cpp) and on their cores. With 4 requests on two Zen 5 cores a decode step took 7.3 ms, and takes 5.9.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
