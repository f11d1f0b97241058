"""The least time that a step of a model can take: its bytes over the copy bandwidth, its products over their rate.

The bytes are the fewest that hold the weights (4 bits a code, 16 a scale, 4 a zero; lm_head in 16 bits) and the keys
and values of every request, without the scales of a cache of 8 bits.
"""

from dataclasses import dataclass

from transformers import PretrainedConfig

from benchmarks.decode.variant import Variant
from benchmarks.kernels.limits import Ceilings

QUANTIZED_BITS = {"W4A16": 4 + (16 + 4) / 128, "W16A16": 16.0}  # of a weight of the layers, in groups of 128


@dataclass(frozen=True)
class Model:
    """What counts of a configuration."""

    layer_weights: int  # of all layers' linear layers
    head_weights: int  # of lm_head
    kv_elements: int  # keys and values of one token, over all layers
    attention: int  # multiply-adds of one query with one key and value, over all layers and heads
    dtype: str

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Model":
        hidden, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
        kv_heads = config.num_key_value_heads or heads
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * config.intermediate_size
        return cls(
            layers * layer,
            config.vocab_size * hidden,
            2 * layers * kv_heads * head_dim,
            2 * layers * heads * head_dim,
            str(config.dtype).removeprefix("torch."),
        )

    def step_bytes(self, variant: Variant, batch: int, context: float) -> float:
        """Of one decode step of `batch` requests with `context` tokens each."""
        weights = self.layer_weights * QUANTIZED_BITS[variant.precision] / 8 + 2 * self.head_weights
        element = 2 if variant.kv_cache_dtype == "auto" else 1
        return weights + batch * context * self.kv_elements * element

    def decode_s(self, ceilings: Ceilings, variant: Variant, batch: int, context: float) -> float:
        memory = self.step_bytes(variant, batch, context) / ceilings.copy_bytes_per_s
        products = batch * (self.layer_weights + self.head_weights + context * self.attention)
        return max(memory, 2 * products / ceilings.flops_per_s[self.dtype])

    def prefill_s(self, ceilings: Ceilings, tokens: int) -> float:
        """Of a prompt alone; only its last token passes lm_head."""
        products = tokens * self.layer_weights + self.head_weights + tokens * (tokens + 1) // 2 * self.attention
        return 2 * products / ceilings.flops_per_s[self.dtype]
