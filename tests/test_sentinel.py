"""Redis under Sentinel: real servers, real failovers, the files of deploy/sentinel."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.errors import ConfigurationError
from shared.redis import check_durability, connect, wait_until_durable
from shared.redis_url import read_address
from shared.sentinel import Named, newest
from tests.conftest import ADMIN_KEY, DevModel, Stack, chat
from tests.sentinels import OPERATOR, PEER, Topology, until
from tests.test_streams import frames_of

LONG = {"messages": [{"role": "user", "content": "Tell me about the harbour."}], "maxTokens": 400}


@pytest.fixture
def topology(tmp_path: Path) -> Iterator[Topology]:
    """A primary, two replicas, three Sentinels."""
    made = Topology(tmp_path / "redis", replicas=2)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def make_following(make_stack: Any, topology: Topology) -> Callable[..., Awaitable[Stack]]:
    """Stacks that find their Redis by the Sentinels, below the prefix that the example's user may use."""

    async def make(options: str = "replicas=1", **more: Any) -> Stack:
        prefix = f"errand:{secrets.token_hex(4)}:"
        stack: Stack = await make_stack(redis_url=topology.url(options), redis_prefix=prefix, **more)
        return stack

    return make


class Client:
    """Submits jobs as a careful client does: with a key of its own each, again after a refusal or a cut."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.accepted: list[str] = []
        self.refused = 0
        self.stopping = False

    async def run(self) -> None:
        while not self.stopping:
            headers = {"Idempotency-Key": secrets.token_hex(8)}
            while True:
                answer = await self.stack.call("POST", "/api/jobs", chat(), headers=headers)
                if answer.status == 202:
                    self.accepted.append(answer.json["jobId"])
                    break
                assert (answer.status, answer.json["code"]) == (503, "unavailable"), answer.text
                self.refused += 1
                await asyncio.sleep(0.1)

    async def more(self, count: int, seconds: float = 30) -> None:
        """Returns when so many more jobs were accepted."""
        goal = len(self.accepted) + count
        async with asyncio.timeout(seconds):
            while len(self.accepted) < goal:
                await asyncio.sleep(0.02)


async def read_to_the_end(stack: Stack, job_id: str) -> list[dict[str, Any]]:
    """The job's events as a client reads them that resumes whenever its stream breaks."""
    events: list[dict[str, Any]] = []
    while True:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        if events:
            headers["Last-Event-ID"] = str(events[-1]["seq"])
        try:
            async with stack.session.get(f"{stack.base}/api/jobs/{job_id}/stream", headers=headers) as response:
                body = (await response.read()).decode()
        except aiohttp.ClientError:
            continue
        events += [json.loads(frame["data"]) for frame in frames_of(body) if "id" in frame]
        if body.rstrip().endswith("[DONE]"):
            return events
        await asyncio.sleep(0.2)


async def require_complete(stack: Stack, jobs: list[str]) -> None:
    """Each was kept, and completes."""
    for job_id in jobs:
        async with asyncio.timeout(60):
            while True:
                answer = await stack.call("GET", f"/api/jobs/{job_id}?wait=10")
                if answer.status == 200 and answer.json["status"] == "complete":
                    break
                assert answer.status in (200, 503), f"{job_id}: {answer.text}"
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("fault", "replicas"), [("killed", 1), ("frozen", 1), ("hung", 1), ("demoted", 2), ("paused", 1)]
)
async def test_a_failover_loses_nothing_that_was_accepted(
    make_following: Any, topology: Topology, model: DevModel, fault: str, replicas: int
) -> None:
    """Given clients that submit and a stream that is read, when the primary is killed; or freezes until it was replaced
    and then goes on as if it were the primary; or is demoted by hand while every replica must confirm; or by hand after
    a pause: then the same processes go on by themselves, every accepted job completes, and the stream has every event
    once."""
    await model.pace(tokensPerSecond=40)
    stack: Stack = await make_following(f"replicas={replicas}", workers=("interactive",), worker_slots=200)
    answer = await stack.call("POST", "/api/jobs", {"type": "chat", "input": LONG})
    long_job = answer.json["jobId"]
    reading = asyncio.create_task(read_to_the_end(stack, long_job))
    await stack.until(long_job, "processing")
    clients = [Client(stack) for _ in range(4)]
    submitting = [asyncio.create_task(client.run()) for client in clients]
    await asyncio.gather(*(client.more(10) for client in clients))

    old = topology.servers[0]
    if fault == "killed":
        old.kill()
    elif fault in ("frozen", "hung"):
        old.signal(signal.SIGSTOP)
    else:
        if fault == "paused":
            old.ask("CLIENT", "PAUSE", "6000", "WRITE", **OPERATOR)
        topology.sentinels[0].ask("SENTINEL", "FAILOVER", "errand", **PEER)
    new = await asyncio.to_thread(topology.primary, unlike=old)
    if fault == "frozen":
        (other,) = {*topology.servers} - {old, new}
        await asyncio.to_thread(until, lambda: other.ask("ROLE")[2] == new.port)
        old.signal(signal.SIGCONT)
    await asyncio.gather(*(client.more(10) for client in clients))
    for client in clients:
        client.stopping = True
    await asyncio.gather(*submitting)

    accepted = [job_id for client in clients for job_id in client.accepted]
    assert len(accepted) == len(set(accepted)) >= 80
    await require_complete(stack, [*accepted, long_job])
    events = await asyncio.wait_for(reading, 60)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    text = "".join(event["text"] for event in events if event["type"] == "delta")
    assert text == (await stack.call("GET", f"/api/jobs/{long_job}")).json["result"]["text"]
    assert events[-1]["type"] == "job.complete"


async def test_without_a_replicas_word_an_accepted_job_can_be_lost(make_following: Any, topology: Topology) -> None:
    """The difference that `replicas=1` makes. Given replicas that are away, a job is accepted without it (and without
    min-replicas-to-write); with it the answer is 503. When the primary dies then and they come back, only what was
    accepted by the word of a replica is still there."""
    plain: Stack = await make_following(options="", allow_volatile=True)
    strict: Stack = await make_following()
    kept = await strict.submit(chat())
    topology.servers[0].ask("CONFIG", "SET", "min-replicas-to-write", "0", **OPERATOR)
    for replica in topology.servers[1:]:
        replica.kill()
    doomed = await plain.submit(chat())
    headers = {"Idempotency-Key": "one"}
    refused = await strict.call("POST", "/api/jobs", chat(), headers=headers)
    assert (refused.status, refused.json["code"]) == (503, "unavailable")
    assert "Retry-After" in refused.headers
    old = topology.servers[0]
    old.kill()
    for replica in topology.servers[1:]:
        replica.start()
    await asyncio.to_thread(topology.primary, unlike=old)
    async with asyncio.timeout(20):
        while (again := await strict.call("POST", "/api/jobs", chat(), headers=headers)).status == 503:
            await asyncio.sleep(0.1)
    assert again.status == 202
    assert (await strict.call("GET", f"/api/jobs/{kept}")).status == 200
    assert (await plain.call("GET", f"/api/jobs/{doomed}")).status == 404


async def test_a_start_under_sentinel_wants_a_replicas_word(topology: Topology) -> None:
    """Given a primary that would go on alone, when it was cut off, then the start says so, unless each write waits for
    a replica."""
    primary = topology.servers[0]
    found = await wait_until_durable(topology.url(""), allow_volatile=False)
    assert (found.wrong, found.unknown) == ((), ())
    config = (primary.log.parent / "redis.conf").read_text().replace("min-replicas-to-write 1", "")
    (primary.log.parent / "redis.conf").write_text(config)
    for sentinel in topology.sentinels:
        sentinel.ask("SENTINEL", "SET", "errand", "down-after-milliseconds", "60000", **PEER)
    primary.kill()
    primary.start()
    until(lambda: primary.ask("PING"))
    with pytest.raises(ConfigurationError, match=r"min-replicas-to-write is 0.*replicas=1"):
        await wait_until_durable(topology.url(""), allow_volatile=False)
    await wait_until_durable(topology.url("replicas=1"), allow_volatile=False)


async def test_a_subscriber_leaves_a_server_that_was_replaced(topology: Topology) -> None:
    """Given a connection to the primary, when another one was promoted, then the connection knows that it is at the
    wrong place, although its server still answers; when no Sentinel answers, it is believed."""
    client = connect(topology.url(), timeout_s=None)
    connection: Any = client.connection_pool.make_connection()
    await connection.connect()
    try:
        assert await connection.is_current()
        old = topology.servers[0]
        old.signal(signal.SIGSTOP)
        await asyncio.to_thread(topology.primary, unlike=old)
        assert not await connection.is_current()
        for sentinel in topology.sentinels:
            sentinel.kill()
        assert await connection.is_current()
    finally:
        await connection.disconnect(nowait=True)
        await client.aclose()


async def test_a_server_that_became_a_replica_is_left(topology: Topology) -> None:
    """Given a primary that is demoted and keeps its connections, when a script writes there, then the refusal is an
    outage and the connection is given up; a new one finds out by the role."""
    client = connect(topology.url(""))
    await client.pipe.execute("SET", "errand:x", "1")
    topology.servers[0].ask("REPLICAOF", "127.0.0.1", str(topology.servers[1].port), **OPERATOR)
    with pytest.raises(RedisConnectionError, match="takes no writes"):
        await client.pipe.execute("EVAL", "return redis.call('SET', KEYS[1], 2)", 1, "errand:x")
    with pytest.raises(RedisConnectionError, match="not the primary"):
        await client.pipe.execute("GET", "errand:x")
    await client.aclose()


async def test_one_sentinel_is_enough_and_a_wrong_password_is_said(topology: Topology) -> None:
    for sentinel in topology.sentinels[1:]:
        sentinel.kill()
    found = await wait_until_durable(topology.url(), allow_volatile=False)
    assert found.wrong == ()
    environment = {**os.environ, "REDIS_URL": topology.url().replace("errand-asks", "guessed")}
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "worker"], env=environment, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 2
    assert "Redis cannot be used" in ended.stderr
    assert "guessed" not in ended.stderr
    assert "errand-password" not in ended.stderr


async def test_replicas_count_without_sentinel_too(own_redis: Any, make_stack: Any) -> None:
    """A REDIS_URL that asks for a replica where there is none: nothing is accepted, and the answer says why."""
    client = connect(f"{own_redis.url}?replicas=1", timeout_s=1.0)
    assert (await check_durability(client)).wrong == ()
    with pytest.raises(RedisConnectionError, match="0 of 1 replicas confirmed"):
        await client.pipe.execute("SET", "a", "b")
    await client.aclose()


def test_the_newest_answer_counts() -> None:
    """A Sentinel that was cut off names the old primary; of two that agree, one that reaches it says more."""
    old, new = Named("a", 1, 4, False), Named("b", 1, 5, False)
    assert newest([old, new, old]) == new
    assert newest([Named("b", 1, 5, True), new]) == new
    assert newest([]) is None


def test_addresses() -> None:
    found = read_address("rediss+sentinel://me:p%40ss@a,b:7,[::1]:8/main/3?replicas=2&sentinel_password=x")
    assert found.sentinels == (("a", 26379), ("b", 7), ("::1", 8))
    assert (found.service, found.replicas) == ("main", 2)
    assert {key: found.options[key] for key in ("username", "password", "db")} == {
        "username": "me",
        "password": "p@ss",
        "db": 3,
    }
    assert "host" not in found.options
    assert found.sentinel_options["password"] == "x"
    assert found.sentinel_options["connection_class"] is found.options["connection_class"]
    plain = read_address("redis://me:pw@h:1/2?replicas=1&socket_timeout=3")
    assert plain.options == {
        "username": "me", "password": "pw", "host": "h", "port": 1, "db": 2, "socket_timeout": 3.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://u:hush@a", "needs the NAME"),
        ("redis+sentinel://u:hush@/main", "needs the hosts"),
        ("redis+sentinel://a/main/x?sentinel_password=hush", "not the number of a database"),
        ("redis://u:hu/sh@h/0", "%2F"),
        ("redis://u:hush@h?replicas=9", "0 to 5"),
        ("redis://h?sentinel_password=hush", "only redis+sentinel"),
        ("redis://u:hush@h?nonsense=1", "nonsense"),
    ],
)
def test_a_wrong_address_is_named_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)) as refused:
        connect(url)
    assert "REDIS_URL" in str(refused.value)
    assert "hu" not in str(refused.value).replace("should", "")
