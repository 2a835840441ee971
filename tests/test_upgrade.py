"""Two releases side by side on one Redis: processes of the previous one beside ours, in both directions."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.errors import ConfigurationError
from shared.specs import JOB_TYPES
from shared.stores.schema import READS, WRITES, require_readable
from tests import previous
from tests.conftest import DevModel, Stack, analysis, chat

TEXT = (
    "The harbour opened in 1893. Its crane lifts forty tonnes. The keeper lives in the east tower. "
    "Ships pay a toll of nine crowns at the gate."
)
AGENT = {"type": "agent", "input": {"goal": "What is 6 * 7? Use the calculator.", "maxSteps": 4}}
EMBEDDING = {"type": "batch-embedding", "input": {"texts": ["harbour", "crane", "tower"]}}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the previous release."""
    return previous.unpack(tmp_path_factory.mktemp("previous"))


async def all_kinds(stack: Stack) -> None:
    """Work of every kind through HTTP; each ends with the right result."""
    jobs = {
        "chat": await stack.submit(chat("What is a lease?")),
        "agent": await stack.submit(AGENT),
        "analysis": await stack.submit(analysis(TEXT, {"kind": "summary"}, {"kind": "keyPoints"})),
        "embedding": await stack.submit(EMBEDDING),
        "later": await stack.submit(chat("And a lane?", delaySeconds=0.3)),
    }
    document = (await stack.call("POST", "/api/documents", {"text": TEXT, "title": "Harbour"})).json
    jobs["ingest"] = document["jobId"]
    ended = {name: await stack.finished(job_id) for name, job_id in jobs.items()}
    assert {name: view["status"] for name, view in ended.items()} == dict.fromkeys(jobs, "complete"), ended
    assert "What is a lease?" in ended["chat"]["result"]["text"]
    assert "42" in ended["agent"]["result"]["answer"]
    for task in ended["analysis"]["result"]["tasks"]:
        for quote in task["citations"]:
            assert TEXT[quote["start"] : quote["end"]] == quote["quote"]
    lines = (await stack.call("GET", f"/api/jobs/{jobs['embedding']}/output")).text.splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2]
    assert ended["embedding"]["result"]["count"] == 3
    await finds(stack, document["documentId"])
    streamed = await stack.call("POST", "/api/chat/stream", {"messages": [{"role": "user", "content": "Say a word."}]})
    frames = streamed.text.strip().split("\n\n")
    assert frames[-1] == "data: [DONE]"
    seen = next(line for line in frames[0].splitlines() if line.startswith("id: "))[4:]
    rest = await stack.call("POST", "/api/chat/stream", {"messages": []}, headers={"Last-Event-ID": seen})
    assert rest.text.strip().endswith("data: [DONE]")
    assert rest.headers["X-Job-Id"] == streamed.headers["X-Job-Id"]


async def finds(stack: Stack, document_id: str) -> None:
    """A search with an answer finds the document, and its log has it."""
    found = (await stack.call("POST", "/api/search", {"q": "Who lives in the east tower?"})).json
    assert document_id in [source["documentId"] for source in found["sources"]], found
    assert found["answer"]["citations"], found
    assert (await stack.call("GET", f"/api/search/{found['searchId']}")).json["searchId"] == found["searchId"]


async def rebuilds(stack: Stack) -> None:
    """A collection's next version is built, and its documents are found."""
    document = (await stack.call("POST", "/api/documents", {"text": TEXT, "title": "Harbour"})).json
    await stack.finished(document["jobId"])
    wanted = {"chunkCharacters": 400}
    made = await stack.call("POST", "/api/collections/default/reindex", wanted)
    assert made.status == 202, made.text
    assert (await stack.finished(made.json["jobId"]))["status"] == "complete"
    await finds(stack, document["documentId"])


async def erases(stack: Stack) -> None:
    """A tenant with a job, a document and a search is erased, and nothing of it is left."""
    tenant, key = await stack.tenant()
    await stack.finished(await stack.submit(chat("What is a lease?"), key=key), key=key)
    document = (await stack.call("POST", "/api/documents", {"text": TEXT, "title": "Harbour"}, key=key)).json
    await stack.finished(document["jobId"], key=key)
    await stack.call("POST", "/api/search", {"q": "Who lives in the east tower?", "answer": False}, key=key)
    begun = await stack.call("DELETE", f"/api/admin/tenants/{tenant}")
    assert begun.status == 202, begun.text
    ended = await stack.finished(begun.json["jobId"])
    assert (ended["status"], ended["result"]["remaining"]) == ("complete", 0), ended
    left = [name.decode() async for name in stack.client.scan_iter(f"{stack.keys.prefix}*") if tenant.encode() in name]
    assert left == []


async def cancels(stack: Stack, model: DevModel) -> None:
    """A running job is cancelled, and retried to its end."""
    await model.pace(tokensPerSecond=5)
    job_id = await stack.submit(chat(" ".join(f"word{n}" for n in range(200))))
    await stack.until(job_id, "processing")
    ended = await stack.call("DELETE", f"/api/jobs/{job_id}?wait=10")
    assert ended.json["status"] == "cancelled", ended.text
    await model.pace(tokensPerSecond=0)
    assert (await stack.call("POST", f"/api/jobs/{job_id}/retry", {})).status == 202
    assert (await stack.finished(job_id))["status"] == "complete"


async def pauses(stack: Stack) -> None:
    """A job at a hard limit waits for its budget, and goes on when that is raised."""
    tenant, key = await stack.tenant(budgets=[{"period": "month", "hardTokens": 40}])
    job_id = await stack.submit(chat(" ".join(f"word{n}" for n in range(20))), key=key)
    async with asyncio.timeout(15):
        while (await stack.call("GET", f"/api/jobs/{job_id}", key=key)).json["status"] != "waiting":
            await asyncio.sleep(0.02)
    more = {"limits": {"budgets": [{"period": "month", "hardTokens": 1_000_000}]}}
    assert (await stack.call("PATCH", f"/api/admin/tenants/{tenant}", more)).status == 200
    assert (await stack.finished(job_id, key=key))["status"] == "complete"


async def test_the_previous_workers_serve_the_new_api(make_stack: Any, model: DevModel, old: Path) -> None:
    """Given workers of the previous release alone, when the new API is used, then everything completes."""
    stack: Stack = await make_stack()
    await asyncio.gather(stack.spawn_worker("interactive", tree=old), stack.spawn_worker("batch", tree=old))
    await all_kinds(stack)
    await rebuilds(stack)
    await cancels(stack, model)
    await pauses(stack)
    await erases(stack)
    # These processes were the previous release's: ours say what they are.
    assert not [key async for key in stack.client.scan_iter(f"{stack.keys.prefix}worker:*")]


async def test_new_workers_serve_the_previous_api(make_stack: Any, model: DevModel, old: Path) -> None:
    """Given the previous API, when the workers are new, then everything completes; the new API then reads all of it."""
    stack: Stack = await make_stack(api=False, workers=("interactive", "batch"))
    stack.base = await stack.spawn_api(tree=old)
    await all_kinds(stack)
    await rebuilds(stack)
    await cancels(stack, model)
    await pauses(stack)
    await erases(stack)
    ours = await reads(stack)
    theirs_base, stack.base = stack.base, ""
    await stack.start_api()
    assert await reads(stack) == ours
    # And back: what the new API made is read by the old one.
    await all_kinds(stack)
    ours = await reads(stack)
    stack.base = theirs_base
    assert await reads(stack) == ours


async def reads(stack: Stack) -> dict[str, Any]:
    """What both releases must say alike of the same records: members that only one of them knows are left out."""
    jobs = (await stack.call("GET", "/api/jobs?limit=200")).json["data"]
    kept = ("jobId", "type", "status", "attempt", "usage", "createdAt", "finishedAt", "model", "metadata")
    said: dict[str, Any] = {"jobs": [{name: job[name] for name in kept} for job in jobs]}
    said["logs"] = [[(event["seq"], event["type"]) for event in await stack.log(job["jobId"])] for job in jobs]
    for path in ("documents", "usage", "prompts", "search/log", "admin/tenants", "admin/audit"):
        answer = await stack.call("GET", f"/api/{path}")
        assert answer.status == 200, (path, answer.text)
        rows = answer.json["data"]
        ids = ("documentId", "name", "searchId", "tenantId", "day", "totalTokens", "costUsd", "action", "at")
        said[path] = [{name: row[name] for name in ids if name in row} for row in rows]
        assert all(said[path]), path
    return said


async def test_a_new_worker_finishes_what_a_killed_old_one_began(make_stack: Any, model: DevModel, old: Path) -> None:
    """Given an old worker killed in the middle of an analysis, when a new one takes it over, then the steps that were
    paid for are reused."""
    stack: Stack = await make_stack(lease_seconds=1.0, chunk_characters=600)
    member = await stack.spawn_worker("batch", tree=old)
    text = "\n\n".join(f"Part {n}. " + TEXT * 3 for n in range(6))
    await model.pace(tokensPerSecond=60)
    job_id = await stack.submit(analysis(text))
    async with asyncio.timeout(20):
        while not any(e["type"] == "job.step" and e["state"] == "finished" for e in await stack.log(job_id)):
            await asyncio.sleep(0.02)
    member.kill()
    await model.pace(tokensPerSecond=0)
    await stack.start_worker("batch")
    view = await stack.finished(job_id)
    assert (view["status"], view["attempt"]) == ("complete", 2), view
    assert view["usage"]["reusedTokens"] > 0
    finished = [e["step"] for e in await stack.log(job_id) if e["type"] == "job.step" and e["state"] == "finished"]
    fresh = [
        e["step"]
        for e in await stack.log(job_id)
        if e["type"] == "job.step" and e["state"] == "finished" and not e["reused"]
    ]
    assert len(fresh) == len(set(fresh)) < len(finished)


async def test_a_job_of_a_newer_release_waits_for_a_newer_worker(make_stack: Any) -> None:
    """Given a job whose spec has a member that this worker does not know, when the worker claims it, then the job is
    put back without an attempt used up, and a worker that knows the member completes it."""
    stack: Stack = await make_stack()
    job_id = await stack.submit(chat("What is a lease?"))
    key = stack.keys.job(job_id)
    spec: bytes = await stack.client.hget(key, "spec")  # type: ignore[misc,assignment]
    await stack.client.hset(key, "spec", json.dumps({**json.loads(spec), "fromTheFuture": 1}))  # type: ignore[misc]
    await stack.start_worker("interactive")
    async with asyncio.timeout(10):
        while not any(event.get("reason") == "release" for event in await stack.log(job_id)):
            await asyncio.sleep(0.02)
    waiting = (await stack.call("GET", f"/api/jobs/{job_id}")).json
    assert (waiting["status"], waiting["queue"]["waitingOn"]) == ("queued", "worker"), waiting
    await stack.client.hset(key, "spec", spec)  # type: ignore[misc]
    view = await stack.finished(job_id)
    assert (view["status"], view["attempt"]) == ("complete", 1), view


async def test_a_chat_that_no_worker_can_read_is_refused_at_no_cost(make_stack: Any, model: DevModel) -> None:
    """Given a waiting chat whose spec no worker knows, when its 10 s are over, then it is 503 with Retry-After, and the
    model was not asked."""
    stack: Stack = await make_stack()
    before = (await model.stats())["calls"]
    asking = asyncio.create_task(stack.call("POST", "/api/chat", {"messages": [{"role": "user", "content": "Hello."}]}))
    async with asyncio.timeout(5):
        while not (jobs := (await stack.call("GET", "/api/jobs")).json["data"]):
            await asyncio.sleep(0.02)
    key = stack.keys.job(jobs[0]["jobId"])
    spec: bytes = await stack.client.hget(key, "spec")  # type: ignore[misc,assignment]
    await stack.client.hset(key, "spec", json.dumps({**json.loads(spec), "fromTheFuture": 1}))  # type: ignore[misc]
    await stack.start_worker("interactive")
    answer = await asking
    assert (answer.status, answer.json["code"]) == (503, "unavailable"), answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    view = (await stack.call("GET", f"/api/jobs/{jobs[0]['jobId']}")).json
    assert (view["status"], view["usage"]["totalTokens"]) == ("cancelled", 0), view
    assert any(event.get("reason") == "release" for event in await stack.log(view["jobId"]))
    assert (await model.stats())["calls"] == before


async def test_a_release_too_old_for_what_is_stored_does_not_start(make_stack: Any) -> None:
    """Given data of a newer form, when a process starts, then it ends with one line that says what to do; data that it
    can read stays marked as it is."""
    stack: Stack = await make_stack(api=False)
    assert await require_readable(stack.settings) == WRITES <= READS
    assert await require_readable(stack.settings, reads=READS + 1, writes=READS + 1) == READS + 1
    with pytest.raises(ConfigurationError, match="a newer release of Errand has written here"):
        await require_readable(stack.settings)
    for module in (("worker", "batch"), ("api",)):
        member = stack._spawn(*module)
        assert await asyncio.to_thread(member.process.wait, 20) == 2
        assert "reads forms up to 1" in member.log.read_text()
    assert await stack.client.get(stack.keys.schema) == str(READS + 1).encode()


# What each release stores of a job, one of every type with every member set that has a form of its own.
SAMPLES = {
    "chat": {"messages": [{"role": "user", "content": "a"}], "maxTokens": 5, "temperature": 0.5},
    "agent": {"goal": "a", "tools": ["calculate"], "maxSteps": 3, "context": {"collection": "c"}, "approve": ["x"]},
    "document-analysis": {
        "document": {"text": "a", "title": "b"},
        "tasks": [
            {"kind": "summary"},
            {"kind": "keyPoints"},
            {"kind": "questions", "questions": ["a"]},
            {"kind": "extract", "schema": {"type": "object"}},
        ],
    },
    "batch-embedding": {"blob": "b", "documentId": "doc_1", "model": "m", "dimensions": 8, "encoding": "base64"},
    "ingest": {
        "documentId": "doc_1",
        "content": {"revision": 2, "blob": "b", "sizeBytes": 1, "sha256": "c", "filename": "f"},
    },
    "reindex": {"collection": "c", "spec": {"model": "m"}, "version": 2},
    "search": {"searchId": "srch_1", "request": {"q": "a"}, "minScore": 0.5},
    "tenant-erasure": {"tenantId": "ten_1"},
}
READER = """
import json, sys, msgspec
from shared.specs import JOB_TYPES
for line in sys.stdin:
    kind, spec = json.loads(line)
    print(msgspec.json.encode(msgspec.json.decode(json.dumps(spec), type=JOB_TYPES[kind])).decode())
"""


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_stored_specs_are_read_by_both_releases(old: Path, kind: str) -> None:
    """Given a spec as the new release stores it, when the previous release reads it, then it reads the same, and so the
    other way."""
    common = {"type": kind, "input": SAMPLES[kind], "priority": "low", "metadata": {"a": "b"}, "tokenBudget": 9}
    ours = msgspec.json.encode(msgspec.json.decode(json.dumps(common), type=JOB_TYPES[kind]))
    line = json.dumps([kind, json.loads(ours)])
    done = subprocess.run(
        [sys.executable, "-c", READER], cwd=old, input=line, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    again = msgspec.json.decode(done.stdout, type=JOB_TYPES[kind])
    assert again == msgspec.json.decode(ours, type=JOB_TYPES[kind])


def test_there_is_a_sample_of_every_type_of_job() -> None:
    """A new type of job has its sample here too. It needs a decision first: the previous release cannot read it."""
    assert set(SAMPLES) == set(JOB_TYPES)


def test_the_previous_release_is_named() -> None:
    """The commit of the previous release is whole, and its version one that was."""
    assert len(previous.COMMIT) == 40
    assert previous.VERSION.count(".") == 2
