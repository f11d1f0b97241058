"""Which definition runs an architecture, by the name that config.json gives under "architectures".

A new architecture is one more file and one more line here; what has no line runs through transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tinyserve.models.language_model import LanguageModel
from tinyserve.models.llama import LlamaConfig, LlamaModel
from tinyserve.models.llava import LlavaConfig, LlavaModel
from tinyserve.models.transformers_config import TransformersConfig
from tinyserve.models.transformers_model import TransformersModel


class ModelConfig(Protocol):
    @property
    def context_length(self) -> int: ...


@dataclass(frozen=True)
class Definition:
    read_config: Callable[[Mapping[str, Any], Path], ModelConfig]  # a parsed config.json and the folder that it is from
    model: Callable[..., LanguageModel]
    canonical: bool = True  # it asks for tensors by the names of models/names.py, not by the checkpoint's own


LLAMA = Definition(lambda config, _: LlamaConfig.from_hf(config), LlamaModel)
LLAVA = Definition(LlavaConfig.from_hf, LlavaModel)
TRANSFORMERS = Definition(TransformersConfig.from_hf, TransformersModel, canonical=False)


def _original_llava(language: str) -> Definition:
    return Definition(partial(LlavaConfig.from_original, language=language), LlavaModel)


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
    """For a parsed config.json: our own where there is one."""
    own = [MODELS[name] for name in config.get("architectures") or [] if name in MODELS]
    return own[0] if own else TRANSFORMERS
