"""A receiver of webhooks on loopback, as a user would write one: it verifies with the official library."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

ROOT = Path(__file__).resolve().parent.parent
Behaviour = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


class Got:
    """One request: what was sent, and when it came."""

    def __init__(self, request: web.Request, body: bytes, at_s: float) -> None:
        self.path = request.path_qs
        self.headers = dict(request.headers)
        self.body = body
        self.at_s = at_s

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """The payload. Raises WebhookVerificationError."""
        return Webhook(secret).verify(self.body, self.headers)

    def is_signed_with(self, secret: str) -> bool:
        try:
            self.verified(secret)
        except WebhookVerificationError:
            return False
        return True


def status(*codes: int, **headers: str) -> Behaviour:
    """Answers with these codes in turn, with the last for ever."""
    left = list(codes)

    async def behave(_: web.Request, __: bytes) -> web.StreamResponse:
        code = left.pop(0) if len(left) > 1 else left[0]
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, headers=names, text="as you say")

    return behave


class Certified:
    """A TLS server's identity, good for one name, and the authority that says so; `asked` are the names that clients
    wanted to speak with (SNI)."""

    def __init__(self, folder: Path, name: str) -> None:
        made = [ROOT / "deploy" / "redis" / "make-certificates.sh", folder, name]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        self.authority = folder / "ca.crt"
        self.asked: list[str | None] = []
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(folder / "redis.crt", folder / "redis.key")
        self.context.sni_callback = lambda _, name, __: self.asked.append(name)


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")


class Receiver:
    """Notes what comes, and answers as the path's behaviour says (200 without one)."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.behaviours: dict[str, Behaviour] = {}
        self.under_way = 0
        self.most_under_way = 0
        self._news = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.got.append(Got(request, body, asyncio.get_running_loop().time()))
        self._news.set()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            behave = self.behaviours.get(request.path)
            return await behave(request, body) if behave is not None else web.Response(text="thanks")
        finally:
            self.under_way -= 1

    def at(self, path: str) -> list[Got]:
        """What came to a path."""
        return [one for one in self.got if one.path == path]

    async def until(self, count: int, path: str | None = None, *, seconds: float = 15.0) -> list[Got]:
        """All that came, once there are so many."""
        async with asyncio.timeout(seconds):
            while True:
                self._news.clear()
                found = self.got if path is None else self.at(path)
                if len(found) >= count:
                    return found
                await self._news.wait()
