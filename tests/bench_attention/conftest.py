"""What all tests of the attention benchmark share."""

import pytest


@pytest.fixture
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kernels.timing.num_copies", lambda copy_bytes: 2)
