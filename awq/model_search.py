"""The search of a whole model: block after block on the outputs of the unquantized blocks before, as in llm-awq.

It decides the order and what is taken up from an interrupted search; how one block is searched stands in search.py.
"""

from torch import Tensor, nn

from awq.capture import blocks_of, first_inputs
from awq.errors import UserError
from awq.progress import track
from awq.results import SearchResults
from awq.search import BlockSearch
from awq.unfinished import UnfinishedSearch


def search_model(
    network: nn.Module,
    search: BlockSearch,
    tokens: Tensor,
    layers: tuple[int, int] | None,
    unfinished: UnfinishedSearch,
) -> SearchResults:
    """Searches the blocks of a model; those that `unfinished` knows are only run through.

    Args:
        tokens: calibration windows int64 [n, L].
        layers: first block and the one after the last; None: all.

    Raises:
        UserError: layers that the model does not have, or values that are not finite.
    """
    blocks = blocks_of(network, search.architecture)
    first, end = layers or (0, len(blocks))
    if end > len(blocks):
        raise UserError(f"--layers {first}:{end}: the model has {len(blocks)} layers")
    known = {index: found for index in range(first, end) if (found := unfinished.block(index)) is not None}
    inputs = first_inputs(network, search.architecture, tokens)
    results = SearchResults()
    for index in track(range(end), "search: layer"):
        if index not in known and index >= first:
            known[index], inputs = search(blocks[index], index, inputs)
            unfinished.keep_block(index, known[index])
        elif any(later not in known for later in range(max(index, first), end)):
            inputs = search.pass_through(blocks[index], index, inputs)
        if index in known:
            results.scales.extend(known[index].scales)
            results.clips.extend(known[index].clips)
            results.figures.extend(known[index].figures)
    return results
