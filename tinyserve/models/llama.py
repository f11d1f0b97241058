"""The Llama architecture: pre-norm attention and gated MLP blocks, over a flat batch of tokens.

Mistral and Qwen2 are the same but for what their configurations say (biases, a sliding window). It knows shapes and
order of operations. Where weights come from and in which format is models/weights.py's business; which tokens are in
the batch and where their keys and values lie is the engine's.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyserve.layers.attention import Attention, BatchLayout, LayerCache
from tinyserve.layers.linear import LinearLayer
from tinyserve.layers.mlp import GatedMLP
from tinyserve.layers.norm import RMSNorm
from tinyserve.layers.residual import ResidualStream
from tinyserve.layers.rope import RopeConfig, cos_sin_table
from tinyserve.models.image_spec import ImageSpec
from tinyserve.models.weights import WeightReader


@dataclass(frozen=True)
class LlamaConfig:
    hidden_size: int  # C
    intermediate_size: int  # I
    num_layers: int
    num_heads: int  # H
    num_kv_heads: int  # Hkv
    head_dim: int  # D
    vocab_size: int  # V
    context_length: int
    windows: tuple[int, ...]  # of each layer: keys that a query sees, its own included; 0: all
    norm_eps: float
    tie_embeddings: bool
    rope: RopeConfig

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Reads config.json of a Hugging Face folder.

        Raises:
            ValueError: a field is missing, or asks for something this definition does not compute.
        """
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        for name in (*names, "max_position_embeddings"):
            if not isinstance(config.get(name), int):
                raise ValueError(f"config.json: {name} must be an integer, got {config.get(name)!r}")
        activation = config.get("hidden_act") or "silu"
        if activation != "silu":
            raise ValueError(f"config.json: hidden_act must be 'silu', got {activation!r}")
        num_heads = config["num_attention_heads"]
        num_kv_heads = config.get("num_key_value_heads") or num_heads
        if num_heads % num_kv_heads:
            allowed = f"a divisor of num_attention_heads {num_heads}"
            raise ValueError(f"config.json: num_key_value_heads must be {allowed}, got {num_kv_heads}")
        head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=config["vocab_size"],
            context_length=config["max_position_embeddings"],
            windows=_windows(config),
            norm_eps=float(config.get("rms_norm_eps") or 1e-6),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            rope=RopeConfig.from_hf(config, head_dim),
        )


def _windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The sliding window of each layer: `layer_types` says which have one, else those from `max_window_layers` on."""
    count: int = config["num_hidden_layers"]
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window is None:
        return (0,) * count
    if not isinstance(window, int) or window < 1:
        raise ValueError(f"config.json: sliding_window must be a positive integer or null, got {window!r}")
    if window >= config["max_position_embeddings"]:
        return (0,) * count
    first = config.get("max_window_layers") or 0
    kinds = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * (count - first)
    if len(kinds) < count or not {*kinds} <= {"full_attention", "sliding_attention"}:
        allowed = f"{count} of 'full_attention' and 'sliding_attention'"
        raise ValueError(f"config.json: layer_types must be {allowed}, got {kinds!r}")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds[:count])


@dataclass(frozen=True, eq=False)
class Inserted:
    """Rows of a flat batch that are no tokens of the vocabulary: what an image has become."""

    rows: Tensor  # int64 [P], in the flat batch
    embeddings: Tensor  # [P, C], in the dtype of the activations


@dataclass(frozen=True, eq=False)
class LlamaLayer:
    input_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: GatedMLP

    def __call__(self, stream: ResidualStream, layout: BatchLayout, cache: LayerCache) -> None:
        self.attention(stream, self.input_norm, layout, cache)
        self.mlp(stream, self.mlp_norm)


class LlamaModel:
    """Token ids in, logits out. Every weight is already on its device, in the dtype of the activations or packed."""

    image_spec: ImageSpec | None = None  # this one knows text only

    def __init__(self, config: LlamaConfig, weights: WeightReader, num_positions: int) -> None:
        self.config = config
        self.num_positions = num_positions
        self.dtype = weights.dtype
        self.device = weights.device
        cos_sin = cos_sin_table(config.rope, num_positions, weights.device)
        shape, tied = (config.vocab_size, config.hidden_size), config.tie_embeddings
        self.embedding = weights.embedding(shape, is_output=tied)
        self.layers = [_layer(config, weights, index, cos_sin) for index in weights.progress(config.num_layers)]
        self.norm = _norm(config, weights, "model.norm")
        self.lm_head = weights.lm_head(shape, tied=self.embedding if tied else None)

    @property
    def linears(self) -> list[LinearLayer]:
        """All matrices that a token passes through, lm_head last."""
        layers = [[x.attention.qkv, x.attention.out, x.mlp.gate_up, x.mlp.down] for x in self.layers]
        return [*itertools.chain.from_iterable(layers), self.lm_head]

    @property
    def only_own_kernels(self) -> bool:
        """Whether text is computed by the ops of tinyserve.ops alone."""
        return all(linear.own_kernel for linear in self.linears)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        layout: BatchLayout,
        caches: Sequence[LayerCache],
        rows: Tensor | None = None,
        inserted: Inserted | None = None,
    ) -> Tensor:
        """Runs the layers and writes the tokens' keys and values into `caches`.

        Args:
            token_ids: int [T], the flat batch.
            layout: where the tokens stand.
            caches: one per layer.
            rows: int [R], tokens whose output is wanted; None: all T.
            inserted: rows of the batch that take these embeddings in place of their token's.

        Returns:
            The final hidden states [R, C], normalised.
        """
        x = self.embedding(token_ids)
        if inserted is not None:
            x.index_copy_(0, inserted.rows, inserted.embeddings)
        stream = ResidualStream(x)
        for layer, cache in zip(self.layers, caches, strict=True):
            layer(stream, layout, cache)
        return (stream if rows is None else stream.select(rows)).normed(self.norm)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, C] -> [R, V], in the dtype of the activations."""
        return self.lm_head(hidden)

    def encode_images(self, images: Sequence[tuple[Tensor, tuple[int, int]]]) -> list[Tensor]:
        """What images become in a prompt; a model with an `image_spec` can do it, see models/llava.py.

        Args:
            images: pixels fp32 [tiles, 3, S, S] as `image_spec` says, and the original's (width, height) in px.

        Returns:
            For each [P, C], P being `image_spec.num_tokens(width, height)`.
        """
        raise ValueError("the model takes text only, no images")


def _norm(config: LlamaConfig, weights: WeightReader, name: str) -> RMSNorm:
    return RMSNorm(weights.tensor(f"{name}.weight", (config.hidden_size,)), config.norm_eps)


def _layer(config: LlamaConfig, weights: WeightReader, index: int, cos_sin: Tensor) -> LlamaLayer:
    prefix = f"model.layers.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    hidden, q_size, kv_size = (
        config.hidden_size,
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    )
    qkv = {f"{attention}.q_proj": q_size, f"{attention}.k_proj": kv_size, f"{attention}.v_proj": kv_size}
    gate_up = {f"{mlp}.gate_proj": config.intermediate_size, f"{mlp}.up_proj": config.intermediate_size}
    return LlamaLayer(
        input_norm=_norm(config, weights, f"{prefix}.input_layernorm"),
        attention=Attention(
            qkv=weights.linear(qkv, hidden),
            out=weights.linear({f"{attention}.o_proj": hidden}, q_size),
            cos_sin=cos_sin,
            num_heads=config.num_heads,
            scale=config.head_dim**-0.5,
            window=config.windows[index],
        ),
        mlp_norm=_norm(config, weights, f"{prefix}.post_attention_layernorm"),
        mlp=GatedMLP(
            gate_up=weights.linear(gate_up, hidden, is_gated=True),
            down=weights.linear({f"{mlp}.down_proj": hidden}, config.intermediate_size),
        ),
    )
