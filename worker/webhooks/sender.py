"""One request to a webhook, through the guard of worker/fetch.py.

Connections are used again for a second: a name is resolved, and its addresses checked, whenever one is made, and it
stays with the address that was checked. No redirect is followed, no cookie kept, no proxy asked; the answer's body is
dropped.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from shared.addresses import FetchRefusedError, parse_url, target_of
from shared.clock import monotonic_s
from shared.settings import Settings
from shared.webhooks import AttemptError
from worker.fetch import REDIRECTS, FetchFailedError, Guard, Resolve, resolved, system_resolve
from worker.webhooks.verdict import Sent, retry_after_s

USER_AGENT: Final = "Errand/0.1 (+webhooks)"
# Less than servers keep an idle connection: one that ends under a request would count as a failure.
KEEP_S: Final = 1.0
BODY_BYTES: Final = 16_384  # of an answer that are read, so that its connection can be used again
BODY_S: Final = 1.0


class _Checked(AbstractResolver):
    """Resolves by the guard, so that no connection is made to an address that it did not see."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        # The scheme says nothing here: the port is given.
        name = f"[{host}]" if ":" in host else host
        _, addresses = await self._guard.checked(parse_url(f"http://{name}:{port}/"))
        return resolved(host, port, addresses)

    async def close(self) -> None:
        return None


class Sender:
    """Makes requests for one worker; call `close` at the end."""

    def __init__(self, settings: Settings, resolve: Resolve = system_resolve) -> None:
        self._seconds = settings.webhook_seconds
        self._guard = Guard(settings.fetch_private_hosts, resolve)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Sent:
        """What came of one POST of `body`. Raises nothing but what cancels it."""
        started, now_s = monotonic_s(), time.time()
        status, error, wish, response = None, None, None, None
        try:
            # An address in the URL is asked for without a resolver: it is checked here.
            target = target_of(parse_url(url), self._guard.opened)
            async with asyncio.timeout(self._seconds):
                response = await self._open().post(target.url, data=body, headers=dict(headers), allow_redirects=False)
            status, wish = response.status, response.headers.get("Retry-After")
            if not 200 <= status < 300:
                error = AttemptError.REDIRECT if status in REDIRECTS else AttemptError.STATUS
        except TimeoutError:
            error = AttemptError.TIMEOUT
        except FetchRefusedError:
            error = AttemptError.ADDRESS_REFUSED
        except (FetchFailedError, aiohttp.ClientConnectorDNSError):
            error = AttemptError.DNS
        except (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch):
            error = AttemptError.TLS
        except (aiohttp.ClientError, OSError, ValueError):
            error = AttemptError.CONNECTION
        sent = Sent(status, error, round((monotonic_s() - started) * 1000), retry_after_s(wish, now_s))
        if response is not None:
            await self._drop(response)
        return sent

    async def _drop(self, response: aiohttp.ClientResponse) -> None:
        """Reads a small body to its end, so that the connection can be used again; of any other it is closed. What the
        answer means stands already."""
        size = 0
        try:
            async with asyncio.timeout(BODY_S):
                async for piece in response.content.iter_any():
                    size += len(piece)
                    if size > BODY_BYTES:
                        break
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        finally:
            if not response.content.at_eof():
                response.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=_Checked(self._guard), use_dns_cache=False, keepalive_timeout=KEEP_S, limit=0
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=None),
                headers={
                    "User-Agent": USER_AGENT,
                    "Content-Type": "application/json",
                    "Accept": "*/*",
                    "Accept-Encoding": "identity",
                },
            )
        return self._session

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
