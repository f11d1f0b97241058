"""What many tests share: the real small model, a quantized copy of it, and free ports."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the suite may reach a hub


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as an fp16 Hugging Face folder."""
    from tinyserve.demo import smollm2 as package

    return package.prepare()


@pytest.fixture(scope="session")
def smollm2_rtn(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in 4 bits, groups of 64, rounded to nearest: quick to make, for tests that judge no quality."""
    from awq import entry

    folder = tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct-rtn"
    arguments = ["--model_path", str(smollm2), "--w_bit", "4", "--q_group_size", "64", "--q_backend", "real"]
    entry.main([*arguments, "--dump_quant", str(folder)])
    return folder


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Returns a function that names a TCP port nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
