"""A server of a test's own on loopback."""

from __future__ import annotations

from aiohttp import web


class Loopback:
    """Serves `app` at `base` from `start` to `stop`."""

    def __init__(self) -> None:
        self.base = ""
        self._runner: web.AppRunner | None = None

    def app(self) -> web.Application:
        """What is served."""
        raise NotImplementedError

    async def start(self) -> None:
        self._runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base = "http://{}:{}".format(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
