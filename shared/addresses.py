"""What may be asked for on the network on behalf of somebody else, as far as a URL alone tells: public addresses only.

Names are resolved, and their addresses checked, by whoever connects (worker/fetch.py)."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from typing import Final

import msgspec
from yarl import URL

from shared.errors import ErrandError

MAX_URL: Final = 4_096  # characters
PORTS: Final = frozenset({80, 443, 8080, 8443})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
OpenHosts = frozenset[tuple[str, int | None]]

_UNICAST_6 = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out for the public network
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are the IPv4 address that is reached
# Not public either, though this Python's `is_global` does not know it of each: 6to4 relays, ORCHID, documentation.
_WITHHELD: Final = tuple(
    ipaddress.ip_network(text) for text in ("192.88.99.0/24", "192.0.0.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
)


class FetchRefusedError(ErrandError):
    """The URL must not be asked for; the message says why, and names nothing that the asker did not."""


def literal(host: str) -> Address | None:
    """The address that a host spells, in any spelling that some part of the system would take; None for a name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host)
    # 127.1, 2130706433, 0x7f000001, 0177.0.0.1
    with suppress(OSError, UnicodeError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def is_public(address: Address) -> bool:
    """Whether an address, and every IPv4 address inside it, is one of the public network."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        if address.sixtofour is not None and not is_public(address.sixtofour):
            return False
        if address.teredo is not None or address not in _UNICAST_6:
            return False
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_unspecified)
        and not any(address in network for network in _WITHHELD if network.version == address.version)
    )


def private_hosts(text: str) -> OpenHosts:
    """`ERRAND_FETCH_PRIVATE_HOSTS` as (host, port); port None means any."""
    found: set[tuple[str, int | None]] = set()
    for entry in filter(None, (part.strip().lower() for part in text.split(","))):
        host, colon, port = entry.rpartition(":")
        named = bool(colon) and port.isdigit() and (":" not in host or host.endswith("]"))
        found.add((host.strip("[]"), int(port)) if named else (entry.strip("[]"), None))
    return frozenset(found)


class Target(msgspec.Struct, frozen=True):
    """Where a URL leads. `url` has its address, if it spells one, in the plain form; `address` is None for a name;
    `is_open`: the operator has opened this host, though it be private."""

    url: URL
    host: str
    port: int
    address: Address | None
    is_open: bool

    def refuse_private(self, addresses: list[str]) -> None:
        """Raises FetchRefusedError unless the host is open or all its addresses are public."""
        if not self.is_open and not all((found := literal(text)) and is_public(found) for text in addresses):
            raise FetchRefusedError(f"The host {self.host[:100]!r} is not on the public network.")


def parse_url(text: str, base: URL | None = None) -> URL:
    """A URL that has the right form. Raises FetchRefusedError."""
    if len(text) > MAX_URL:
        raise FetchRefusedError(f"The URL is longer than {MAX_URL} characters.")
    try:
        url = URL(text.strip())
        url = base.join(url) if base is not None else url
        host, _ = url.raw_host, url.port
    except (ValueError, UnicodeError):
        raise FetchRefusedError(f"{text[:100]!r} is no URL.") from None
    if url.scheme not in ("http", "https") or not host:
        raise FetchRefusedError("Only http and https URLs with a host are fetched.")
    if url.raw_user is not None or url.raw_password is not None:
        raise FetchRefusedError("A URL with a user name or password in it is not fetched.")
    return url


def target_of(url: URL, opened: OpenHosts) -> Target:
    """Where a URL leads. Raises FetchRefusedError for what needs no name server to be told: the port, and an address
    that is not public."""
    host, port = (url.raw_host or "").rstrip(".").lower(), url.port or 0
    address = literal(host)
    is_open = not opened.isdisjoint({(host, port), (host, None)})
    if address is not None:
        # aiohttp asks no resolver for an address: what it gets is the checked one, in its plain spelling.
        url = url.with_host(str(address))
        is_open = is_open or not opened.isdisjoint({(str(address), port), (str(address), None)})
    if not is_open and port not in PORTS:
        raise FetchRefusedError(f"Port {port} is not fetched from; only {', '.join(map(str, sorted(PORTS)))}.")
    target = Target(url, host, port, address, is_open)
    if address is not None:
        target.refuse_private([str(address)])
    return target
