"""Runs an ASGI application on a port: what is the same for the controller and for every worker.

Decides how a port is taken, how long open streams may take at the end, and which signals end the process. It knows
nothing about what the application does.
"""

import errno
import logging
import signal
import socket
import sys
from typing import Any

import uvicorn

BACKLOG = 2048  # connections that may wait to be accepted
MAX_FILES = 65536  # open files and connections of one server


class PortError(OSError):
    """The address cannot be listened on; the message is meant for the command line."""


def bind(host: str, port: int, flag: str = "--port") -> list[socket.socket]:
    """Takes the port on every address of `host`, without listening yet: connections are refused until `serve`.

    Args:
        host: a name or an address; "localhost" gives IPv4 and IPv6 where the machine has both.
        port: 0 takes a free one.
        flag: the option that sets the port, for the error message.

    Raises:
        PortError: the port is in use, or the host is not this machine.
    """
    if not 0 <= port <= 65535:
        raise PortError(f"{flag} must be between 0 and 65535, got {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise PortError(f"--host {host}: {error.strerror or error}") from error
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in sorted(set(found), key=lambda entry: entry[0] != socket.AF_INET):
        taken = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_bound(family, kind, protocol, (address[0], taken, *address[2:])))
        except OSError as error:
            if sockets and error.errno == errno.EADDRNOTAVAIL:
                continue  # a name for IPv6 on a machine that has none
            for one in sockets:
                one.close()
            if error.errno == errno.EADDRINUSE:
                raise PortError(f"port {port} of {host} is in use; choose another with {flag}") from error
            raise PortError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return sockets


def _bound(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def listen(sockets: list[socket.socket]) -> None:
    """From here on connections wait until `serve` accepts them, instead of being refused."""
    for one in sockets:
        one.listen(BACKLOG)


def serve(app: Any, sockets: list[socket.socket], shutdown_s: int) -> None:
    """Serves until SIGTERM or SIGINT: then no new connection is accepted and open streams may end.

    Args:
        app: an ASGI application.
        sockets: from `bind`.
        shutdown_s: seconds that open streams get; what is left then is cancelled. A second SIGINT ends at once.
    """
    listen(sockets)
    raise_file_limit()
    config = uvicorn.Config(
        app,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,  # nobody here asks who the client is, so its word for that need not be read
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=shutdown_s,
        timeout_keep_alive=75,  # longer than a client's own, so that the client is the one that closes
    )
    # uvicorn raises the signal once more after an orderly end; these handlers let the process end with code 0.
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        uvicorn.Server(config).run(sockets=sockets)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def raise_file_limit() -> None:
    """Lets this process open as many connections as the system allows: the usual 1024 is 500 proxied streams."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def address_of(host: str, sockets: list[socket.socket]) -> str:
    """The URL under which processes of this machine reach the server."""
    port = sockets[0].getsockname()[1]
    name = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
