"""Webhooks while things go wrong: receivers that fail, hang, redirect or lie, workers that die, a Redis that
restarts."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest
from aiohttp import web

from shared.settings import Settings
from shared.stores.webhooks import WebhooksStore
from shared.webhooks import AttemptError, Ended
from tests.conftest import RedisServer, Stack, chat
from tests.hooking import deliveries, delivery, task, time_passes, until
from tests.receiver import Receiver, status
from tests.test_erasure import traces
from worker.webhooks.sender import Sender
from worker.webhooks.verdict import SCHEDULE_S, Sent, Verdict, judge, retry_after_s

MINUTE, HOUR = 60, 3_600


def hook(receiver: Receiver, path: str = "/hook") -> dict[str, Any]:
    return {"url": receiver.url(path)}


# -- the verdict


def test_the_schedule_is_that_of_standard_webhooks() -> None:
    """Ten requests: at once, then 5 s, 5 min, 30 min, 2, 5, 10, 14, 20 and 24 h apart, with some jitter."""
    asked = [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR]
    sent = Sent(500, AttemptError.STATUS, 1)
    for tries, seconds in enumerate(asked, 1):
        assert judge(sent, tries, once=False, chance=0.5) == Verdict("retry", seconds)
        low, high = (judge(sent, tries, once=False, chance=chance).delay_s for chance in (0, 1))
        assert (low, high) == (pytest.approx(seconds * 0.9), pytest.approx(seconds * 1.1))
    assert judge(sent, 10, once=False, chance=0.5) == Verdict("failed")
    assert sum(SCHEDULE_S) == 75 * HOUR + 35 * MINUTE + 5
    assert judge(sent, 1, once=True, chance=0.5) == Verdict("failed")


@pytest.mark.parametrize(
    ("sent", "verdict"),
    [
        (Sent(204, None, 1), Verdict("delivered")),
        (Sent(410, AttemptError.STATUS, 1), Verdict("gone")),
        (Sent(301, AttemptError.REDIRECT, 1), Verdict("retry", 5)),
        (Sent(429, AttemptError.STATUS, 1), Verdict("retry", 5, 5)),
        (Sent(429, AttemptError.STATUS, 1, 60), Verdict("retry", 60, 60)),
        (Sent(429, AttemptError.STATUS, 1, 1), Verdict("retry", 5, 1)),
        (Sent(503, AttemptError.STATUS, 1, 10**9), Verdict("retry", 24 * HOUR, HOUR)),
        (Sent(503, AttemptError.STATUS, 1), Verdict("retry", 5)),
        (Sent(None, AttemptError.TIMEOUT, 1), Verdict("retry", 5)),
        (Sent(None, AttemptError.ADDRESS_REFUSED, 1), Verdict("failed")),
    ],
)
def test_an_answer_decides_what_follows(sent: Sent, verdict: Verdict) -> None:
    assert judge(sent, 1, once=False, chance=0.5) == verdict


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("30", 30.0), (" 7 ", 7.0), ("-1", None), ("soon", None), ("9" * 30, None), ("²", None),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Thu, 99 Jan 1970", None),
    ],
)  # fmt: skip
def test_retry_after_is_read_in_both_forms(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, 100.0) == seconds


# -- receivers


async def test_a_receiver_that_recovers_gets_it_on_the_schedule(hooked: Stack, receiver: Receiver) -> None:
    """500, then 200: the second request comes after five seconds, give or take a tenth, with the same id."""
    receiver.behaviours["/hook"] = status(500, 200)
    job_id = await hooked.submit(chat(webhook=hook(receiver)))
    first, second = await receiver.until(2)
    assert 4.4 <= second.at_s - first.at_s <= 6.5
    assert (first.id, first.body) == (second.id, second.body)
    shown = await delivery(hooked, job_id, "delivered")
    assert [(one["statusCode"], one["error"]) for one in shown["history"]] == [(500, "status"), (200, None)]
    assert shown["nextAttemptAt"] is None


async def test_ten_failures_are_the_end(hooked: Stack, receiver: Receiver) -> None:
    """Given an endpoint that never takes it, when the schedule is over, then it has failed, is listed as such, and is
    sent no more; a replay begins the schedule anew."""
    receiver.behaviours["/hook"] = status(503)
    job_id = await hooked.submit(chat(webhook=hook(receiver)))
    for attempt in range(1, 10):
        await delivery(hooked, job_id, "pending", attempts=attempt)
        await time_passes(hooked)
    shown = await delivery(hooked, job_id, "failed")
    assert (shown["attempts"], len(receiver.got)) == (10, 10)
    assert [one["jobId"] for one in await deliveries(hooked, "status=failed")] == [job_id]
    assert await hooked.client.zcard(hooked.keys.undelivered) == 0
    await time_passes(hooked)
    await asyncio.sleep(0.2)
    assert len(receiver.got) == 10
    replayed = await hooked.call("POST", "/api/webhooks/deliveries/replay", {})
    assert replayed.json["replayed"] == 1
    await delivery(hooked, job_id, "pending", attempts=11)


async def test_a_receiver_that_hangs_holds_up_nobody(make_stack: Any, receiver: Receiver) -> None:
    stack: Stack = await make_stack(workers=("both",), fetch_private_hosts="127.0.0.1", webhook_seconds=0.5)
    never = asyncio.Event()

    async def hang(_: web.Request, __: bytes) -> web.StreamResponse:
        await never.wait()
        raise AssertionError

    receiver.behaviours["/hangs"] = hang
    slow = await stack.submit(chat(webhook=hook(receiver, "/hangs")))
    await receiver.until(1, "/hangs")
    fast = await stack.submit(chat(webhook=hook(receiver)))
    await receiver.until(1, "/hook", seconds=0.4)
    shown = await delivery(stack, slow, "pending", attempts=1)
    assert (shown["lastAttempt"]["error"], shown["lastAttempt"]["statusCode"]) == ("timeout", None)
    assert 400 <= shown["lastAttempt"]["durationMs"] <= 2_000
    assert (await delivery(stack, fast, "delivered"))["attempts"] == 1


async def test_gone_is_the_end_for_that_url(hooked: Stack, receiver: Receiver) -> None:
    """Given a URL that answers 410, then what jobs made before would send there ends unsent; a job that names it again
    is told, and other URLs there are."""
    gate = asyncio.Event()
    await hooked.stop_worker(hooked.engines[0])
    receiver.behaviours["/hook"] = status(410, 200)
    early = [await hooked.submit(chat(webhook=hook(receiver))) for _ in range(2)]
    other = await hooked.submit(chat(webhook=hook(receiver, "/other")))
    # One at a time, so that the second ends after the first one's answer.
    await hooked.start_worker("interactive", worker_slots=1, handlers={"chat": task(gate=gate)})
    await hooked.call("DELETE", f"/api/jobs/{early[0]}?wait=5")
    await delivery(hooked, early[0], "gone")
    gate.set()
    shown = await delivery(hooked, early[1], "gone")
    assert (shown["attempts"], shown["lastAttempt"]) == (0, None)
    await delivery(hooked, other, "delivered")
    late = await hooked.submit(chat(webhook=hook(receiver)))
    await delivery(hooked, late, "delivered")
    assert len(receiver.at("/hook")) == 2


async def test_retry_after_holds_for_all_that_goes_there(hooked: Stack, receiver: Receiver) -> None:
    """Given a 429 with Retry-After, then neither this delivery nor another to the endpoint comes before; then both
    do."""
    receiver.behaviours["/hook"] = status(429, 200, Retry_After="3")
    await hooked.submit(chat(webhook=hook(receiver)))
    (first,) = await receiver.until(1)
    await asyncio.sleep(0.3)
    second = await hooked.submit(chat(webhook=hook(receiver, "/other")))
    await hooked.finished(second)
    (later,) = await receiver.until(1, "/other")
    assert later.at_s - first.at_s >= 2.9
    again = (await receiver.until(2, "/hook"))[1]
    assert again.at_s - first.at_s >= 4.4


async def test_no_redirect_is_followed(hooked: Stack, receiver: Receiver) -> None:
    receiver.behaviours["/hook"] = status(307, Location=receiver.url("/elsewhere"))
    shown = await delivery(hooked, await hooked.submit(chat(webhook=hook(receiver))), "pending", attempts=1)
    assert (shown["lastAttempt"]["statusCode"], shown["lastAttempt"]["error"]) == (307, "redirect")
    assert receiver.at("/elsewhere") == []


async def test_a_huge_or_endless_answer_is_not_read(hooked: Stack, receiver: Receiver) -> None:
    """The status counts; of the body little is taken, and no time is lost."""
    sent = {"/huge": 0, "/drip": 0}

    async def pour(request: web.Request, _: bytes) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        piece, pause_s = (b"x" * 65_536, 0.0) if request.path == "/huge" else (b"x", 0.2)
        for _ in range(4_000):
            await response.write(piece)
            sent[request.path] += len(piece)
            await asyncio.sleep(pause_s)
        return response

    for path in sent:
        receiver.behaviours[path] = pour
        shown = await delivery(hooked, await hooked.submit(chat(webhook=hook(receiver, path))), "delivered", seconds=5)
        assert shown["lastAttempt"]["durationMs"] < 800
    assert sent["/huge"] < 20_000_000


async def test_an_answer_counts_though_its_body_is_late(receiver: Receiver) -> None:
    """Given a head in time and a body that goes on beyond the bound, then it is a success."""

    async def drip(request: web.Request, _: bytes) -> web.StreamResponse:
        response = web.StreamResponse()
        await asyncio.sleep(0.2)
        await response.prepare(request)
        for _ in range(100):
            await response.write(b"x")
            await asyncio.sleep(0.05)
        return response

    receiver.behaviours["/hook"] = drip
    sender = Sender(Settings(webhook_seconds=0.5, fetch_private_hosts="127.0.0.1"))
    sent = await sender.post(receiver.url(), {}, b"{}")
    await sender.close()
    assert (sent.status, sent.error) == (200, None)


async def test_a_name_that_leads_inside_is_refused_when_it_is_sent(make_stack: Any) -> None:
    """Nothing of the URL tells it: the guard sees the address before it connects."""
    stack: Stack = await make_stack(workers=("interactive",))
    opened = []
    server = await asyncio.start_server(lambda reader, writer: opened.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    job_id = await stack.submit(chat(webhook={"url": "http://localhost:8080/"}))
    shown = await delivery(stack, job_id, "failed")
    assert (shown["attempts"], shown["lastAttempt"]["error"]) == (1, "address_refused")
    sender = Sender(Settings(webhook_seconds=5), _answers(["127.0.0.1"]))
    for url in (f"http://127.0.0.1:{port}/", "http://rebind.test:8080/"):
        assert (await sender.post(url, {}, b"{}")).error is AttemptError.ADDRESS_REFUSED
    await sender.close()
    server.close()
    assert opened == []


def _answers(*given: list[str]) -> Any:
    """A name server whose answers change from question to question."""
    left = list(given)

    async def resolve(_: str, __: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def test_a_name_is_checked_whenever_a_connection_is_made(receiver: Receiver) -> None:
    """Given a name that leads outside at first and inside at its next look-up, when the second connection is made,
    then it is refused; and one bad address among good ones is enough."""
    open_to = Settings(webhook_seconds=5, fetch_private_hosts=f"good.test:{receiver.port}")
    sender = Sender(open_to, _answers(["127.0.0.1"]))
    assert (await sender.post(receiver.url(host="good.test"), {}, b"{}")).status == 200
    assert (await sender.post(receiver.url(host="bad.test"), {}, b"{}")).error is AttemptError.ADDRESS_REFUSED
    await sender.close()
    mixed = Sender(Settings(webhook_seconds=5), _answers(["93.184.215.14", "10.0.0.1"], ["10.0.0.1"]))
    for _ in range(2):
        assert (await mixed.post("https://mixed.test/", {}, b"{}")).error is AttemptError.ADDRESS_REFUSED
    await mixed.close()
    assert len(receiver.got) == 1


async def test_what_no_server_answers_has_its_name(receiver: Receiver) -> None:
    """Nobody listens, no such name, no TLS, no HTTP: each is told apart, and none raises."""

    async def unknown(_: str, __: int) -> list[str]:
        raise socket.gaierror("no such name")

    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    closing = server.sockets[0].getsockname()[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refusing = free.getsockname()[1]
        sender = Sender(Settings(webhook_seconds=5, fetch_private_hosts="127.0.0.1"), unknown)
        found = [
            (await sender.post(url, {}, b"{}")).error
            for url in (
                f"http://127.0.0.1:{refusing}/", "http://nowhere.test/", f"https://127.0.0.1:{receiver.port}/",
                f"http://127.0.0.1:{closing}/",
            )
        ]  # fmt: skip
    await sender.close()
    server.close()
    assert found == [AttemptError.CONNECTION, AttemptError.DNS, AttemptError.TLS, AttemptError.CONNECTION]


async def test_a_dead_endpoint_delays_no_other(make_stack: Any, receiver: Receiver) -> None:
    """Given 1,000 deliveries of one tenant to an endpoint that hangs, then one to a healthy endpoint comes within a
    second, of that tenant and of another; and the dead one never has more than its bound under way."""
    stack: Stack = await make_stack(
        workers=("both",), fetch_private_hosts="127.0.0.1", webhook_seconds=5, webhook_concurrency=16
    )
    dead = Receiver()
    await dead.start()
    never = asyncio.Event()

    async def hang(_: web.Request, __: bytes) -> web.StreamResponse:
        await never.wait()
        raise AssertionError

    dead.behaviours["/hook"] = hang
    await stack.stop_worker(stack.engines[0])
    _, key = await stack.tenant()
    for _ in range(20):
        jobs = await asyncio.gather(*(stack.submit(chat(webhook=hook(dead)), key=key) for _ in range(50)))
        await asyncio.gather(*(stack.call("DELETE", f"/api/jobs/{job_id}", key=key) for job_id in jobs))
    assert await stack.client.zcard(stack.keys.undelivered) == 1_000
    await stack.start_worker("both")
    await dead.until(1)
    for whose in (key, None):
        options = {} if whose is None else {"key": whose}
        job_id = await stack.submit(chat(webhook=hook(receiver)), **options)
        await stack.finished(job_id, **options)
        asked = asyncio.get_running_loop().time()
        await receiver.until(1 if whose else 2)
        assert asyncio.get_running_loop().time() - asked < 1.0
    assert dead.most_under_way == 2
    await dead.stop()


async def test_an_endpoint_that_fails_is_let_alone_in_between(hooked: Stack, receiver: Receiver) -> None:
    """Given ten deliveries to an endpoint that answers 500, then after some failures they come one at a time with
    pauses; a success ends that."""
    receiver.behaviours["/hook"] = status(500)
    for _ in range(10):
        await hooked.submit(chat(webhook=hook(receiver)))
    await receiver.until(8)
    await asyncio.sleep(0.5)
    assert len(receiver.got) < 10
    names = [name async for name in hooked.client.scan_iter(f"{hooked.settings.redis_prefix}hook:*")]
    state = await hooked.client.hgetall(names[0])
    assert int(state[b"fails"]) >= 5
    receiver.behaviours["/hook"] = status(200)
    await time_passes(hooked)
    await until(lambda: _none_left(hooked))
    assert await hooked.client.hget(names[0], "fails") is None


async def _none_left(stack: Stack) -> bool:
    await time_passes(stack)
    return not await stack.client.zcard(stack.keys.undelivered)


# -- workers and Redis


async def test_a_killed_workers_delivery_is_sent_by_another(make_stack: Any, receiver: Receiver) -> None:
    """Given a worker that is killed while a receiver has not answered, when its lease is over, then another sends it,
    with the same id: the receiver can drop it."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1", webhook_seconds=30)
    gate = asyncio.Event()

    async def wait(_: web.Request, __: bytes) -> web.StreamResponse:
        await gate.wait()
        return web.Response()

    receiver.behaviours["/hook"] = wait
    member = await stack.spawn_worker("interactive")
    job_id = await stack.submit(chat(webhook=hook(receiver)))
    await receiver.until(1)
    member.kill()
    gate.set()
    await stack.start_worker("interactive")
    await asyncio.sleep(0.3)
    assert len(receiver.got) == 1
    await time_passes(stack)
    first, second = await receiver.until(2)
    assert first.id == second.id
    shown = await delivery(stack, job_id, "delivered")
    assert shown["attempts"] == 1


async def test_a_worker_that_stops_hands_its_deliveries_back(make_stack: Any, receiver: Receiver) -> None:
    """A deploy uses up no request of the schedule, and nobody waits for a lease."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1", webhook_seconds=30, drain_seconds=0.2)
    first = await stack.start_worker("interactive")
    gate = asyncio.Event()

    async def wait(_: web.Request, __: bytes) -> web.StreamResponse:
        if not gate.is_set():
            await gate.wait()
        return web.Response()

    receiver.behaviours["/hook"] = wait
    job_id = await stack.submit(chat(webhook=hook(receiver)))
    await receiver.until(1)
    await stack.stop_worker(first)
    gate.set()
    await stack.start_worker("interactive")
    await receiver.until(2, seconds=3)
    assert (await delivery(stack, job_id, "delivered"))["attempts"] == 1


async def test_deliveries_outlive_a_redis_that_is_killed(
    make_stack: Any, receiver: Receiver, own_redis: RedisServer
) -> None:
    """Given one that was sent and one that waits for its next request, when Redis is killed and comes back, then the
    second is sent and the first is not again."""
    stack: Stack = await make_stack(workers=("interactive",), redis_url=own_redis.url, fetch_private_hosts="127.0.0.1")
    receiver.behaviours["/later"] = status(500, 200)
    done = await stack.submit(chat(webhook=hook(receiver)))
    await delivery(stack, done, "delivered")
    later = await stack.submit(chat(webhook=hook(receiver, "/later")))
    await delivery(stack, later, "pending", attempts=1)
    own_redis.kill()
    await asyncio.sleep(0.5)
    own_redis.start()
    await receiver.until(2, "/later", seconds=20)
    await delivery(stack, later, "delivered")
    assert len(receiver.at("/hook")) == 1


async def test_an_answer_that_redis_did_not_hear_of_is_told_when_it_is_back(
    make_stack: Any, receiver: Receiver, own_redis: RedisServer
) -> None:
    """Given a request that ends while Redis is away, when it is back, then the success is noted, and it is not sent
    again."""
    stack: Stack = await make_stack(workers=("interactive",), redis_url=own_redis.url, fetch_private_hosts="127.0.0.1")
    gate = asyncio.Event()

    async def wait(_: web.Request, __: bytes) -> web.StreamResponse:
        await gate.wait()
        return web.Response()

    receiver.behaviours["/hook"] = wait
    job_id = await stack.submit(chat(webhook=hook(receiver)))
    await receiver.until(1)
    own_redis.kill()
    gate.set()
    await asyncio.sleep(0.5)
    own_redis.start()
    assert (await delivery(stack, job_id, "delivered"))["attempts"] == 1
    assert len(receiver.got) == 1


async def test_a_report_for_a_lost_lease_changes_nothing_but_a_success(make_stack: Any, receiver: Receiver) -> None:
    """Given a delivery that was given out twice, when the first courier reports a failure late, then nothing happens;
    when it reports a success, then it is delivered."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    store = WebhooksStore(stack.client, stack.keys)
    job_id = await stack.submit(chat(webhook=hook(receiver)))
    await stack.call("DELETE", f"/api/jobs/{job_id}")

    async def claim() -> Any:
        return (await store.claim(count=5, share=5, each=5, held={}, lease_ms=30_000)).due

    (old,) = await claim()
    assert await claim() == []
    await time_passes(stack)
    (new,) = await claim()
    assert new.lease == old.lease + 1
    attempt = '{"at":1,"status":500,"error":"status","ms":1}'

    def report(due: Any, outcome: str, **more: Any) -> Ended:
        return Ended(due.delivery_id, due.tenant, due.mark, due.lease, outcome, attempt, **more)

    assert await store.done([report(old, "retry", delay_ms=1)], each=5) == ["lost"]
    assert await store.done([report(old, "failed")], each=5) == ["lost"]
    assert (await deliveries(stack))[0]["status"] == "pending"
    assert await store.done([report(old, "delivered"), report(new, "retry", delay_ms=1)], each=5) == ["ok", "lost"]
    assert (await deliveries(stack))[0]["status"] == "delivered"


async def test_a_report_that_is_repeated_counts_once(make_stack: Any, receiver: Receiver) -> None:
    """Its answer was lost with the connection: the request is noted once, and the next is due when it was."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    store = WebhooksStore(stack.client, stack.keys)
    job_id = await stack.submit(chat(webhook=hook(receiver)))
    await stack.call("DELETE", f"/api/jobs/{job_id}")
    (due,) = (await store.claim(count=5, share=5, each=5, held={}, lease_ms=30_000)).due
    attempt = '{"at":1,"status":500,"error":"status","ms":1}'
    ended = Ended(due.delivery_id, due.tenant, due.mark, due.lease, "retry", attempt, delay_ms=60_000)
    assert await store.done([ended], each=5) == ["ok"]
    before = await deliveries(stack)
    assert await store.done([ended], each=5) == ["lost"]
    assert await deliveries(stack) == before
    assert before[0]["attempts"] == 1


async def test_what_could_not_be_sent_for_days_is_given_up(make_stack: Any, receiver: Receiver) -> None:
    """Given a delivery that is five days old, since no worker was there, then it is not sent any more; a replay sends
    it."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    job_id = await stack.submit(chat(webhook=hook(receiver)))
    await stack.call("DELETE", f"/api/jobs/{job_id}")
    (found,) = await deliveries(stack)
    tenant = (await stack.call("GET", "/api/admin/tenants")).json["data"][0]["tenantId"]
    record = stack.keys.delivery(tenant, found["deliveryId"])
    old: Any = await stack.client.hget(record, "at_ms")
    await stack.client.hset(record, "at_ms", str(int(old) - 5 * 86_400_000 - 1))
    await stack.start_worker("interactive")
    shown = await delivery(stack, job_id, "failed")
    assert (shown["attempts"], shown["lastAttempt"]["error"]) == (0, "expired")
    assert receiver.got == []
    await stack.call("POST", f"/api/webhooks/deliveries/{found['deliveryId']}/replay")
    await delivery(stack, job_id, "delivered")


# -- tenants


async def test_an_erased_tenants_deliveries_are_gone(make_stack: Any, receiver: Receiver) -> None:
    """Given pending and ended deliveries of a tenant, one under way and a job that still runs, when the tenant is
    deleted, then nothing of it is sent any more, the receipt counts what went, and no key names it."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    gate = asyncio.Event()

    async def wait(_: web.Request, __: bytes) -> web.StreamResponse:
        await gate.wait()
        return web.Response(status=500)

    receiver.behaviours |= {"/bad": status(500), "/hangs": wait}
    tenant, key = await stack.tenant()
    worker = await stack.start_worker("interactive")
    job_id = await stack.submit(chat(webhook=hook(receiver)), key=key)
    await stack.finished(job_id, key=key)
    await stack.submit(chat(webhook=hook(receiver, "/bad")), key=key)
    await stack.submit(chat(webhook=hook(receiver, "/hangs")), key=key)
    await receiver.until(3)
    await stack.submit(chat(webhook=hook(receiver), delaySeconds=600), key=key)
    await asyncio.sleep(0.2)
    before = len(receiver.got)
    await stack.start_worker("batch")
    answer = await stack.call("DELETE", f"/api/admin/tenants/{tenant}")
    view = await stack.finished(answer.json["jobId"])
    assert view["status"] == "complete", view
    assert view["result"]["counts"]["webhookDeliveries"] == 3
    gate.set()
    await stack.stop_worker(worker)
    assert len(receiver.got) == before
    assert await traces(stack, answer.json["jobId"], tenant, "/hangs") == []


async def test_nothing_of_a_tenant_that_is_being_deleted_is_given_out(make_stack: Any, receiver: Receiver) -> None:
    """From the mark on, though its deliveries are still there."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    store = WebhooksStore(stack.client, stack.keys)
    tenant, key = await stack.tenant()
    job_id = await stack.submit(chat(webhook=hook(receiver)), key=key)
    await stack.call("DELETE", f"/api/jobs/{job_id}", key=key)
    assert len(await deliveries(stack, "status=pending", key=key)) == 1
    await stack.client.hset(stack.keys.tenant(tenant), "deleting", "1")
    taken = await store.claim(count=8, share=8, each=8, held={}, lease_ms=30_000)
    assert (taken.due, taken.next_ms) == ([], None)


async def test_a_tenant_has_a_share_of_a_worker(make_stack: Any) -> None:
    """Whatever number of endpoints it names, half of a worker's requests stay for others."""
    stack: Stack = await make_stack(fetch_private_hosts="127.0.0.1")
    store = WebhooksStore(stack.client, stack.keys)
    _, key = await stack.tenant()

    async def ended(port: int, **options: Any) -> None:
        job_id = await stack.submit(chat(webhook={"url": f"http://127.0.0.1:{port}/"}), **options)
        await stack.call("DELETE", f"/api/jobs/{job_id}", **options)

    for port in range(7_000, 7_010):
        await ended(port, key=key)
    await ended(8_000)
    taken = await store.claim(count=8, share=4, each=2, held={}, lease_ms=30_000)
    tenants = [due.tenant for due in taken.due]
    assert sorted(tenants.count(one) for one in set(tenants)) == [1, 4]


def test_settings_of_webhooks_are_bounded() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"webhook_concurrency": 1}, Settings)
