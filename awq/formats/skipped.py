"""Decides how a configuration names the modules that stay in 16 bits, so that engines skip them and no other.

Engines compare such names in their own ways: as part of a module's name (AutoAWQ, vLLM, transformers), and under
prefixes of their own. So a name is the shortest ending that occurs in the name of no quantized module. Knows no model.
"""

from collections.abc import Iterable

HEAD = "lm_head"  # named even where its weights are those of the embedding and not stored


def skipped_parts(matrices: Iterable[str], quantized: Iterable[str]) -> list[str]:
    """Parts of names that cover every unquantized module with a matrix.

    For a vision-language model ["lm_head", "embed_tokens", "vision_tower", "multi_modal_projector"], for experts
    ["lm_head", "embed_tokens", "mlp.gate"]. Where even the whole name of a module occurs in that of a quantized one,
    it is the whole name.

    Args:
        matrices: names of the modules that have an unquantized matrix.
        quantized: names of the quantized modules.
    """
    taken = list(quantized)
    inner = {name[:end] for name in taken for end in _ends(name)}
    parts = [] if any(HEAD in name for name in taken) else [HEAD]
    for module in matrices:
        if any(f".{part}." in f".{module}." for part in parts):
            continue
        # The outermost module with nothing quantized inside, then as short an ending of its name as is safe.
        outermost = next((module[:end] for end in _ends(module) if module[:end] not in inner), module)
        words = outermost.split(".")
        endings = (".".join(words[start:]) for start in reversed(range(len(words))))
        parts.append(next((ending for ending in endings if not any(ending in name for name in taken)), outermost))
    return parts


def _ends(name: str) -> list[int]:
    """Where the dotted prefixes of a name end, the whole name last."""
    return [index for index, character in enumerate(name) if character == "."] + [len(name)]
