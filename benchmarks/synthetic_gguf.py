"""Writes a GGUF file of a known model's true shapes with random Q4_0 weights: llama.cpp's side of synthetic_model.py.

    python -m benchmarks.synthetic_gguf llama-2-7b OUT.gguf

Types are those that llama.cpp's own quantization to Q4_0 chooses: the output layer is Q6_K (Q8_0 where it is the
embedding). There is no tokenizer in it. Needs the package gguf.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from transformers import PretrainedConfig

from awq.formats.output import new_file
from benchmarks.model_configs import MODELS
from benchmarks.synthetic_model import STEP, parameters

Q4_0, Q6_K, Q8_0 = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q6_K, GGMLQuantizationType.Q8_0
POOL_BYTES = 1 << 27  # each tensor is a part of it
SCALE_AT = {Q4_0: 0, Q6_K: 208, Q8_0: 0}  # byte of a block where its fp16 scale is
SCALES = {Q4_0: STEP, Q6_K: STEP / 400, Q8_0: STEP / 16}  # for weights of about the same deviation
NAMES = {  # Hugging Face's -> GGUF's
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Blocks:
    """Random blocks of one type."""

    def __init__(self, kind: GGMLQuantizationType) -> None:
        self._weights, self._bytes = GGML_QUANT_SIZES[kind]
        self._random = np.random.default_rng(0)
        self._pool = self._random.integers(0, 256, (POOL_BYTES // self._bytes, self._bytes), dtype=np.uint8)
        scale, at = np.float16(SCALES[kind]), SCALE_AT[kind]
        self._pool[:, at : at + 2] = np.frombuffer(scale.tobytes(), np.uint8)

    def tensor(self, n: int, k: int) -> Any:
        """uint8 [n, bytes of a row], a part of the pool."""
        blocks = n * k // self._weights
        start = int(self._random.integers(len(self._pool) - blocks))
        return self._pool[start : start + blocks].reshape(n, -1)


def gguf_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.weight"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def type_of(name: str, config: PretrainedConfig) -> GGMLQuantizationType:
    if name == "lm_head.weight":
        return Q6_K
    return Q8_0 if name == "model.embed_tokens.weight" and config.tie_word_embeddings else Q4_0


def add_metadata(writer: GGUFWriter, config: Any) -> None:
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    config = MODELS[args.model]
    pools: dict[GGMLQuantizationType, Blocks] = {}
    with new_file(args.output) as path:
        writer = GGUFWriter(path, "llama")
        add_metadata(writer, config)
        for name, shape in parameters(config):
            if len(shape) == 1:
                writer.add_tensor(gguf_name(name), np.ones(shape, np.float32))
                continue
            kind = type_of(name, config)
            blocks = pools[kind] if kind in pools else pools.setdefault(kind, Blocks(kind))
            writer.add_tensor(gguf_name(name), blocks.tensor(*shape), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main()
