"""`tinyserve serve MODEL`: a controller and a worker as child processes, started, watched and stopped together.

A child that ends by itself once it has served is started again, so one crash does not end the service; one that never
came up ends the command with its exit code and its message above. It loads no model itself and knows only the command
lines of the two and the controller's list of models.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyserve.serve import http_server, model_worker
from tinyserve.serve.client import ServerError, post

READY_POLL_S = 0.2
SHUTDOWN_S = 10  # that open streams get at the end
STOP_S = 15.0  # until a child that was asked to end is killed
MAX_RESTARTS = 5  # of one child within RESTART_WINDOW_S: more is no accident
RESTART_WINDOW_S = 600.0


@dataclass
class Child:
    """One command that is kept running."""

    name: str
    command: Sequence[str]
    process: "subprocess.Popen[bytes]"
    has_served: bool = False
    restarts: list[float] = field(default_factory=list)  # times on the monotonic clock


class GaveUp(RuntimeError):
    """A child cannot be kept running. `code` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Launcher:
    """The children of one `tinyserve serve`."""

    def __init__(self, controller: Sequence[str], worker: Sequence[str], controller_address: str) -> None:
        """
        Args:
            controller, worker: the arguments after `python -m`.
            controller_address: where the controller will be reached from this machine.
        """
        self.controller_address = controller_address
        self._stopping = threading.Event()
        self._num_stops = 0
        self._children: list[Child] = []
        for name, arguments in (("controller", controller), ("worker", worker)):
            command = [sys.executable, "-m", *arguments]
            self._children.append(Child(name, command, _start(command)))

    def wait_ready(self) -> list[str]:
        """Waits until the controller lists models, as long as both children live. Empty when stopped before.

        Raises:
            GaveUp: a child ended.
        """
        while not self._stopping.wait(READY_POLL_S):
            for child in self._children:
                code = child.process.poll()
                if code is not None:
                    raise GaveUp(f"the {child.name} could not be started", code)
            with contextlib.suppress(ServerError):
                models = post(self.controller_address, "/list_models")["models"]
                if models:
                    for child in self._children:
                        child.has_served = True
                    return [str(model) for model in models]
        return []

    def watch(self) -> None:
        """Starts again what ends by itself, until `stop_soon`.

        Raises:
            GaveUp: a child ends again and again.
        """
        while not self._stopping.wait(READY_POLL_S):
            for child in self._children:
                code = child.process.poll()
                if code is not None:
                    self._restart(child, code)

    def _restart(self, child: Child, code: int) -> None:
        now = time.monotonic()
        child.restarts = [at for at in child.restarts if now - at < RESTART_WINDOW_S]
        if len(child.restarts) >= MAX_RESTARTS:
            raise GaveUp(f"the {child.name} ended {MAX_RESTARTS + 1} times, last with exit code {code}", code)
        say(f"the {child.name} ended with exit code {code}; starting it again")
        self._stopping.wait(min(0.5 * 2 ** len(child.restarts), 30.0))
        if not self._stopping.is_set():
            child.restarts.append(now)
            child.process = _start(child.command)

    def stop_soon(self, *_: Any) -> None:
        """Lets `wait_ready` and `watch` return; also a signal handler. The second time `stop` waits no longer."""
        self._num_stops += 1
        self._stopping.set()

    def stop(self) -> None:
        """Ends the children: the worker first, so that its streams end through a living controller."""
        deadline = time.monotonic() + STOP_S
        for child in reversed(self._children):
            child.process.terminate()
            while child.process.poll() is None and time.monotonic() < deadline and self._num_stops < 2:
                time.sleep(0.05)
        for child in self._children:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()


def say(message: str) -> None:
    print(f"tinyserve serve: {message}", file=sys.stderr, flush=True)


def _start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends the children in order.
    return subprocess.Popen(command, start_new_session=True)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="tinyserve serve", description="Serves a model: controller and worker together.", allow_abbrev=False
    )
    flags.add_argument("model", metavar="MODEL", help="a Hugging Face folder, 16-bit or quantized")
    flags.add_argument("--host", default="localhost", help="of both (localhost)")
    flags.add_argument("--port", type=int, default=21001, help="of the controller, the one clients talk to (21001)")
    flags.add_argument("--worker-port", type=int, default=21002, help="(21002)")
    flags.add_argument("--dispatch-method", choices=("lottery", "shortest_queue"), default="shortest_queue")
    model_worker.add_model_flags(flags, model_path=False)
    flags.add_argument("--limit-model-concurrency", type=int, metavar="N", help="requests in service at once (all)")
    return flags


def worker_arguments(args: argparse.Namespace, controller_address: str) -> list[str]:
    """The worker's command line: its own flags as they were given, and where it stands."""
    own = {"model", "host", "port", "worker_port", "dispatch_method"}
    given = {name: value for name, value in vars(args).items() if name not in own}
    line = ["tinyserve.serve.model_worker", "--model-path", args.model, "--host", args.host]
    line += ["--port", str(args.worker_port), "--controller-address", controller_address]
    line += ["--shutdown-timeout", str(SHUTDOWN_S)]
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            line.append(flag)
        elif value is not None and value is not False:
            line += [flag, str(value)]
    return line


def check_port(host: str, port: int, flag: str) -> str:
    """The address of a server on that port. Raises PortError when the port cannot be had."""
    sockets = http_server.bind(host, port, flag)
    try:
        return http_server.address_of(host, sockets)
    finally:
        for one in sockets:
            one.close()


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if not Path(args.model).is_dir():
        say(f"error: MODEL: there is no folder {args.model}")
        return 1
    try:
        address = check_port(args.host, args.port, "--port")
        check_port(args.host, args.worker_port, "--worker-port")
    except OSError as error:
        say(f"error: {error}")
        return 1
    port = address.rsplit(":", 1)[1]
    controller = ["tinyserve.serve.controller", "--host", args.host, "--port", port]
    controller += ["--dispatch-method", args.dispatch_method]
    launcher = Launcher(controller, worker_arguments(args, address), address)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, launcher.stop_soon)
    try:
        models = launcher.wait_ready()
        if models:
            say(f"serving {', '.join(models)} at {address}; Ctrl-C ends it")
        launcher.watch()
    except GaveUp as error:
        say(f"error: {error}")
        return error.code if error.code > 0 else 1
    finally:
        launcher.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
