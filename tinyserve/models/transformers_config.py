"""What of a transformers configuration decides whether and how its model can be served.

It judges by the configuration alone; what only shows in the modules, models/transformers_model.py finds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyserve.models.defaults import parsed

LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class TransformersConfig:
    """Sizes of a model. Those of its heads are known once its modules have run."""

    architecture: str
    folder: Path  # whose config.json it is
    stored: Mapping[str, Any]  # config.json as it stands there
    text_only: bool  # the model reads more, which is not served
    hidden_size: int
    num_layers: int
    vocab_size: int
    context_length: int
    num_kv_heads: int = 0
    head_dim: int = 0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], folder: Path) -> "TransformersConfig":
        """Reads config.json of a Hugging Face folder.

        Raises:
            ValueError: transformers does not know the model or refuses its configuration, or it cannot be served.
        """
        from transformers import CONFIG_MAPPING

        name = ", ".join(map(str, config.get("architectures") or ["no architecture"]))
        if config.get("model_type") not in CONFIG_MAPPING:
            known = f"neither tinyserve nor transformers knows {name} with model_type {config.get('model_type')!r}"
            raise ValueError(f"config.json: {known}; code from the model folder is not run")
        whole = parsed(config, config["model_type"])
        text = whole.get_text_config()
        if whole.is_encoder_decoder:
            raise ValueError(f"{name} cannot be served: it has an encoder")
        kinds = set(getattr(text, "layer_types", None) or ()) - set(LAYER_TYPES)
        if kinds:
            raise ValueError(f"{name} cannot be served: its layer_types hold {', '.join(sorted(kinds))}")
        if getattr(text, "max_position_embeddings", None) is None:
            raise ValueError(f"{name} cannot be served: no max_position_embeddings, as with ALiBi, bounds its context")
        return cls(
            architecture=name,
            folder=folder,
            stored=config,
            text_only=text is not whole,
            hidden_size=int(text.hidden_size),
            num_layers=int(text.num_hidden_layers),
            vocab_size=int(text.vocab_size),
            context_length=int(text.max_position_embeddings),
        )
