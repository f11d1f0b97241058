"""Replaces modules of a loaded transformers model by ours, in place, as TinyChat's users know it.

    model = AutoModelForCausalLM.from_pretrained(MODEL)
    make_quant_linear(model, open_checkpoint(QUANTIZED))
    make_quant_attn(model); make_quant_norm(model); make_fused_mlp(model)
    model.generate(...)

What a module is, is found by what it holds and confirmed by what it computes, not by the name of its class.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from awq.formats import Checkpoint
from awq.quantize import QuantizedTensor
from tinyserve.layers.linear import W4A16Linear
from tinyserve.layers.modules import FusedMLP, QuantLinear, QuantNorm
from tinyserve.layers.norm_kinds import read_norm
from tinyserve.layers.recognition import agree, is_linear, own_layers, probe

# A gated block's Linears: gate and up (or both in one), and down.
GATED = ((("gate_proj", "up_proj"), "down_proj"), (("gate_up_proj",), "down_proj"))


def make_quant_linear(model: nn.Module, quantized: Checkpoint | Mapping[str, QuantizedTensor]) -> list[str]:
    """Replaces linear layers by 4-bit ones; biases and the dtype of the activations stay what they are.

    Args:
        model: on whatever device; its own weights of these layers are not read.
        quantized: weights [N, K] by the names of the model's modules: a checkpoint that awq.formats has opened, whose
            norms and other tensors the model must hold already, or what awq.quantize has made.

    Returns:
        The names of the modules replaced.

    Raises:
        ValueError: a name or shape is none of the model's linear layers', or there are no weights at all.
    """
    weight_of: Callable[[str], QuantizedTensor]
    if isinstance(quantized, Checkpoint):
        names, weight_of = quantized.modules(), quantized.quantized
    else:
        names, weight_of = list(quantized), quantized.__getitem__
    modules = dict(model.named_modules())
    missing = [name for name in names if not is_linear(modules.get(name, model))]
    if missing or not names:
        found = f"no linear layer {missing[0]} ({len(missing)} of {len(names)} names)" if missing else "nothing to take"
        raise ValueError(f"{type(model).__name__}: {found}")
    for name in names:
        module = modules[name]
        assert is_linear(module)
        weight = weight_of(name)
        if (weight.n, weight.k) != (module.out_features, module.in_features):
            expected = [module.out_features, module.in_features]
            raise ValueError(f"{name} must be {expected}, got {[weight.n, weight.k]}")
        model.set_submodule(name, QuantLinear(_packed(module, weight), module.in_features))
    return names


def _packed(module: nn.Linear, weight: QuantizedTensor) -> W4A16Linear:
    device = module.weight.device if module.weight.device.type != "meta" else weight.codes.device
    codes, scales, zeros = (part.to(device) for part in (weight.codes, weight.scales, weight.zeros))
    bias = None if module.bias is None else module.bias.detach()
    return W4A16Linear.from_quantized(QuantizedTensor(codes, scales, zeros, weight.config), bias, module.weight.dtype)


def swap_norms(model: nn.Module) -> list[str]:
    """Replaces every norm that norm_kinds.py knows; returns their names."""
    norms = {name: norm for name, module in model.named_modules() if (norm := read_norm(module)) is not None}
    for name, norm in norms.items():
        model.set_submodule(name, QuantNorm(norm))
    return list(norms)


def make_quant_norm(model: nn.Module) -> list[str]:
    """Replaces the norms of a model, on whatever device and in whatever dtype its weights are.

    Returns:
        The names of the modules replaced.

    Raises:
        ValueError: none was found.
    """
    return _found(model, swap_norms(model), "a norm: a weight [C], an epsilon, the formula of RMSNorm or LayerNorm")


def make_fused_mlp(model: nn.Module) -> list[str]:
    """Makes one product of the gate and up projections of every gated feed-forward block.

    Returns:
        The names of the blocks replaced.

    Raises:
        ValueError: none was found.
    """
    like = _like(model)
    blocks = {name: fused for name, module in model.named_modules() if (fused := _fused_mlp(module, like)) is not None}
    for name, fused in blocks.items():
        model.set_submodule(name, fused)
    wanted = "a gated feed-forward block: Linears gate_proj, up_proj (or gate_up_proj) and down_proj, and an activation"
    return _found(model, list(blocks), wanted)


def make_quant_attn(model: nn.Module, dev: torch.device | str | None = None) -> list[str]:
    """Replaces attention like Llama's by one with a joined product, our kernels and a paged cache of its own.

    For `model.generate` with prompts of one length: padding is refused when it comes. The cache belongs to the call.

    Args:
        model: of transformers; its linear layers of 16 or of 4 bits.
        dev: where the weights have to be; None: wherever they are.

    Returns:
        The names of the modules replaced.

    Raises:
        ValueError: no such attention was found, or the weights are elsewhere.
    """
    from tinyserve.layers.swap_attention import read_attention  # it imports transformers

    like = _like(model)
    if dev is not None and torch.device(dev).type != like.device.type:
        raise ValueError(f"dev must be {like.device.type}, where the model's weights are, got {dev}")
    found = {name: own for name, module in model.named_modules() if (own := read_attention(module, like)) is not None}
    for name, attention in found.items():
        model.set_submodule(name, attention)
    wanted = "attention like Llama's: Linears q_proj, k_proj, v_proj (or qkv_proj) and o_proj, rotated halves"
    return _found(model, list(found), wanted)


@torch.no_grad()
def _fused_mlp(module: nn.Module, like: Tensor) -> FusedMLP | None:
    for inputs, output in GATED:
        layers = own_layers(module, inputs, output)
        others = [child for name, child in module.named_children() if name not in (*inputs, output)]
        if layers is None or len(others) != 1 or any(others[0].parameters()):
            continue
        gate = torch.linspace(-8, 8, 101)
        is_silu = torch.allclose(others[0](gate), nn.functional.silu(gate), atol=1e-5)
        fused = FusedMLP(*layers, None if is_silu else others[0])
        x = probe(like, 3, layers[1].out_features)
        if agree(fused(x), module(x)):
            return fused
    return None


def _like(model: nn.Module) -> Tensor:
    """A tensor of the activations' dtype, where the weights are: the embedding stays a parameter."""
    return next(parameter for parameter in model.parameters() if parameter.is_floating_point())


def _found(model: nn.Module, names: list[str], wanted: str) -> list[str]:
    if not names:
        raise ValueError(f"{type(model).__name__} has nothing to replace: not found was {wanted}")
    return names
