"""Fills a network of transformers from a checkpoint: linear layers and norms become ours, the rest stays what it is."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from awq.skeleton import Skeleton
from tinyserve.layers.linear import LinearLayer
from tinyserve.layers.modules import QuantEmbedding, QuantLinear
from tinyserve.layers.recognition import is_linear
from tinyserve.layers.swap import swap_norms
from tinyserve.models.weights import WeightReader


def fill(skeleton: Skeleton, weights: WeightReader) -> list[LinearLayer]:
    """Gives the skeleton's network all of its weights, in place.

    Returns:
        Its linear layers, the output layer last.

    Raises:
        ValueError: a tensor is missing or has another shape than config.json says.
    """
    network: Any = skeleton.network
    vocabulary = (network.get_input_embeddings(), network.get_output_embeddings())
    linears: list[LinearLayer] = []
    for stored, name, module in _parameters(skeleton, weights):
        module_name, _, leaf = name.rpartition(".")
        if module in vocabulary:
            continue
        if is_linear(module):
            if leaf == "weight":  # the bias comes with it
                rows = {stored.removesuffix(".weight"): module.out_features}
                linears.append(weights.linear(rows, module.in_features))
                network.set_submodule(module_name, QuantLinear(linears[-1], module.in_features))
        elif not isinstance(module, QuantLinear):
            _set(module, leaf, weights.tensor(stored, tuple(getattr(module, leaf).shape)))
    linears.append(_fill_vocabulary(skeleton, weights))
    for module in network.modules():
        for leaf, buffer in module._buffers.items():
            module._buffers[leaf] = None if buffer is None else buffer.to(weights.device)
    swap_norms(network)
    return linears


def _parameters(skeleton: Skeleton, weights: WeightReader) -> Iterator[tuple[str, str, Any]]:
    """Of every tensor the stored name, the name in the network and the module there, with a progress bar."""
    names = list(skeleton.parameters.items())
    for index in weights.progress(len(names)):
        stored, name = names[index]
        yield stored, name, skeleton.network.get_submodule(name.rpartition(".")[0])


def _set(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


@torch.no_grad()
def _fill_vocabulary(skeleton: Skeleton, weights: WeightReader) -> LinearLayer:
    """The embedding and the output layer, which it returns; they may be one matrix."""
    network: Any = skeleton.network
    embedding, output = network.get_input_embeddings(), network.get_output_embeddings()
    names = {module: name for name, module in network.named_modules() if module in (embedding, output)}
    stored = {name: stored for stored, name in skeleton.parameters.items()}
    is_tied = f"{names[output]}.weight" in network.all_tied_weights_keys
    stored_embedding = stored[f"{names[embedding]}.weight"].removesuffix(".weight")
    rows = weights.embedding(tuple(embedding.weight.shape), is_tied, stored_embedding)
    shape = (output.out_features, output.in_features)
    if is_tied:
        layer = weights.lm_head(shape, tied=rows)
    else:
        layer = weights.lm_head(shape, stored[f"{names[output]}.weight"].removesuffix(".weight"))
    network.set_submodule(names[output], QuantLinear(layer, output.in_features))
    if type(embedding).forward is nn.Embedding.forward:
        network.set_submodule(names[embedding], QuantEmbedding(rows))
    else:  # it does more, Gemma's scales for example: it keeps its forward
        _set(embedding, "weight", weights.tensor(f"{stored_embedding}.weight", tuple(embedding.weight.shape)))
    return layer
