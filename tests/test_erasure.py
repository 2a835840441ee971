"""A tenant is erased everywhere, whatever it is doing, and nothing of anybody else is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shared.blobs import LocalBlobs
from shared.errors import RefusedError
from shared.stores.erasure import ErasureStore
from shared.stores.tenants import DEFAULT_TENANT
from tests.conftest import ADMIN_KEY, DevModel, Stack, chat
from tests.test_cli import Terminal, errand
from tests.test_embedding import embedding
from worker.tasks.erasure import ROUNDS, Eraser

LONG = "The harbour opens at nine. The ferry leaves at ten. " * 30


async def content_of(stack: Stack, name: bytes) -> str:
    """All that a key holds, as text."""
    client: Any = stack.client
    match await client.type(name):
        case b"string":
            held = await client.get(name)
        case b"hash":
            held = sorted((await client.hgetall(name)).items())
        case b"list":
            held = await client.lrange(name, 0, -1)
        case b"set":
            held = sorted(await client.smembers(name))
        case b"zset":
            held = await client.zrange(name, 0, -1, withscores=True)
        case b"stream":
            held = await client.xrange(name)
        case _:
            held = None
    return str(held)


async def everything(stack: Stack) -> dict[str, str]:
    """All keys of the installation, with all they hold."""
    names = [name async for name in stack.client.scan_iter(f"{stack.settings.redis_prefix}*", count=1_000)]
    return {name.decode().removeprefix(stack.settings.redis_prefix): await content_of(stack, name) for name in names}


async def traces(stack: Stack, job_id: str, *texts: str) -> list[str]:
    """Keys and files that still hold any of these texts, apart from the audit log and the erasure's job."""
    own = {"audit", *(f"{kind}:{job_id}" for kind in ("job", "log", "journal"))}
    found = [
        f"{name} {text}"
        for name, held in (await everything(stack)).items()
        for text in texts
        if name not in own and (text in name or text in held)
    ]
    blobs = stack.settings.data_dir / "blobs"
    return found + [str(path) for path in blobs.rglob("*") for text in texts if text in str(path)]


async def delete(stack: Stack, tenant: str, **options: Any) -> str:
    answer = await stack.call("DELETE", f"/api/admin/tenants/{tenant}", **options)
    assert answer.status == 202, answer.text
    assert answer.headers["Location"] == f"/api/jobs/{answer.json['jobId']}"
    assert (answer.json["type"], answer.json["priority"]) == ("tenant-erasure", "high")
    return str(answer.json["jobId"])


async def erased(stack: Stack, job_id: str, **options: Any) -> Any:
    view = await stack.finished(job_id, **options)
    assert view["status"] == "complete", view
    return view["result"]


async def until(check: Callable[[], Any]) -> None:
    async with asyncio.timeout(15):
        while not await check():
            await asyncio.sleep(0.02)


async def status_of(stack: Stack, job_id: str) -> str | None:
    raw: Any = await stack.client.hget(stack.keys.job(job_id), "status")
    return raw.decode() if raw else None


async def wait_for(stack: Stack, job_id: str, status: str) -> None:
    async def reached() -> bool:
        return await status_of(stack, job_id) == status

    await until(reached)


class Busy:
    """A tenant in the middle of everything."""

    def __init__(self, tenant: str, key: str) -> None:
        self.tenant = tenant
        self.key = key
        self.key_ids: list[str] = []
        self.jobs: dict[str, str] = {}
        self.documents: list[str] = []


async def busy_tenant(stack: Stack, model: DevModel) -> Busy:
    """Jobs of every state, documents, an output, users, keys of which one is revoked, what a sweep leaves."""
    limits = {"maxConcurrentJobs": 1, "requestsPerMinute": 10_000, "tokensPerMinute": 10_000_000,
              "perUser": {"budgets": [{"period": "total", "hardTokens": 12}]}}  # fmt: skip
    made = await stack.call(
        "POST", "/api/admin/tenants", {"name": "Acme", "limits": limits}, headers={"Idempotency-Key": "acme"}
    )
    tenant = made.json["tenantId"]
    keys = [
        (
            await stack.call(
                "POST", f"/api/admin/tenants/{tenant}/keys", {"name": f"k{n}"}, headers={"Idempotency-Key": f"k{n}"}
            )
        ).json
        for n in range(3)
    ]
    busy = Busy(tenant, keys[0]["key"])
    busy.key_ids = [key["keyId"] for key in keys]

    async def ended(job: dict[str, Any], **options: Any) -> str:
        job_id = await stack.submit(job, key=busy.key, **options)
        await stack.finished(job_id, key=busy.key)
        return job_id

    revoked = keys[2]["key"]
    old = await stack.submit(chat("Say it.", metadata={"a": "b"}), key=revoked)
    await stack.finished(old, key=revoked)
    await stack.call("DELETE", f"/api/admin/tenants/{tenant}/keys/{busy.key_ids[2]}")
    busy.jobs["complete"] = await ended(chat("Say it."), headers={"Idempotency-Key": "once"})
    feedback = await stack.call("POST", f"/api/jobs/{busy.jobs['complete']}/feedback", {"score": 1}, key=busy.key)
    assert feedback.status == 201
    await model.faults({"kind": "status", "status": 400})
    busy.jobs["failed"] = await ended(chat("Fail.", user="bob"))
    busy.jobs["batch"] = await ended(embedding(["one", "two", "three"]))
    for text in ("The harbour report.", "The river report."):
        document = (await stack.call("POST", "/api/documents", {"text": text}, key=busy.key)).json
        await stack.finished(document["jobId"], key=busy.key)
        busy.documents.append(document["documentId"])
    # One whose retention is over: a tombstone, and blobs on the list of what is to be deleted.
    swept = await ended(embedding(["four"]))
    await stack.client.zadd(stack.keys.retention, {swept: 1})
    await stack.jobs.sweep()
    busy.jobs["paused"] = await stack.submit(chat(LONG, user="zoë"), key=busy.key)
    await wait_for(stack, busy.jobs["paused"], "waiting")
    busy.jobs["scheduled"] = await stack.submit(chat("Later.", delaySeconds=1), key=busy.key)
    await model.pace(tokensPerSecond=3)
    busy.jobs["running"] = await stack.submit(chat(LONG), key=busy.key)
    await wait_for(stack, busy.jobs["running"], "processing")
    busy.jobs["queued"] = await stack.submit(chat("Behind it."), key=busy.key)
    busy.jobs["far"] = await stack.submit(chat("Much later.", delaySeconds=10_000), key=busy.key)
    return busy


async def test_everything_of_a_tenant_is_erased_and_nothing_else(make_stack: Any, model: DevModel) -> None:
    """Given a tenant in the middle of everything and another beside it, when it is deleted, then its keys and streams
    end at once, no key, member or file names it any more, and the other has all that it had."""
    stack: Stack = await make_stack(workers=("interactive", "batch"))
    other, other_key = await stack.tenant(maxConcurrentJobs=5)
    kept = await stack.submit(chat("Say something else."), key=other_key)
    await stack.finished(kept, key=other_key)
    document = (await stack.call("POST", "/api/documents", {"text": "The other report."}, key=other_key)).json
    await stack.finished(document["jobId"], key=other_key)
    busy = await busy_tenant(stack, model)
    before = {name: held for name, held in (await everything(stack)).items() if other in name or kept in name}
    ids = (busy.tenant, *busy.key_ids, *busy.jobs.values(), *busy.documents)
    book: Any = await stack.client.hget(f"{stack.settings.redis_prefix}books:{busy.tenant}", "tt")
    assert int(book) > 0
    assert len(await traces(stack, "-", *ids)) > 60

    headers = {"Authorization": f"Bearer {busy.key}"}
    address = f"{stack.base}/api/jobs/{busy.jobs['running']}/stream"
    async with stack.session.get(address, headers=headers) as response:
        assert response.status == 200
        job_id = await delete(stack, busy.tenant)
        with suppress(aiohttp.ClientPayloadError):
            async with asyncio.timeout(5):
                await response.content.read()
    for path in ("/api/jobs", "/api/documents"):
        assert (await stack.call("GET", path, key=busy.key)).status == 401
    receipt = await erased(stack, job_id)
    assert await traces(stack, job_id, *ids) == []
    assert receipt["tenantId"] == busy.tenant
    assert receipt["name"] == "Acme"
    assert receipt["requestedAt"] < receipt["erasedAt"]
    assert receipt["remaining"] == 0
    counts = receipt["counts"]
    # Also two of the documents, and one by the revoked key; the swept one was gone before.
    assert counts["jobs"] == len(busy.jobs) + 3
    assert (counts["documents"], counts["keys"]) == (2, 2)
    assert counts["blobs"] >= 6
    assert counts["ledgerEntries"] >= 3
    assert counts["redisKeys"] > 40
    assert receipt["usage"]["totalTokens"] >= int(book)
    assert (await stack.call("DELETE", f"/api/admin/tenants/{busy.tenant}")).status == 404
    assert (await stack.call("GET", f"/api/admin/tenants/{busy.tenant}")).status == 404

    after = await everything(stack)
    assert {name: after[name] for name in before} == before
    assert (await stack.call("GET", f"/api/jobs/{kept}", key=other_key)).json["status"] == "complete"
    text = await stack.call("GET", f"/api/documents/{document['documentId']}/text", key=other_key)
    assert text.text == "The other report."
    pace: Any = await stack.client.hgetall(f"{stack.settings.redis_prefix}pace:interactive")
    assert (int(pace[b"ready"]), int(pace[b"running"])) == (0, 0)
    for row in ("running", "scheduled", "expiring", "paused", "delayed:interactive", "leases"):
        assert not await stack.client.exists(stack.settings.redis_prefix + row), row
    log = await stack.log(job_id)
    fractions = [event["fraction"] for event in log if event["type"] == "job.progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    audit = (await everything(stack))["audit"]
    assert audit.count("tenant.deleted") == audit.count("tenant.erased") == 1


async def test_the_mark_holds_before_any_worker_comes(make_stack: Any) -> None:
    """Given no worker, when a tenant is deleted, then in every process its keys are refused, nothing of it is admitted,
    retried or claimed any more, and it gets no new key."""
    stack: Stack = await make_stack()
    second = await stack.start_api()
    tenant, key = await stack.tenant()
    headers = {"Authorization": f"Bearer {key}"}
    queued = await stack.submit(chat(), key=key)
    cancelled = await stack.submit(chat(), key=key)
    await stack.call("DELETE", f"/api/jobs/{cancelled}", key=key)
    await stack.submit(chat(delaySeconds=0.05), key=key)
    async with stack.session.get(f"{second}/api/jobs", headers=headers) as response:
        assert response.status == 200
    job_id = await delete(stack, tenant)
    started = asyncio.get_running_loop().time()
    while True:
        async with stack.session.get(f"{second}/api/jobs", headers=headers) as response:
            if response.status == 401:
                break
        await asyncio.sleep(0.01)
    assert asyncio.get_running_loop().time() - started < 2
    assert (await stack.call("GET", "/api/jobs", key=key)).status == 401
    assert (await stack.call("POST", f"/api/admin/tenants/{tenant}/keys", {})).status == 409
    # As a process would that has not heard of it yet.
    with pytest.raises(RefusedError, match="does not exist any more"):
        await stack.jobs.admit(tenant=tenant, lane="batch", record={}, class_ms=0, expires_in_ms=1_000)  # type: ignore[arg-type]
    with pytest.raises(RefusedError):
        await stack.jobs.retry(tenant, cancelled, from_start=False, record={}, class_ms=0, expires_in_ms=1_000)
    for _ in range(3):
        await stack.jobs.reap()
        claimed, _ = await stack.jobs.claim(
            worker="w", lanes=[("interactive", 10), ("batch", 10)], count=10, lease_ms=60_000
        )
        assert {job.job_id for job in claimed} <= {job_id}
        await asyncio.sleep(0.05)
    assert await status_of(stack, queued) == "queued"


async def test_deleting_again_is_the_same_erasure(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    tenant, _ = await stack.tenant()
    jobs = await asyncio.gather(*(delete(stack, tenant) for _ in range(5)))
    assert len(set(jobs)) == 1
    # One that was cancelled, or has failed, is followed by another.
    await stack.call("DELETE", f"/api/jobs/{jobs[0]}")
    again = await delete(stack, tenant)
    assert again != jobs[0]
    await stack.start_worker("batch")
    receipt = await erased(stack, again)
    assert receipt["counts"]["keys"] == 1
    assert (await stack.call("DELETE", f"/api/admin/tenants/{tenant}")).status == 404
    retried = await stack.call("POST", f"/api/jobs/{jobs[0]}/retry")
    assert retried.status == 202
    view = await stack.finished(jobs[0])
    assert (view["status"], view["error"]["code"]) == ("failed", "invalid_input")


async def test_what_cannot_be_deleted_is_refused(edge: Stack) -> None:
    tenant, key = await edge.tenant()
    path = "/api/admin/tenants/"
    refused = await edge.call("DELETE", path + DEFAULT_TENANT)
    assert (refused.status, refused.json["code"]) == (409, "conflict")
    assert "admin key" in refused.json["detail"]
    for unknown in ("ten_01M81SGW152PHX78GHNCJWQHRS", "nonsense"):
        assert (await edge.call("DELETE", path + unknown)).status == 404
    assert (await edge.call("DELETE", path + tenant, key=key)).status == 403
    assert (await edge.call("DELETE", path + tenant, key=None)).status == 401
    scoped = await edge.call("POST", f"{path}{tenant}/keys", {"scopes": ["admin", "jobs"]})
    itself = await edge.call("DELETE", path + tenant, key=scoped.json["key"])
    assert itself.status == 409
    assert "itself" in itself.json["detail"]
    assert (await edge.call("GET", path + tenant)).status == 200
    assert (
        await edge.call("POST", "/api/jobs", {"type": "tenant-erasure", "input": {"tenantId": tenant}})
    ).status == 422


async def test_an_erasure_is_its_callers_job_and_outlives_the_caller(make_stack: Any) -> None:
    """Given an erasure by another tenant's admin key, when that tenant is erased first, then the next DELETE begins the
    erasure anew."""
    stack: Stack = await make_stack()
    admins, _ = await stack.tenant()
    key = (await stack.call("POST", f"/api/admin/tenants/{admins}/keys", {"scopes": ["admin", "jobs"]})).json["key"]
    tenant, _ = await stack.tenant()
    first = await delete(stack, tenant, key=key)
    assert (await stack.call("GET", f"/api/jobs/{first}", key=key)).status == 200
    assert await delete(stack, tenant) == first
    own = await delete(stack, admins)
    engine = await stack.start_worker("batch", worker_slots=1)
    await erased(stack, own)
    await stack.stop_worker(engine)
    second = await delete(stack, tenant)
    assert second != first
    await stack.start_worker("batch")
    await erased(stack, second)
    assert await traces(stack, second, tenant) == []


@pytest.mark.parametrize(
    "place", ["_end_jobs", "_erase_jobs", "_erase_documents", "_erase_blobs", "_erase_rest", "end"]
)
async def test_a_worker_that_is_killed_in_the_middle_is_followed_by_another(
    make_stack: Any, model: DevModel, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    stack: Stack = await make_stack(workers=("interactive", "batch"), lease_seconds=1.0)
    busy = await busy_tenant(stack, model)
    first, reached = stack.engines[1], asyncio.Event()
    owner: Any = ErasureStore if place == "end" else Eraser
    name = "finish" if place == "end" else place
    real = getattr(owner, name)

    async def and_die(self: Any, *arguments: Any) -> Any:
        result = await real(self, *arguments)
        if not reached.is_set():
            reached.set()
            await asyncio.sleep(60)
        return result

    monkeypatch.setattr(owner, name, and_die)
    job_id = await delete(stack, busy.tenant)
    async with asyncio.timeout(20):
        await reached.wait()
    stack.kill_worker(first)
    await stack.start_worker("batch")
    receipt = await erased(stack, job_id)
    assert (await stack.call("GET", f"/api/jobs/{job_id}")).json["attempt"] == 2
    counts = receipt["counts"]
    assert (counts["jobs"], counts["documents"], counts["keys"]) == (len(busy.jobs) + 3, 2, 2)
    assert receipt["usage"]["totalTokens"] > 0
    assert await traces(stack, job_id, busy.tenant, *busy.key_ids, *busy.jobs.values()) == []


async def test_jobs_of_a_lost_worker_are_waited_for(make_stack: Any, model: DevModel) -> None:
    """Given a job whose worker was killed, when its tenant is erased, then the erasure waits for the reaper."""
    stack: Stack = await make_stack(workers=("batch",), lease_seconds=2.0)
    doomed = await stack.spawn_worker()
    tenant, key = await stack.tenant()
    await model.pace(tokensPerSecond=3)
    running = await stack.submit(chat(LONG), key=key)
    await wait_for(stack, running, "processing")
    doomed.kill()
    job_id = await delete(stack, tenant)
    await wait_for(stack, running, "cancelling")
    receipt = await erased(stack, job_id)
    assert receipt["counts"]["jobs"] == 1
    assert any("still run" in event.get("message", "") for event in await stack.log(job_id))
    assert await traces(stack, job_id, tenant, running) == []


async def test_what_comes_back_is_erased_again(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given something that writes for the tenant all the same, when it ends in time, then the receipt says so; when it
    goes on, then the job says that, and deleting again completes it."""
    tenant, _ = await stack.tenant()
    prefix, rounds, most = stack.settings.redis_prefix, 0, 2
    real = ErasureStore.scan

    async def scan(self: ErasureStore, pattern: str | None = None) -> Any:
        nonlocal rounds
        rounds += pattern is None
        if pattern is None and rounds <= most:
            await stack.client.set(f"{prefix}new:{tenant}:{rounds}", "x")
            await stack.client.hset(f"{prefix}running", tenant, 1)  # type: ignore[misc]
            await stack.client.hset(stack.keys.job("job_orphan"), mapping={"tenant": tenant, "status": "complete"})  # type: ignore[misc]
        async for names in real(self, pattern):
            yield names

    monkeypatch.setattr(ErasureStore, "scan", scan)
    job_id = await delete(stack, tenant)
    receipt = await erased(stack, job_id)
    assert (rounds, receipt["remaining"], receipt["counts"]["jobs"]) == (3, 0, 2)
    assert await traces(stack, job_id, tenant) == []

    tenant, _ = await stack.tenant()
    rounds, most = 0, 10**6
    job_id = await delete(stack, tenant)
    await wait_for(stack, job_id, "waiting")
    error: Any = await stack.client.hget(stack.keys.job(job_id), "error")  # type: ignore[misc]
    assert f"After {ROUNDS} rounds 3 Redis keys still held something of the tenant" in error.decode()
    assert (await stack.call("GET", f"/api/admin/tenants/{tenant}")).status == 200
    most = 0
    await erased(stack, job_id)
    assert await traces(stack, job_id, tenant) == []


async def test_the_erasure_takes_no_part_in_its_callers_limits(make_stack: Any) -> None:
    """Given a caller whose queue is full and whose budget is spent, when it deletes a tenant, then that is done, and
    its books are as they were."""
    stack: Stack = await make_stack()
    admins = await stack.call(
        "POST",
        "/api/admin/tenants",
        {"name": "admins", "limits": {"maxQueuedJobs": 0, "requestsPerMinute": 1,
                                      "budgets": [{"period": "total", "hardTokens": 0}]}},
    )  # fmt: skip
    caller = admins.json["tenantId"]
    key = (await stack.call("POST", f"/api/admin/tenants/{caller}/keys", {"scopes": ["admin", "jobs"]})).json["key"]
    assert (await stack.call("POST", "/api/jobs", chat(), key=key)).status == 429
    tenant, _ = await stack.tenant()
    job_id = await delete(stack, tenant, key=key)
    await stack.start_worker("batch")
    await erased(stack, job_id, key=key)
    names = await everything(stack)
    assert not [name for name in names if name.startswith(("books:", "rate:", "ledger:"))]


async def test_a_folder_of_any_size_is_counted_and_cleared(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    for number in range(2_345):
        path = tmp_path / "outputs" / "ten" / f"job{number % 1_200}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    await blobs.put("outputs/other/x", b"kept")
    assert await blobs.delete_prefix("outputs/ten") == 2_345
    assert not (tmp_path / "outputs" / "ten").exists()
    assert await blobs.delete_prefix("outputs/ten") == 0
    assert await blobs.get("outputs/other/x") == b"kept"


async def test_the_command_asks_follows_and_prints_the_receipt(stack: Stack) -> None:
    tenant, key = await stack.tenant()
    await stack.finished(await stack.submit(chat(), key=key), key=key)
    unasked = await errand(stack, "tenants", "delete", tenant)
    assert unasked.code == 2
    assert "--yes" in unasked.err
    terminal = await Terminal.of(stack, "tenants", "delete", tenant)
    await terminal.until("Type its name")
    terminal.type("no\n")
    assert await terminal.ended() == 1
    assert (await stack.call("GET", f"/api/admin/tenants/{tenant}")).status == 200
    terminal = await Terminal.of(stack, "tenants", "delete", tenant)
    await terminal.until("Type its name")
    terminal.type("other\n")
    await terminal.until(f"{tenant} (other) is erased")
    assert await terminal.ended() == 0
    assert "100% Nothing is left" in terminal.seen
    assert "remaining 0" in terminal.seen

    tenant, _ = await stack.tenant()
    done = await errand(stack, "tenants", "delete", tenant, "--yes", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["tenantId"] == tenant
    gone = await errand(stack, "tenants", "delete", tenant, "--yes")
    assert gone.code == 1
    assert ADMIN_KEY not in done.err


async def test_another_tenants_user_of_the_same_name_is_left_alone(stack: Stack) -> None:
    """Given a tenant with an end user who is called like another tenant's id, when that other one is erased, then the
    user's counters stay and the books agree."""
    gone, _ = await stack.tenant()
    tenant, key = await stack.tenant(perUser={"budgets": [{"period": "total", "hardTokens": 10**6}]})
    view = await stack.finished(await stack.submit(chat(user=gone), key=key), key=key)
    assert view["status"] == "complete"
    deleted = await stack.call("DELETE", f"/api/admin/tenants/{gone}")
    receipt = await stack.finished(deleted.json["jobId"])
    assert receipt["status"] == "complete", receipt
    book = await stack.client.hget(stack.keys.books(f"{tenant}:u:{gone}"), "tt")
    assert int(book or 0) == view["usage"]["totalTokens"] > 0
    assert (await stack.call("POST", "/api/admin/books/check", {"tenantId": tenant})).json["ok"]
