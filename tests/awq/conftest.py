"""What tests of the search share: a small model, opened, and its modules."""

from pathlib import Path

import pytest
import tiny_model
import torch

from awq.lazy_network import LazyNetwork
from awq.model import ModelFolder, open_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model(folder: Path) -> ModelFolder:
    return open_model(folder)


@pytest.fixture
def network(model: ModelFolder) -> LazyNetwork:
    return LazyNetwork(model.path, model.skeleton, torch.float32)
