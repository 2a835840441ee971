"""A tenant that has everything: jobs of each type and state, documents, collections, searches, prompts, keys. What it
holds carries canaries, so that whoever sees any of it is found out."""

from __future__ import annotations

import re
import secrets
from typing import Any

import aiohttp
import msgspec

from shared.ids import is_id, new_id
from shared.redis import redis_now_ms
from shared.stores.jobs import Settlement
from tests.conftest import Answer, DevModel, Stack, chat
from tests.prompting import path_of
from tests.test_embedding import embedding

TEXT = "The harbour opens at nine. The ferry leaves at ten, and the tides rise twice a day. Its name is {canary}. "
TURNS = [{"role": "user", "content": "Say something."}]
WORKER = "w-victim"
LEASE_MS = 600_000  # longer than any test


class Victim:
    """The tenant. `names` maps what samples call a thing (`job.failed`) to its id; `canaries` are texts that nobody
    else may see."""

    def __init__(self, stack: Stack, tenant: str, key: str, key_id: str) -> None:
        self.stack = stack
        self.tenant = tenant
        self.key = key
        self.canaries: list[str] = []
        self.names: dict[str, str] = {"tenant": tenant, "key.main": key_id}
        self.held: list[str] = []  # secrets that are no ids
        self.refused: dict[str, str | None] = {}  # keys by why they must be refused
        self.narrow: dict[str, str] = {}  # a key by the scope that it lacks

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """A call that must succeed."""
        options.setdefault("key", self.key)
        answer = await self.stack.call(method, path, body, **options)
        assert answer.status < 300, f"{method} {path}: {answer.text}"
        return answer

    def canary(self, kind: str) -> str:
        """A new one; its letters stand in no text of ours."""
        text = f"zq{kind}{secrets.token_hex(6)}"
        self.canaries.append(text)
        return text

    def ids(self) -> set[str]:
        """All that tells of the tenant, ids and texts; not what others may have too, such as the name of a label."""
        return {text for text in (*self.canaries, *self.held, *self.names.values()) if len(text) >= 16 or "zq" in text}

    async def job(self, body: Any, name: str, **options: Any) -> Any:
        """Submits a job; it is not waited for."""
        answer = await self.call("POST", "/api/jobs", body, **options)
        self.names[f"job.{name}"] = answer.json["jobId"]
        return answer.json

    async def ended(self, body: Any, name: str, **options: Any) -> Any:
        """A job that has ended."""
        job = await self.job(body, name, **options)
        return await self.stack.finished(job["jobId"], key=self.key)


async def make_victim(stack: Stack, model: DevModel) -> Victim:
    """The tenant, at rest: nothing of it changes by itself from now on."""
    made = (await stack.call("POST", "/api/admin/tenants", {"name": "zqvictim"})).json
    tenant = made["tenantId"]
    key = (await stack.call("POST", f"/api/admin/tenants/{tenant}/keys", {"name": "zqmain"})).json
    victim = Victim(stack, tenant, key["key"], key["keyId"])
    victim.canaries += ["zqvictim", "zqmain"]
    engines = [await stack.start_worker(lane, webhooks=False) for lane in ("interactive", "batch")]
    await _documents(victim)
    await _prompts(victim)
    await _jobs(victim, model)
    await _searches(victim)
    await _webhooks(victim)
    await _keys(victim)
    for engine in engines:
        await stack.stop_worker(engine)
    await _unfinished(victim)
    # What was claimed by hand takes the only place: what is queued stays so, with workers too.
    await stack.call("PATCH", f"/api/admin/tenants/{tenant}", {"limits": {"maxConcurrentJobs": 1}})
    return victim


async def _documents(victim: Victim) -> None:
    collection = f"The {victim.canary('collection')}"
    victim.names["collection"] = collection
    canary = victim.canary("text")
    metadata = {"case": victim.canary("metadata")}
    victim.names["metadata"] = metadata["case"]
    body = {"text": TEXT.format(canary=canary) * 3, "title": victim.canary("title"), "collection": collection,
            "metadata": metadata}  # fmt: skip
    for name in ("ready", "patched", "replaced", "deleted"):
        made = (await victim.call("POST", "/api/documents", {**body, "text": body["text"] + name})).json
        victim.names |= {f"doc.{name}": made["documentId"], f"job.ingest.{name}": made["jobId"]}
        await victim.stack.finished(made["jobId"], key=victim.key)
    form = aiohttp.FormData()
    form.add_field("file", "".join(f'"{victim.canary("line")}"\n' for _ in range(3)).encode(), filename="zq.ndjson")
    form.add_field("index", "false")
    made = (await victim.call("POST", "/api/documents", data=form)).json
    victim.names["doc.batch"] = made["documentId"]
    await victim.stack.finished(made["jobId"], key=victim.key)
    # A second version, so that there is one to go back to, and one to drop.
    for dimensions in (64, 32):
        path = f"/api/collections/{collection}/reindex"
        job = (await victim.call("POST", path, {"dimensions": dimensions})).json
        victim.names["job.reindex"] = job["jobId"]
        ended = await victim.stack.finished(job["jobId"], key=victim.key)
        assert ended["status"] == "complete", ended


async def _prompts(victim: Victim) -> None:
    canary = victim.canary("prompt")
    messages = [{"role": "system", "content": f"You speak of {canary} and are brief."}]
    victim.names["label"] = "production"
    for name in ("read", "moved", "deleted", "begun", "stopped", "promoted"):
        full = f"zqteam/{canary}.{name}"
        victim.names[f"prompt.{name}"] = full
        body = {"name": full, "messages": messages, "labels": ["production", "zqlabel"], "note": victim.canary("note"),
                "description": victim.canary("description")}  # fmt: skip
        await victim.call("POST", "/api/prompts", body)
        await victim.call("POST", path_of(full, "versions"), {"messages": [*messages, *TURNS]})
        for version in (2, 1):
            moved = await victim.call("PUT", path_of(full, "labels", "production"), {"version": version})
        victim.names[f"etag.{name}"] = moved.headers["ETag"]
        if name in ("read", "stopped", "promoted"):
            draft = {"variants": [{"version": 1}, {"version": 2}], "note": victim.canary("experiment")}
            begun = await victim.call("PUT", path_of(full, "experiments", "production"), draft)
            victim.names |= {f"experiment.{name}": begun.json["id"], f"draft.{name}": begun.headers["ETag"]}
    history = await victim.call("GET", path_of(victim.names["prompt.read"], "audit") + "?limit=1")
    victim.names["cursor.history"] = history.json["next"]
    victim.names["cursor.prompts"] = (await victim.call("GET", "/api/prompts?limit=1")).json["next"]


async def _jobs(victim: Victim, model: DevModel) -> None:
    user = victim.names["user"] = victim.canary("user")
    secret = victim.canary("goal")
    more = {"user": user, "metadata": {"case": victim.names["metadata"]}}
    prompt = {"name": victim.names["prompt.read"], "version": 1}
    idem = victim.names["idem.used"] = victim.canary("idem")
    victim.names["idem.job"] = victim.canary("idem")  # with which everything else will be sent
    view = await victim.ended(
        chat(f"Say {secret}.", prompt=prompt, **more), "complete", headers={"Idempotency-Key": idem}
    )
    assert view["status"] == "complete", view
    read = await victim.call("GET", f"/api/jobs/{view['jobId']}")
    victim.names["etag.job"] = read.headers["ETag"]
    answer = await victim.call("POST", "/api/chat", {"messages": TURNS, "user": user})
    victim.names["job.chat"] = answer.json["jobId"]
    victim.names["place.chat"] = f"{answer.json['jobId']}.1"
    await victim.ended(embedding([victim.canary("embedded"), "two"], **more), "batch")
    output = await victim.call("GET", f"/api/jobs/{victim.names['job.batch']}/output")
    victim.names["etag.output"] = output.headers["ETag"]
    document = {"documentId": victim.names["doc.ready"]}
    analysis = {"type": "document-analysis", "input": {"document": document, "tasks": [{"kind": "summary"}]}}
    view = await victim.ended(analysis, "analysis")
    assert view["status"] == "complete", view
    for name in ("failed", "failed.again"):
        await model.faults({"kind": "status", "status": 400})
        view = await victim.ended(chat(f"Fail {secret}.", **more), name)
        assert view["status"] == "failed", view
    await victim.ended(embedding([victim.canary("swept")]), "gone")
    for name in ("chat", "complete"):
        ticket = await victim.call("POST", f"/api/jobs/{victim.names[f'job.{name}']}/stream-ticket")
        victim.names[f"ticket.{name}"] = ticket.json["ticket"]
    # As when its retention is over.
    await victim.stack.client.zadd(victim.stack.keys.retention, {victim.names["job.gone"]: 1})
    await victim.stack.jobs.sweep()


async def _searches(victim: Victim) -> None:
    wanted = {"q": "When does the harbour open?", "collection": victim.names["collection"],
              "user": victim.names["user"], "minScore": 0}  # fmt: skip
    for name in ("read", "judged", "erased"):
        found = (await victim.call("POST", "/api/search", wanted)).json
        assert found["sources"], found
        victim.names |= {f"search.{name}": found["searchId"], "chunk": found["sources"][0]["chunkId"]}
        victim.names |= {"job.search": found["jobId"], "place.search": f"{found['jobId']}.1"}
        await victim.call("POST", f"/api/search/{found['searchId']}/feedback", {"helpful": True})
    victim.names["cursor.usage"] = (await victim.call("GET", "/api/usage?groupBy=type,user&limit=1")).json["next"]


async def _webhooks(victim: Victim) -> None:
    """Deliveries that no worker sends: those of these tests have their couriers off."""
    for name in ("read", "replayed"):
        url = f"https://hooks.example/{victim.canary('hook')}"
        await victim.ended(chat(f"Tell {victim.canary('told')}.", webhook={"url": url}), f"hooked.{name}")
        job = victim.names[f"job.hooked.{name}"]
        listed = (await victim.call("GET", f"/api/webhooks/deliveries?jobId={job}")).json["data"]
        victim.names[f"delivery.{name}"] = listed[0]["deliveryId"]
    victim.held.append((await victim.call("GET", "/api/webhooks/secret")).json["secret"])


async def _keys(victim: Victim) -> None:
    """Keys that still stand, and keys that must open nothing."""
    keys = f"/api/admin/tenants/{victim.tenant}/keys"

    async def another(name: str, **body: Any) -> Any:
        made = (await victim.stack.call("POST", keys, {"name": f"zq{name}", **body})).json
        victim.names[f"key.{name}"] = made["keyId"]
        victim.held.append(made["key"])
        return made

    for name in ("read", "changed", "rotated", "revoked"):
        await another(name)
    expired = await another("expired", expiresAt="2199-01-01T00:00:00Z")
    await victim.stack.client.hset(victim.stack.keys.api_key(expired["keyId"]), "expires_ms", 1)  # type: ignore[misc]
    ended = await another("ended")
    await victim.stack.call("DELETE", f"{keys}/{ended['keyId']}")
    scopes = ["jobs", "documents", "search", "prompts", "usage"]
    for scope in scopes:
        narrow = await another(f"without-{scope}", scopes=[one for one in scopes if one != scope])
        victim.narrow[scope] = narrow["key"]
    gone = (await victim.stack.call("POST", "/api/admin/tenants", {"name": "gone"})).json["tenantId"]
    orphan = (await victim.stack.call("POST", f"/api/admin/tenants/{gone}/keys", {})).json["key"]
    erasure = (await victim.stack.call("DELETE", f"/api/admin/tenants/{gone}")).json["jobId"]
    assert (await victim.stack.finished(erasure))["status"] == "complete"
    head, secret = victim.key.rsplit("_", 1)
    victim.refused = {
        "none": None, "expired": expired["key"], "revoked": ended["key"], "tenant deleted": orphan,
        "another secret": f"{head}_{secret[::-1]}", "unknown": f"ek_{new_id('x', 1)[2:]}_{secret}",
    }  # fmt: skip
    victim.held.append(secret)


async def _unfinished(victim: Victim) -> None:
    """Jobs that wait for something, each for ever."""
    secret = victim.canary("question")
    stack = victim.stack
    await victim.job({"type": "agent", "input": {"goal": f"Ask about {secret}."}}, "waiting")
    (job,), _ = await stack.jobs.claim(worker=WORKER, lanes=[("batch", 1)], count=1, lease_ms=LEASE_MS)
    assert job.job_id == victim.names["job.waiting"]
    victim.names["request"] = victim.canary("request")
    waiting = {"kind": "input", "requestId": victim.names["request"], "question": f"Is it {secret}?"}
    told = Settlement(job.job_id, job.lease, "input", waiting=msgspec.json.encode(waiting).decode())
    assert await stack.jobs.settle(WORKER, [told]) == ["waiting"]
    await victim.job(chat(f"Run {secret}."), "running")
    (job,), _ = await stack.jobs.claim(worker=WORKER, lanes=[("interactive", 1)], count=1, lease_ms=LEASE_MS)
    assert job.job_id == victim.names["job.running"]
    for name in ("queued", "queued.read"):
        await victim.job(chat(f"Behind it, {secret}."), name)
    for name in ("scheduled", "cancelled"):
        await victim.job(chat(f"Later, {secret}.", delaySeconds=100_000), name)
    await victim.call("DELETE", f"/api/jobs/{victim.names['job.cancelled']}")
    # As when the time is over for which a chat that has ended is looked after.
    await stack.client.zrem(stack.keys.listened, *victim.names.values())


_ULID = re.compile(r"[a-z]+_[0-7][0-9A-HJKMNP-TV-Z]{25}")


async def like(stack: Stack, real: str) -> str:
    """What has the form of this and exists nowhere: an id of the same kind, a text of the same length."""
    now_ms = await redis_now_ms(stack.client)
    if is_id("st", real[:29]):
        return f"{new_id('st', now_ms)}_{secrets.token_hex(32)}"
    if _ULID.search(real):
        return _ULID.sub(lambda match: new_id(match[0].partition("_")[0], now_ms), real)
    return re.sub(r"[a-z0-9]{6,}", lambda match: secrets.token_hex(len(match[0]))[: len(match[0])], real)
