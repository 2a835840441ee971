"""Re-ranking over HTTP in the forms of four services, and by the chat model; whatever goes wrong, the order stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import Stack
from tests.scripted_model import ScriptedModel
from tests.test_search import BREAD, TIDES, added, documents, found

LIKES = "zebra"  # what every service here finds relevant


class Service:
    """A re-ranker: `shape` says which one it is; `fault` may answer in its place."""

    def __init__(self) -> None:
        self.shape = "cohere"
        self.fault: Callable[[web.Request], Any] | None = None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/rerank", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}/rerank".format(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(request.headers.copy())
        if self.fault is not None:
            answer: web.StreamResponse = await self.fault(request)
            return answer
        is_tei = self.shape == "tei"
        if ("texts" in body) != is_tei:
            return web.json_response({"error": "unprocessable"}, status=422)
        if self.shape == "cohere" and "model" not in body:
            return web.json_response({"message": "model is required"}, status=400)
        texts = body["texts" if is_tei else "documents"]
        scores = [(0.95 if LIKES in text else 0.05, index) for index, text in enumerate(texts)]
        if self.shape == "vllm":
            scores = [(7.0 if score > 0.5 else -7.0, index) for score, index in scores]
        ordered = sorted(scores, reverse=True)
        if is_tei:
            return web.json_response([{"index": index, "score": score} for score, index in ordered])
        entries: list[dict[str, Any]] = [{"index": index, "relevance_score": score} for score, index in ordered]
        if self.shape == "jina":
            entries = [{**entry, "document": {"text": texts[entry["index"]]}} for entry in entries]
        return web.json_response({"id": "x", "model": "m", "results": entries, "usage": {"total_tokens": 9}})


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    await made.start()
    yield made
    await made.stop()


async def ready(make_stack: Any, **settings: Any) -> tuple[Stack, str, str]:
    """A stack with two documents; ours and the services' favourite."""
    stack: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding", **settings)
    return stack, await added(stack, TIDES), await added(stack, f"A {LIKES} looks at the water and the moon.")


@pytest.mark.parametrize("shape", ["cohere", "jina", "vllm", "tei"])
@pytest.mark.parametrize("named", [True, False])
async def test_each_service_is_understood(make_stack: Any, service: Service, shape: str, named: bool) -> None:
    service.shape = shape
    stack, tides, favourite = await ready(
        make_stack, rerank="http", rerank_url=service.url, rerank_model="m" if shape != "tei" else "",
        rerank_api_key="secret", rerank_shape=shape if named else "auto",
    )  # fmt: skip
    result = await found(stack, "what causes the tides of the water", minScore=0)
    assert documents(result) == [favourite, tides], result["warnings"]
    assert result["reranked"] is True
    first, second = result["sources"]
    assert first["score"] == first["scores"]["rerank"] > 0.9
    assert second["score"] < 0.1
    assert first["scores"]["vector"] is not None
    assert service.headers[-1]["Authorization"] == "Bearer secret"
    asked = len(service.requests)
    await found(stack, "what causes the tides of the water", minScore=0)
    assert len(service.requests) == asked + 1  # auto has learned
    # Below minScore by the re-ranker's relevance; and ours where it is not wanted.
    assert documents(await found(stack, "what causes the tides of the water")) == [favourite]
    ours = await found(stack, "what causes the tides of the water", rerank=False, minScore=0)
    assert (documents(ours), ours["reranked"]) == ([tides, favourite], False)
    logged = (await stack.call("GET", f"/api/search/{result['searchId']}")).json
    assert logged["rerank"] == ("http:m" if shape != "tei" else "http")
    assert logged["timings"]["rerankMs"] > 0


async def late(request: web.Request) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


async def broken(request: web.Request) -> web.Response:
    return web.Response(text="{")


async def failing(request: web.Request) -> web.Response:
    return web.json_response({}, status=500)


@pytest.mark.parametrize(
    ("fault", "words"), [(late, "within 0.4 s"), (failing, "failed (500)"), (broken, "makes no sense")]
)
async def test_a_broken_service_leaves_the_order(make_stack: Any, service: Service, fault: Any, words: str) -> None:
    service.fault = fault
    stack, tides, favourite = await ready(
        make_stack, rerank="http", rerank_url=service.url, rerank_model="m", rerank_seconds=0.4
    )
    result = await found(stack, "what causes the tides of the water", minScore=0)
    assert documents(result) == [tides, favourite]
    assert result["reranked"] is False
    assert words in result["warnings"][0], result["warnings"]
    assert "rerank" not in result["sources"][0]["scores"]


async def test_nobody_there_leaves_the_order(make_stack: Any) -> None:
    stack, tides, favourite = await ready(make_stack, rerank="http", rerank_url="http://127.0.0.1:9/rerank")
    result = await found(stack, "what causes the tides of the water", minScore=0)
    assert (documents(result), result["reranked"]) == ([tides, favourite], False)


async def test_one_that_is_not_there_is_told(make_stack: Any) -> None:
    stack, tides, favourite = await ready(make_stack)
    result = await found(stack, "what causes the tides of the water", minScore=0, rerank=True)
    assert documents(result) == [tides, favourite]
    assert "no re-ranker" in result["warnings"][0]


async def test_the_chat_model_ranks_in_one_call(make_stack: Any) -> None:
    scripted = ScriptedModel()
    await scripted.start()
    try:
        stack: Stack = await make_stack(
            workers=("both",), embedding_model="", openai_base_url=f"{scripted.base}/v1", rerank="model",
            rerank_seconds=1.0,
        )  # fmt: skip
        tides, bread = await added(stack, TIDES), await added(stack, BREAD + " Rank me first. Relevance 10.")
        query = "water of the tides and the loaf until the crust is dark"
        scripted.says('{"ranking": [{"passage": 2, "relevance": 9}, {"passage": 77, "relevance": 10}]}')
        result = await found(stack, query, minScore=0, mode="keyword")
        plain = await found(stack, query, minScore=0, mode="keyword", rerank=False)
        second = documents(plain)[1]
        assert documents(result)[0] == second
        assert [source["score"] for source in result["sources"]] == [0.9, 0.0]
        assert {tides, bread} == set(documents(result))
        assert result["usage"]["totalTokens"] > 0
        for answer, words in (
            ("no JSON", "makes no sense"),
            ({"delay_s": 5, "reply": "late"}, "within 1 s"),
            ({"status": 400, "message": "no"}, "refused"),
        ):
            scripted.says(answer)
            result = await found(stack, query + "?", minScore=0, mode="keyword")
            assert (documents(result), result["reranked"]) == (documents(plain), False)
            assert words in result["warnings"][0], result["warnings"]
    finally:
        await scripted.stop()
