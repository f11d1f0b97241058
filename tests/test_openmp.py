"""What serves has told OpenMP's threads to sleep before torch starts any."""

import os
import subprocess
import sys


def _policy(environment: dict[str, str]) -> str:
    program = "import tinyserve, os; print(os.environ['OMP_WAIT_POLICY'])"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_threads_sleep_unless_somebody_said_otherwise() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert _policy(environment) == "PASSIVE"
    assert _policy(environment | {"OMP_WAIT_POLICY": "ACTIVE"}) == "ACTIVE"


def test_the_package_brings_no_torch() -> None:
    program = "import tinyserve, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
