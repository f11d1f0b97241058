"""The search of a whole model: block after block on the outputs of the unquantized blocks before, as in llm-awq.

It decides the order and what is taken up from an interrupted search; how one block is searched stands in search.py.
"""

import time

from torch import Tensor

from awq.capture import first_inputs
from awq.errors import UserError
from awq.lazy_network import LazyNetwork
from awq.progress import say, track
from awq.results import SearchResults
from awq.search import BlockSearch
from awq.unfinished import UnfinishedSearch


def search_model(
    network: LazyNetwork,
    search: BlockSearch,
    tokens: Tensor,
    layers: tuple[int, int] | None,
    unfinished: UnfinishedSearch,
    images: Tensor | None = None,
) -> SearchResults:
    """Searches the blocks of a model, with one of them in memory; those that `unfinished` knows are only run through.

    Args:
        tokens: calibration windows int64 [n, L].
        images: embeddings that some of the tokens stand for, as of capture.first_inputs.
        layers: first block and the one after the last; None: all.

    Raises:
        UserError: layers that the model does not have, or values that are not finite.
    """
    total = len(network.blocks)
    first, end = layers or (0, total)
    if end > total:
        raise UserError(f"--layers {first}:{end}: the model has {total} layers")
    known = {index: found for index in range(first, end) if (found := unfinished.block(index)) is not None}
    inputs = first_inputs(network, tokens, images)
    results = SearchResults()
    spent = searched = 0.0
    for index in track(range(end), "search: layer"):
        if index not in known and index >= first:
            start = time.monotonic()
            with network.block(index) as block:
                known[index], inputs = search(block, index, inputs)
            unfinished.keep_block(index, known[index])
            spent, searched = spent + time.monotonic() - start, searched + 1
        elif any(later not in known for later in range(max(index, first), end)):
            with network.block(index) as block:
                inputs = search.pass_through(block, index, inputs)
        if index in known:
            results.scales.extend(known[index].scales)
            results.clips.extend(known[index].clips)
            results.figures.extend(known[index].figures)
    if searched and end - first < total:
        mean = spent / searched
        say(f"{mean:.1f} s a layer: the search of all {total} layers would take about {mean * total / 60:.0f} minutes")
    return results
