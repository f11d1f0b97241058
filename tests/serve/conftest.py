"""The real service, once for the whole session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve.fleet import Fleet
from serve.real_service import RealService


@pytest.fixture(scope="session")
def _real_service(smollm2_rtn: Path) -> Iterator[RealService]:
    with Fleet() as fleet:
        yield RealService(fleet, smollm2_rtn)


@pytest.fixture
def service(_real_service: RealService) -> RealService:
    """A controller and two idle workers with the real model in 4 bits."""
    _real_service.revive()
    return _real_service
