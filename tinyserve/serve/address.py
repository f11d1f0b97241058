"""What a worker may call itself: http(s)://host[:port] and nothing else.

The controller sends requests to whatever address was registered, so the grammar is narrow on purpose: no path, no
query, no user part, nothing that two parsers could read in two ways. Knows neither the controller nor HTTP.
"""

import re

MAX_ADDRESS_CHARACTERS = 300
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"  # names (with the underscores of container names) and IPv4
_IPV6 = r"\[[0-9A-Fa-f:.]{2,45}\]"
_ADDRESS = re.compile(rf"https?://(?:{_HOST}|{_IPV6})(?::([0-9]{{1,5}}))?")


def check_worker_address(address: str) -> str:
    """Returns `address` unchanged.

    Raises:
        ValueError: it is not exactly http(s)://host or http(s)://host:port with a port of 1 to 65535.
    """
    match = _ADDRESS.fullmatch(address) if len(address) <= MAX_ADDRESS_CHARACTERS else None
    if match is None or (match[1] is not None and not 1 <= int(match[1]) <= 65535):
        raise ValueError(f"must be http(s)://host[:port] without a path, got {address[:100]!r}")
    return address
