"""What a fresh reader of the code found: each of these was red before its fix."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from api.live import Hub, follow
from shared.errors import LeaseLostError, ReaderFailed
from shared.redis import OUTAGE, connect
from shared.stores.events import Begun, CallUsage, Reservation
from tests.conftest import ADMIN_KEY, DevModel, RedisServer, Stack, analysis, chat

ROOT = Path(__file__).parent.parent
LONG = " ".join(f"word{n}" for n in range(400))
STEP = {"step": "chat:1", "label": "chat"}


async def claim(stack: Stack, worker: str = "w1", lease_ms: int = 60_000) -> Any:
    (job,), _ = await stack.jobs.claim(worker=worker, lanes=[("interactive", 1)], count=1, lease_ms=lease_ms)
    return job


async def lose(stack: Stack, worker: str) -> Any:
    """A job claimed by a worker that is then lost, with one call of 100 tokens under way."""
    job = await claim(stack, worker, lease_ms=1)
    await stack.events.begin_step(job, worker, call=f"c-{worker}", reserve=Reservation("m", 100), **STEP)
    await asyncio.sleep(0.02)
    await stack.jobs.reap()
    return job


async def usage(stack: Stack, job_id: str) -> Any:
    return (await stack.call("GET", f"/api/jobs/{job_id}")).json["usage"]


async def test_a_redis_that_refuses_writes_is_an_outage(
    make_stack: Any, own_redis: RedisServer, model: DevModel
) -> None:
    """Given a running job, when Redis is out of memory for longer than a lease, then the API says 503, the job waits
    and completes on its first attempt, and the worker still counts as alive."""
    stack: Stack = await make_stack(workers=("interactive",), redis_url=own_redis.url, lease_seconds=1.0)
    await model.pace(tokensPerSecond=200)
    job_id = await stack.submit(chat(LONG))
    await stack.until(job_id, "processing")
    await stack.client.config_set("maxmemory", "1")
    await asyncio.sleep(0.2)
    refused = await stack.call("POST", "/api/jobs", chat())
    assert (refused.status, refused.json["code"]) == (503, "unavailable")
    await asyncio.sleep(1.5)
    await stack.client.config_set("maxmemory", "0")
    view = await stack.finished(job_id)
    assert (view["status"], view["attempt"]) == ("complete", 1)
    assert (await stack.call("GET", "/readyz")).status == 200


async def test_a_frozen_redis_is_an_outage_within_seconds(make_stack: Any, own_redis: RedisServer) -> None:
    stack: Stack = await make_stack(redis_url=own_redis.url)
    assert own_redis.process is not None
    await stack.call("GET", "/api/jobs")
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(2.5):
            answer = await stack.call("POST", "/api/jobs", chat())
        assert answer.status == 503
    finally:
        own_redis.process.send_signal(signal.SIGCONT)


async def test_every_part_reaches_the_summary(make_stack: Any) -> None:
    """Given notes too long for one call, when they are combined, then none is dropped on the way."""
    stack: Stack = await make_stack(workers=("batch",), chunk_characters=500)
    parts = [f"Section {n} tells that " + f"machine{n} was built by team{n} in town{n} " * 9 + "." for n in range(6)]
    view = await stack.finished(await stack.submit(analysis("\n\n".join(parts), {"kind": "summary"})))
    steps = [event["step"] for event in await stack.log(view["jobId"]) if event["type"] == "job.step"]
    assert sum(step.startswith("combine/1/1.") for step in steps) >= 4  # two calls or more on the first level
    assert any(step.startswith("combine/1/2.") for step in steps)


async def test_a_call_of_a_lost_worker_is_booked_once_in_any_order(edge: Stack) -> None:
    """The old owner's true figure comes before the next owner asks."""
    job_id = await edge.submit(chat())
    old = await lose(edge, "w1")
    with pytest.raises(LeaseLostError):
        await edge.events.finish_step(old, "w1", call="c-w1", usage=CallUsage(90, 10), result=b"{}", **STEP)
    new = await claim(edge, "w2")
    assert isinstance(await edge.events.begin_step(new, "w2", call="c2", reserve=Reservation("m", 100), **STEP), Begun)
    found = await usage(edge, job_id)
    assert (found["totalTokens"], found["wastedTokens"], found["estimated"]) == (100, 100, False)


async def test_what_was_in_flight_is_booked_however_the_job_ends(edge: Stack) -> None:
    poison = await edge.submit(chat())
    for number in range(3):
        await lose(edge, f"w{number}")
    found = await usage(edge, poison)
    assert (found["totalTokens"], found["wastedTokens"], found["estimated"]) == (300, 300, True)
    cancelled = await edge.submit(chat())
    job = await claim(edge, "w9", lease_ms=1)
    await edge.events.begin_step(job, "w9", call="c9", reserve=Reservation("m", 100), **STEP)
    await edge.jobs.cancel(job.tenant, cancelled)
    await asyncio.sleep(0.02)
    await edge.jobs.reap()
    view = (await edge.call("GET", f"/api/jobs/{cancelled}")).json
    assert (view["status"], view["usage"]["totalTokens"]) == ("cancelled", 100)


async def test_beginning_a_step_may_be_repeated(edge: Stack) -> None:
    """Given an answer of Redis that was lost, when the script is sent again, then nothing is counted twice."""
    job_id = await edge.submit(chat())
    job = await claim(edge)
    for _ in range(2):
        assert isinstance(
            await edge.events.begin_step(job, "w1", call="c1", reserve=Reservation("m", 100), **STEP), Begun
        )
    await edge.events.finish_step(job, "w1", call="c1", usage=CallUsage(60, 40), result=b'{"a":1}', **STEP)
    for _ in range(2):
        assert await edge.events.begin_step(job, "w1", call="c2", reserve=Reservation("m", 100), **STEP) == b'{"a":1}'
    found = await usage(edge, job_id)
    assert (found["totalTokens"], found["reusedTokens"], found["estimated"]) == (100, 100, False)
    assert sum(event.get("reused") is True for event in await edge.log(job_id)) == 1


async def test_a_late_cancel_does_not_stop_the_next_run(stack: Stack, model: DevModel) -> None:
    await model.pace(tokensPerSecond=100)
    job_id = await stack.submit(chat(LONG))
    await stack.until(job_id, "processing")
    (engine,) = [engine for engine in stack.engines if "interactive" in engine.slots]
    await stack.client.publish(stack.keys.control_channel(engine.worker_id), f"cancel {job_id} 99")
    await stack.client.publish(stack.keys.control_channel(engine.worker_id), f"cancel {job_id}")
    view = await stack.finished(job_id)
    assert (view["status"], view["attempt"]) == ("complete", 1)
    assert [event["type"] for event in await stack.log(job_id)].count("job.started") == 1


async def test_nobody_can_settle_a_cancellation_that_was_not_asked_for(edge: Stack) -> None:
    await edge.submit(chat())
    job = await claim(edge)
    assert await edge.jobs.settle_one(job, "w1", outcome="cancelled") == "queued"


async def test_a_tiny_weight_cannot_break_a_script(edge: Stack) -> None:
    answer = await edge.call("POST", "/api/admin/tenants", {"name": "x", "limits": {"weight": 1e-308}})
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.limits.weight")
    tenant, key = await edge.tenant()
    await edge.client.hset(edge.keys.tenant(tenant), "weight", "1e-308")
    job_id = await edge.submit(chat(), key=key)
    job = await claim(edge)
    assert await edge.jobs.settle_one(job, "w1", outcome="complete", result="{}") == "complete"
    assert (await edge.call("GET", f"/api/jobs/{job_id}", key=key)).json["status"] == "complete"


async def test_a_reader_that_was_killed_does_not_condemn_the_document(stack: Stack) -> None:
    library = stack.engines[0]._deps.library
    reading = asyncio.create_task(library.extract(b"word " * 3_000_000))
    async with asyncio.timeout(10):
        while True:
            children = [
                int(path.name)
                for path in Path("/proc").glob("[0-9]*")
                if path.is_dir() and b"worker.documents.extract" in _cmdline(path)
            ]
            if children:
                break
            await asyncio.sleep(0.01)
    os.kill(children[0], signal.SIGKILL)
    with pytest.raises(ReaderFailed) as caught:
        await reading
    assert caught.value.retryable


def _cmdline(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


async def test_a_rejected_document_can_be_read_again(stack: Stack) -> None:
    made = await stack.call("POST", "/api/documents", {"text": "Some text stands here."})
    await stack.finished(made.json["jobId"])
    document_id = made.json["documentId"]
    key = stack.keys.document(document_id)
    await stack.client.hset(key, mapping={"status": "rejected", "error": "x"})
    await stack.client.hdel(key, "text_blob")
    await stack.client.hset(stack.keys.job(made.json["jobId"]), "status", "failed")
    assert (await stack.call("POST", f"/api/jobs/{made.json['jobId']}/retry")).status == 202
    assert (await stack.finished(made.json["jobId"]))["status"] == "complete"
    document = (await stack.call("GET", f"/api/documents/{document_id}")).json
    assert (document["status"], "error" in document) == ("ready", False)


async def test_a_reader_that_comes_while_the_hub_connects_is_served_live(edge: Stack) -> None:
    """Given a hub that has only just begun to connect, when a reader comes, then it hears of events at once."""
    job_id = await edge.submit(chat())
    for pause in (0, 1, 2, 3, 5, 8):
        hub = Hub(connect(edge.redis_url, timeout_s=None), edge.keys)
        await hub.start()
        for _ in range(pause):
            await asyncio.sleep(0)
        async with asyncio.timeout(3), follow(hub, edge.events, job_id, after=0) as feed:
            assert await feed.next(1)
            (name,) = hub._channels
            await hub._channels[name].ready.wait()
        await hub.close()


async def test_the_token_budget_holds_for_parallel_calls(make_stack: Any, model: DevModel) -> None:
    stack: Stack = await make_stack(workers=("batch",), map_concurrency=8)
    await model.pace(firstTokenSeconds=0.1)
    text = "\n\n".join(f"Section {n} tells of item {n}. " + f"More about {n}. " * 120 for n in range(8))
    view = await stack.finished(await stack.submit(analysis(text, {"kind": "summary"}, tokenBudget=1_200)))
    assert (view["status"], view["error"]["code"]) == ("failed", "budget_exhausted")
    assert view["usage"]["totalTokens"] <= 1_300


async def test_a_step_starts_before_it_ends(stack: Stack) -> None:
    view = await stack.finished(await stack.submit(chat()))
    steps = [event for event in await stack.log(view["jobId"]) if event["type"] == "job.step"]
    assert [(step["step"], step["state"]) for step in steps] == [("chat", "started"), ("chat", "finished")]


async def test_a_replay_is_answered_also_when_its_document_is_gone(edge: Stack) -> None:
    made = await edge.call("POST", "/api/documents", {"text": "Some text."})
    use = {"documentId": made.json["documentId"]}
    body = {"type": "document-analysis", "input": {"document": use, "tasks": [{"kind": "summary"}]}}
    headers = {"Idempotency-Key": "r1"}
    first = await edge.call("POST", "/api/jobs", body, headers=headers)
    await edge.call("DELETE", f"/api/documents/{made.json['documentId']}")
    again = await edge.call("POST", "/api/jobs", body, headers=headers)
    assert (again.status, again.body) == (202, first.body)
    assert (await edge.call("POST", "/api/jobs", body)).status == 422


async def test_a_retry_needs_room_in_the_queue(edge: Stack) -> None:
    _, key = await edge.tenant(maxQueuedJobs=1)
    first = await edge.submit(chat(), key=key)
    await edge.call("DELETE", f"/api/jobs/{first}", key=key)
    await edge.submit(chat(), key=key)
    answer = await edge.call("POST", f"/api/jobs/{first}/retry", key=key)
    assert (answer.status, answer.json["code"]) == (429, "queue_full")


async def test_a_retried_job_expires_when_it_says_so(edge: Stack) -> None:
    job_id = await edge.submit(chat(expiresInSeconds=0.2))
    job = await claim(edge)
    await edge.jobs.settle_one(job, "w1", outcome="failed", error='{"code":"internal","message":"x","retryable":true}')
    retried = await edge.call("POST", f"/api/jobs/{job_id}/retry")
    assert retried.json["expiresAt"] is not None
    await asyncio.sleep(0.3)
    assert await edge.jobs.reap() == [(job_id, "expired", "expiry")]


async def test_a_replaced_admin_key_ends(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    from api.keys import TENANTS

    tenants = stack._runners[0].app[TENANTS]
    fresh = "ek_01M81SGW152PHX78GHNCJWQHRT_" + "b" * 43
    await tenants.ensure_admin(fresh)
    assert (await stack.call("GET", "/api/jobs", key=fresh)).status == 200
    await asyncio.sleep(0.2)
    assert (await stack.call("GET", "/api/jobs", key=ADMIN_KEY)).status == 401


def imports_of(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


# Of HTTP; the worker serves none.
CLIENTS = ("worker/fetch.py", "worker/webhooks/sender.py", "worker/search/rerank_http.py")


def test_each_library_has_its_place() -> None:
    """import-linter's contracts name modules; this holds for those that are yet to be written, too."""
    for path in [*ROOT.glob("api/**/*.py"), *ROOT.glob("worker/**/*.py"), *ROOT.glob("shared/**/*.py")]:
        place = str(path.relative_to(ROOT))
        imported = imports_of(path)
        assert "openai" not in imported or place.startswith("worker/model/"), place
        assert "arq" not in imported or place == "worker/engine.py", place
        assert "obstore" not in imported or place == "shared/blobs/s3.py", place
        assert "aiohttp" not in imported or place.startswith("api/") or place in CLIENTS, place
        assert "mcp" not in imported or place.startswith("worker/tools/mcp"), place
        assert place.startswith("api/") or not re.search(r"aiohttp(\.web| import .*\bweb\b)", path.read_text()), place
        assert not imported & {"scripts", "tests", "pickle"}, place


async def test_a_busy_connection_is_never_swept_away(make_stack: Any) -> None:
    """Given a header deadline of half a second, when a client sends short requests for far longer on one connection,
    then every one is answered on it."""
    stack: Stack = await make_stack(header_seconds=0.5)
    host, port = stack.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(20):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost:")
        await asyncio.sleep(0.05)
        writer.write(b" x\r\n\r\n")
        async with asyncio.timeout(2):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        assert head.startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.05)
    writer.close()


async def test_commands_that_wait_behind_a_time_out_fail_with_it(own_redis: RedisServer) -> None:
    """Given a frozen Redis, when commands come one after the other, then each fails within one time-out."""
    client = connect(own_redis.url, timeout_s=0.5)
    await client.pipe.execute("PING")
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    loop = asyncio.get_running_loop()

    async def timed() -> float:
        began = loop.time()
        with pytest.raises(OUTAGE):
            await client.pipe.execute("PING")
        return loop.time() - began

    try:
        running = []
        for _ in range(6):
            running.append(asyncio.create_task(timed()))
            await asyncio.sleep(0.15)
        assert max(await asyncio.gather(*running)) < 0.8
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    assert await client.pipe.execute("PING") in (b"PONG", "PONG")
    await client.aclose()


async def test_replies_reach_their_callers_also_when_some_have_gone(redis_server: RedisServer) -> None:
    """Given many commands on the shared connection, when every third caller is cancelled, then the others get their
    own replies."""
    client = connect(redis_server.url)
    tasks = [asyncio.create_task(client.pipe.execute("ECHO", str(number))) for number in range(900)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    for number, reply in enumerate(replies):
        assert isinstance(reply, asyncio.CancelledError) if number % 3 == 0 else reply == str(number).encode()
    await client.aclose()
