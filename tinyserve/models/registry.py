"""Which definition runs an architecture, by the name that config.json gives under "architectures".

A new architecture is one more file and one more line here.
"""

from collections.abc import Mapping
from typing import Any

from tinyserve.models.llama import LlamaConfig, LlamaModel

MODELS: dict[str, tuple[type[LlamaConfig], type[LlamaModel]]] = {
    "LlamaForCausalLM": (LlamaConfig, LlamaModel),
    "MistralForCausalLM": (LlamaConfig, LlamaModel),
    "Qwen2ForCausalLM": (LlamaConfig, LlamaModel),
}


def definition(config: Mapping[str, Any]) -> tuple[type[LlamaConfig], type[LlamaModel]]:
    """Config and model class for a parsed config.json.

    Raises:
        ValueError: no definition for the architecture.
    """
    architectures = config.get("architectures") or []
    for name in architectures:
        if name in MODELS:
            return MODELS[name]
    came = ", ".join(map(str, architectures)) or "none"
    raise ValueError(f"config.json: architectures must name one of {', '.join(MODELS)}, got {came}")
