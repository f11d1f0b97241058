"""Which definition runs an architecture, by the name that config.json gives under "architectures".

A new architecture is one more file and one more line here.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tinyserve.models.llama import LlamaConfig, LlamaModel
from tinyserve.models.llava import LlavaConfig, LlavaModel


class ModelConfig(Protocol):
    @property
    def context_length(self) -> int: ...


# What reads a parsed config.json, beside which the files of a folder may count; and the model's class.
Definition = tuple[Callable[[Mapping[str, Any], Path], ModelConfig], Callable[..., LlamaModel]]

LLAMA: Definition = (lambda config, _: LlamaConfig.from_hf(config), LlamaModel)
LLAVA: Definition = (LlavaConfig.from_hf, LlavaModel)


def _original_llava(language: str) -> Definition:
    return partial(LlavaConfig.from_original, language=language), LlavaModel


MODELS: dict[str, Definition] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "LlavaForConditionalGeneration": LLAVA,
    "LlavaNextForConditionalGeneration": LLAVA,
    "LlavaLlamaForCausalLM": _original_llava("llama"),
    "LlavaMistralForCausalLM": _original_llava("mistral"),
    "LlavaQwenForCausalLM": _original_llava("qwen2"),
}


def definition(config: Mapping[str, Any]) -> Definition:
    """What reads the configuration, and the model's class, for a parsed config.json.

    Raises:
        ValueError: no definition for the architecture.
    """
    architectures = config.get("architectures") or []
    for name in architectures:
        if name in MODELS:
            return MODELS[name]
    came = ", ".join(map(str, architectures)) or "none"
    raise ValueError(f"config.json: architectures must name one of {', '.join(MODELS)}, got {came}")
