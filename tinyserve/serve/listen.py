"""Runs an ASGI app on a host and a port, with a clear word when that is impossible. Knows nothing of the app."""

import errno
import socket
from typing import Any

import uvicorn


class ListenError(Exception):
    """The address cannot be listened on; the text names the flag to change."""


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to all addresses of `host` ("localhost" has an IPv4 and an IPv6 one), not listening yet.

    Args:
        port: 0 to 65535; 0 takes a free one, the same for all addresses.

    Raises:
        ListenError: the port is taken, or the host is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, OverflowError) as error:
        raise ListenError(f"--host {host} --port {port}: {error}") from None
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bind_one(family, kind, protocol, (address[0], port, *address[2:])))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # no IPv6 here: the other address will do
                _close(sockets)
                raise ListenError(_explain(error, host, port)) from None
            problem = error
            continue
        port = port or sockets[0].getsockname()[1]
    if not sockets:
        raise ListenError(_explain(problem or OSError("no address"), host, port))
    return sockets


def _bind_one(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another process; choose another one with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; choose one above 1023 with --port"
    return f"cannot listen on --host {host} --port {port}: {error.strerror or error}"


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def serve(app: Any, host: str, port: int, grace_seconds: float, log_level: str = "warning") -> None:
    """Serves until SIGINT or SIGTERM, then lets running requests finish for `grace_seconds`.

    Raises:
        ListenError: before anything is served.
    """
    sockets = bind(host, port)
    config = uvicorn.Config(
        app, log_level=log_level, access_log=False, timeout_graceful_shutdown=max(1, round(grace_seconds))
    )
    try:
        uvicorn.Server(config).run(sockets=sockets)
    except KeyboardInterrupt:  # uvicorn has ended in order, and repeats the signal it got
        pass
    finally:
        _close(sockets)
