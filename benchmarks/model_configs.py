"""The configurations of real models, as data: for benchmarks that make their weights up."""

from typing import Any

from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
LLAMA_2: dict[str, Any] = {
    **LLAMA,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "dtype": "float16",
}
LLAMA_3: dict[str, Any] = {
    **LLAMA,
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "dtype": "bfloat16",
}
MISTRAL: dict[str, Any] = {**LLAMA, "architectures": ["MistralForCausalLM"]}
QWEN: dict[str, Any] = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6}
MODELS: dict[str, PretrainedConfig] = {
    "llama-2-7b": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, **LLAMA_2
    ),
    "llama-2-13b": LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, **LLAMA_2
    ),
    # the language model alone, which has a few tokens more
    "llava-1.5-7b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        **{**LLAMA_2, "vocab_size": 32064},
    ),
    "llama-3-8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, **LLAMA_3
    ),
    "llama-3-70b": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, **LLAMA_3
    ),
    "mistral-7b": MistralConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32768,
        max_position_embeddings=32768,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        dtype="bfloat16",
        **MISTRAL,
    ),
    "qwen2.5-7b": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        dtype="bfloat16",
        **QWEN,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        dtype="bfloat16",
        **LLAMA,
    ),
}
