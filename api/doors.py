"""How many connections a process takes, in all and of one client, and who the client behind a proxy is."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from aiohttp import web

from shared.errors import ConfigurationError, RefusedError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK: Final[tuple[Network, ...]] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
PREFIX_6: Final = 64  # one subscriber has at least so many IPv6 addresses: they count as one client


def networks(text: str) -> tuple[Network, ...]:
    """`ERRAND_TRUSTED_PROXIES` as networks. Raises ConfigurationError."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigurationError(f"ERRAND_TRUSTED_PROXIES is not valid: {error}") from None


@lru_cache(maxsize=4_096)
def client_of(peer: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 one. Any other text (a socket's path) as it
    is."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, PREFIX_6), strict=False))
    return str(address)


def is_within(text: str, among: tuple[Network, ...]) -> bool:
    """Whether an address is one of these networks'."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in among if network.version == address.version)


def forwarded_client(peer: str, forwarded: str, trusted: tuple[Network, ...]) -> str | None:
    """The client that a trusted proxy speaks for: the last address of `X-Forwarded-For` that is no proxy of ours.

    None when the peer is not trusted, or the header names nobody: what stands further left was written by the client.
    """
    if not is_within(peer, trusted):
        return None
    for part in reversed(forwarded.split(",")):
        text = part.strip().strip("[]")
        try:
            ipaddress.ip_address(text)
        except ValueError:
            return None
        if not is_within(text, trusted):
            return client_of(text)
    return None


class Doors:
    """Counts connections, and requests under way behind a proxy. `exempt` peers have no bound of their own."""

    def __init__(self, most: int, most_per_client: int, trusted: str = "", *, exempt: tuple[Network, ...] = LOOPBACK):
        self.trusted = networks(trusted)
        self._most = most
        self._most_per_client = most_per_client
        self._exempt = (*exempt, *self.trusted)
        self._open = 0
        self._by_client: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Connections that were let in and have not ended."""
        return self._open

    def enter(self, peer: str) -> str | None:
        """Lets a connection in and returns what to `leave` with; None when it is one too many."""
        counted = "" if is_within(peer, self._exempt) else client_of(peer)
        if self._open >= self._most or (counted and self._by_client[counted] >= self._most_per_client):
            return None
        self._open += 1
        if counted:
            self._by_client[counted] += 1
        return counted

    def leave(self, counted: str) -> None:
        """A connection that was let in has ended."""
        self._open -= 1
        if counted:
            _take(self._by_client, counted)

    @contextmanager
    def passing(self, request: web.Request) -> Iterator[None]:
        """While a request is under way. One that came by a trusted proxy counts for the client that it names. Raises
        RefusedError `rate_limited` when that client has too many."""
        client = None
        if self.trusted:
            forwarded = ",".join(request.headers.getall("X-Forwarded-For", []))
            client = forwarded_client(request.remote or "", forwarded, self.trusted)
        if client is None:
            yield
            return
        if self._under_way[client] >= self._most_per_client:
            raise RefusedError("rate_limited", f"Your address has {self._most_per_client} requests under way.")
        self._under_way[client] += 1
        try:
            yield
        finally:
            _take(self._under_way, client)


def _take(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]
