"""Recognises attention like Llama's in a transformers model, and makes ours of it.

A candidate has the right Linears. It is then run once on random tokens with an attention function that keeps what it
is handed: its queries and keys must be those that ours would have, which tells how heads are rotated, normed or scaled,
and its scale, window and soft cap become ours.
"""

import torch
from torch import Tensor, nn

from tinyserve.layers import transformers_attention
from tinyserve.layers.generating_attention import GeneratingAttention, PagedLayer
from tinyserve.layers.modules import rows_of
from tinyserve.layers.recognition import agree, own_layers, probe
from tinyserve.layers.transformers_attention import BATCH, Handed, Survey

LINEARS = ((("q_proj", "k_proj", "v_proj"), "o_proj"), (("qkv_proj",), "o_proj"))
TOKENS = 3


@torch.no_grad()
def read_attention(module: nn.Module, like: Tensor) -> GeneratingAttention | None:
    """Ours with a module's weights; None where the module is no such attention.

    Args:
        module: of transformers.
        like: any tensor of the activations' dtype, where the weights are.
    """
    for inputs, output in LINEARS:
        layers = own_layers(module, inputs, output)
        if layers is None or set(dict(module.named_children())) != {*inputs, output}:
            continue
        x = probe(like, TOKENS, layers[1].out_features)
        turns = _turns(module, like)
        handed = _handed(module, x, turns)
        if handed is None:
            continue
        heads, index = handed.heads, int(module.layer_idx)  # type: ignore[arg-type]
        shape = heads.num_kv_heads, heads.head_dim
        ours = GeneratingAttention(*layers, *shape, handed.scale, handed.window, handed.soft_cap, index)
        queries, *cached = ours.rotate(ours.qkv(rows_of(x)), turns, 1, PagedLayer())
        own = queries.transpose(0, 1), *(part[0, :, :TOKENS] for part in cached)  # [heads, T, D] each
        if all(map(agree, own, handed.qkv)):
            return ours
    return None


def _turns(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [1, TOKENS, R] of random angles, both halves the same, as models like Llama have them."""
    settings = getattr(module.config, "rope_parameters", None) or {}
    size = int(module.head_dim * settings.get("partial_rotary_factor", 1.0))  # type: ignore[operator]
    angles = probe(like.float(), TOKENS, size // 2).repeat(1, 1, 2)
    return angles.cos().to(like), angles.sin().to(like)


def _handed(module: nn.Module, x: Tensor, turns: tuple[Tensor, Tensor]) -> Handed | None:
    """What the module hands to its attention function; None where it hands nothing, or wants other arguments."""
    transformers_attention.register()
    config, survey = module.config, Survey()
    before = config._attn_implementation  # type: ignore[union-attr]
    config._attn_implementation = transformers_attention.NAME  # type: ignore[union-attr]
    try:
        module(hidden_states=x, position_embeddings=turns, attention_mask=None, **{BATCH: survey})
    except (TypeError, ValueError):
        return None
    finally:
        config._attn_implementation = before  # type: ignore[union-attr]
    return next(iter(survey.layers.values()), None)
