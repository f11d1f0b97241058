"""`tinyserve serve`: both processes up with one command, repaired when one dies, gone when it ends."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from benchmarks.servers import Server, free_port, start, wait_until
from tinyserve.serve import launch, model_worker
from tinyserve.serve.client import ServerError, model_names, post


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture(scope="module")
def served(smollm2_rtn: Path, ports: tuple[int, int]) -> Iterator[Server]:
    flags = ["serve", str(smollm2_rtn), "--port", str(ports[0]), "--worker-port", str(ports[1])]
    with start("tinyserve", [*flags, "--max-context", "512", "--kv-cache-bytes", "100000000"]) as server:
        wait_until("it says where it serves", lambda: "serving " in server.output(), 120)
        yield server
        server.stop()


def answers(url: str) -> bool:
    try:
        models = model_names(url, None)
        body = {"model": models[0], "prompt": "The capital of France is", "temperature": 0, "max_new_tokens": 3}
        reply = requests.post(url + "/worker_generate_stream", json=body, timeout=30)
        return "Paris" in reply.text
    except (ServerError, IndexError, requests.RequestException):
        return False


def pid_of_listener(server: Server, name: str) -> int:
    """The child that runs the module `name`."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(re.search(r"\) \S (\d+)", (entry / "stat").read_text())[1])  # type: ignore[index]
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == server.process.pid and name.encode() in command:
            return int(entry.name)
    raise AssertionError(f"{server.process.pid} has no child {name}:\n{server.output()}")


def test_one_command_serves(served: Server, ports: tuple[int, int]) -> None:
    url = f"http://localhost:{ports[0]}"
    assert answers(url)
    assert url in served.output()
    assert model_names(url, None)[0] in served.output()


@pytest.mark.parametrize("name", ["model_worker", "controller"])
def test_a_process_that_dies_is_started_again(served: Server, ports: tuple[int, int], name: str) -> None:
    url = f"http://localhost:{ports[0]}"
    victim = pid_of_listener(served, name)
    os.kill(victim, signal.SIGKILL)
    wait_until("a new one", lambda: f"the {name.removeprefix('model_')} ended" in served.output(), 20)
    wait_until("answers again", lambda: answers(url), 60)
    assert pid_of_listener(served, name) != victim


def test_sigterm_ends_both(served: Server, ports: tuple[int, int]) -> None:
    children = [pid_of_listener(served, name) for name in ("controller", "model_worker")]
    assert served.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    with pytest.raises(ServerError):
        post(f"http://localhost:{ports[0]}", "/list_models")


@pytest.mark.parametrize("flag", ["--port", "--worker-port"])
def test_a_port_in_use_is_named_with_its_flag(tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        free = ["--port", str(free_port()), "--worker-port", str(free_port())]
        assert launch.main([str(tmp_path), "--host", "127.0.0.1", *free, flag, port]) == 1
    assert f"port {port} of 127.0.0.1 is in use; choose another with {flag}" in capsys.readouterr().err


def test_a_missing_folder_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["/no/such/model"]) == 1
    assert "MODEL: there is no folder /no/such/model" in capsys.readouterr().err


def test_a_worker_that_cannot_load_ends_the_command_with_its_message(tmp_path: Path) -> None:
    flags = ["serve", str(tmp_path), "--port", str(free_port()), "--worker-port", str(free_port()), "--block-size", "7"]
    with start("tinyserve", flags) as server:
        assert server.process.wait(60) == 1
        output = server.output()
    assert "tinyserve worker: error: block_size must be" in output
    assert "the worker could not be started" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], []),
        (["--packed-cache"], ["--packed-cache"]),
        (["--packed-cache", "/some/where"], ["--packed-cache", "/some/where"]),
    ],
    ids=["off", "beside the model", "a folder"],
)
def test_the_worker_gets_where_packed_weights_are_kept(given: list[str], passed: list[str]) -> None:
    args = launch.parser().parse_args(["model", *given])
    line = launch.worker_arguments(args, "http://localhost:1")
    position = line.index("--packed-cache") if "--packed-cache" in line else len(line)
    assert line[position : position + len(passed)] == passed
    # none of what the next flag is may be taken for the folder
    worker = model_worker.parser().parse_args(line[1:])
    assert worker.packed_cache == args.packed_cache == {0: False, 1: True, 2: Path("/some/where")}[len(passed)]


def test_a_second_signal_does_not_wait_for_open_streams(tmp_path: Path) -> None:
    """With children that do not end when asked to."""
    setup = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({!r}, 'w').close()"
    marks = [tmp_path / "one", tmp_path / "two"]
    one, two = (["timeit", "-n1", "-r1", "-s", setup.format(str(mark)), "time.sleep(600)"] for mark in marks)
    launcher = launch.Launcher(one, two, "http://127.0.0.1:9")
    wait_until("both deaf", lambda: all(mark.exists() for mark in marks))
    launcher.stop_soon()
    launcher.stop_soon()
    began = time.monotonic()
    launcher.stop()
    assert time.monotonic() - began < launch.STOP_S / 2
