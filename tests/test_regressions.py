"""What testers broke once: each of these was red before its fix."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.conftest import ADMIN_KEY, DevModel, Stack, analysis, chat

LONG = " ".join(f"word{n}" for n in range(400))


@pytest.mark.parametrize("budget", [10**17, 2**63 - 1, 10**30])
async def test_a_huge_token_budget_is_refused_and_harms_nobody(stack: Stack, budget: int) -> None:
    answer = await stack.call("POST", "/api/jobs", chat(tokenBudget=budget))
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.tokenBudget")
    assert (await stack.finished(await stack.submit(chat())))["status"] == "complete"


async def test_an_unreadable_record_does_not_end_the_worker(stack: Stack) -> None:
    job_id = await stack.submit(chat(delaySeconds=0.3))
    await stack.client.hset(stack.keys.job(job_id), "token_budget", "1e+17")
    await asyncio.sleep(0.6)
    assert (await stack.finished(await stack.submit(chat())))["status"] == "complete"


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00", "2300-01-01T00:00:00Z"])
async def test_a_time_beyond_reason_is_refused_before_anything_is_stored(edge: Stack, time: str) -> None:
    answer = await edge.call("POST", "/api/jobs", chat(runAt=time))
    assert answer.status == 422
    assert "runAt" in answer.json["detail"]
    assert (await edge.call("GET", "/api/jobs")).json["data"] == []
    tenant, _ = await edge.tenant()
    key = await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {"expiresAt": time})
    assert (key.status, key.json["errors"][0]["path"]) == (422, "$.expiresAt")


async def test_the_token_budget_stops_a_running_stream(stack: Stack, model: DevModel) -> None:
    view = await stack.finished(await stack.submit(chat(LONG, tokenBudget=1_000)))
    assert (view["status"], view["error"]["code"]) == ("failed", "budget_exhausted")
    assert view["usage"]["totalTokens"] <= 1_002
    assert view["usage"]["outputTokens"] > 0
    stats = await model.stats()
    assert stats["ended"] == {"closed": 1} or stats["outputTokens"] <= 450


async def test_usage_is_never_zero_after_dispatch(stack: Stack, model: DevModel) -> None:
    await model.faults({"kind": "stall", "seconds": 30})
    view = await stack.finished(await stack.submit(chat(LONG, timeoutSeconds=0.5)))
    assert view["error"]["code"] == "timeout"
    assert view["usage"]["inputTokens"] > 100
    assert view["usage"]["estimated"] is True
    await model.faults({"kind": "drop"})
    dropped = await stack.finished(await stack.submit(chat(LONG, maxAttempts=1)))
    assert dropped["usage"]["inputTokens"] > 100


async def test_the_receipt_shows_tokens_before_and_after(stack: Stack, model: DevModel) -> None:
    await model.pace(tokensPerSecond=40)
    job_id = await stack.submit(chat(LONG))
    async with asyncio.timeout(5):
        while (await model.stats())["outputTokens"] < 5:
            await asyncio.sleep(0.02)
    receipt = (await stack.call("DELETE", f"/api/jobs/{job_id}?wait=5")).json["cancellation"]
    assert 0 < receipt["usageAtRequest"] <= receipt["usageFinal"] <= receipt["usageAtRequest"] + 5


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer \udcff"}, 401),
        ({"traceparent": "\udcff"}, 202),
        ({"Content-Encoding": "gzip"}, 400),
        ({"Content-Encoding": "deflate"}, 400),
        ({"Prefer": "wait=" + "9" * 4_500}, 202),
        ({"Content-Type": "garbage"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Accept": "application/json, text/event-stream;q=0"}, 202),
    ],
)
async def test_odd_headers_have_their_answer(edge: Stack, headers: dict[str, str], status: int) -> None:
    host, port = edge.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(chat()).encode()
    lines = {"Host": "x", "Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    request = f"POST /api/jobs HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode("utf-8", "surrogateescape") + body)
    answer = (await reader.read()).decode()
    writer.close()
    assert int(answer.split()[1]) == status, answer
    if status >= 400:
        assert "application/problem+json" in answer


@pytest.mark.parametrize(
    "raw",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_a_problem_too(edge: Stack, raw: bytes) -> None:
    host, port = edge.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    answer = (await reader.read()).decode()
    writer.close()
    assert "application/problem+json" in answer
    assert "X-Request-Id" in answer
    assert "Bad Header" not in answer


async def test_a_client_that_never_ends_its_header_is_let_go(make_stack: Any) -> None:
    stack: Stack = await make_stack(header_seconds=0.5)
    host, port = stack.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
    async with asyncio.timeout(4):
        assert await reader.read() == b""
    writer.close()


async def test_an_upload_that_drips_is_let_go(make_stack: Any) -> None:
    stack: Stack = await make_stack(upload_seconds=0.5)

    async def drip() -> Any:
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield b"x"
            await asyncio.sleep(0.1)

    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = await stack.call("POST", "/api/documents", headers=headers, data=drip())
    assert (answer.status, answer.json["code"]) == (408, "request_timeout")
    assert [path for path in stack.settings.data_dir.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "part",
    [
        b'Content-Disposition: form-data; name="title"\r\nContent-Transfer-Encoding: foo\r\n\r\nx\r\n',
        b'Content-Disposition: form-data; name="file"; filename="a\x01\xff\xfe"\r\n\r\nx\r\n',
        b"garbage",
        b"X: y\r\n" * 5_000 + b"\r\n\r\n",
        b'Content-Disposition: form-data; name="title"\r\n\r\na\r\n--B\r\n'
        b'Content-Disposition: form-data; name="title"\r\n\r\nb\r\n',
    ],
)
async def test_odd_multipart_never_crashes(edge: Stack, part: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = await edge.call("POST", "/api/documents", headers=headers, data=b"--B\r\n" + part + b"--B--\r\n")
    assert answer.status in (202, 400, 422), answer.text


async def test_a_document_deleted_while_it_is_read_leaves_nothing(stack: Stack) -> None:
    answer = await stack.call("POST", "/api/documents", {"text": "Some words. " * 200_000})
    await stack.until(answer.json["jobId"], "processing")
    assert (await stack.call("DELETE", f"/api/documents/{answer.json['documentId']}")).status == 200
    assert (await stack.finished(answer.json["jobId"]))["status"] == "failed"
    assert [path for path in stack.settings.data_dir.rglob("*") if path.is_file()] == []


async def test_a_nul_in_a_text_is_refused(edge: Stack) -> None:
    answer = await edge.call("POST", "/api/jobs", analysis("a\0b harbour."))
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.input.document.text")
    document = await edge.call("POST", "/api/documents", {"text": "a\0b"})
    assert (document.status, document.json["errors"][0]["path"]) == (422, "$.text")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}},
        {"type": "string"},
        {"enum": ["harbour", "tax"]},
        {"oneOf": [{"type": "string"}, {"type": "number"}]},
        {"type": "array", "items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"type": "string"}}},
        {},
    ],
)
async def test_a_schema_of_any_root_is_served(stack: Stack, schema: dict[str, Any]) -> None:
    job = analysis("The harbour was built in 1904.", {"kind": "extract", "schema": schema})
    view = await stack.finished(await stack.submit(job))
    assert view["status"] == "complete", view["error"]
    assert "data" in view["result"]["tasks"][0]
    assert isinstance(view["result"]["tasks"][0]["citations"], list)


async def test_a_document_whose_ingest_was_cancelled_says_so(edge: Stack) -> None:
    answer = await edge.call("POST", "/api/documents", {"text": "Some text."})
    await edge.call("DELETE", f"/api/jobs/{answer.json['jobId']}")
    document = (await edge.call("GET", f"/api/documents/{answer.json['documentId']}")).json
    assert document["status"] == "pending"
    assert "ingest job is cancelled" in document["error"]


async def test_an_empty_document_id_is_refused(edge: Stack) -> None:
    body = {"type": "document-analysis", "input": {"document": {"documentId": ""}, "tasks": [{"kind": "summary"}]}}
    answer = await edge.call("POST", "/api/jobs", body)
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.input.document.documentId")


async def test_two_jobs_may_read_one_fresh_document(stack: Stack) -> None:
    for _ in range(3):
        made = await stack.call("POST", "/api/documents", {"text": "The harbour was built in 1904."})
        use = {"documentId": made.json["documentId"]}
        body = {
            "type": "document-analysis",
            "maxAttempts": 1,
            "input": {"document": use, "tasks": [{"kind": "summary"}]},
        }
        jobs = [await stack.submit(body) for _ in range(2)]
        views = [await stack.finished(job_id) for job_id in (*jobs, made.json["jobId"])]
        assert [view["status"] for view in views] == ["complete"] * 3


async def test_head_answers_like_get_without_a_body(edge: Stack) -> None:
    for path in ("/healthz", "/api/jobs", "/openapi.json"):
        answer = await edge.call("HEAD", path)
        assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("query", ["limit=٣", "after=zzz", "after=doc_01M81SGW152PHX78GHNCJWQHRS"])
async def test_odd_list_parameters_are_refused(edge: Stack, query: str) -> None:
    assert (await edge.call("GET", f"/api/jobs?{query}")).status == 422


async def test_a_cancellation_is_never_swallowed_by_the_redis_client() -> None:
    """redis-py 5.3 can swallow a cancellation while it connects; `shielded` makes it harmless."""
    from shared.redis import shielded

    stopped = asyncio.Event()

    async def stubborn() -> str:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
        stopped.set()
        return "done"

    task = asyncio.create_task(shielded(stubborn()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stopped.wait()
