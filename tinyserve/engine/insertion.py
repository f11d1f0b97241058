"""Which rows of a step are parts of images, and the embeddings that stand in them.

A chunk may begin and end anywhere in an image: what a prefix hit or an earlier chunk has computed is left out.
"""

import torch

from tinyserve.engine.scheduler import Step
from tinyserve.models.llama import Inserted


def insertion(step: Step) -> Inserted | None:
    """None where the whole step is text."""
    rows, embeddings = [], []
    start = 0  # of the chunk, in the flat batch
    for chunk in step.chunks:
        first = chunk.request.num_computed
        last = first + chunk.num_tokens
        for span in chunk.request.spans:
            begin, end = max(first, span.start), min(last, span.start + len(span.embeddings))
            if begin < end:
                rows.append(torch.arange(start + begin - first, start + end - first))
                embeddings.append(span.embeddings[begin - span.start : end - span.start])
        start += chunk.num_rows
    if not rows:
        return None
    joined = torch.cat(embeddings)
    return Inserted(torch.cat(rows).to(joined.device), joined)
