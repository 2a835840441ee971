"""Webhooks: what a receiver gets, signed, noted in one step with the event; and what the API says of it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from shared.redis import Scripts, script_source
from shared.specs import ChatJob
from tests.conftest import ADMIN_KEY, Stack, chat
from tests.hooking import deliveries, delivery, secret, task, time_passes, until
from tests.receiver import Certified, Receiver, needs_openssl, status
from tests.test_cli import begin, errand
from tests.test_embedding import embedding

FINAL = ["job.cancelled", "job.complete", "job.expired", "job.failed"]


def hook(receiver: Receiver, *events: str, path: str = "/hook") -> dict[str, Any]:
    return {"url": receiver.url(path)} | ({"events": list(events)} if events else {})


# -- what is told


async def test_a_job_tells_its_end_to_its_webhook(hooked: Stack, receiver: Receiver) -> None:
    """Given a job with a webhook, when it ends, then one request comes that the official library takes, and it says
    what the job's view says."""
    answer = await hooked.call("POST", "/api/jobs", chat(webhook=hook(receiver), metadata={"order": "17"}))
    assert answer.json["webhook"] == {"url": receiver.url(), "events": FINAL}
    view = await hooked.finished(answer.json["jobId"])
    assert view["webhook"] == answer.json["webhook"]
    (got,) = await receiver.until(1)
    payload = got.verified(await secret(hooked))
    assert (payload["type"], payload["timestamp"]) == ("job.complete", view["finishedAt"])
    same = [name for name in payload["data"] if name != "seq"]
    assert {name: payload["data"][name] for name in same} == {name: view[name] for name in same}
    assert {"result", "usage", "metadata", "links", "jobId", "status"} <= set(same)
    assert payload["data"]["seq"] == (await hooked.log(view["jobId"]))[-1]["seq"]
    assert got.headers["Content-Type"] == "application/json"
    shown = await delivery(hooked, view["jobId"], "delivered")
    assert shown["deliveryId"] == got.id
    assert shown["payload"] == payload
    assert [one["statusCode"] for one in shown["history"]] == [200]


@needs_openssl
async def test_a_receiver_with_https_must_be_who_the_url_says(
    make_stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a certificate for `localhost` of an authority that the worker trusts, then the name is told, and under
    another name, at the same address, nothing is sent."""
    identity, receiver = Certified(tmp_path / "tls", "localhost"), Receiver()
    await receiver.start(identity.context)
    try:
        stack: Stack = await make_stack(fetch_private_hosts="localhost,127.0.0.1")
        monkeypatch.setenv("SSL_CERT_FILE", str(identity.authority))
        await stack.spawn_worker("interactive")
        told, untold = [
            await stack.submit(chat(webhook={"url": f"https://{host}:{receiver.port}/hook"}))
            for host in ("localhost", "127.0.0.1")
        ]
        assert (await delivery(stack, told, "delivered"))["history"][0]["statusCode"] == 200
        refused = await delivery(stack, untold, "pending", attempts=1)
        assert refused["history"][0]["error"] == "tls", refused
        (got,) = receiver.got
        assert got.verified(await secret(stack))["data"]["jobId"] == told
        assert set(identity.asked) == {"localhost", None}
    finally:
        await receiver.stop()


async def test_each_way_to_end_is_told(make_stack: Any, receiver: Receiver) -> None:
    """Cancelled by the API, expired by the upkeep, failed by a worker: each writes its delivery itself."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    cancelled = await stack.submit(chat(webhook=hook(receiver)))
    await stack.call("DELETE", f"/api/jobs/{cancelled}")
    expired = await stack.submit(chat(webhook=hook(receiver), expiresInSeconds=0.05))
    await stack.until(expired, "expired")
    failed = await stack.submit(chat(webhook=hook(receiver), maxAttempts=1))
    await stack.start_worker("interactive", handlers={"chat": task(fails=1)})
    await stack.finished(failed)
    got = await receiver.until(3)
    key = await secret(stack)
    told = {one.verified(key)["data"]["jobId"]: one.verified(key) for one in got}
    assert {job_id: payload["type"] for job_id, payload in told.items()} == {
        cancelled: "job.cancelled", expired: "job.expired", failed: "job.failed",
    }  # fmt: skip
    assert told[failed]["data"]["error"]["code"] == "upstream_unavailable"
    assert "cancellation" in told[cancelled]["data"]
    assert await stack.client.zcard(stack.keys.hooked) == 0


async def test_other_events_are_told_where_they_are_wanted(make_stack: Any, receiver: Receiver) -> None:
    """`seq` puts them in order, whatever order they come in; each says the job as it was then."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    await stack.start_worker("interactive", handlers={"chat": task(warns=True, fails=1)})
    events = ("job.started", "job.waiting", "job.warning", "job.complete")
    job_id = await stack.submit(chat(webhook=hook(receiver, *events)))
    await stack.finished(job_id)
    key = await secret(stack)
    told = sorted((one.verified(key) for one in await receiver.until(6)), key=lambda payload: payload["data"]["seq"])
    assert [(one["type"], one["data"]["status"], one["data"]["attempt"]) for one in told] == [
        ("job.started", "processing", 1), ("job.warning", "processing", 1), ("job.waiting", "waiting", 1),
        ("job.started", "processing", 2), ("job.warning", "processing", 2), ("job.complete", "complete", 2),
    ]  # fmt: skip
    log = {event["seq"]: event["type"] for event in await stack.log(job_id)}
    assert [log[one["data"]["seq"]] for one in told] == [one["type"] for one in told]
    assert told[1]["data"]["warning"] == {"code": "odd", "message": "Something is odd."}
    assert told[2]["data"]["waiting"] == {"kind": "backoff"}
    assert len({one.id for one in receiver.got}) == 6


async def test_what_is_not_wanted_is_not_told(make_stack: Any, receiver: Receiver) -> None:
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    await stack.start_worker("interactive", handlers={"chat": task(warns=True)})
    job_id = await stack.submit(chat(webhook=hook(receiver, "job.failed")))
    await stack.finished(job_id)
    assert await deliveries(stack) == []
    assert await stack.client.zcard(stack.keys.hooked) == 0


async def test_a_job_without_a_webhook_leaves_nothing(hooked: Stack) -> None:
    await hooked.finished(await hooked.submit(chat()))
    names = {
        name.decode().removeprefix(hooked.settings.redis_prefix).partition(":")[0]
        async for name in hooked.client.scan_iter(f"{hooked.settings.redis_prefix}*")
    }
    assert not {name for name in names if "hook" in name or "deliver" in name}


async def test_a_large_result_is_left_out(make_stack: Any, receiver: Receiver) -> None:
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    await stack.start_worker("interactive", handlers={"chat": task("x" * 9_000)})
    await stack.finished(await stack.submit(chat(webhook=hook(receiver))))
    (got,) = await receiver.until(1)
    data = got.verified(await secret(stack))["data"]
    assert data["resultOmitted"] is True
    assert "result" not in data


async def test_a_delivery_tells_the_job_as_it_was(make_stack: Any, receiver: Receiver) -> None:
    """Given a job that failed while its receiver was away, when it is retried and completes, then the failure is still
    told as it was, and each request for it has the same body; the second run tells its own end."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    receiver.behaviours["/hook"] = status(500)
    await stack.start_worker("interactive", handlers={"chat": task(fails=1)})
    job_id = await stack.submit(chat(webhook=hook(receiver), maxAttempts=1))
    await stack.finished(job_id)
    (first,) = await receiver.until(1)
    await stack.call("POST", f"/api/jobs/{job_id}/retry", {})
    await stack.finished(job_id)
    await receiver.until(2)
    del receiver.behaviours["/hook"]
    await stack.call("DELETE", f"/api/jobs/{job_id}")
    await until(lambda: _all_failed_once(stack, job_id))
    await time_passes(stack)
    got = await receiver.until(4)
    key = await secret(stack)
    assert [one.body for one in got if one.id == first.id] == [first.body, first.body]
    assert {one.verified(key)["type"] for one in got} == {"job.failed", "job.complete"}


async def _all_failed_once(stack: Stack, job_id: str) -> bool:
    return [one["attempts"] for one in await deliveries(stack, f"jobId={job_id}")] == [1, 1]


async def test_an_embedding_and_a_socket_take_a_webhook_too(hooked: Stack, receiver: Receiver) -> None:
    job_id = await hooked.submit(embedding(["one", "two"], webhook=hook(receiver)))
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with hooked.session.ws_connect(f"{hooked.base}/api/ws", headers=headers) as socket:
        await socket.send_json({"ref": 1, "op": "submit", "job": chat(webhook=hook(receiver))})
        reply = await socket.receive_json()
    got = await receiver.until(2)
    key = await secret(hooked)
    told = {one.verified(key)["data"]["jobId"]: one.verified(key)["data"] for one in got}
    assert set(told) == {job_id, reply["ok"]["jobId"]}
    assert told[job_id]["links"]["output"] == f"/api/jobs/{job_id}/output"


# -- what is refused


@pytest.mark.parametrize(
    ("webhook", "path"),
    [
        ({"url": "https://example.org/", "events": ["job.done"]}, "$.webhook.events[0]"),
        ({"url": "https://example.org/", "events": []}, "$.webhook.events"),
        ({"url": "https://example.org/", "secret": "x"}, "$.webhook.secret"),
        ({"events": ["job.failed"]}, "$.webhook.url"),
        ({"url": "ftp://example.org/"}, "$.webhook.url"),
        ({"url": "https://user:pw@example.org/"}, "$.webhook.url"),
        ({"url": "https://10.0.0.1/"}, "$.webhook.url"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "$.webhook.url"),
        ({"url": "http://2130706433/"}, "$.webhook.url"),
        ({"url": "http://[::ffff:127.0.0.1]/"}, "$.webhook.url"),
        ({"url": "https://example.org:6379/"}, "$.webhook.url"),
        ({"url": "https://example.org/ x"}, "$.webhook.url"),
        ({"url": "https://example.org/" + "x" * 2_048}, "$.webhook.url"),
    ],
)
async def test_a_webhook_that_cannot_be_is_refused_at_once(edge: Stack, webhook: Any, path: str) -> None:
    answer = await edge.call("POST", "/api/jobs", chat(webhook=webhook))
    assert answer.status == 422, answer.text
    assert answer.json["errors"][0]["path"] == path


async def test_no_webhook_is_taken_where_they_are_switched_off(make_stack: Any) -> None:
    stack: Stack = await make_stack(webhooks=False)
    answer = await stack.call("POST", "/api/jobs", chat(webhook={"url": "https://example.org/"}))
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.webhook.url")
    assert "ERRAND_WEBHOOKS" in answer.json["detail"]
    assert (await stack.call("POST", "/api/jobs", chat(webhook=None))).status == 202


async def test_a_webhook_stands_beside_the_spec(edge: Stack) -> None:
    """A worker of the release before webhooks refuses a spec with a member that it does not know."""
    job_id = await edge.submit(chat(webhook={"url": "https://example.org/"}))
    _, spec = await edge.jobs.spec(await _tenant(edge), job_id)
    assert "webhook" not in json.loads(spec)
    assert msgspec.json.decode(spec, type=ChatJob).webhook is msgspec.UNSET


async def _tenant(stack: Stack) -> str:
    tenants = (await stack.call("GET", "/api/admin/tenants")).json["data"]
    return str(tenants[0]["tenantId"])


# -- signatures


async def test_who_does_not_know_the_secret_cannot_forge(hooked: Stack, receiver: Receiver) -> None:
    """Given a delivery, when body, id or time are others, or the secret is another tenant's, then the library
    refuses."""
    await hooked.submit(chat(webhook=hook(receiver)))
    (got,) = await receiver.until(1)
    key = await secret(hooked)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", key)
    assert got.is_signed_with(key)
    _, other = await hooked.tenant()
    assert await secret(hooked, key=other) != key
    assert not got.is_signed_with(await secret(hooked, key=other))
    body, headers = got.body, dict(got.headers)
    got.body = body.replace(b"job.complete", b"job.failed")
    assert not got.is_signed_with(key)
    got.body = body
    earlier = str(int(headers["webhook-timestamp"]) - 1)
    for name, value in (("webhook-id", "dlv_" + "0" * 26), ("webhook-timestamp", earlier)):
        got.headers = headers | {name: value}
        assert not got.is_signed_with(key), name
    got.headers = headers
    assert got.is_signed_with(key)


async def test_a_rotated_secret_signs_beside_the_new_one(hooked: Stack, receiver: Receiver) -> None:
    """Given a rotation, then both secrets verify for a while; with no overlap the old one is over at once."""
    old = await secret(hooked)
    rotated = await hooked.call("POST", "/api/webhooks/secret/rotate", headers={"Idempotency-Key": "r1"})
    assert rotated.status == 200, rotated.text
    new = rotated.json["secret"]
    assert new != old
    assert "previousExpiresAt" in rotated.json
    again = await hooked.call("POST", "/api/webhooks/secret/rotate", headers={"Idempotency-Key": "r1"})
    assert (again.json["secret"], again.headers["Idempotent-Replayed"]) == (new, "true")
    await hooked.submit(chat(webhook=hook(receiver)))
    (both,) = await receiver.until(1)
    assert len(both.headers["webhook-signature"].split(" ")) == 2
    assert both.is_signed_with(new)
    assert both.is_signed_with(old)
    last = (await hooked.call("POST", "/api/webhooks/secret/rotate", {"overlapSeconds": 0})).json
    assert "previousExpiresAt" not in last
    await hooked.submit(chat(webhook=hook(receiver)))
    one = (await receiver.until(2))[1]
    assert [one.is_signed_with(key) for key in (last["secret"], new, old)] == [True, False, False]
    entries = (await hooked.call("GET", "/api/admin/audit?action=webhook.secret_rotated")).json["data"]
    assert [entry["details"] for entry in entries] == [
        {"overlapSeconds": {"new": 0}}, {"overlapSeconds": {"new": 86_400}},
    ]  # fmt: skip
    assert "whsec_" not in json.dumps(entries)


async def test_nothing_secret_is_logged(hooked: Stack, receiver: Receiver) -> None:
    """Paths and queries of URLs may hold secrets: logs name the host."""
    receiver.behaviours["/t0ken"] = status(500)
    with structlog.testing.capture_logs() as lines:
        await hooked.submit(chat(webhook=hook(receiver, path="/t0ken?k=s3cret")))
        await receiver.until(1)
        await until(lambda: _logged(lines))
    text = repr(lines)
    assert "t0ken" not in text
    assert "s3cret" not in text
    assert "whsec" not in text
    (line,) = [line for line in lines if line["event"] == "webhook.attempted"]
    assert (line["host"], line["outcome"], line["status"]) == ("127.0.0.1", "retry", 500)


async def _logged(lines: list[Any]) -> bool:
    return any(line["event"] == "webhook.attempted" for line in lines)


# -- what the API says


async def test_deliveries_are_listed_in_pages(hooked: Stack, receiver: Receiver) -> None:
    """Newest first; filters by status and job; another tenant sees none of it."""
    receiver.behaviours["/bad"] = status(410)
    jobs = [await hooked.submit(chat(webhook=hook(receiver))) for _ in range(5)]
    bad = await hooked.submit(chat(webhook=hook(receiver, path="/bad")))
    await until(lambda: _settled(hooked, 6))
    seen, after = [], ""
    while True:
        answer = await hooked.call("GET", f"/api/webhooks/deliveries?limit=4{after}")
        seen += answer.json["data"]
        assert ("Link" in answer.headers) == answer.json["hasMore"]
        if not answer.json["hasMore"]:
            break
        after = f"&after={answer.json['next']}"
    assert {one["jobId"] for one in seen} == {*jobs, bad}
    ids = [one["deliveryId"] for one in seen]
    assert ids == sorted(ids, reverse=True)
    assert [one["jobId"] for one in await deliveries(hooked, "status=gone")] == [bad]
    assert len(await deliveries(hooked, "status=delivered")) == 5
    assert [one["jobId"] for one in await deliveries(hooked, f"jobId={jobs[2]}")] == [jobs[2]]
    assert await deliveries(hooked, f"jobId={jobs[2]}&status=failed") == []
    _, other = await hooked.tenant()
    assert await deliveries(hooked, key=other) == []
    assert await deliveries(hooked, f"jobId={bad}", key=other) == []
    path = f"/api/webhooks/deliveries/{ids[0]}"
    assert [(await hooked.call("GET", path, key=key)).status for key in (ADMIN_KEY, other)] == [200, 404]
    assert (await hooked.call("POST", f"{path}/replay", key=other)).status == 404
    for query, where in (("status=lost", "?status"), ("jobId=x", "?jobId"), ("after=x", "?after")):
        answer = await hooked.call("GET", f"/api/webhooks/deliveries?{query}")
        assert (answer.status, answer.json["errors"][0]["path"]) == (422, where)


async def _settled(stack: Stack, count: int) -> bool:
    found = await deliveries(stack, "limit=200")
    return len(found) == count and not any(one["status"] == "pending" for one in found)


async def test_a_delivery_is_sent_again(hooked: Stack, receiver: Receiver) -> None:
    """Given one that was delivered and one that was given up, when they are replayed, then each comes again with its
    id and body, the schedule anew; the same idempotency key sends nothing twice."""
    receiver.behaviours["/bad"] = status(410, 200)
    good = await delivery(hooked, await hooked.submit(chat(webhook=hook(receiver))), "delivered")
    bad = await delivery(hooked, await hooked.submit(chat(webhook=hook(receiver, path="/bad"))), "gone")
    for shown, path in ((good, "/hook"), (bad, "/bad")):
        where = f"/api/webhooks/deliveries/{shown['deliveryId']}/replay"
        answer = await hooked.call("POST", where, headers={"Idempotency-Key": path})
        assert answer.status == 202, answer.text
        first, second = await receiver.until(2, path)
        assert (first.id, first.body) == (second.id, second.body)
        after = await delivery(hooked, shown["jobId"], "delivered", attempts=2)
        assert (after["replays"], len(after["history"])) == (1, 2)
        again = await hooked.call("POST", where, headers={"Idempotency-Key": path})
        assert (again.status, again.headers["Idempotent-Replayed"]) == (202, "true")
        assert again.json["status"] == "delivered"
    missing = await hooked.call("POST", f"/api/webhooks/deliveries/dlv_{'0' * 26}/replay")
    assert missing.status == 404


async def test_what_failed_is_sent_again_in_one_call(hooked: Stack, receiver: Receiver) -> None:
    """Within the bounds of time, and no others."""
    receiver.behaviours["/bad"] = status(410)
    shown = []
    for _ in range(3):  # one after the other: each in a millisecond of its own
        job = await hooked.submit(chat(webhook=hook(receiver, path="/bad")))
        shown.append(await delivery(hooked, job, "gone"))
    receiver.behaviours["/bad"] = status(200)
    before = len(receiver.got)
    since, until_ = shown[1]["createdAt"], shown[2]["createdAt"]
    body = {"status": "gone", "since": since, "until": until_}
    answer = await hooked.call("POST", "/api/webhooks/deliveries/replay", body, headers={"Idempotency-Key": "k"})
    assert (answer.status, answer.json) == (202, {"replayed": 1, "hasMore": False, "next": None}), answer.text
    await delivery(hooked, shown[1]["jobId"], "delivered")
    assert len(receiver.got) == before + 1
    again = await hooked.call("POST", "/api/webhooks/deliveries/replay", body, headers={"Idempotency-Key": "k"})
    assert (again.json, again.headers["Idempotent-Replayed"]) == (
        {"replayed": 1, "hasMore": False, "next": None},
        "true",
    )
    other = await hooked.call("POST", "/api/webhooks/deliveries/replay", {}, headers={"Idempotency-Key": "k"})
    assert (other.status, other.json["code"]) == (422, "idempotency_mismatch")
    bad = await hooked.call("POST", "/api/webhooks/deliveries/replay", {"since": "yesterday"})
    assert (bad.status, bad.json["errors"][0]["path"]) == (422, "$.since")
    assert (await hooked.call("POST", "/api/webhooks/deliveries/replay", {"status": "gone"})).json["replayed"] == 2


async def test_a_long_list_is_sent_again_call_by_call(
    hooked: Stack, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given more deliveries than one call takes, when each call goes on where the one before ended, then each is sent
    again once, though it is delivered again before the last call."""
    monkeypatch.setattr("shared.stores.webhooks.REPLAY_LIMIT", 2)
    for _ in range(5):
        await hooked.submit(chat(webhook=hook(receiver)))
    await until(lambda: _settled(hooked, 5))
    counts, after = [], None
    for _ in range(5):
        answer = await hooked.call("POST", "/api/webhooks/deliveries/replay", {"status": "delivered", "after": after})
        counts.append(answer.json["replayed"])
        await until(lambda: _settled(hooked, 5))
        after = answer.json["next"]
        assert answer.json["hasMore"] == (after is not None)
        if after is None:
            break
    assert counts == [2, 2, 1]
    assert [one["attempts"] for one in await deliveries(hooked)] == [2] * 5
    bad = await hooked.call("POST", "/api/webhooks/deliveries/replay", {"after": "x"})
    assert (bad.status, bad.json["errors"][0]["path"]) == (422, "$.after")


async def test_a_test_says_what_came_back(hooked: Stack, receiver: Receiver) -> None:
    """Once, signed, whatever the endpoint answers; another time with the same key nothing is sent."""
    receiver.behaviours["/bad"] = status(500)
    good = await hooked.call("POST", "/api/webhooks/test", {"url": receiver.url()}, headers={"Idempotency-Key": "t"})
    assert (good.status, good.json["status"], good.json["event"]) == (200, "delivered", "webhook.test"), good.text
    assert good.json["jobId"] is None
    assert receiver.got[0].verified(await secret(hooked))["type"] == "webhook.test"
    bad = await hooked.call("POST", "/api/webhooks/test", {"url": receiver.url("/bad")})
    assert (bad.json["status"], bad.json["lastAttempt"]["statusCode"]) == ("failed", 500)
    assert bad.json["lastAttempt"]["error"] == "status"
    again = await hooked.call("POST", "/api/webhooks/test", {"url": receiver.url()}, headers={"Idempotency-Key": "t"})
    assert (again.json["deliveryId"], again.headers["Idempotent-Replayed"]) == (good.json["deliveryId"], "true")
    assert len(receiver.got) == 2
    refused = await hooked.call("POST", "/api/webhooks/test", {"url": "http://10.0.0.1/"})
    assert (refused.status, refused.json["errors"][0]["path"]) == (422, "$.url")


async def test_a_test_without_a_worker_is_unavailable(make_stack: Any, receiver: Receiver) -> None:
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1", webhook_seconds=0.1)
    answer = await stack.call("POST", "/api/webhooks/test", {"url": receiver.url()})
    assert (answer.status, answer.json["code"]) == (503, "unavailable")
    assert "Retry-After" in answer.headers


async def test_an_ended_delivery_is_kept_for_its_time(make_stack: Any, receiver: Receiver) -> None:
    """Also while it is pending it cannot stay for ever."""
    stack: Stack = await make_stack(
        workers=("interactive",), fetch_private_hosts="127.0.0.1", webhook_retention_seconds=100
    )
    receiver.behaviours["/bad"] = status(500)
    done = await delivery(stack, await stack.submit(chat(webhook=hook(receiver))), "delivered")
    waits = await delivery(stack, await stack.submit(chat(webhook=hook(receiver, path="/bad"))), "pending", attempts=1)
    tenant = await _tenant(stack)
    left = [await stack.client.pttl(stack.keys.delivery(tenant, one["deliveryId"])) / 1000 for one in (done, waits)]
    assert 90 < left[0] <= 100
    assert 5 * 86_400 < left[1] <= 5 * 86_400 + 100
    await stack.client.delete(stack.keys.delivery(tenant, done["deliveryId"]))
    assert [one["deliveryId"] for one in await deliveries(stack)] == [waits["deliveryId"]]


async def test_the_contract_names_what_receivers_get(edge: Stack) -> None:
    document = (await edge.call("GET", "/openapi.json")).json
    hooks = document["webhooks"]
    assert set(hooks) == {*FINAL, "job.started", "job.waiting", "job.warning", "webhook.test"}
    schema = hooks["job.complete"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/WebhookPayload"}
    assert {"jobId", "result", "usage"} <= set(document["components"]["schemas"]["WebhookJob"]["properties"])
    names = {parameter["name"] for parameter in hooks["job.complete"]["post"]["parameters"]}
    assert names == {"webhook-id", "webhook-timestamp", "webhook-signature"}


# -- beside an older release


class OldScripts(Scripts):
    """The scripts of a release that knows of no webhooks: they end jobs and note nothing."""

    def _script(self, name: str) -> tuple[str, str]:
        source = script_source(name)
        old = source.replace("  if row.hook then hook_end(job_id, row.tenant, row.hook, seq, status) end\n", "")
        assert old != source
        self._loaded[name] = (old, "0" * 40)
        return self._loaded[name]


async def test_what_an_older_process_ends_is_told_all_the_same(make_stack: Any, receiver: Receiver) -> None:
    """Given a job that an older API cancelled, when it is looked at, then its delivery is noted, once."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    job_id = await stack.submit(chat(webhook=hook(receiver)))
    kept, stack.jobs.scripts = stack.jobs.scripts, OldScripts(stack.client, stack.settings.redis_prefix)
    await stack.jobs.cancel(await _tenant(stack), job_id)
    stack.jobs.scripts = kept
    assert await deliveries(stack) == []
    await stack.client.zadd(stack.keys.hooked, {job_id: 1}, xx=True)
    await stack.start_worker("interactive")
    (got,) = await receiver.until(1)
    payload = got.verified(await secret(stack))
    assert (payload["type"], payload["data"]["jobId"]) == ("job.cancelled", job_id)
    view = (await stack.call("GET", f"/api/jobs/{job_id}")).json
    assert (payload["timestamp"], payload["data"]["status"]) == (view["finishedAt"], "cancelled")
    await stack.client.zadd(stack.keys.hooked, {job_id: 1})
    await until(lambda: _looked_at(stack))
    assert len(await deliveries(stack)) == 1
    await asyncio.sleep(0.1)
    assert len(receiver.got) == 1


async def _looked_at(stack: Stack) -> bool:
    return not await stack.client.zcard(stack.keys.hooked)


# -- the command line


async def test_the_command_line_follows_webhooks(hooked: Stack) -> None:
    """Given the development receiver, when a job is submitted with it, then it prints the job's end; list, show,
    replay, test, secret and rotate say what the API says."""
    process = await begin(hooked, "webhooks", "listen", "--port", "0")
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            place = (await process.stderr.readline()).decode().split()[-1]
            hint = (await process.stderr.readline()).decode()
        assert f"ERRAND_FETCH_PRIVATE_HOSTS={place.removeprefix('http://').rstrip('/')}" in hint
        ran = await errand(hooked, "jobs", "submit", "--chat", "Hello.", "--webhook", place, "--webhook-event",
                           "job.started", "--webhook-event", "job.complete", "--wait", "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        job_id = ran.json["jobId"]
        async with asyncio.timeout(15):
            lines = [(await process.stdout.readline()).decode() for _ in range(2)]
        assert {line.split()[1] for line in lines} == {"job.started", "job.complete"}
        assert all(job_id in line for line in lines)
        listed = await errand(hooked, "webhooks", "list", "--job", job_id, "--status", "delivered", "--json")
        assert len(listed.json["data"]) == 2
        shown = await errand(hooked, "webhooks", "show", listed.json["data"][0]["deliveryId"])
        assert "  200  " in shown.out
        replayed = await errand(hooked, "webhooks", "replay", "--status", "delivered")
        assert replayed.out == "2 deliveries are due now\n"
        async with asyncio.timeout(15):
            assert "(again)" in (await process.stdout.readline()).decode()
        tested = await errand(hooked, "webhooks", "test", place)
        assert (tested.code, tested.out[:14]) == (0, "delivered: 200")
        before = await errand(hooked, "webhooks", "secret")
        assert before.out.strip() == await secret(hooked)
        rotated = await errand(hooked, "webhooks", "rotate", "--overlap", "0", "--json")
        assert rotated.json["secret"] not in before.out
        refused = await errand(hooked, "webhooks", "test", place)
        assert (refused.code, refused.out[:11]) == (1, "failed: 400")
        assert (await errand(hooked, "webhooks", "replay")).code == 2
        assert (await errand(hooked, "jobs", "submit", "--chat", "x", "--webhook-event", "job.failed")).code == 2
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130
