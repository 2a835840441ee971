"""The jobs API, to the letter of the contract."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.conftest import ADMIN_KEY, Stack, analysis, chat


async def test_a_submitted_job_is_shown_as_it_was_at_admission(edge: Stack) -> None:
    answer = await edge.call("POST", "/api/jobs", chat(priority="high", user="u1", metadata={"a": "b"}))
    view = answer.json
    assert answer.status == 202
    assert answer.headers["Location"] == f"/api/jobs/{view['jobId']}"
    assert answer.headers["X-Request-Id"]
    assert (view["status"], view["attempt"], view["maxAttempts"]) == ("queued", 0, 3)
    assert (view["priority"], view["user"], view["metadata"]) == ("high", "u1", {"a": "b"})
    assert view["queue"]["position"] == 1
    assert "result" not in view
    read = await edge.call("GET", answer.headers["Location"])
    assert {name: read.json[name] for name in view if name != "queue"} == {
        name: view[name] for name in view if name != "queue"
    }


async def test_unknown_fields_are_refused_and_named(edge: Stack) -> None:
    answer = await edge.call("POST", "/api/jobs", {**chat(), "colour": "red"})
    problem = answer.json
    assert answer.status == 422
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert problem["errors"] == [{"path": "$.colour", "message": "unknown field"}]
    assert problem["code"] == "invalid_request"
    assert problem["type"] == "/problems/invalid_request"
    assert problem["retryable"] is False
    assert problem["requestId"] == answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {}, 400, "malformed_request"),
        (b"{", {}, 400, "malformed_request"),
        (b"\xff\xfe\x00", {}, 400, "malformed_request"),
        (b"[" * 200_000, {}, 400, "malformed_request"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b'{"a":"' + b"x" * 11_000_000 + b'"}', {}, 413, "too_large"),
        (b"null", {}, 422, "invalid_request"),
    ],
)
async def test_bad_bodies_get_their_problem(
    edge: Stack, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await edge.call("POST", "/api/jobs", body, headers=headers)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert "Traceback" not in answer.text
    assert (await edge.call("GET", "/api/jobs")).json["data"] == []


async def test_a_body_that_is_cut_off_stores_nothing(edge: Stack) -> None:
    host, port = edge.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(chat()).encode()
    head = f"POST /api/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
    writer.write((head + f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body[:20])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert await reader.read() == b""
    assert (await edge.call("GET", "/api/jobs")).json["data"] == []


async def test_a_slow_body_times_out(make_stack: Any) -> None:
    edge: Stack = await make_stack(body_seconds=0.2)

    async def slowly() -> Any:
        yield b'{"type":'
        await asyncio.sleep(1)
        yield b'"chat"}'

    answer = await edge.call("POST", "/api/jobs", headers={"Content-Type": "application/json"}, data=slowly())
    assert (answer.status, answer.json["code"]) == (408, "request_timeout")


@pytest.mark.parametrize(
    ("headers", "path", "status", "code"),
    [
        ({}, "/api/jobs", 401, "unauthenticated"),
        ({"Authorization": "Bearer nonsense"}, "/api/jobs", 401, "unauthenticated"),
        ({"Authorization": "Basic abc"}, "/api/jobs", 401, "unauthenticated"),
        ({"Authorization": f"Bearer {ADMIN_KEY}x"}, "/api/jobs", 401, "unauthenticated"),
        ({}, f"/api/jobs?key={ADMIN_KEY}", 400, "malformed_request"),
        ({}, "/nowhere", 404, "not_found"),
    ],
)
async def test_a_missing_or_wrong_key_is_refused(
    edge: Stack, headers: dict[str, str], path: str, status: int, code: str
) -> None:
    answer = await edge.call("GET", path, key=None, headers=headers)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


async def test_a_wrong_method_names_the_right_ones(edge: Stack) -> None:
    answer = await edge.call("PUT", "/api/jobs")
    assert (answer.status, answer.json["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(",")) >= {"GET", "POST"}


async def test_the_callers_request_id_is_kept_when_it_is_sane(edge: Stack) -> None:
    kept = await edge.call("GET", "/api/jobs", headers={"X-Request-Id": "abc-123"})
    assert kept.headers["X-Request-Id"] == "abc-123"
    replaced = await edge.call("GET", "/api/jobs", headers={"X-Request-Id": "a b<script>"})
    assert replaced.headers["X-Request-Id"].startswith("req_")


async def test_an_idempotency_key_makes_one_job(edge: Stack) -> None:
    headers = {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(*(edge.call("POST", "/api/jobs", chat(), headers=headers) for _ in range(20)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["jobId"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 19
    assert len({answer.body for answer in answers}) == 1
    other = await edge.call("POST", "/api/jobs", chat("other"), headers=headers)
    assert (other.status, other.json["code"]) == (422, "idempotency_mismatch")
    _, key = await edge.tenant()
    fresh = await edge.call("POST", "/api/jobs", chat(), headers=headers, key=key)
    assert "Idempotent-Replayed" not in fresh.headers


async def test_a_replay_shows_the_first_answer_also_after_the_job_ran(stack: Stack) -> None:
    headers = {"Idempotency-Key": "k2"}
    first = await stack.call("POST", "/api/jobs", chat(), headers=headers)
    await stack.finished(first.json["jobId"])
    again = await stack.call("POST", "/api/jobs", chat(), headers=headers)
    assert again.body == first.body
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_prefer_wait_answers_with_the_final_view(stack: Stack) -> None:
    answer = await stack.call("POST", "/api/jobs", chat(), headers={"Prefer": "wait=10"})
    assert (answer.status, answer.json["status"]) == (200, "complete")
    assert answer.json["result"]["text"]


async def test_prefer_wait_gives_up_with_202(edge: Stack) -> None:
    answer = await edge.call("POST", "/api/jobs", chat(), headers={"Prefer": "respond-async, wait=1"})
    assert (answer.status, answer.json["status"]) == (202, "queued")


async def test_an_etag_spares_the_body(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    first = await edge.call("GET", f"/api/jobs/{job_id}")
    assert first.headers["Retry-After"] == "1"
    again = await edge.call("GET", f"/api/jobs/{job_id}", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    await edge.call("DELETE", f"/api/jobs/{job_id}")
    changed = await edge.call("GET", f"/api/jobs/{job_id}", headers={"If-None-Match": first.headers["ETag"]})
    assert changed.status == 200
    assert changed.headers["ETag"] != first.headers["ETag"]


async def test_a_long_poll_returns_when_the_job_ends(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    job_id = await stack.submit(chat())
    waiting = asyncio.create_task(stack.call("GET", f"/api/jobs/{job_id}?wait=10"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await stack.start_worker("interactive")
    assert (await waiting).json["status"] == "complete"


@pytest.mark.parametrize("wait", ["-1", "61", "x", "1.5", ""])
async def test_a_bad_wait_is_refused(edge: Stack, wait: str) -> None:
    job_id = await edge.submit(chat())
    answer = await edge.call("GET", f"/api/jobs/{job_id}?wait={wait}")
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "?wait")


async def test_the_list_pages_without_gaps_or_repeats(edge: Stack) -> None:
    made = [await edge.submit(chat()) for _ in range(25)]
    seen: list[str] = []
    path = "/api/jobs?limit=10"
    while path:
        page = await edge.call("GET", path)
        seen += [job["jobId"] for job in page.json["data"]]
        assert page.json["hasMore"] == (page.json["next"] is not None) == ("Link" in page.headers)
        path = f"/api/jobs?limit=10&after={page.json['next']}" if page.json["hasMore"] else ""
    assert seen == sorted(made, reverse=True)


async def test_the_list_filters(edge: Stack) -> None:
    low = await edge.submit(chat(priority="low", user="ann", metadata={"team": "red", "x": "1"}))
    high = await edge.submit(analysis("Some text.", priority="high", metadata={"team": "blue"}))
    gone = await edge.submit(chat())
    await edge.call("DELETE", f"/api/jobs/{gone}")

    async def found(query: str) -> set[str]:
        answer = await edge.call("GET", f"/api/jobs?{query}")
        assert answer.status == 200, answer.text
        return {job["jobId"] for job in answer.json["data"]}

    assert await found("status=cancelled") == {gone}
    assert await found("type=document-analysis") == {high}
    assert await found("priority=low") == {low}
    assert await found("user=ann") == {low}
    assert await found("metadata.team=red") == {low}
    assert await found("metadata.team=red&metadata.x=2") == set()
    created = (await edge.call("GET", f"/api/jobs/{high}")).json["createdAt"]
    assert high in await found(f"createdAfter={created}")
    assert low not in await found(f"createdAfter={created}") or low[:14] == high[:14]  # the same millisecond
    assert await found("createdAfter=2099-01-01T00:00:00Z") == set()
    assert await found("createdBefore=2001-01-01T00:00:00Z") == set()
    assert await found("createdBefore=2099-01-01T00:00:00Z") == {low, high, gone}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "status=nonsense", "type=x", "colour=red", "after=%2A%2A", "createdAfter=soon"]
)
async def test_a_bad_list_query_is_refused_and_named(edge: Stack, query: str) -> None:
    answer = await edge.call("GET", f"/api/jobs?{query}")
    assert answer.status == 422
    assert answer.json["errors"][0]["path"] == f"?{query.split('=')[0]}"


@pytest.mark.parametrize(
    ("method", "suffix"),
    [("GET", ""), ("DELETE", ""), ("GET", "/stream"), ("GET", "/events"), ("POST", "/retry")],
)
async def test_another_tenants_job_is_not_found(edge: Stack, method: str, suffix: str) -> None:
    job_id = await edge.submit(chat())
    _, key = await edge.tenant()
    theirs = await edge.call(method, f"/api/jobs/{job_id}{suffix}", key=key)
    unknown = await edge.call(method, f"/api/jobs/job_{'0' * 26}{suffix}", key=key)
    malformed = await edge.call(method, f"/api/jobs/nonsense{suffix}", key=key)
    assert [answer.status for answer in (theirs, unknown, malformed)] == [404, 404, 404]
    assert (await edge.call("GET", "/api/jobs", key=key)).json["data"] == []
    assert (await edge.call("GET", f"/api/jobs/{job_id}")).json["status"] == "queued"


async def test_a_key_without_the_scope_is_refused(edge: Stack) -> None:
    tenant, _ = await edge.tenant()
    made = await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {"scopes": ["documents"]})
    answer = await edge.call("GET", "/api/jobs", key=made.json["key"])
    assert (answer.status, answer.json["code"]) == (403, "scope_missing")
    admin = await edge.call("GET", "/api/admin/tenants", key=made.json["key"])
    assert admin.status == 403


async def test_cancelling_a_queued_job_is_final_at_once(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    answer = await edge.call("DELETE", f"/api/jobs/{job_id}")
    assert (answer.status, answer.json["status"]) == (200, "cancelled")
    receipt = answer.json["cancellation"]
    assert receipt["requestedAt"] == receipt["finishedAt"]
    assert (receipt["usageAtRequest"], receipt["usageFinal"]) == (0, 0)
    again = await edge.call("DELETE", f"/api/jobs/{job_id}")
    assert (again.status, again.json["cancellation"]) == (200, receipt)
    assert [event["type"] for event in await edge.log(job_id)] == ["job.queued", "job.cancelled"]
    await edge.start_worker("interactive")
    await asyncio.sleep(0.1)
    assert (await edge.call("GET", f"/api/jobs/{job_id}")).json["attempt"] == 0


async def test_a_scheduled_job_waits_for_its_time(stack: Stack) -> None:
    answer = await stack.call("POST", "/api/jobs", chat(delaySeconds=0.5))
    assert (answer.json["status"], answer.json["queue"]["waitingOn"]) == ("scheduled", "schedule")
    assert answer.json["queuedAt"] is None
    view = await stack.finished(answer.json["jobId"])
    assert view["status"] == "complete"
    assert view["startedAt"] > view["createdAt"]
    assert view["queuedAt"] is not None


async def test_retry_is_refused_unless_the_job_failed(stack: Stack) -> None:
    job_id = await stack.submit(chat())
    await stack.finished(job_id)
    answer = await stack.call("POST", f"/api/jobs/{job_id}/retry")
    assert (answer.status, answer.json["code"]) == (409, "conflict")
    bad = await stack.call("POST", f"/api/jobs/{job_id}/retry", {"from": "middle"})
    assert (bad.status, bad.json["errors"][0]["path"]) == (422, "$.from")


async def test_retry_opens_the_next_run(stack: Stack, model: Any) -> None:
    await model.faults({"kind": "status", "status": 400, "path": "chat"})
    job_id = await stack.submit(chat())
    failed = await stack.finished(job_id)
    assert (failed["status"], failed["error"]["code"], failed["attempt"]) == ("failed", "upstream_refused", 1)
    answer = await stack.call("POST", f"/api/jobs/{job_id}/retry")
    assert (answer.status, answer.json["status"], answer.json["maxAttempts"]) == (202, "queued", 4)
    view = await stack.finished(job_id)
    assert (view["status"], view["attempt"]) == ("complete", 2)
    assert "error" not in view
    events = await stack.log(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events if event["type"] in ("job.failed", "job.complete")] == [
        "job.failed",
        "job.complete",
    ]


async def test_the_queue_is_bounded_per_tenant(edge: Stack) -> None:
    _, key = await edge.tenant(maxQueuedJobs=2)
    await edge.submit(chat(), key=key)
    await edge.submit(chat(delaySeconds=100), key=key)
    answer = await edge.call("POST", "/api/jobs", chat(), key=key)
    assert (answer.status, answer.json["code"]) == (429, "queue_full")
    assert int(answer.headers["Retry-After"]) >= 1
    await edge.submit(chat())


async def test_a_schema_that_is_none_is_refused_with_its_path(edge: Stack) -> None:
    job = analysis("Text.", {"kind": "summary"}, {"kind": "extract", "schema": {"type": "nonsense"}})
    answer = await edge.call("POST", "/api/jobs", job)
    assert answer.status == 422
    assert answer.json["errors"][0]["path"] == "$.input.tasks[1].schema"


async def test_an_unknown_document_or_prompt_is_refused_with_its_path(edge: Stack) -> None:
    job = {"type": "document-analysis", "input": {"document": {"documentId": "doc_x"}, "tasks": [{"kind": "summary"}]}}
    answer = await edge.call("POST", "/api/jobs", job)
    assert answer.json["errors"][0]["path"] == "$.input.document.documentId"
    prompt = await edge.call("POST", "/api/jobs", chat(prompt={"name": "x"}))
    assert prompt.json["errors"][0]["path"] == "$.prompt.name"
