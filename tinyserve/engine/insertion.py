"""Which rows of a step are parts of images, and the embeddings that stand in them.

A chunk may begin and end anywhere in an image: what a prefix hit or an earlier chunk has computed is left out.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyserve.engine.scheduler import Step


@dataclass(frozen=True)
class Insertion:
    rows: NDArray[np.int32]  # [P], in the flat batch
    embeddings: Tensor  # [P, C], on the model's device


def insertion(step: Step) -> Insertion | None:
    """None where the whole step is text."""
    rows, embeddings = [], []
    start = 0  # of the chunk, in the flat batch
    for chunk in step.chunks:
        first = chunk.request.num_computed
        last = first + chunk.num_tokens
        for span in chunk.request.spans:
            begin, end = max(first, span.start), min(last, span.start + len(span.embeddings))
            if begin < end:
                rows.append(np.arange(start + begin - first, start + end - first, dtype=np.int32))
                embeddings.append(span.embeddings[begin - span.start : end - span.start])
        start += chunk.num_rows
    return Insertion(np.concatenate(rows), torch.cat(embeddings)) if rows else None
