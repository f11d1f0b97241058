"""Which Linears of a decoder block share an input, and what computes that input: data, one entry per architecture.

The search multiplies the weights of a group by a scale per input channel and divides what computes the input by the
same scale. This module says which tensors those are. It knows no tensors, no model classes and no search.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from awq.errors import UserError


@dataclass(frozen=True)
class Group:
    """Linears of one block that read the same input.

    Attributes:
        prev: the norm or Linear that computes the input; it takes the inverse scale.
        layers: the Linears, which take the scale.
        inspect: the module whose output error the exact search minimises.
        through_value: `prev` is the value projection: its output channels are the group's inputs only where every query
            head has its own value head, so the group is scaled only if both weights have the same shape.
    """

    prev: str
    layers: tuple[str, ...]
    inspect: str
    through_value: bool = False


@dataclass(frozen=True)
class Architecture:
    """Names relative to a block; `blocks` is the path of the list of blocks, `head` all that follows the blocks."""

    blocks: str
    groups: tuple[Group, ...]
    unclipped: tuple[str, ...]  # clipping weights of queries and keys costs more than it gains (AWQ, section 3.2)

    def linears(self) -> tuple[str, ...]:
        """Every quantized Linear of a block, in order of use."""
        return tuple(layer for group in self.groups for layer in group.layers)

    def block(self, index: int) -> str:
        """Global name of one block, e.g. `model.layers.3`."""
        return f"{self.blocks}.{index}"

    def block_of(self, name: str) -> int | None:
        """The block that a global tensor or module name lies in; None outside of the blocks."""
        match = re.match(re.escape(self.blocks) + r"\.(\d+)\.", name)
        return int(match.group(1)) if match else None

    def is_linear(self, module: str) -> bool:
        """Whether a global module name is one of the quantized Linears."""
        index = self.block_of(module)
        return index is not None and module.removeprefix(self.block(index) + ".") in self.linears()


LLAMA = Architecture(
    blocks="model.layers",
    groups=(
        Group("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn"),
        Group("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj", through_value=True),
        Group("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp"),
        Group("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj"),
    ),
    unclipped=("self_attn.q_proj", "self_attn.k_proj"),
)

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
}


def architecture_of(names: Iterable[str]) -> Architecture:
    """The entry for a configuration's `architectures`.

    Raises:
        UserError: none of them has an entry.
    """
    names = list(names)
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    came = ", ".join(names) or "none named in config.json"
    raise UserError(f"unsupported architecture: {came}; supported: {', '.join(sorted(ARCHITECTURES))}")
