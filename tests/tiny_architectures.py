"""Small models with random weights of every architecture that the quantizer knows, saved as users' folders are."""

from pathlib import Path
from typing import Any

import tiny_model
import torch
import transformers
from transformers import AutoConfig

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 256,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
}
CLIP = {**VISION, "model_type": "clip_vision_model"}
SIGLIP = {**VISION, "model_type": "siglip_vision_model"}
QWEN_VISION = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}
MULTI_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
FALCON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320, "bias": True}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# What it shows -> class, model_type, settings of its configuration.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "llama", TEXT),
    "llama, all heads": ("LlamaForCausalLM", "llama", {**TEXT, "num_key_value_heads": 4, "attention_bias": True}),
    "mistral": ("MistralForCausalLM", "mistral", {**TEXT, "sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {**TEXT, "tie_word_embeddings": True}),
    "qwen2, a windowed layer": (
        "Qwen2ForCausalLM",
        "qwen2",
        {**TEXT, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", TEXT),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", {**TEXT, **WINDOWS}),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text", {**TEXT, **WINDOWS}),
    "phi3": ("Phi3ForCausalLM", "phi3", {**TEXT, "pad_token_id": 0}),
    "opt": (
        "OPTForCausalLM",
        "opt",
        {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320}
        | {"word_embed_proj_dim": 64, "max_position_embeddings": 256},
    ),
    "opt, norms behind": (
        "OPTForCausalLM",
        "opt",
        {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320}
        | {"word_embed_proj_dim": 32, "max_position_embeddings": 256, "do_layer_norm_before": False},
    ),
    "bloom": ("BloomForCausalLM", "bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 320}),
    "falcon 7b": ("FalconForCausalLM", "falcon", FALCON),
    "falcon 40b": (
        "FalconForCausalLM",
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": False},
    ),
    "falcon 11b": (
        "FalconForCausalLM",
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon rw": (
        "FalconForCausalLM",
        "falcon",
        {**FALCON, "multi_query": False, "parallel_attn": False, "alibi": True},
    ),
    "mpt": ("MptForCausalLM", "mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 320}),
    "bigcode": (
        "GPTBigCodeForCausalLM",
        "gpt_bigcode",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "vocab_size": 320},
    ),
    "neox": ("GPTNeoXForCausalLM", "gpt_neox", TEXT),
    "mixtral": (
        "MixtralForCausalLM",
        "mixtral",
        {**TEXT, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2 moe": (
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        {**TEXT, **MOE, "shared_expert_intermediate_size": 64, "mlp_only_layers": [1]},
    ),
    "qwen3 moe": ("Qwen3MoeForCausalLM", "qwen3_moe", {**TEXT, **MOE}),
    "llava": (
        "LlavaForConditionalGeneration",
        "llava",
        {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": CLIP, "image_token_index": 319},
    ),
    "llava next": (
        "LlavaNextForConditionalGeneration",
        "llava_next",
        {"text_config": {**TEXT, "model_type": "mistral"}, "vision_config": CLIP, "image_token_index": 319},
    ),
    "qwen2 vl": (
        "Qwen2VLForConditionalGeneration",
        "qwen2_vl",
        {"text_config": {**TEXT, **MULTI_ROPE}, "vision_config": QWEN_VISION},
    ),
    "qwen2.5 vl": (
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_vl",
        {"text_config": {**TEXT, **MULTI_ROPE}, "vision_config": {**VISION, "depth": 2, "out_hidden_size": 64}},
    ),
    "qwen3 vl": (
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
        {"text_config": {**TEXT, **MULTI_ROPE}, "vision_config": {**VISION, "depth": 2, "out_hidden_size": 64}},
    ),
    "gemma3 vl": (
        "Gemma3ForConditionalGeneration",
        "gemma3",
        {"text_config": {**TEXT, **WINDOWS}, "vision_config": SIGLIP, "mm_tokens_per_image": 4}
        | {"image_token_index": 319},
    ),
    "no mapping": ("StableLmForCausalLM", "stablelm", TEXT),
}


def save(name: str, folder: Path, std: float = 0.2) -> Any:
    """Writes the folder, with a tokenizer of bytes; returns the model, in fp32."""
    kind, model_type, settings = MODELS[name]
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    model = getattr(transformers, kind)(AutoConfig.for_model(model_type, **settings)).eval()
    for parameter in model.parameters():  # biases start as zeros, norms as ones: random values show more
        torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    tiny_model.save_tokenizer(folder)
    return model
