"""Configurations as transformers completes them: what a config.json leaves out has the default of its class.

Hugging Face's files of models with parts leave out nearly all of a part that is as usual.
"""

from collections.abc import Mapping
from typing import Any


def with_defaults(config: Mapping[str, Any], model_type: str, where: str = "config.json") -> dict[str, Any]:
    """All fields of a configuration.

    Args:
        config: as parsed; its own model_type does not count.
        model_type: which of transformers' classes.
        where: the file or the part of it, for messages.

    Raises:
        ValueError: transformers refuses it, a field having another type for example.
    """
    defaults: dict[str, Any] = parsed(config, model_type, where).to_dict()
    return defaults


def parsed(config: Mapping[str, Any], model_type: str, where: str = "config.json") -> Any:
    """transformers' own object for it; arguments and errors as of with_defaults."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[model_type].from_dict({**config, "model_type": model_type})
    except Exception as error:  # a configuration can be wrong in any way
        raise ValueError(f"{where}: transformers refuses it as {model_type}: {' '.join(str(error).split())}") from error
