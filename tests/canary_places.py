"""The places where contents and secrets can stand, for tests/test_canary.py. To add one: a coroutine function with
`@place("what it is")` that puts `word` there and sees to it that it got there. Ways that fail count more than ways that
work: what is logged, is mostly logged of these.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from aiohttp import web

from tests import files
from tests.canary_worker import WAYS
from tests.conftest import ADMIN_KEY, Stack, analysis, chat
from tests.parrot import Parrot
from tests.scripted_model import call

Way = Callable[["Ground", str], Awaitable[None]]
PLACES: Final[dict[str, Way]] = {}
REPORT: Final = "The harbour was dredged in March. The new crane lifts ninety tonnes. Night work ends in June."


class Ground:
    """A running stack with its model. `secret(word)` names one that the server made."""

    def __init__(self, stack: Stack, parrot: Parrot, admin_key: str) -> None:
        self.stack = stack
        self.parrot = parrot
        self.admin_key = admin_key
        self.made: list[tuple[str, str]] = []

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        return await self.stack.call(method, path, body, **{"key": self.admin_key, **options})

    async def job(self, job: dict[str, Any], status: str | None = "complete", **options: Any) -> Any:
        answer = await self.call("POST", "/api/jobs", {"maxAttempts": 1, **job}, **options)
        assert answer.status == 202, answer.text
        return await self.finished(answer.json["jobId"], status)

    async def chat(self, text: str, status: str | None = "complete", **more: Any) -> Any:
        """A chat that reaches the model: by a name of its own, so that no circuit breaker stands before it."""
        model = f"errand-dev-{len(self.parrot.headers)}"
        view = await self.job({**chat(text), "model": model, **more}, status)
        assert any(model in body for _, _, body in self.parrot.headers), "the model was not asked"
        return view

    async def finished(self, job_id: str, status: str | None = "complete") -> Any:
        view = await self.stack.finished(job_id, key=self.admin_key)
        assert status in (None, view["status"]), view
        return view

    async def document(self, body: Any, status: str | None = "complete") -> str:
        answer = await self.call("POST", "/api/documents", body)
        assert answer.status == 202, answer.text
        await self.finished(answer.json["jobId"], status)
        return str(answer.json["documentId"])

    async def upload(self, content: bytes, filename: str, status: str | None, **fields: str) -> str:
        form = aiohttp.FormData(fields)
        form.add_field("file", content, filename=filename)
        answer = await self.call("POST", "/api/documents", data=form)
        assert answer.status == 202, answer.text
        await self.finished(answer.json["jobId"], status)
        return str(answer.json["documentId"])

    async def raw(self, request: bytes) -> bytes:
        """What the API answers to these bytes."""
        host, port = self.stack.base.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        with suppress(ConnectionError):
            await writer.drain()
            async with asyncio.timeout(5):
                answer = await reader.read(65_536)
        writer.close()
        return answer


def place(name: str) -> Callable[[Way], Way]:
    def add(way: Way) -> Way:
        assert name not in PLACES
        PLACES[name] = way
        return way

    return add


# -- what is said ----------------------------------------------------------------------------------------------------


@place("messages of a chat job")
async def _(ground: Ground, word: str) -> None:
    await ground.job({**chat(f"Repeat {word}"), "metadata": {"note": word}, "user": f"user-{word}"})


@place("messages of a chat, whole, streamed and by the address")
async def _(ground: Ground, word: str) -> None:
    body = {"messages": [{"role": "system", "content": f"You know {word}."}, {"role": "user", "content": word}]}
    assert (await ground.call("POST", "/api/chat", body)).status == 200
    assert b"[DONE]" in (await ground.call("POST", "/api/chat/stream", body)).body
    assert b"[DONE]" in (await ground.call("GET", f"/api/chat/stream?message={word}&user={word}")).body


@place("a job by WebSocket")
async def _(ground: Ground, word: str) -> None:
    async with ground.stack.session.ws_connect(ground.stack.base + "/api/ws") as socket:
        await socket.send_json({"op": "auth", "key": ground.admin_key})
        await socket.send_json({"op": "submit", "ref": word, "job": chat(word), "idempotencyKey": word})
        while "jobId" not in (said := await socket.receive_json(timeout=10)).get("ok", {}):
            assert "problem" not in said
        await socket.send_json({"op": word, "ref": word})
        await socket.send_str(f"{{{word}")
        await socket.send_json({"op": "submit", "ref": 1, "job": {"type": word}})
        await socket.send_json(
            {"op": "input", "ref": 2, "jobId": said["ok"]["jobId"], "requestId": word, "value": word}
        )
    await ground.finished(said["ok"]["jobId"])


@place("a wrong key in the first frame of a WebSocket")
async def _(ground: Ground, word: str) -> None:
    async with ground.stack.session.ws_connect(ground.stack.base + "/api/ws") as socket:
        await socket.send_json({"op": "auth", "key": f"ek_{word}"})
        assert (await socket.receive(timeout=10)).data


@place("a prompt's messages, variables, description and note")
async def _(ground: Ground, word: str) -> None:
    name = f"greeting-{len(ground.made)}"
    messages = [{"role": "system", "content": f"You greet {{{{name}}}} and know {word}."}]
    made = {"name": name, "messages": messages, "description": word, "note": word}
    assert (await ground.call("POST", "/api/prompts", made)).status == 201
    reference = {"name": name, "version": 1, "variables": {"name": f"Ann {word}"}}
    await ground.job({**chat("Hello"), "prompt": reference})
    missing = {"name": name, "version": 1, "variables": {word: word}}
    assert (await ground.call("POST", "/api/jobs", {**chat("Hello"), "prompt": missing})).status == 422
    broken = {"name": "broken", "messages": [{"role": "system", "content": f"{{{{{word} }}"}]}
    assert (await ground.call("POST", "/api/prompts", broken)).status in (201, 422)


@place("a schema, questions and text of an analysis")
async def _(ground: Ground, word: str) -> None:
    tasks = [{"kind": "summary"}, {"kind": "questions", "questions": [f"What is {word}?"]},
             {"kind": "extract", "schema": {"type": "object", "properties": {word: {"type": "string"}}}}]  # fmt: skip
    await ground.job(analysis(f"{REPORT} It knows {word}.", *tasks), None)
    bad = {"kind": "extract", "schema": {"type": word}}
    assert (await ground.call("POST", "/api/jobs", analysis(REPORT, bad))).status == 422


@place("texts to embed, their ids, and lines that cannot be read")
async def _(ground: Ground, word: str) -> None:
    items = [{"id": word, "text": f"a text about {word}"}]
    await ground.job({"type": "batch-embedding", "input": {"items": items}})
    lines = json.dumps({"id": "a", "text": word}) + "\n" + '{"id": "b", "text": "b"}\n' * 5_000 + f"{{{word}\n"
    form = aiohttp.FormData({"index": "false"})
    form.add_field("file", lines.encode(), filename=f"{word}.ndjson", content_type="application/x-ndjson")
    answer = await ground.call("POST", "/api/documents", data=form)
    assert answer.status == 202, answer.text
    wanted = {"type": "batch-embedding", "input": {"documentId": answer.json["documentId"]}}
    await ground.job(wanted, None)


@place("a comment of feedback")
async def _(ground: Ground, word: str) -> None:
    view = await ground.job(chat("Hello"))
    answer = await ground.call("POST", f"/api/jobs/{view['jobId']}/feedback", {"score": 1, "comment": word})
    assert answer.status < 300, answer.text


# -- documents and search --------------------------------------------------------------------------------------------


@place("a document's name, title, metadata and text")
async def _(ground: Ground, word: str) -> None:
    fields = {"title": word, "metadata": json.dumps({"note": word})}
    await ground.upload(f"{REPORT} {word}".encode(), f"{word}.txt", "complete", **fields)
    await ground.upload(files.pdf([f"{word} stands here"], title=word), f"{word}.pdf", "complete")
    await ground.upload(files.word([f"{word} stands here"]), f"{word}.docx", "complete")
    await ground.upload(f"<p>{word}</p>".encode(), f"{word}.html", "complete")


@place("documents that cannot be read")
async def _(ground: Ground, word: str) -> None:
    await ground.upload(b"%PDF-1.7 " + word.encode(), f"{word}.pdf", None, title=word)
    await ground.upload(b"PK\x03\x04" + word.encode() * 50, f"{word}.docx", None, title=word)
    await ground.upload(files.pdf([word], password="secret"), f"{word}.pdf", None)


@place("the URL of a document, with a user, a password and a query")
async def _(ground: Ground, word: str) -> None:
    port = ground.parrot.base.rpartition(":")[2]
    good = f"http://127.0.0.1:{port}/page/{word}?token={word}"

    async def page(request: web.Request, _: Any) -> web.Response:
        if "refuse" in request.path:
            return web.Response(status=500, text=word)
        return web.Response(text=f"<title>{word}</title><p>{REPORT} {word}</p>", content_type="text/html")

    ground.parrot.raw_when(f"/page/{word}", page)
    await ground.document({"url": good, "title": word})
    assert any(word in path for path, _, _ in ground.parrot.headers), "it was not fetched"
    for url in (f"http://127.0.0.1:{port}/page/{word}-refuse", f"http://{word}.invalid/{word}",
                f"http://{word}:{word}@127.0.0.1:{port}/x", f"http://169.254.169.254/{word}"):  # fmt: skip
        answer = await ground.call("POST", "/api/documents", {"url": url})
        assert answer.status in (202, 422), answer.text
        if answer.status == 202:
            await ground.finished(answer.json["jobId"], "failed")


@place("a search's query, filter, user and what it finds")
async def _(ground: Ground, word: str) -> None:
    await ground.document({"text": f"{REPORT} The password is {word}.", "metadata": {"kind": word}})
    body = {"q": f"What is the password {word}?", "minScore": 0.0, "rerank": True, "user": word}
    found = await ground.call("POST", "/api/search", body)
    assert found.status == 200, found.text
    assert found.json["sources"], found.text
    assert (await ground.call("POST", "/api/search", {"q": word, "filter": {"kind": word}})).status == 200
    streamed = await ground.call("GET", f"/api/search?q={word}&minScore=0", headers={"Accept": "text/event-stream"})
    assert streamed.status == 200
    assert (await ground.call("GET", f"/api/search?q=x&filter={word}")).status == 422
    note = {"helpful": [], "comment": word}
    await ground.call("POST", f"/api/search/{found.json['searchId']}/feedback", note)
    assert (await ground.call("DELETE", f"/api/search/log?user={word}")).status in (200, 204)


@place("a re-ranker that quotes what it was sent")
async def _(ground: Ground, word: str) -> None:
    async def refuses(request: web.Request, body: Any) -> web.Response:
        return web.json_response({"message": f"cannot rank {body}"}, status=400)

    async def talks(request: web.Request, body: Any) -> web.Response:
        return web.Response(text=f"{{{body}")

    await ground.document({"text": f"{REPORT} The password is {word}."})
    ground.parrot.raw_when(f"first {word}", refuses)
    ground.parrot.raw_when(f"second {word}", talks)
    for query in ("first", "second"):
        body = {"q": f"{query} {word}", "minScore": 0.0, "rerank": True, "answer": False}
        found = await ground.call("POST", "/api/search", body)
        assert found.status == 200, found.text
        assert found.json["warnings"], found.text


# -- agents and their tools ------------------------------------------------------------------------------------------


def agent(goal: str, **more: Any) -> dict[str, Any]:
    return {"type": "agent", "input": {"goal": goal, **more}}


@place("an agent's goal, its tools' arguments and results")
async def _(ground: Ground, word: str) -> None:
    steps = iter([
        [call("calculate", {"expression": f"1 + {word}"}), call("calculate", f'{{"{word}'), call(word, {"x": word}),
         call("current_time", {"zone": word, word: 1})],
        [call("search_documents", {"query": word}), call("read_document", {"documentId": word})],
        [call("noisy__repeat", {"text": f"good {word}"}), call("noisy__repeat", {"text": f"fail {word}"})],
        f"The answer is {word}.",
    ])  # fmt: skip
    ground.parrot.says_when(f"goal {word}", lambda _: next(steps))
    tools = ["calculate", "current_time", "search_documents", "read_document", "noisy__repeat"]
    view = await ground.job(agent(f"The goal {word}", tools=tools))
    assert word in view["result"]["answer"], view


@place("a URL that an agent fetches")
async def _(ground: Ground, word: str) -> None:
    port = ground.parrot.base.rpartition(":")[2]
    urls = [f"http://127.0.0.1:{port}/page/gone-{word}?key={word}", f"http://10.0.0.1/{word}", f"{word}://x"]
    steps = iter([[call("fetch_url", {"url": url}) for url in urls], "Done."])

    async def gone(_: web.Request, __: Any) -> web.Response:
        return web.Response(status=404, text=word)

    ground.parrot.raw_when(f"/page/gone-{word}", gone)
    ground.parrot.says_when(f"goal {word}", lambda _: next(steps))
    await ground.job(agent(f"The goal {word}", tools=["fetch_url"]))


@place("a question to a person, and the answer")
async def _(ground: Ground, word: str) -> None:
    steps = iter([[call("calculate", {"expression": f"2 + 3 + {word}"})], "Five."])
    ground.parrot.says_when(f"goal {word}", lambda _: next(steps))
    wanted = agent(f"The goal {word}", tools=["calculate"], approve=["calculate"])
    answer = await ground.call("POST", "/api/jobs", {**wanted, "maxAttempts": 1})
    path = f"/api/jobs/{answer.json['jobId']}"
    async with asyncio.timeout(15):
        while (view := (await ground.call("GET", path)).json)["status"] != "waiting":
            await asyncio.sleep(0.02)
    given = {"requestId": view["waiting"]["requestId"], "value": {"approve": False, "reason": word}}
    assert (await ground.call("POST", f"{path}/input", {**given, "requestId": word})).status == 409
    assert (await ground.call("POST", f"{path}/input", given)).status == 200
    await ground.finished(answer.json["jobId"])


# -- what the model says ---------------------------------------------------------------------------------------------


@place("a model's answer")
async def _(ground: Ground, word: str) -> None:
    ground.parrot.says_when(f"speak {word}", f"I think {word} is right.")
    view = await ground.chat(f"speak {word}")
    assert word in view["result"]["text"]


@place("a model's errors that quote the request")
async def _(ground: Ground, word: str) -> None:
    for status in (400, 401, 403, 404, 408, 413, 422, 429, 500, 503):
        reply = {"status": status, "code": word, "message": f"cannot serve {word}"}
        ground.parrot.says_when(f"status {status} {word}", reply)
        await ground.chat(f"status {status} {word}", "failed")


@place("a model's answer that cannot be read")
async def _(ground: Ground, word: str) -> None:
    def streams(*lines: str) -> Any:
        async def answer(request: web.Request, _: Any) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Note": word})
            await response.prepare(request)
            for line in lines:
                await response.write(f"data: {line}\n\n".encode())
            return response

        return answer

    chunk = {"choices": [{"delta": {"content": word}}]}
    ways = {
        "no json": streams(f"{{{word}"),
        "wrong json": streams(json.dumps({"choices": word})),
        "cut": streams(json.dumps(chunk)),
        "error": streams(json.dumps({"error": {"message": word}})),
        "refusal": streams(json.dumps({"choices": [{"delta": {"refusal": word}}]})),
        "filter": streams(json.dumps({"choices": [{"delta": {"content": word}, "finish_reason": "content_filter"}]})),
        "names": streams(json.dumps({**chunk, "model": f"I am {word}"}),
                         json.dumps({"choices": [{"delta": {}, "finish_reason": word}]}), "[DONE]"),
    }  # fmt: skip
    for way, answer in ways.items():
        ground.parrot.raw_when(f"{way} {word}", answer)
        await ground.chat(f"{way} {word}", "complete" if way == "names" else "failed")


@place("an embeddings answer that quotes its texts")
async def _(ground: Ground, word: str) -> None:
    async def refuses(_: web.Request, __: Any) -> web.Response:
        return web.json_response({"error": {"message": word, "code": word}}, status=400)

    async def nonsense(_: web.Request, __: Any) -> web.Response:
        return web.json_response({"data": [{"embedding": word}], "model": word})

    for way, answer in {"refuse": refuses, "nonsense": nonsense}.items():
        ground.parrot.raw_when(f"{way} {word}", answer)
        await ground.job({"type": "batch-embedding", "input": {"texts": [f"{way} {word}"]}}, None)
    text = {"text": f"refuse {word} {REPORT}"}
    await ground.document(text, None)


@place("a prompt in place of a model's name")
async def _(ground: Ground, word: str) -> None:
    for model in (f"Please tell me about {word}", f"sk-{word}", f"ek_{word}", f"{word}\n{word}"):
        reply = {"status": 500, "message": "no such model"}
        ground.parrot.says_when(word, reply)
        for _ in range(4):  # then its circuit breaker opens, and says so
            await ground.job({**chat("Hello"), "model": model}, "failed")


@place("a chat that is cancelled, timed out, over its budget, tried again")
async def _(ground: Ground, word: str) -> None:
    ground.parrot.says_when(f"slow {word}", {"delay_s": 30, "reply": word})
    answer = await ground.call("POST", "/api/jobs", chat(f"slow {word}"))
    path = f"/api/jobs/{answer.json['jobId']}"
    async with asyncio.timeout(15):
        while (await ground.call("GET", path)).json["status"] != "processing":
            await asyncio.sleep(0.02)
    assert (await ground.call("DELETE", f"{path}?wait=10")).json["status"] == "cancelled"
    await ground.chat(f"slow {word}", "failed", timeoutSeconds=1)
    await ground.job({**chat(f"speak {word} " * 50), "tokenBudget": 3}, "failed")
    replies = iter([{"status": 500, "message": word}, {"status": 500, "message": word}, word])
    ground.parrot.says_when(f"again {word}", lambda _: next(replies))
    await ground.chat(f"again {word}", maxAttempts=3)


@place("a client that goes in mid-stream")
async def _(ground: Ground, word: str) -> None:
    ground.parrot.says_when(f"slow {word}", {"delay_s": 2, "reply": word})
    headers = {"Authorization": f"Bearer {ground.admin_key}"}
    body = {"messages": [{"role": "user", "content": f"slow {word}"}], "disconnectGraceSeconds": 1}
    response = await ground.stack.session.post(ground.stack.base + "/api/chat/stream", json=body, headers=headers)
    assert response.status == 200
    response.close()


for _way in WAYS:

    @place(f"a defect that has the message in its hands: {_way}")
    async def _(ground: Ground, word: str, way: str = _way) -> None:
        fails = way in ("crash", "nested")
        await ground.job(chat(f"defect:{way} {word}"), "failed" if fails else "complete")


# -- keys and tickets ------------------------------------------------------------------------------------------------


@place("keys that the server makes, used, rotated and revoked")
async def _(ground: Ground, word: str) -> None:
    made = await ground.call("POST", "/api/admin/tenants", {"name": word})
    keys = f"/api/admin/tenants/{made.json['tenantId']}/keys"
    key = (await ground.call("POST", keys, {"name": word})).json
    ground.made.append(("a tenant's key", key["key"].rpartition("_")[2]))
    assert (await ground.call("GET", "/api/jobs", key=key["key"])).status == 200
    assert (await ground.call("GET", "/api/admin/tenants", key=key["key"])).status == 403
    rotated = await ground.call("POST", f"{keys}/{key['keyId']}/rotate", {})
    ground.made.append(("a rotated key", rotated.json["key"].rpartition("_")[2]))
    assert (await ground.call("DELETE", f"{keys}/{key['keyId']}")).status in (200, 204)
    assert (await ground.call("GET", "/api/jobs", key=rotated.json["key"])).status == 401
    assert (await ground.call("GET", f"/api/jobs?key={key['key']}")).status == 400
    assert (await ground.call("DELETE", f"/api/admin/tenants/{made.json['tenantId']}")).status == 202


@place("stream tickets, good and bad")
async def _(ground: Ground, word: str) -> None:
    view = await ground.job(chat("Hello"))
    path = f"/api/jobs/{view['jobId']}/stream"
    ticket = (await ground.call("POST", f"{path}-ticket")).json["ticket"]
    ground.made.append(("a ticket", ticket.rpartition(".")[2][-24:]))
    assert (await ground.call("GET", f"{path}?ticket={quote(ticket)}", key=None)).status == 200
    assert (await ground.call("GET", f"{path}?ticket={word}", key=None)).status == 401


@place("Authorization headers that are wrong")
async def _(ground: Ground, word: str) -> None:
    basic = base64.b64encode(f"user:{word}".encode()).decode()
    for header in (word, f"Bearer {word}", f"Bearer ek_{word}", f"Basic {basic}", f"bearer  sk-{word}",
                   f"{ADMIN_KEY[:20]}{word}"):  # fmt: skip
        answer = await ground.call("GET", "/api/jobs", key=None, headers={"Authorization": header})
        assert answer.status == 401
    for name in ("key", "api_key", "access_token", "authorization"):
        assert (await ground.call("GET", f"/api/jobs?{name}={word}", key=None)).status == 400


@place("keys in headers that are not for them")
async def _(ground: Ground, word: str) -> None:
    names = (
        "X-Request-Id Idempotency-Key traceparent tracestate Cookie User-Agent Referer Accept Origin Last-Event-ID "
        "If-None-Match Prefer X-Forwarded-For Content-Type Expect"
    )
    body = json.dumps(chat("Hello")).encode()
    for name in names.split():
        answer = await ground.call("POST", "/api/jobs", body, headers={name: f"sk-{word}"})
        assert answer.status in (202, 415, 417), (name, answer.text)


# -- requests that are not well made ---------------------------------------------------------------------------------


@place("bodies that are refused")
async def _(ground: Ground, word: str) -> None:
    bodies: list[tuple[bytes, int]] = [
        (f'{{"{word}'.encode(), 400),
        (f'"{word}"'.encode(), 422),
        (json.dumps({word: word}).encode(), 422),
        (json.dumps({"type": word}).encode(), 422),
        (json.dumps({**chat(word), word: word}).encode(), 422),
        (json.dumps({**chat(word), "priority": word}).encode(), 422),
        (json.dumps({**chat(word), "runAt": word}).encode(), 422),
        (json.dumps({**chat(word), "metadata": {word * 20: word}}).encode(), 422),
        (json.dumps({**chat(word), "prompt": {"name": word}}).encode(), 422),
        (json.dumps({"type": "chat", "input": {"messages": [{"role": word, "content": word}]}}).encode(), 422),
        (json.dumps(agent(word, tools=[word])).encode(), 422),
        (json.dumps(analysis(word, {"kind": word})).encode(), 422),
        (word.encode() + b"\xff\xfe", 400),
        (f'{{"type": "chat", "input": {{"messages": [{{"content": "{word}\\ud800"}}]}}}}'.encode(), 422),
        (b"[" * 100_000 + word.encode(), 400),
    ]
    for body, status in bodies:
        answer = await ground.call("POST", "/api/jobs", body)
        assert answer.status in (status, 400, 422), (body[:200], answer.text)
    big = json.dumps(chat(word * 1_000_000)).encode()
    assert (await ground.call("POST", "/api/jobs", big)).status == 413


@place("an idempotency key, used twice")
async def _(ground: Ground, word: str) -> None:
    headers = {"Idempotency-Key": word}
    assert (await ground.call("POST", "/api/jobs", chat("one"), headers=headers)).status == 202
    assert (await ground.call("POST", "/api/jobs", chat("one"), headers=headers)).status == 202
    assert (await ground.call("POST", "/api/jobs", chat("two"), headers=headers)).status == 422


@place("addresses that lead nowhere")
async def _(ground: Ground, word: str) -> None:
    for path in (f"/{word}", f"/api/jobs/{word}", f"/api/jobs/job_{word}/stream", f"/api/documents/{word}",
                 f"/api/prompts/{word}", f"/api/collections/{word}", f"/api/jobs?{word}={word}", f"/problems/{word}",
                 f"/api/jobs?metadata.{word}={word}", f"/api/jobs?after={word}", f"/api/usage?groupBy={word}",
                 f"/api/jobs?user={word}", f"/api/chat/stream/{word}", f"/api/search/{word}"):  # fmt: skip
        for method in ("GET", "DELETE", "POST"):
            await ground.call(method, path)


@place("bytes that are no request")
async def _(ground: Ground, word: str) -> None:
    text = word.encode()
    head = b"Host: x\r\nAuthorization: Bearer " + ground.admin_key.encode() + b"\r\n"
    for request in (
        text + b"\r\n\r\n",
        text.upper() + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + text + b" HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + text + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + text * 3_000 + b"\r\n\r\n",
        b"GET /" + text * 3_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://" + text + b"/ HTTP/1.1\r\nHost: " + text + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: " + text + b"\r\n\r\n",
        b"POST /api/jobs HTTP/1.1\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\n" + text + b"\r\n",
        b"POST /api/jobs HTTP/1.1\r\n" + head + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + text,
        b"POST /api/jobs HTTP/1.1\r\n" + head + b"Transfer-Encoding: " + text + b"\r\n\r\n",
    ):
        await ground.raw(request + b"\r\n")


@place("uploads that are not well made")
async def _(ground: Ground, word: str) -> None:
    text = word.encode()
    for body in (
        b"--x\r\n" + text,
        b'--x\r\nContent-Disposition: form-data; name="' + text + b'"\r\n\r\n' + text + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{' + text + b"\r\n--x--\r\n",
        b"--x\r\nContent-Type: " + text + b"\r\nContent-Transfer-Encoding: " + text + b"\r\n\r\nx\r\n--x--\r\n",
    ):
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await ground.call("POST", "/api/documents", body, headers=kind)
        assert answer.status >= 400, answer.text


@place("a webhook's URL, its secret, and what it is told")
async def _(ground: Ground, word: str) -> None:
    """Sent, and answered with an error; an address that is refused, early and when it is sent."""
    secret = (await ground.call("POST", "/api/webhooks/secret/rotate")).json["secret"]
    ground.made.append(("the secret of webhooks", secret.removeprefix("whsec_")[:24]))
    url = f"{ground.parrot.base}/{word}?token={word}"
    job = await ground.job({**chat(word), "metadata": {"about": word}, "webhook": {"url": url}})
    async with asyncio.timeout(20):
        while True:
            listed = await ground.call("GET", f"/api/webhooks/deliveries?jobId={job['jobId']}")
            if listed.json["data"] and listed.json["data"][0]["attempts"]:
                break
            await asyncio.sleep(0.05)
    for wrong in (f"http://127.0.0.1:1/{word}", f"http://{word}:{word}@example.org/", f"ftp://{word}/"):
        answer = await ground.call("POST", "/api/webhooks/test", {"url": wrong})
        assert answer.status == 422, answer.text
    unknown = f"http://nowhere.invalid/{word}?{word}"  # the host is said, on purpose
    assert (await ground.call("POST", "/api/webhooks/test", {"url": unknown})).status == 200
