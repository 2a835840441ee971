"""The WebSocket: many jobs on one socket, each event once and in order, bounded for readers that are too slow."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import aiohttp
import pytest

from api.keys import HUB, SOCKETS
from api.live import MAX_BUFFERED_BYTES, Budget, Subscription
from shared.events import NewEvent
from tests.conftest import ADMIN_KEY, Stack, chat

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


class Client:
    """A client that keeps apart what answers it and what the jobs say."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self.connection = connection
        self.events: list[dict[str, Any]] = []
        self._ref = 0

    async def receive(self) -> Any:
        async with asyncio.timeout(10):
            message = await self.connection.receive()
        assert message.type is aiohttp.WSMsgType.TEXT, (message, self.connection.close_code)
        return json.loads(message.data)

    async def ask(self, op: str, **members: Any) -> Any:
        """The answer to an operation; events that come before it are kept."""
        self._ref += 1
        await self.connection.send_json({"op": op, "ref": self._ref, **members})
        while "ref" not in (frame := await self.receive()):
            self.events.append(frame)
        assert frame["ref"] == self._ref
        return frame

    async def ok(self, op: str, **members: Any) -> Any:
        answer = await self.ask(op, **members)
        assert "ok" in answer, answer
        return answer["ok"]

    async def until(self, job_id: str, kind: str) -> list[dict[str, Any]]:
        """All events of a job up to the first of this type."""
        while not any(event["jobId"] == job_id and event["type"] == kind for event in self.events):
            self.events.append(await self.receive())
        return [event for event in self.events if event["jobId"] == job_id]

    async def closed(self) -> int | None:
        """How the server closed it."""
        async with asyncio.timeout(5):
            while (await self.connection.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        return self.connection.close_code


async def connect(stack: Stack, **headers: str) -> Client:
    return Client(await stack.session.ws_connect(f"{stack.base}/api/ws", headers=headers or HEADERS))


def numbers_of(events: list[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in events if "seq" in event]


async def test_submit_follow_and_read_on_one_socket(stack: Stack) -> None:
    """Given one socket, when it submits two jobs and follows both, then it gets the events that HTTP lists."""
    client = await connect(stack)
    jobs = [await client.ok("submit", job=chat(f"Say {word}.")) for word in ("one", "two")]
    assert [job["status"] for job in jobs] == ["queued", "queued"]
    for job in jobs:
        assert await client.ok("subscribe", jobId=job["jobId"]) == {"jobId": job["jobId"]}
    for job in jobs:
        events = await client.until(job["jobId"], "job.complete")
        listed = await stack.log(job["jobId"])
        said = [{name: value for name, value in event.items() if name != "jobId"} for event in events]
        assert [event for event in said if "seq" in event] == listed
        assert [event["type"] for event in said].count("replay.end") <= 1
    await client.connection.close()


async def test_a_first_frame_may_carry_the_key(stack: Stack) -> None:
    client = Client(await stack.session.ws_connect(f"{stack.base}/api/ws"))
    await client.connection.send_json({"op": "auth", "key": ADMIN_KEY})
    assert (await client.receive())["ok"]["keyId"].startswith("key_")
    assert (await client.ok("submit", job=chat()))["status"] == "queued"
    assert (await client.ask("auth", key=ADMIN_KEY))["problem"]["code"] == "conflict"
    await client.connection.close()


@pytest.mark.parametrize(
    "frame",
    [
        '{"op": "auth", "key": "ek_01M81SGW152PHX78GHNCJWQHRS_wrongwrongwrongwrong"}',
        '{"op": "cancel", "ref": 1, "jobId": "x"}',
        "x",
    ],
)
async def test_without_a_key_the_socket_is_closed(edge: Stack, frame: str) -> None:
    client = Client(await edge.session.ws_connect(f"{edge.base}/api/ws"))
    await client.connection.send_str(frame)
    assert (await client.receive())["problem"]["code"] in ("unauthenticated", "malformed_request")
    assert await client.closed() == 1008


async def test_a_wrong_header_or_none_of_an_upgrade_is_an_http_problem(edge: Stack) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(edge, Authorization="Bearer ek_x")
    assert refused.value.status == 401
    plain = await edge.call("GET", "/api/ws")
    assert (plain.status, plain.json["code"]) == (400, "malformed_request")
    in_address = await edge.call("GET", f"/api/ws?key={ADMIN_KEY}", key=None)
    assert in_address.status == 400


async def test_bad_frames_are_named_and_the_socket_stays(edge: Stack) -> None:
    client = await connect(edge)
    for frame, code, path, ref in (
        ("{", "malformed_request", None, None),
        ('{"ref": 7}', "invalid_request", "$.op", 7),
        ('{"ref": 7, "op": "dance"}', "invalid_request", "$.op", 7),
        ('{"op": "cancel", "jobId": "x"}', "invalid_request", "$.ref", None),
        ('{"ref": 7, "op": "cancel", "jobId": "x", "more": 1}', "invalid_request", "$.more", 7),
        ('{"ref": "a", "op": "submit", "job": {"type": "chat", "input": {"messages": []}}}', "invalid_request",
         "$.job.input.messages", "a"),
        ('{"ref": 7, "op": "subscribe", "jobId": "job_x"}', "not_found", None, 7),
        ('{"ref": 7, "op": "unsubscribe", "jobId": "job_x"}', "not_found", None, 7),
    ):  # fmt: skip
        await client.connection.send_str(frame)
        answer = await client.receive()
        assert (answer["ref"], answer["problem"]["code"]) == (ref, code), frame
        if path is not None:
            assert answer["problem"]["errors"][0]["path"] == path, frame
    job = {**chat(), "prompt": {"name": "none"}}
    assert (await client.ask("submit", job=job))["problem"]["errors"][0]["path"] == "$.job.prompt.name"
    await client.connection.close()


async def test_an_idempotency_key_makes_one_job(edge: Stack) -> None:
    client = await connect(edge)
    first = await client.ok("submit", job=chat(), idempotencyKey="k")
    again = await client.ok("submit", job=chat(), idempotencyKey="k")
    assert first == again
    other = await client.ask("submit", job=chat("else"), idempotencyKey="k")
    assert other["problem"]["code"] == "idempotency_mismatch"
    await client.connection.close()


async def test_another_tenants_jobs_are_not_found(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    _, other = await edge.tenant()
    client = await connect(edge, Authorization=f"Bearer {other}")
    for op in ("subscribe", "cancel"):
        assert (await client.ask(op, jobId=job_id))["problem"]["code"] == "not_found"
    answer = await client.ask("input", jobId=job_id, requestId="r", value=1)
    assert answer["problem"]["code"] == "not_found"
    await client.connection.close()


async def test_cancel_and_unsubscribe(edge: Stack) -> None:
    client = await connect(edge)
    job_id = (await client.ok("submit", job=chat()))["jobId"]
    await client.ok("subscribe", jobId=job_id)
    await client.until(job_id, "replay.end")
    assert (await client.ok("unsubscribe", jobId=job_id)) == {"jobId": job_id}
    seen = len(client.events)
    assert (await client.ok("cancel", jobId=job_id))["status"] == "cancelled"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.connection.receive()
    assert len(client.events) == seen
    await client.connection.close()


async def test_a_socket_resumes_every_job_where_it_was(stack: Stack, model: Any) -> None:
    """Given a socket that breaks in mid-stream, when a new one goes on after its last event, then none is missing."""
    await model.pace(tokensPerSecond=60)
    first = await connect(stack)
    job_id = (await first.ok("submit", job=chat("Repeat: " + "word " * 60)))["jobId"]
    await first.ok("subscribe", jobId=job_id)
    await first.until(job_id, "delta")
    first.connection._response.connection.transport.abort()  # type: ignore[union-attr]
    last = max(numbers_of(first.events))
    second = await connect(stack)
    await second.ok("subscribe", jobId=job_id, after=last)
    rest = await second.until(job_id, "job.complete")
    assert numbers_of(first.events) + numbers_of(rest) == [event["seq"] for event in await stack.log(job_id)]
    final = max(numbers_of(rest))
    assert await second.ok("subscribe", jobId=job_id, after=final) == {"jobId": job_id}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await second.connection.receive()
    await second.connection.close()


async def test_a_revoked_key_loses_its_sockets_and_streams(edge: Stack) -> None:
    tenant, _ = await edge.tenant()
    made = (await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {})).json
    bearer = {"Authorization": f"Bearer {made['key']}"}
    job_id = await edge.submit(chat(), key=made["key"])
    client = await connect(edge, **bearer)
    stream = await edge.session.get(f"{edge.base}/api/jobs/{job_id}/stream", headers=bearer)
    await stream.content.readline()
    await edge.call("DELETE", f"/api/admin/tenants/{tenant}/keys/{made['keyId']}")
    assert await client.closed() == 1008
    with pytest.raises(aiohttp.ClientPayloadError):
        async with asyncio.timeout(5):
            await stream.content.read()
    assert (await edge.call("GET", f"/api/jobs/{job_id}/stream", key=made["key"])).status == 401


async def test_a_key_that_ends_without_notice_is_found(edge: Stack) -> None:
    """Given a socket, when its key is gone and the notice was lost, then it is closed within five seconds."""
    tenant, _ = await edge.tenant()
    made = (await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {})).json
    client = await connect(edge, Authorization=f"Bearer {made['key']}")
    await edge.client.delete(edge.keys.api_key(made["keyId"]))
    assert await client.closed() == 1008


async def test_a_stopping_api_closes_sockets_for_a_restart(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    client = await connect(stack)
    closing = asyncio.create_task(stack.stop_api())
    assert await client.closed() == 1012
    await closing


async def test_the_subscriber_may_lose_redis(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    client = await connect(stack)
    job_id = (await client.ok("submit", job=chat()))["jobId"]
    await client.ok("subscribe", jobId=job_id)
    await client.until(job_id, "replay.end")
    assert await stack.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
    await stack.start_worker("interactive")
    events = await client.until(job_id, "job.complete")
    assert numbers_of(events) == [event["seq"] for event in await stack.log(job_id)]
    await client.connection.close()


# -- readers that are too slow


def test_the_buffers_of_one_socket_are_bounded_together() -> None:
    """Given two jobs on a socket that does not read, then one budget holds for both; what is dropped is given back."""
    budget = Budget()
    one, two = (Subscription(lambda: None, budget) for _ in range(2))
    message = b"1 0 delta " + b"x" * 1000
    for _ in range(200):
        one.push(message)
    assert not one.behind
    for _ in range(200):
        two.push(message)
    assert two.behind
    assert one._size + two._size <= MAX_BUFFERED_BYTES
    one.take()
    assert (budget.messages, budget.size_bytes) == (Budget().messages, Budget().size_bytes)


class StuckSocket:
    """A WebSocket client that completes its handshake, subscribes, and then reads nothing until it is told to."""

    def __init__(self, stack: Stack, job_id: str) -> None:
        host, port = stack.base.removeprefix("http://").split(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((host, int(port)))
        self.socket.setblocking(False)
        self.job_id = job_id

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        head = (
            f"GET /api/ws HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await loop.sock_sendall(self.socket, head.encode())
        while b"\r\n\r\n" not in await loop.sock_recv(self.socket, 4096):
            pass
        await self.say({"op": "subscribe", "ref": 1, "jobId": self.job_id})

    async def say(self, frame: dict[str, Any]) -> None:
        body = json.dumps(frame).encode()
        assert len(body) < 126
        await asyncio.get_running_loop().sock_sendall(self.socket, bytes([0x81, 0x80 | len(body), 0, 0, 0, 0]) + body)

    async def frames(self) -> list[dict[str, Any]]:
        """Everything up to the final event."""
        loop, data, found = asyncio.get_running_loop(), b"", []
        while not any(frame.get("type") == "job.complete" for frame in found[-3:]):
            async with asyncio.timeout(10):
                data += await loop.sock_recv(self.socket, 65536)
            while len(data) > 4:
                length, start = data[1] & 127, 2
                if length == 126:
                    length, start = int.from_bytes(data[2:4]), 4
                if len(data) < start + length:
                    break
                if data[0] & 15 == 1:
                    found.append(json.loads(data[start : start + length]))
                data = data[start + length :]
        return found


async def flood(stack: Stack, job: Any, batches: int) -> None:
    for batch in range(1, batches + 1):
        events = [NewEvent("delta", {"text": f"{batch}.{number} " + "x" * 200}) for number in range(100)]
        await stack.events.append_one(job, "w", batch, events)


@pytest.mark.parametrize("max_lag", [10_000, 1_000])
async def test_a_socket_that_does_not_read_costs_little_and_catches_up(
    edge: Stack, monkeypatch: pytest.MonkeyPatch, max_lag: int
) -> None:
    """Given a reader that stands still while 5,000 events come, when it reads again, then it has them all from the log;
    and one that is farther behind than the bound gets a gap that names what it missed, and goes on."""
    monkeypatch.setattr("api.websocket.MAX_LAG", max_lag)
    job_id = await edge.submit(chat())
    (job,), _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    reader = StuckSocket(edge, job_id)
    await reader.start()
    await asyncio.sleep(0.3)
    await flood(edge, job, 50)
    await asyncio.sleep(0.3)
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    frames = await reader.frames()
    reader.socket.close()
    numbers = numbers_of(frames)
    gaps = [frame for frame in frames if frame.get("type") == "gap"]
    missed = [number for gap in gaps for number in range(gap["from"], gap["to"] + 1)]
    assert sorted(numbers + missed) == list(range(1, 5_004))
    assert numbers == sorted(numbers)
    assert bool(gaps) == (max_lag == 1_000)


async def test_a_stream_that_is_not_read_costs_little_and_catches_up(edge: Stack) -> None:
    """Given an SSE reader that stands still while 1 MB of events comes, then the API holds at most a few hundred kB for
    it, and when it reads again it has every event."""
    job_id = await edge.submit(chat())
    (job,), _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    host, port = edge.base.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(
        client,
        f"GET /api/jobs/{job_id}/stream HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\r\n".encode(),
    )
    await asyncio.sleep(0.3)
    (runner,) = edge._runners
    (handler,) = [entry for entry in runner.server.connections if entry._current_request is not None]  # type: ignore[union-attr]
    await flood(edge, job, 50)
    await asyncio.sleep(0.3)
    assert handler.transport.get_write_buffer_size() < 200_000
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    data = b""
    while b"data: [DONE]" not in data:
        async with asyncio.timeout(10):
            data += await loop.sock_recv(client, 1 << 20)
    client.close()
    numbers = [int(line[4:]) for line in data.split(b"\n") if line.startswith(b"id: ")]
    assert numbers == list(range(1, 5_004))


async def test_what_was_left_or_joined_anew_says_nothing_old(edge: Stack) -> None:
    """Given a reader that stands still in the middle of a page, when it leaves a job or joins it anew, then nothing of
    the old subscription follows the answer."""
    job_id = await edge.submit(chat())
    (job,), _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    await flood(edge, job, 20)
    reader = StuckSocket(edge, job_id)
    await reader.start()
    await asyncio.sleep(0.3)
    await reader.say({"op": "subscribe", "ref": 2, "jobId": job_id, "after": 1_000})
    await asyncio.sleep(0.2)
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    frames = await reader.frames()
    reader.socket.close()
    at = next(place for place, frame in enumerate(frames) if frame.get("ref") == 2)
    assert numbers_of(frames[at:]) == list(range(1_001, 2_004))


async def test_a_socket_that_neither_reads_nor_speaks_is_let_go(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a frozen client with a backlog, then its connection is cut off after a while and nothing of it is left."""
    monkeypatch.setattr("api.websocket.PING_S", 0.2)
    monkeypatch.setattr("api.websocket.STALLED_S", 1.0)
    job_id = await edge.submit(chat())
    (job,), _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    await flood(edge, job, 30)
    reader = StuckSocket(edge, job_id)
    await reader.start()
    async with asyncio.timeout(10):
        while edge._runners[0].app[SOCKETS]:
            await asyncio.sleep(0.05)
        while [entry for entry in edge._runners[0].server.connections if entry._current_request is not None]:  # type: ignore[union-attr]
            await asyncio.sleep(0.05)
    reader.socket.close()


async def test_a_socket_that_reads_slowly_is_kept(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.websocket.PING_S", 0.1)
    monkeypatch.setattr("api.websocket.STALLED_S", 2.0)
    job_id = await edge.submit(chat())
    (job,), _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    await flood(edge, job, 30)
    reader = StuckSocket(edge, job_id)
    await reader.start()
    loop, taken = asyncio.get_running_loop(), 0
    for _ in range(300):
        await asyncio.sleep(0.01)
        taken += len(await loop.sock_recv(reader.socket, 2_048))
    assert edge._runners[0].app[SOCKETS]
    assert taken > 50_000
    reader.socket.close()


async def test_a_socket_that_leaves_unread_is_no_fault(edge: Stack, caplog: Any, capsys: Any) -> None:
    """Given clients that do not read what they asked for, and then go, then nothing is logged as a crash of ours."""
    job_id = await edge.submit(chat())
    (job,), _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    await flood(edge, job, 30)
    for _ in range(3):
        reader = StuckSocket(edge, job_id)
        await reader.start()
        await asyncio.sleep(0.2)
        reader.socket.close()
    async with asyncio.timeout(5):
        while edge._runners[0].app[SOCKETS]:
            await asyncio.sleep(0.05)
    await edge.call("POST", "/api/chat/stream", b'{"messages": []}', headers={"Content-Encoding": "gzip"})
    await asyncio.sleep(0.2)
    logged = capsys.readouterr().out + caplog.text
    assert "crashed" not in logged
    assert "Unhandled" not in logged


async def test_a_socket_without_a_key_takes_small_frames_only(edge: Stack) -> None:
    client = Client(await edge.session.ws_connect(f"{edge.base}/api/ws"))
    await client.connection.send_str('{"op": "auth", "key": "' + "x" * 300_000 + '"}')
    assert await client.closed() == 1009


# -- tickets


async def test_a_ticket_reads_this_one_stream_and_nothing_else(stack: Stack) -> None:
    job_id, other = await stack.submit(chat()), await stack.submit(chat("other"))
    made = await stack.call("POST", f"/api/jobs/{job_id}/stream-ticket")
    assert made.status == 200
    ticket = made.json["ticket"]
    assert made.json["expiresAt"] > (await stack.finished(job_id))["createdAt"]
    read = await stack.call("GET", f"/api/jobs/{job_id}/stream?ticket={ticket}", key=None)
    assert read.status == 200
    assert read.text.endswith("data: [DONE]\n\n")
    resumed = await stack.call(
        "GET", f"/api/jobs/{job_id}/stream?ticket={ticket}", key=None, headers={"Last-Event-ID": "2"}
    )
    assert "\nid: 3\n" in "\n" + resumed.text
    text = await stack.call("GET", f"/api/chat/stream/{job_id}?ticket={ticket}", key=None)
    assert text.text.endswith("data: [DONE]\n\n")
    for path in (f"/api/jobs/{other}/stream", f"/api/jobs/{job_id}", f"/api/jobs/{job_id}/events", "/api/jobs"):
        refused = await stack.call("GET", f"{path}?ticket={ticket}", key=None)
        assert refused.status == 401, path
    for bad in ("st_x", ticket[:-1] + ("0" if ticket[-1] != "0" else "1"), ""):
        refused = await stack.call("GET", f"/api/jobs/{job_id}/stream?ticket={bad}", key=None)
        assert (refused.status, refused.json["code"]) == (401, "unauthenticated")


async def test_a_ticket_ends_five_minutes_after_its_job(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    ticket = (await edge.call("POST", f"/api/jobs/{job_id}/stream-ticket")).json["ticket"]
    await edge.call("DELETE", f"/api/jobs/{job_id}")
    address = f"/api/jobs/{job_id}/stream?ticket={ticket}"
    assert (await edge.call("GET", address, key=None)).status == 200
    ended = int(await edge.client.hget(edge.keys.job(job_id), "finished_ms"))  # type: ignore[misc]
    await edge.client.hset(edge.keys.job(job_id), "finished_ms", ended - 301_000)  # type: ignore[misc]
    assert (await edge.call("GET", address, key=None)).status == 401
    later = (await edge.call("POST", f"/api/jobs/{job_id}/stream-ticket")).json["expiresAt"]
    assert later < (await edge.call("GET", f"/api/jobs/{job_id}")).json["createdAt"]


async def test_a_ticket_ends_with_its_key(edge: Stack) -> None:
    tenant, _ = await edge.tenant()
    made = (await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {})).json
    job_id = await edge.submit(chat(), key=made["key"])
    ticket = (await edge.call("POST", f"/api/jobs/{job_id}/stream-ticket", key=made["key"])).json["ticket"]
    stream = await edge.session.get(f"{edge.base}/api/jobs/{job_id}/stream?ticket={ticket}")
    await stream.content.readline()
    await edge.call("DELETE", f"/api/admin/tenants/{tenant}/keys/{made['keyId']}")
    with pytest.raises(aiohttp.ClientPayloadError):
        async with asyncio.timeout(5):
            await stream.content.read()
    assert (await edge.call("GET", f"/api/jobs/{job_id}/stream?ticket={ticket}", key=None)).status == 401


async def test_a_ticket_for_anothers_job_is_not_made(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    _, other = await edge.tenant()
    assert (await edge.call("POST", f"/api/jobs/{job_id}/stream-ticket", key=other)).status == 404


# -- CORS


async def test_pages_of_named_origins_may_call(make_stack: Any) -> None:
    stack: Stack = await make_stack(workers=("interactive",), cors_origins="https://app.example, http://localhost:3000")
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,last-event-id",
    }
    for path in ("/api/jobs", "/api/chat/stream", "/api/jobs/job_x/stream", "/nothing"):
        allowed = await stack.call("OPTIONS", path, key=None, headers=asked)
        assert allowed.status == 204
        assert allowed.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "Last-Event-ID" in allowed.headers["Access-Control-Allow-Headers"]
        assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
        assert "Access-Control-Allow-Credentials" not in allowed.headers
    for body in ({"messages": [{"role": "user", "content": "x"}]}, {}):
        answer = await stack.call("POST", "/api/chat/stream", body, headers={"Origin": "http://localhost:3000"})
        assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert "X-Job-Id" in answer.headers["Access-Control-Expose-Headers"]
        assert answer.headers["Vary"] == "Origin"
    for origin in ("https://evil.example", "https://app.example.evil.example", "null"):
        refused = await stack.call("OPTIONS", "/api/jobs", key=None, headers={**asked, "Origin": origin})
        assert refused.status == 405
        assert "Access-Control-Allow-Origin" not in refused.headers


async def test_without_the_setting_no_page_may_call(edge: Stack) -> None:
    answer = await edge.call("GET", "/api/jobs", headers={"Origin": "https://app.example"})
    assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_any_origin_where_the_operator_says_so(make_stack: Any) -> None:
    stack: Stack = await make_stack(cors_origins="*")
    answer = await stack.call("GET", "/api/jobs", headers={"Origin": "https://app.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


# -- questions to a person


async def ask_twice(spec: Any, context: Any) -> Any:
    """A task that needs a person two times, and a model call between."""
    colour = await context.ask_person("colour", "Which colour?")
    context.report.text(f"{colour} ")
    size = await context.ask_person("size", f"Which size in {colour}?")
    return {"text": f"{colour} {size}", "finishReason": "stop"}


async def test_a_job_waits_for_a_person_without_a_slot_and_goes_on(make_stack: Any) -> None:
    """Given a job that asks, then it waits, its slot is free, and answers over HTTP and over a socket let it go on, in
    the same attempt."""
    stack: Stack = await make_stack()
    engine = await stack.start_worker("interactive", handlers={"chat": ask_twice})
    client = await connect(stack)
    job_id = (await client.ok("submit", job=chat()))["jobId"]
    await client.ok("subscribe", jobId=job_id)
    view = await stack.until(job_id, "waiting")
    assert view["waiting"]["kind"] == "input"
    assert view["waiting"]["question"] == "Which colour?"
    assert view["queue"] is None
    assert not engine.running
    first = view["waiting"]["requestId"]
    wrong = await stack.call("POST", f"/api/jobs/{job_id}/input", {"requestId": "other", "value": 1})
    assert (wrong.status, wrong.json["code"]) == (409, "conflict")
    given = await stack.call("POST", f"/api/jobs/{job_id}/input", {"requestId": first, "value": "red"})
    assert given.status == 200
    again = await stack.call("POST", f"/api/jobs/{job_id}/input", {"requestId": first, "value": "red"})
    assert again.status == 200
    changed = await stack.call("POST", f"/api/jobs/{job_id}/input", {"requestId": first, "value": "blue"})
    assert changed.status == 409
    async with asyncio.timeout(10):
        while (view := await stack.until(job_id, "waiting"))["waiting"]["requestId"] == first:
            await asyncio.sleep(0.01)
    assert view["waiting"]["question"] == "Which size in red?"
    await client.ok("input", jobId=job_id, requestId=view["waiting"]["requestId"], value=42)
    events = await client.until(job_id, "job.complete")
    assert [event["kind"] for event in events if event["type"] == "job.waiting"] == ["input", "input"]
    done = await stack.finished(job_id)
    assert (done["result"]["text"], done["attempt"]) == ("red 42", 1)
    assert "waiting" not in done
    await client.connection.close()


async def test_a_job_that_waits_for_a_person_survives_and_can_be_cancelled(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    engine = await stack.start_worker("interactive", handlers={"chat": ask_twice})
    job_id = await stack.submit(chat())
    view = await stack.until(job_id, "waiting")
    await stack.stop_worker(engine)
    await stack.jobs.reap()
    assert (await stack.call("GET", f"/api/jobs/{job_id}")).json["status"] == "waiting"
    cancelled = await stack.call("DELETE", f"/api/jobs/{job_id}")
    assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
    late = await stack.call(
        "POST", f"/api/jobs/{job_id}/input", {"requestId": view["waiting"]["requestId"], "value": "x"}
    )
    assert late.status == 409


async def test_bad_answers_are_named(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    for body, path in (({"value": 1}, "$.requestId"), ({"requestId": "r"}, "$.value")):
        answer = await edge.call("POST", f"/api/jobs/{job_id}/input", body)
        assert (answer.status, answer.json["errors"][0]["path"]) == (422, path)
    unasked = await edge.call("POST", f"/api/jobs/{job_id}/input", {"requestId": "r", "value": None})
    assert unasked.status == 409
    assert (await edge.call("POST", "/api/jobs/job_x/input", {"requestId": "r", "value": 1})).status == 404


async def test_a_key_that_is_revoked_during_a_long_poll_is_refused(edge: Stack) -> None:
    tenant, _ = await edge.tenant()
    made = (await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {})).json
    job_id = await edge.submit(chat(), key=made["key"])
    polling = asyncio.create_task(edge.call("GET", f"/api/jobs/{job_id}?wait=20", key=made["key"]))
    await asyncio.sleep(0.2)
    await edge.call("DELETE", f"/api/admin/tenants/{tenant}/keys/{made['keyId']}")
    async with asyncio.timeout(5):
        answer = await polling
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")


async def test_a_client_that_goes_is_no_fault_of_ours(edge: Stack) -> None:
    """Given readers that go away, then no request counts as unreadable, or as a 500."""
    job_id = await edge.submit(chat())

    async def faults() -> float:
        text = (await edge.call("GET", "/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith("errand_http_requests_total{")]
        return sum(float(line.split()[-1]) for line in lines if 'status="500"' in line or "unreadable" in line)

    before = await faults()
    for path in ("/stream", "?wait=20"):
        request = asyncio.create_task(edge.call("GET", f"/api/jobs/{job_id}{path}"))
        await asyncio.sleep(0.2)
        request.cancel()
    await asyncio.sleep(0.3)
    assert await faults() == before
    hub = edge._runners[0].app[HUB]
    assert not hub._channels
