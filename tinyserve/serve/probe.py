"""Asks workers for their status. Knows the table of workers only as addresses."""

import asyncio
import json
from collections.abc import Sequence

import aiohttp

from tinyserve.serve.body import read_reply
from tinyserve.serve.messages import FieldError, WorkerStatus

MAX_STATUS_BYTES = 256 << 10  # of a status reply: an address that is no worker must not fill memory


class ProbeError(Exception):
    """The worker did not answer as a worker does; the text says what it did instead."""


async def ask_status(session: aiohttp.ClientSession, worker_name: str, seconds: float) -> WorkerStatus:
    """The status that the worker at `worker_name` reports.

    Raises:
        ProbeError: no valid answer within `seconds`.
    """
    url = worker_name + "/worker_get_status"
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        # A redirect could lead anywhere, so it is an error like any other status.
        async with session.post(url, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                raise ProbeError(f"POST {url} answered with HTTP status {response.status}")
            body = await read_reply(response, MAX_STATUS_BYTES)
    except asyncio.TimeoutError:
        raise ProbeError(f"POST {url} gave no answer within {seconds:g} s") from None
    except aiohttp.ClientError as error:
        raise ProbeError(f"POST {url} failed: {error}") from None
    try:
        return WorkerStatus.parse(json.loads(body), "status")
    except FieldError as error:
        raise ProbeError(f"POST {url}: {error}") from None
    except ValueError:
        raise ProbeError(f"POST {url} answered with something that is not JSON") from None


async def ask_statuses(worker_names: Sequence[str], seconds: float) -> list[WorkerStatus | ProbeError]:
    """The answers of all workers, asked at the same time, in the order of `worker_names`."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:

        async def ask(name: str) -> WorkerStatus | ProbeError:
            try:
                return await ask_status(session, name, seconds)
            except ProbeError as error:
                return error

        return await asyncio.gather(*(ask(name) for name in worker_names))
