"""Which Linears of a decoder block share an input, and what computes that input: data, by the text model's model_type.

Only what a fold leaves unchanged is here. Behind an activation that is not linear in its scale (GELU between the two
Linears of an MLP) nothing can be folded without changing the model, so such a Linear is a group of its own. It knows
no tensors, no model classes and no search; what the fields mean stands in groups.py.
"""

from dataclasses import replace

from awq.groups import Architecture, Rule

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION_NORM = Rule("input_layernorm", QKV, "self_attn")
VALUES = Rule("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj", values="alone")
MLP_NORM = Rule("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp")
MLP = Rule("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj")
QUERIES_AND_KEYS = ("self_attn.q_proj", "self_attn.k_proj")

LLAMA = Architecture((ATTENTION_NORM, VALUES, MLP_NORM, MLP), QUERIES_AND_KEYS)

# Norms that multiply by 1 + weight, and a norm behind attention and MLP too, whose output nothing but the sum reads.
GEMMA = Architecture(
    (
        replace(ATTENTION_NORM, offset=1.0),
        VALUES,
        Rule("pre_feedforward_layernorm", MLP_NORM.layers, "mlp", offset=1.0),
        MLP,
    ),
    QUERIES_AND_KEYS,
)

PHI3 = Architecture(
    (
        Rule("input_layernorm", ("self_attn.qkv_proj",), "self_attn"),
        Rule("self_attn.qkv_proj", ("self_attn.o_proj",), "self_attn.o_proj", values="stacked"),
        Rule("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp"),
        Rule("mlp.gate_up_proj", ("mlp.down_proj",), "mlp.down_proj"),
    ),
    ("self_attn.qkv_proj",),
)

# ReLU lets a positive scale through; the 350M model has its norms behind attention and MLP.
PRE_NORM = (("do_layer_norm_before", (True,)),)
OPT = Architecture(
    (
        Rule("self_attn_layer_norm", QKV, "self_attn", when=PRE_NORM),
        Rule("self_attn.v_proj", ("self_attn.out_proj",), "self_attn.out_proj", values="alone"),
        Rule("final_layer_norm", ("fc1",), "fc1", when=PRE_NORM),
        Rule("fc1", ("fc2",), "fc2", when=(("activation_function", ("relu",)),)),
    ),
    QUERIES_AND_KEYS,
)

# Where the sum takes the norm's output instead of its input, nothing can be folded into the norm.
PLAIN_SUM = (("apply_residual_connection_post_layernorm", (False, None)),)
BLOOM = Architecture(
    (
        Rule("input_layernorm", ("self_attention.query_key_value",), "self_attention", when=PLAIN_SUM),
        Rule(
            "self_attention.query_key_value",
            ("self_attention.dense",),
            "self_attention.dense",
            values="interleaved",
        ),
        Rule("post_attention_layernorm", ("mlp.dense_h_to_4h",), "mlp.dense_h_to_4h", when=PLAIN_SUM),
    ),
    ("self_attention.query_key_value",),
)

# 40B has a norm for each of attention and MLP, 7B and 11B one for both, the RW models one after the other.
FALCON = Architecture(
    (
        Rule("ln_attn", ("self_attention.query_key_value",), "self_attention"),
        Rule("ln_mlp", ("mlp.dense_h_to_4h",), "mlp.dense_h_to_4h"),
        Rule(
            "input_layernorm",
            ("self_attention.query_key_value", "mlp.dense_h_to_4h"),
            "",
            when=(("parallel_attn", (True,)), *PLAIN_SUM),
        ),
        Rule(
            "input_layernorm",
            ("self_attention.query_key_value",),
            "self_attention",
            when=(("parallel_attn", (False,)), *PLAIN_SUM),
        ),
        Rule("post_attention_layernorm", ("mlp.dense_h_to_4h",), "mlp.dense_h_to_4h", when=PLAIN_SUM),
        *BLOOM.rules[1:2],
    ),
    BLOOM.unclipped,
)

UNBOUNDED = (("attn_config.clip_qkv", (None,)),)
MPT = Architecture(
    (
        Rule("norm_1", ("attn.Wqkv",), "attn"),
        # A bound on queries, keys and values would be one on scaled values.
        Rule(
            "attn.Wqkv",
            ("attn.out_proj",),
            "attn.out_proj",
            values="stacked",
            when=(("attn_config.clip_qkv", (None,)),),
        ),
        Rule("norm_2", ("ffn.up_proj",), "ffn.up_proj"),
    ),
    ("attn.Wqkv",),
)

BIGCODE = Architecture(
    (
        Rule("ln_1", ("attn.c_attn",), "attn"),
        Rule("attn.c_attn", ("attn.c_proj",), "attn.c_proj", values="interleaved"),
        Rule("ln_2", ("mlp.c_fc",), "mlp.c_fc"),
    ),
    ("attn.c_attn",),
)

NEOX = Architecture(
    (
        Rule("input_layernorm", ("attention.query_key_value",), "attention"),
        Rule("attention.query_key_value", ("attention.dense",), "attention.dense", values="interleaved"),
        Rule("post_attention_layernorm", ("mlp.dense_h_to_4h",), "mlp.dense_h_to_4h"),
    ),
    ("attention.query_key_value",),
)

MIXTRAL = Architecture(
    (
        ATTENTION_NORM,
        VALUES,
        Rule(
            "post_attention_layernorm",
            ("block_sparse_moe.experts.*.w1", "block_sparse_moe.experts.*.w3"),
            "block_sparse_moe",
            followers=("block_sparse_moe.gate",),
        ),
        Rule("block_sparse_moe.experts.*.w3", ("block_sparse_moe.experts.*.w2",), "block_sparse_moe.experts.*.w2"),
    ),
    QUERIES_AND_KEYS,
)

# Some layers may have an ordinary MLP; an expert for all tokens stands beside the others in Qwen2.
QWEN_MOE = Architecture(
    (
        ATTENTION_NORM,
        VALUES,
        Rule(
            "post_attention_layernorm",
            (
                *MLP_NORM.layers,
                "mlp.shared_expert.gate_proj",
                "mlp.shared_expert.up_proj",
                "mlp.experts.*.gate_proj",
                "mlp.experts.*.up_proj",
            ),
            "mlp",
            followers=("mlp.gate", "mlp.shared_expert_gate"),
        ),
        MLP,
        Rule("mlp.shared_expert.up_proj", ("mlp.shared_expert.down_proj",), "mlp.shared_expert.down_proj"),
        Rule("mlp.experts.*.up_proj", ("mlp.experts.*.down_proj",), "mlp.experts.*.down_proj"),
    ),
    QUERIES_AND_KEYS,
)

# A vision-language model has the entry of its language model.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen2_vl_text": LLAMA,
    "qwen2_5_vl_text": LLAMA,
    "qwen3": LLAMA,
    "qwen3_vl_text": LLAMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi3": PHI3,
    "opt": OPT,
    "bloom": BLOOM,
    "falcon": FALCON,
    "mpt": MPT,
    "gpt_bigcode": BIGCODE,
    "gpt_neox": NEOX,
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN_MOE,
    "qwen3_moe": QWEN_MOE,
}

# Every Linear on its own: for architectures without an entry.
GENERIC = Architecture()
