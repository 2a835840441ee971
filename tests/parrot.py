"""A model, a re-ranker and a web page that say what a test wants as soon as they read a certain word; the model hands
everything else on to the development model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

from tests.scripted_model import ScriptedModel

Raw = Callable[[web.Request, dict[str, Any]], Any]


class Parrot(ScriptedModel):
    """`says_when(word, reply)`: a reply as `ScriptedModel` takes it, for requests to the model that hold the word.
    `raw_when(word, answer)`: an HTTP response of the test's own, also from the re-ranker and the page."""

    def __init__(self, model_base: str) -> None:
        super().__init__()
        self.headers: list[tuple[str, dict[str, str], str]] = []  # of requests: path, headers, body
        self._model_base = model_base
        self._rules: list[tuple[str, Any]] = []
        self._raw: list[tuple[str, Raw]] = []
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession()
        app = web.Application(client_max_size=1 << 28)
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/rerank", "/page/{rest:.*}"):
            app.router.add_route("*", path, self._any)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base = "http://{}:{}".format(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        await super().stop()
        if self._session is not None:
            await self._session.close()

    def says_when(self, word: str, reply: Any) -> None:
        self._rules.append((word, reply))

    def raw_when(self, word: str, answer: Raw) -> None:
        self._raw.append((word, answer))

    async def _any(self, request: web.Request) -> web.StreamResponse:
        is_page = request.path.startswith("/page/")
        text = str(request.rel_url) if is_page else (await request.read()).decode()
        self.headers.append((request.path, dict(request.headers), text))
        for word, answer in self._raw:
            if word in text and word.startswith("/page/") == is_page:
                made: web.StreamResponse = await answer(request, json.loads(await request.read() or b"{}"))
                return made
        if request.path.endswith("/chat/completions"):
            for word, reply in self._rules:
                if word in text:
                    self.replies = [reply]
                    return await self._chat(request)
        if request.path.endswith("/rerank"):
            documents = (await request.json())["documents"]
            return web.json_response({"results": [{"index": n, "relevance_score": 0.9} for n in range(len(documents))]})
        return await self._hand_on(request)

    async def _hand_on(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        headers = {"Content-Type": "application/json"}
        async with self._session.post(
            self._model_base + request.path, data=await request.read(), headers=headers
        ) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response
