"""What one process measures of one model, and the rows that it prints, one JSON object a line."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PretrainedConfig

from benchmarks.decode.variant import Variant
from benchmarks.kernels.limits import Ceilings
from benchmarks.model_configs import MODELS

Row = dict[str, Any]  # "kind" says which: decode, first token, torch prefill, load, skipped, failed


@dataclass(frozen=True)
class Task:
    model: str  # one of MODELS
    device: str
    ceilings: Ceilings
    variants: tuple[str, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]  # tokens, whose first token is waited for
    compared_prompt: int | None = None  # tokens of one that torch's own model gets too
    trace: str | None = None  # file for the trace of a few steps at batch 1 and the shortest context, first variant
    settings: Mapping[str, Any] | None = None  # of the configuration, that are to be others

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        fields = json.loads(text)
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **lists, "ceilings": Ceilings(**fields["ceilings"])})

    @property
    def config(self) -> PretrainedConfig:
        config = MODELS[self.model]
        if not self.settings:
            return config
        fields = config.to_dict()
        fields.pop("layer_types", None)  # one for each layer, which follow from the others
        return type(config).from_dict(fields | dict(self.settings))

    def parsed_variants(self) -> list[Variant]:
        return [Variant.parse(text) for text in self.variants]
