"""Re-rankers on loopback, as strict as the real ones: vLLM, Cohere, Jina and Text Embeddings Inference, with faults.

The score of a text is the number at its end ("… 0.25"). A fault is a function of the request and the good answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.loopback import Loopback

Fault = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]
KEY = "secret-of-the-re-ranker"


class RerankServer(Loopback):
    """The server, its fault, and the requests that it got."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.connections: set[Any] = set()
        self.fault: Fault | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v2/rerank", self._cohere)
        app.router.add_post("/jina/v1/rerank", self._jina)
        app.router.add_post("/v1/rerank", self._vllm)
        app.router.add_post("/rerank", self._tei)
        return app

    async def _read(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.requests.append((request.path, body))
        self.connections.add(request.transport)
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        return body

    async def _answer(self, request: web.Request, good: Any) -> web.StreamResponse:
        return web.json_response(good) if self.fault is None else await self.fault(request, good)

    async def _cohere(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        if not body.get("model") or set(body) - {"model", "query", "documents", "top_n", "max_tokens_per_doc"}:
            return web.json_response({"message": f"invalid request: {body}"}, status=400)
        results = best_first(body["documents"], "relevance_score")[: body["top_n"]]
        return await self._answer(request, {"id": "x", "results": results, "meta": {"api_version": {"version": "2"}}})

    async def _jina(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        if set(body) - {"model", "query", "documents", "top_n", "return_documents"}:
            return web.json_response({"detail": "extra"}, status=422)
        results = best_first(body["documents"], "relevance_score")
        if body.get("return_documents", True):
            results = [{**row, "document": {"text": body["documents"][row["index"]]}} for row in results]
        return await self._answer(request, {"model": body["model"], "usage": {"total_tokens": 9}, "results": results})

    async def _vllm(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        too_long = any(len(text) > 2_000 for text in body.get("documents", ()))
        if "documents" not in body or (too_long and body.get("truncate_prompt_tokens") != -1):
            return web.json_response({"error": {"message": f"bad request {body}", "code": 400}}, status=400)
        results = [
            {**row, "document": {"text": body["documents"][row["index"]], "multi_modal": None}}
            for row in best_first(body["documents"], "relevance_score")
        ]
        return await self._answer(request, {"id": "rerank-1", "model": "m", "usage": {}, "results": results})

    async def _tei(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        if "texts" not in body:
            return web.json_response({"error": "missing field `texts`"}, status=422)
        if len(body["texts"]) > 32:
            return web.json_response({"error": "batch size > 32", "error_type": "Validation"}, status=413)
        return await self._answer(request, best_first(body["texts"], "score"))


def best_first(texts: list[str], member: str) -> list[dict[str, Any]]:
    """As every re-ranker sorts its answer."""
    rows: list[dict[str, Any]] = [
        {"index": number, member: float(text.split()[-1])} for number, text in enumerate(texts)
    ]
    return sorted(rows, key=lambda row: -float(row[member]))


def status(code: int) -> Fault:
    """Answers with this, and quotes what it was sent, as some servers do."""

    async def fault(request: web.Request, _: Any) -> web.StreamResponse:
        return web.Response(status=code, text=await request.text(), headers={"Location": str(request.url)})

    return fault


def says(text: str | bytes) -> Fault:
    """Answers with this as its JSON."""

    async def fault(_: web.Request, __: Any) -> web.StreamResponse:
        body = text.encode() if isinstance(text, str) else text
        return web.Response(body=body, content_type="application/json")

    return fault


def edited(edit: Callable[[list[dict[str, Any]]], Any]) -> Fault:
    """The good answer with other results."""

    async def fault(_: web.Request, good: Any) -> web.StreamResponse:
        if isinstance(good, list):
            return web.Response(text=json.dumps(edit(good)), content_type="application/json")
        return web.Response(
            text=json.dumps({**good, "results": edit(good["results"])}), content_type="application/json"
        )

    return fault


async def slow(_: web.Request, good: Any) -> web.StreamResponse:
    """Takes its time before a good answer."""
    await asyncio.sleep(30)
    return web.json_response(good)


async def trickles(request: web.Request, _: Any) -> web.StreamResponse:
    """A head, then a few bytes for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _number in range(3_000):
        await response.write(b" ")
        await asyncio.sleep(0.01)
    return response


async def closes(request: web.Request, _: Any) -> web.StreamResponse:
    """Closes the connection without a byte."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def breaks_off(request: web.Request, _: Any) -> web.StreamResponse:
    """Closes the connection in the middle of its answer."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"results": [')
    assert request.transport is not None
    request.transport.close()
    return response


async def endless(request: web.Request, _: Any) -> web.StreamResponse:
    """More than any answer."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _number in range(1_000):
        await response.write(b" " * 65_536)
    return response
