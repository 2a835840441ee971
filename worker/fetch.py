"""Fetching a URL that somebody else chose: only public addresses, each checked before it is connected to.

A name is resolved here, every address of it must be public, and the connection goes to exactly these addresses: a
second answer of the name server changes nothing. Each redirect passes the same checks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from shared.errors import ErrandError
from shared.settings import Settings

MAX_REDIRECTS: Final = 5
MAX_URL: Final = 4_096  # characters
PORTS: Final = frozenset({80, 443, 8080, 8443})
USER_AGENT: Final = "Errand/0.1 (+fetch_url)"
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]  # a name and a port → addresses

_UNICAST_6 = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out for the public network
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are the IPv4 address that is reached
# Not public either, though this Python's `is_global` does not know it of each: 6to4 relays, ORCHID, documentation.
_WITHHELD: Final = tuple(
    ipaddress.ip_network(text) for text in ("192.88.99.0/24", "192.0.0.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
)


class FetchRefusedError(ErrandError):
    """The URL must not be fetched; the message says why, and names nothing that the asker did not."""


class FetchFailedError(ErrandError):
    """The URL could not be fetched, or what came is too large or came too slowly."""


class Fetched(msgspec.Struct, frozen=True):
    """The last answer, after redirects to `url`. `content` is unpacked."""

    url: str
    status: int
    media_type: str
    content: bytes


async def system_resolve(host: str, port: int) -> list[str]:
    """The addresses of a name as the system knows them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


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


def private_hosts(text: str) -> frozenset[tuple[str, int | None]]:
    """`ERRAND_FETCH_PRIVATE_HOSTS` as (host, port); port None means any."""
    found: set[tuple[str, int | None]] = set()
    for entry in filter(None, (part.strip().lower() for part in text.split(","))):
        host, colon, port = entry.rpartition(":")
        named = bool(colon) and port.isdigit() and (":" not in host or host.endswith("]"))
        found.add((host.strip("[]"), int(port)) if named else (entry.strip("[]"), None))
    return frozenset(found)


class _Pinned(AbstractResolver):
    """Answers with the addresses that were checked, whatever the name server says by now."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        return None


class Fetcher:
    """Fetches URLs within the bounds of the settings. It keeps no connection, cookie or credential."""

    def __init__(self, settings: Settings, resolve: Resolve = system_resolve) -> None:
        self._seconds = settings.fetch_seconds
        self._bytes = settings.fetch_bytes
        self._private = private_hosts(settings.fetch_private_hosts)
        self._resolve = resolve

    async def fetch(self, url: str) -> Fetched:
        """What a GET of `url` gives, whatever its status. Raises FetchRefusedError and FetchFailedError."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(_parse(url))
        except TimeoutError:
            raise FetchFailedError(f"Fetching took longer than {self._seconds:g} s.") from None

    async def _follow(self, url: URL) -> Fetched:
        for _ in range(MAX_REDIRECTS + 1):
            url, addresses = await self._checked(url)
            answer = await self._get(url, addresses)
            if isinstance(answer, Fetched):
                return answer
            if url.scheme == "https" and answer.scheme == "http":
                raise FetchRefusedError("The page redirects from https to http.")
            url = answer
        raise FetchFailedError(f"The page redirects more than {MAX_REDIRECTS} times.")

    async def _checked(self, url: URL) -> tuple[URL, list[str]]:
        """The URL as it will be asked for, and the addresses that it may be asked at. Raises FetchRefusedError."""
        host, port = (url.raw_host or "").rstrip(".").lower(), url.port or 0
        address = literal(host)
        private = not self._private.isdisjoint({(host, port), (host, None)})
        if address is not None:
            # aiohttp asks no resolver for an address: what it gets is the checked one, in its plain spelling.
            url = url.with_host(str(address))
            private = private or not self._private.isdisjoint({(str(address), port), (str(address), None)})
        if not private and port not in PORTS:
            raise FetchRefusedError(f"Port {port} is not fetched from; only {', '.join(map(str, sorted(PORTS)))}.")
        if address is None:
            try:
                addresses = await self._resolve(host, port)
            except (OSError, UnicodeError):
                addresses = []
            if not addresses:
                raise FetchFailedError(f"The host {host[:100]!r} is not known.")
        else:
            addresses = [str(address)]
        if not private and not all((found := literal(text)) and is_public(found) for text in addresses):
            raise FetchRefusedError(f"The host {host[:100]!r} is not on the public network.")
        return url, addresses

    async def _get(self, url: URL, addresses: list[str]) -> Fetched | URL:
        """One request: the answer, or where it redirects to."""
        connector = aiohttp.TCPConnector(resolver=_Pinned(addresses), use_dns_cache=False, force_close=True)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "gzip"},
        ) as session:
            try:
                async with session.get(url, allow_redirects=False) as response:
                    location = response.headers.get("Location")
                    if response.status in REDIRECTS and location is not None:
                        return _parse(location, url)
                    content = await self._body(response)
                    return Fetched(str(url.with_fragment(None)), response.status, response.content_type, content)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                if isinstance(error, TimeoutError):
                    raise
                # The text of these errors names the address.
                raise FetchFailedError(f"The host {url.host} did not answer as a web server does.") from None

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        if (response.content_length or 0) > self._bytes:
            raise self._too_large()
        unpack = _unpacker(response.headers.get("Content-Encoding", ""))
        content = bytearray()
        received = 0
        async for piece in response.content.iter_any():
            received += len(piece)
            content += unpack(piece, self._bytes + 1 - len(content))
            if received > self._bytes or len(content) > self._bytes:
                raise self._too_large()
        return bytes(content)

    def _too_large(self) -> FetchFailedError:
        return FetchFailedError(f"The content is larger than {self._bytes} bytes.")


def _parse(text: str, base: URL | None = None) -> URL:
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


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    """A function (piece, most bytes wanted) → unpacked bytes. Raises FetchFailedError for an unknown encoding."""
    if encoding.strip().lower() in ("", "identity"):
        return lambda piece, _: piece
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        raise FetchFailedError(f"The content is packed as {encoding[:40]!r}, which was not asked for.")
    inflater: Any = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def unpack(piece: bytes, wanted: int) -> bytes:
        try:
            return bytes(inflater.decompress(piece, max(wanted, 1)))
        except zlib.error:
            raise FetchFailedError("The content is packed, and broken.") from None

    return unpack
