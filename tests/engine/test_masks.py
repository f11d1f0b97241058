"""Masks of a batch: the thread fills the same ones, and each changes its own row."""

import numpy as np
import pytest
import torch
from grammars import VOCAB, allowed, start

from tinyserve.config import Grammar
from tinyserve.engine.masks import MaskThread, forbid
from tinyserve.engine.structured_output import GrammarCompiler

PATTERNS = ("[a-z]{2,5}", "(foo|foobar|bar)+!", r"\d{3}-\d{4}")


def test_masks_of_a_batch_are_applied_to_their_rows(letters: GrammarCompiler) -> None:
    constraints = [start(letters, Grammar("regex", pattern)) for pattern in ("[ab]", "[x-z]+")]
    logits = torch.zeros(3, VOCAB)
    logits[2, 7] = torch.nan
    forbid(logits, [0, 2], [constraint.mask() for constraint in constraints])
    assert torch.equal(logits[1], torch.zeros(VOCAB))
    for row, constraint in zip((0, 2), constraints, strict=True):
        assert set(torch.nonzero(logits[row] == 0).flatten().tolist()) == allowed(constraint)
    assert torch.isnan(logits[2, 7])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_masks_filled_by_the_thread_are_those_filled_at_once(letters: GrammarCompiler, num_threads: int) -> None:
    thread = MaskThread(num_threads)
    pairs = [[start(letters, Grammar("regex", pattern)) for _ in range(2)] for pattern in PATTERNS]
    for _ in range(2):
        thread.start([first for first, _ in pairs])
        for first, second in pairs:
            assert np.array_equal(first.mask(), second.mask())
            token_id = min(allowed(first))
            first.accept(token_id)
            second.accept(token_id)
