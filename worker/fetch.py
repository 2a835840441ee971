"""Fetching a URL that somebody else chose: only public addresses, each checked before it is connected to.

A name is resolved here, every address of it must be public, and the connection goes to exactly these addresses: a
second answer of the name server changes nothing. Each redirect passes the same checks.
"""

from __future__ import annotations

import asyncio
import socket
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from shared.addresses import FetchRefusedError, parse_url, private_hosts, target_of
from shared.errors import ErrandError
from shared.settings import Settings

MAX_REDIRECTS: Final = 5
USER_AGENT: Final = "Errand/0.1 (+fetch_url)"
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

Resolve = Callable[[str, int], Awaitable[list[str]]]  # a name and a port → addresses


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


class Guard:
    """Finds the addresses of a URL's host, and refuses what is not public."""

    def __init__(self, private: str, resolve: Resolve = system_resolve) -> None:
        """`private` as `ERRAND_FETCH_PRIVATE_HOSTS`: hosts that are open although their address is private."""
        self.opened = private_hosts(private)
        self._resolve = resolve

    async def checked(self, url: URL) -> tuple[URL, list[str]]:
        """The URL as it may be asked for, and the addresses that it may be asked at. Raises FetchRefusedError, and
        FetchFailedError when the name is not known."""
        target = target_of(url, self.opened)
        if target.address is not None:
            return target.url, [str(target.address)]
        try:
            addresses = await self._resolve(target.host, target.port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise FetchFailedError(f"The host {target.host[:100]!r} is not known.")
        target.refuse_private(addresses)
        return target.url, addresses


def resolved(host: str, port: int, addresses: Iterable[str]) -> list[ResolveResult]:
    """What a resolver says of a host whose addresses are known."""
    return [
        ResolveResult(
            hostname=host,
            host=address,
            port=port,
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            proto=0,
            flags=socket.AI_NUMERICHOST,
        )
        for address in addresses
    ]


class _Pinned(AbstractResolver):
    """Answers with the addresses that were checked, whatever the name server says by now."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return resolved(host, port, self._addresses)

    async def close(self) -> None:
        return None


class Fetcher:
    """Fetches URLs within the bounds of the settings. It keeps no connection, cookie or credential."""

    def __init__(self, settings: Settings, resolve: Resolve = system_resolve) -> None:
        self._seconds = settings.fetch_seconds
        self._bytes = settings.fetch_bytes
        self._guard = Guard(settings.fetch_private_hosts, resolve)

    async def fetch(self, url: str) -> Fetched:
        """What a GET of `url` gives, whatever its status. Raises FetchRefusedError and FetchFailedError."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(parse_url(url))
        except TimeoutError:
            raise FetchFailedError(f"Fetching took longer than {self._seconds:g} s.") from None

    async def _follow(self, url: URL) -> Fetched:
        for _ in range(MAX_REDIRECTS + 1):
            url, addresses = await self._guard.checked(url)
            answer = await self._get(url, addresses)
            if isinstance(answer, Fetched):
                return answer
            if url.scheme == "https" and answer.scheme == "http":
                raise FetchRefusedError("The page redirects from https to http.")
            url = answer
        raise FetchFailedError(f"The page redirects more than {MAX_REDIRECTS} times.")

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
                        return parse_url(location, url)
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
