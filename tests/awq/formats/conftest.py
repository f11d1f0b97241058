"""A tiny model beside each test's own files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tiny_checkpoint import TinyModel, make_tiny_model


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., TinyModel]:
    """Returns a function that makes a tiny model in `source`: (config, dtype, tied) -> TinyModel."""
    return partial(make_tiny_model, tmp_path / "source")
