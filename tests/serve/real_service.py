"""A controller and two workers with the real model, as processes, for all tests that want to see the real thing."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serve.fleet import Fleet, Member

from benchmarks.servers import free_port, wait_for_health, wait_until

NUM_WORKERS = 2
SETTINGS = (
    *("--dtype", "float32"),
    *("--max-context", "512"),  # what a prefill reads in a second or two
    *("--kv-cache-bytes", "400000000"),  # 8680 tokens in fp32
    *("--heartbeat-interval", "0.5"),
)


class RealService:
    """Starts once, since loading takes seconds; what a test has killed is started again for the next one.

    Activations are in fp32, so that a greedy answer does not depend on what runs beside it.
    """

    def __init__(self, fleet: Fleet, model: Path) -> None:
        self._fleet = fleet
        self._model = model
        self._controller_port = free_port()
        self._ports = [free_port() for _ in range(NUM_WORKERS)]
        self.controller = self.start_controller()
        with ThreadPoolExecutor() as pool:
            self.workers = list(pool.map(self._start_worker, self._ports))
        self.wait_registered()
        self.name = str(self.workers[0].status()["model_names"][0])

    def start_controller(self) -> Member:
        """At the same address as the one before, if there was one."""
        self.controller = self._fleet.controller("--heart-beat-sweep", "1", port=self._controller_port)
        return self.controller

    def _start_worker(self, port: int) -> Member:
        return self._fleet.start(
            "tinyserve.serve.model_worker",
            *("--host", "127.0.0.1", "--model-path", str(self._model), *SETTINGS),
            *("--controller-address", f"http://127.0.0.1:{self._controller_port}"),
            port=port,
        )

    def wait_registered(self, number: int = NUM_WORKERS) -> None:
        wait_for_health(self.controller.url, lambda health: health["workers"] == number)

    def wait_idle(self) -> None:
        """Until no worker has a request; what earlier tests left behind must not disturb the next."""
        for worker in self.workers:
            wait_until(f"{worker.url} idle", lambda worker=worker: worker.status()["queue_length"] == 0)  # type: ignore[misc]

    def revive(self) -> None:
        if self.controller.server.process.poll() is not None:
            self.start_controller()
        for index, port in enumerate(self._ports):
            if self.workers[index].server.process.poll() is not None:
                self.workers[index] = self._start_worker(port)
        self.wait_registered()
        self.wait_idle()
