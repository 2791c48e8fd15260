"""Portal addresses as people write them: "host:port", IPv6 in brackets, port 3260 when left out (RFC 7143
13.8).
"""

from __future__ import annotations

from target.errors import OperatorError

DEFAULT_PORT = 3260


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of "127.0.0.1:3260", "[::1]:3260", "san-a" or "::1"."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise OperatorError(f"{text!r} is not an address: expected [host]:port")
        port_text = rest[1:]
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    else:
        host, port_text = text, ""
    if not host:
        raise OperatorError(f"{text!r} is not an address: the host is missing")
    if not port_text:
        return host, DEFAULT_PORT
    if not (port_text.isascii() and port_text.isdecimal()) or not 0 <= int(port_text) <= 65535:
        raise OperatorError(f"{text!r} is not an address: {port_text!r} is no port")
    return host, int(port_text)


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(address: str, asked_at: str) -> str:
    """`address` as an initiator can use it that asked at `asked_at`: of a portal that listens on every
    address, the one that it knows; and without the zone of an IPv6 address, which means something here only.
    """
    host, port = parse_address(address)
    if host in ("0.0.0.0", "::"):
        host = parse_address(asked_at)[0]
    return format_address(host.partition("%")[0], port)
