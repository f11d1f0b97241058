"""The token masks of a step: computed in a thread beside the model, and applied to the batch's logits.

With 49,000 tokens on one core of an AMD EPYC a mask takes 2 to 10 us inside a JSON document, 240 us in a regular
expression of letters and up to 8 ms where the limits of structured_output.py end it; handing work to a thread takes
30 us. So a thread does it, with all masks of a step in one piece.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from llguidance import LLExecutor
from torch import Tensor

from tinyserve.engine.constraint import Constraint, Mask
from tinyserve.engine.transfer import upload


class MaskThread:
    """Fills the masks of a step while the model computes it.

    Args:
        num_threads: that llguidance may use. One on a CPU, whose cores the model needs.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None
        self._executor: LLExecutor | None = None

    def start(self, constraints: Sequence[Constraint]) -> None:
        """Returns at once; `Constraint.mask` waits."""
        constraints = [constraint for constraint in constraints if not constraint.is_known]
        if not constraints:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "masks")
            self._executor = LLExecutor(self._num_threads)
        filling = self._pool.submit(self._fill, constraints)
        for constraint in constraints:
            constraint.await_fill(filling)

    def _fill(self, constraints: Sequence[Constraint]) -> None:
        assert self._executor is not None
        masks = np.zeros((len(constraints), constraints[0].num_words), dtype=np.uint32)
        places = [(constraint.matcher, row) for row, constraint in enumerate(constraints)]
        self._executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, masks.shape[1] * 4, len(constraints))
        for constraint, mask in zip(constraints, masks, strict=True):
            constraint.fill(mask)


def forbid(logits: Tensor, rows: Sequence[int], masks: Sequence[Mask]) -> None:
    """Sets to minus infinity, in the given rows of fp32 logits [R, V], what their masks do not allow.

    Each byte of a mask looks up eight numbers to add, which is several times as fast as to test each bit.
    """
    octets = upload(np.stack(masks).view(np.uint8), logits.device)  # [rows, V / 8]
    added = torch.nn.functional.embedding(octets.int(), _added_by_octet(logits.device)).view(len(rows), -1)
    logits.index_add_(0, upload(np.asarray(rows, dtype=np.int64), logits.device), added[:, : logits.shape[1]])


@functools.cache
def _added_by_octet(device: torch.device) -> Tensor:
    """[256, 8]: 0 where the bit is set, else minus infinity."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    return upload(np.where(bits, 0.0, -np.inf).astype(np.float32), device)
