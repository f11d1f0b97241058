"""What the engine asks of a model, whichever definition it has: token ids in, logits out, over a paged KV cache."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tinyserve.layers.attention import BatchLayout, LayerCache
from tinyserve.layers.linear import LinearLayer
from tinyserve.models.image_spec import ImageSpec
from tinyserve.models.llama import Inserted


class LanguageConfig(Protocol):
    """The sizes that decide about caches and requests."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...


class LanguageModel(Protocol):
    """Implemented by LlamaModel, LlavaModel and TransformersModel; arguments and results as in models/llama.py."""

    @property
    def config(self) -> LanguageConfig: ...

    @property
    def num_positions(self) -> int:
        """Tokens of the longest request, at most config.context_length."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def image_spec(self) -> ImageSpec | None:
        """What becomes of images; None: the model reads text only."""
        ...

    @property
    def linears(self) -> list[LinearLayer]: ...

    @property
    def only_own_kernels(self) -> bool: ...

    def forward(
        self,
        token_ids: Tensor,
        layout: BatchLayout,
        caches: Sequence[LayerCache],
        rows: Tensor | None = None,
        inserted: Inserted | None = None,
    ) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def encode_images(self, images: Sequence[tuple[Tensor, tuple[int, int]]]) -> list[Tensor]: ...
