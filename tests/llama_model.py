"""Loads models that our own Llama definition runs, LLaVA's too, for tests that look inside."""

from typing import Any

from tinyserve.models.llama import LlamaModel
from tinyserve.models.loader import load_model


def load_llama(*args: Any, **settings: Any) -> LlamaModel:
    """As models.loader.load_model."""
    model = load_model(*args, **settings)
    assert isinstance(model, LlamaModel)
    return model
