"""A client of the wire protocol: what a terminal program needs from a controller or a worker.

It decides how long to wait and turns HTTP failures into one kind of error; what is shown is the caller's affair.
"""

from collections.abc import Generator
from typing import Any

import requests

from tinyserve.serve.wire import Record, RecordDecoder

CONNECT_S = 5.0
SILENCE_S = 600.0  # between two records: the first may wait behind other requests and a long prompt


class ServerError(RuntimeError):
    """The server cannot be reached or did not answer as the protocol says."""


def stream(address: str, body: dict[str, Any]) -> Generator[Record, None, None]:
    """The records that a controller or a worker sends for one request; closing the iterator gives the request up.

    Args:
        address: http(s)://host:port of either.
        body: the request, see generate_params.py.

    Raises:
        ServerError: also for a 4xx answer, with its text.
    """
    url = f"{address}/worker_generate_stream"
    decoder = RecordDecoder()
    try:
        with requests.post(url, json=body, stream=True, timeout=(CONNECT_S, SILENCE_S)) as response:
            _check(url, response)
            for data in response.iter_content(chunk_size=None):
                yield from decoder.feed(data)
            decoder.finish()
    except (requests.RequestException, ValueError) as error:
        raise ServerError(f"{url}: {error}") from error


def post(address: str, route: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON answer of one route. Raises ServerError."""
    url = address + route
    try:
        response = requests.post(url, json=body, timeout=(CONNECT_S, SILENCE_S))
        _check(url, response)
        return response.json()
    except (requests.RequestException, ValueError) as error:
        raise ServerError(f"{url}: {error}") from error


def model_names(controller: str | None, worker: str | None) -> list[str]:
    """The models that the worker, or else any worker of the controller, serves. Raises ServerError."""
    if worker is not None:
        return [str(name) for name in post(worker, "/worker_get_status")["model_names"]]
    assert controller is not None
    return [str(name) for name in post(controller, "/list_models")["models"]]


def _check(url: str, response: requests.Response) -> None:
    if response.status_code != 200:
        raise ServerError(f"{url} answered {response.status_code}: {response.text[:300]}")
