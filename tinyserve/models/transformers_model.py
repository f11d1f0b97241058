"""Any causal language model of transformers, over our paged cache: its own modules, our linear layers and norms.

The way for architectures without a definition of their own: right, and slower, since what lies between the products is
torch's, one small operation after the other. transformers builds the modules from config.json; no code of the model
folder is run. What cannot be served so (attention outside of transformers' registry, states other than keys and
values) is refused when the model is loaded, with the reason.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from awq.skeleton import build_skeleton
from tinyserve.layers import transformers_attention
from tinyserve.layers.attention import BatchLayout, LayerCache
from tinyserve.layers.recognition import agree
from tinyserve.layers.transformers_attention import BATCH, Batch, Heads, PagedBatch, Survey
from tinyserve.models.image_spec import ImageSpec
from tinyserve.models.llama import Inserted
from tinyserve.models.transformers_config import TransformersConfig
from tinyserve.models.transformers_weights import fill
from tinyserve.models.weights import WeightReader

_log = logging.getLogger(__name__)


class TransformersModel:
    """A model of transformers with the interface of models/language_model.py.

    Args:
        config: see TransformersConfig.
        weights: reads the checkpoint by the names that it has itself.
        num_positions: tokens of the longest request; RoPE that depends on a text's length takes this one.

    Raises:
        ValueError: the architecture cannot be served, or a tensor is missing.
    """

    image_spec: ImageSpec | None = None
    only_own_kernels = False

    def __init__(self, config: TransformersConfig, weights: WeightReader, num_positions: int) -> None:
        _log.warning("%s has no definition of its own: transformers runs it, which is slower", config.architecture)
        if config.text_only:
            _log.warning("%s is served without what it reads besides text", config.architecture)
        transformers_attention.register()
        self.num_positions = num_positions
        self.dtype = weights.dtype
        self.device = weights.device
        skeleton = build_skeleton(config.folder, config.stored, weights.names())
        self._network = cast(Any, skeleton.network)
        self.linears = fill(skeleton, weights)
        _fix_frequencies(self._network, num_positions)
        self._network.set_attn_implementation(transformers_attention.NAME)
        self._no_rotation = torch.zeros(num_positions, 0, device=self.device)
        heads = self._survey(config)
        self.config = replace(config, num_kv_heads=heads.num_kv_heads, head_dim=heads.head_dim)

    def forward(
        self,
        token_ids: Tensor,
        layout: BatchLayout,
        caches: Sequence[LayerCache],
        rows: Tensor | None = None,
        inserted: Inserted | None = None,
    ) -> Tensor:
        """The logits [R, V] already: transformers computes them in its model's forward, with all that belongs to them.

        Arguments as of LlamaModel.forward.
        """
        if inserted is not None:
            raise ValueError("the model takes text only, no images")
        return self._run(token_ids, layout.positions, PagedBatch(layout, caches, self._no_rotation), rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """What `forward` has returned, as it is."""
        return hidden

    def encode_images(self, images: Sequence[tuple[Tensor, tuple[int, int]]]) -> list[Tensor]:
        raise ValueError("the model takes text only, no images")

    @torch.inference_mode()
    def _run(self, token_ids: Tensor, positions: Tensor, batch: Batch, rows: Tensor | None = None) -> Tensor:
        output = self._network(
            input_ids=token_ids.long()[None],
            position_ids=positions.long()[None],
            use_cache=False,
            logits_to_keep=0 if rows is None else rows,  # 0: all
            **{BATCH: batch},
        )
        logits: Tensor = output.logits[0]
        return logits

    def _survey(self, config: TransformersConfig) -> Heads:
        """Runs two tokens with an attention that answers with zeros, and another before the second one.

        Raises:
            ValueError: keys and values of equal heads are not all that a token leaves behind.
        """
        survey = Survey()
        positions = torch.arange(2, device=self.device)
        try:
            first = self._run(torch.tensor([0, 1], device=self.device), positions, survey)
            other = self._run(torch.tensor([2, 1], device=self.device), positions, Survey())
        except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"{config.architecture} cannot be served: {error}") from error
        if survey.layers.keys() != set(range(config.num_layers)):
            raise ValueError(
                f"{config.architecture} cannot be served: of {config.num_layers} layers {len(survey.layers)} attend "
                "through transformers' registry of attention functions"
            )
        if len({handed.heads for handed in survey.layers.values()}) > 1:
            raise ValueError(f"{config.architecture} cannot be served: its layers have different heads")
        if not agree(first[1], other[1]):  # a product of other rows may be rounded otherwise
            raise ValueError(f"{config.architecture} cannot be served: tokens meet outside of attention")
        return survey.layers[0].heads


def _fix_frequencies(network: nn.Module, num_positions: int) -> None:
    """Makes RoPE that follows the longest text of a batch the same for all: that of texts of `num_positions` tokens.

    Else a request's output would depend on the others in its batch, and keys in the cache on when they were written.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for module in network.modules():
        types: Any = getattr(module, "rope_type", {})
        for layer_type, kind in ({"": types} if isinstance(types, str) else types).items():
            if "dynamic" not in kind and kind != "longrope":
                continue
            own: Any = module
            chosen = {"layer_type": layer_type} if layer_type else {}
            name = f"{layer_type}_inv_freq" if layer_type else "inv_freq"
            frequencies, _ = ROPE_INIT_FUNCTIONS[kind](own.config, own._buffers[name].device, num_positions, **chosen)
            own._buffers[name] = frequencies
            own.rope_type = {**own.rope_type, layer_type: "default"} if layer_type else "default"
            _log.info("RoPE of type %s is that of texts of %d tokens, for every text", kind, num_positions)
