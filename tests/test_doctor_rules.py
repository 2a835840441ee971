"""What the diagnosis makes of the figures of a Redis: readings of a real one, with the figure in question changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from shared.diagnosis import fleet_rules, redis_rules
from shared.diagnosis.findings import Check, State, Timing, worst
from shared.diagnosis.redis_probe import RedisReading, Replica, read_redis
from shared.errors import BadOutput, CircuitOpen, InternalError, UpstreamRateLimited, UpstreamRefused
from shared.errors import UpstreamUnavailable as Away
from shared.keys import Keys
from shared.redis import connect
from shared.workers import ModelSeen, ModelState, WorkerRecord
from tests.conftest import RedisServer
from worker.model.health import Health, verdict

QUICK = Timing(0.05, 0.1)
GIB = 1 << 30


@pytest.fixture
async def reading(redis_server: RedisServer) -> RedisReading:
    client = connect(redis_server.url)
    found = await read_redis(client, Keys("doctor:"))
    await client.aclose()
    return found


async def test_what_is_read_is_what_redis_says(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    said = await client.info()
    found = await read_redis(client, Keys("doctor:"))
    await client.aclose()
    assert found.version == said["redis_version"]
    assert (found.is_primary, found.replicas, found.write_refusal) == (True, (), "")
    assert (found.clients_bound, found.aof_write) == (said["maxclients"], "ok")
    assert abs(found.offset_ms) <= 50  # one machine


@pytest.mark.parametrize(
    ("product", "version", "state", "first"),
    [
        ("Redis", "6.2.19", "warn", "6.2.20"), ("Redis", "6.2.20", "ok", ""), ("Redis", "7.0.15", "warn", "maintained"),
        ("Redis", "7.2.10", "warn", "7.2.11"), ("Redis", "7.4.6", "ok", ""), ("Redis", "8.0.3", "warn", "8.0.4"),
        ("Redis", "8.2.2", "ok", ""), ("Redis", "8.4.0", "ok", ""), ("Redis", "9.0", "ok", ""),
        ("Valkey", "7.2.10", "warn", "7.2.11"), ("Valkey", "8.0.6", "ok", ""), ("Valkey", "8.1.3", "warn", "8.1.4"),
        ("Valkey", "9.0.0", "ok", ""),
    ],
)  # fmt: skip
def test_releases_with_a_known_hole_are_told(
    reading: RedisReading, product: str, version: str, state: str, first: str
) -> None:
    check = redis_rules.version(replace(reading, product=product, version=version))
    assert check.state == state
    assert first in " ".join(check.advice)


@pytest.mark.parametrize(
    ("changes", "state", "says"),
    [
        ({}, "ok", "without an error"),
        ({"aof_write": "err"}, "fail", "refused"),
        ({"aof_rewrite": "err"}, "warn", "grows"),
        ({"snapshot": "err"}, "warn", "snapshot"),
        ({"aof_write": "err", "aof_rewrite": "err"}, "fail", "grows"),
        ({"aof_write": None, "aof_rewrite": None, "snapshot": None}, "ok", "without"),
    ],
)
def test_what_redis_failed_to_write(reading: RedisReading, changes: dict[str, Any], state: str, says: str) -> None:
    check = redis_rules.persistence(replace(reading, **changes))
    assert check.state == state
    assert says in check.found


@pytest.mark.parametrize(
    ("changes", "state", "says"),
    [
        ({"bound_bytes": 10 * GIB}, "ok", "maxmemory"),
        ({"bound_bytes": 0, "machine_bytes": GIB}, "fail", "the machine's memory"),
        ({"bound_bytes": 0, "machine_bytes": None}, "ok", "in use"),
        ({"bound_bytes": 0, "machine_bytes": 100 * GIB, "resident_bytes": 3 * GIB}, "warn", "fragmentation 3.0"),
        ({"bound_bytes": 0, "machine_bytes": 100 * GIB, "evicted": 7}, "warn", "7 keys were evicted"),
        ({"bound_bytes": GIB, "evicted": 7}, "fail", "7 keys were evicted"),
    ],
)
def test_memory(reading: RedisReading, changes: dict[str, Any], state: str, says: str) -> None:
    check = redis_rules.memory(replace(reading, used_bytes=GIB, **changes))
    assert check.state == state
    assert says in check.found


@pytest.mark.parametrize(
    ("replicas", "wanted", "state"),
    [
        ((), 0, "ok"), ((), 1, "fail"), ((Replica(True, 10),), 1, "ok"), ((Replica(False, 0),), 0, "warn"),
        ((Replica(True, 10), Replica(True, GIB)), 1, "warn"), ((Replica(False, 0), Replica(True, 0)), 2, "fail"),
    ],
)  # fmt: skip
def test_replicas(reading: RedisReading, replicas: tuple[Replica, ...], wanted: int, state: str) -> None:
    assert redis_rules.replication(replace(reading, replicas=replicas, replicas_wanted=wanted)).state == state


@pytest.mark.parametrize(
    ("read", "write", "state", "says"),
    [
        (QUICK, Timing(0.4, 1.0), "ok", "p99 1.00 ms"),
        (QUICK, Timing(0.4, 5.0), "warn", ": the disk is the limit"),
        (Timing(3.0, 4.0), Timing(3.2, 5.0), "warn", "not the disk"),
        (QUICK, Timing(150.0, 400.0), "fail", ": the disk is the limit"),
    ],
)
def test_a_slow_write_is_the_disks_or_the_ways(
    reading: RedisReading, read: Timing, write: Timing, state: str, says: str
) -> None:
    check = redis_rules.fsync(replace(reading, read=read, write=write))
    assert check.state == state
    assert says in check.found


@pytest.mark.parametrize(("ping", "state"), [(QUICK, "ok"), (Timing(0.1, 9.0), "warn"), (Timing(120.0, 130.0), "fail")])
def test_latency(reading: RedisReading, ping: Timing, state: str) -> None:
    assert redis_rules.latency(replace(reading, ping=ping)).state == state


@pytest.mark.parametrize(
    ("offset_ms", "round_trip_ms", "state", "says"),
    [
        (0, 0.1, "ok", "agrees"),
        (900, 0.1, "ok", "900 ms ahead"),
        (-1_500, 0.1, "warn", "1500 ms behind"),
        (1_500, 2_000.0, "ok", "ahead"),  # the reading itself is that vague
        (60_000, 0.1, "fail", "ahead"),
    ],
)
def test_clocks(offset_ms: int, round_trip_ms: float, state: str, says: str) -> None:
    check = redis_rules.clock(offset_ms, round_trip_ms, "this clock")
    assert check.state == state
    assert says in check.found


def record(name: str, state: ModelState | None, error: str | None = None, **changes: Any) -> WorkerRecord:
    model = None if state is None else ModelSeen(state=state, checked_ms=1, error=error)
    values = {"version": "1", "slots": {"batch": 2}, **changes}
    return WorkerRecord(id=name, host="h", pid=1, started_ms=1, model=model, **values)


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ([ModelState.REACHABLE, ModelState.REACHABLE], "ok"),
        ([ModelState.REACHABLE, None], "ok"),
        ([ModelState.REACHABLE, ModelState.REFUSED], "warn"),
        ([ModelState.UNREACHABLE, ModelState.REFUSED], "fail"),
        ([ModelState.UNKNOWN], "warn"),
        ([], "warn"),
    ],
)
def test_what_the_workers_know_of_the_model(states: list[ModelState | None], state: str) -> None:
    records = [record(f"w{number}", one) for number, one in enumerate(states)]
    assert fleet_rules.model(records).state == state


def test_a_lane_without_a_worker_that_takes_jobs_fails() -> None:
    draining = record("w1", ModelState.REACHABLE, slots={"interactive": 4}, draining=True)
    check = fleet_rules.workers({"interactive": 0, "batch": 1}, [draining, record("w2", ModelState.REACHABLE)])
    assert check.state is State.FAIL
    assert check.advice == ("Jobs on this lane wait for ever: start `python -m worker interactive`",)
    assert check.found == "no worker on interactive; 1 on batch with 2 slots; 1 draining"


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (UpstreamRefused("no", status=401), "refused"), (UpstreamRefused("quota", status=429), "refused"),
        (UpstreamRefused("no", status=400), "reachable"), (UpstreamRefused("filter"), "reachable"),
        (UpstreamRateLimited("slowly"), "reachable"), (BadOutput("no JSON"), "reachable"),
        (Away("gone"), "unreachable"), (Away("ill", status=503), "unreachable"),
        (Away("late", status=408), "reachable"),
        (CircuitOpen("not asked"), None), (InternalError("ours"), None),
    ],
)  # fmt: skip
def test_what_a_failed_call_says_of_the_model(error: Any, found: str | None) -> None:
    said = verdict(error)
    assert (None if said is None else said[0]) == found


async def test_the_question_is_put_only_when_there_was_no_call() -> None:
    """Given calls that are answered, then nothing is asked; when they end, it is, and sooner when it is not reached."""
    asked: list[int] = []

    async def ask() -> None:
        asked.append(1)
        raise Away("gone")

    health = Health(ask, quiet_s=1_000.0)
    health.answered()
    watch = asyncio.create_task(health.run())
    await asyncio.sleep(0.05)
    assert asked == []
    watch.cancel()
    quick = Health(ask, quiet_s=0.2)
    watch = asyncio.create_task(quick.run())
    async with asyncio.timeout(10):
        while len(asked) < 3:
            await asyncio.sleep(0.01)
    watch.cancel()
    assert quick.seen().state is ModelState.UNREACHABLE


async def test_a_server_that_says_nothing_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.model.health.ASK_S", 0.05)
    seen = await Health(asyncio.Event().wait).ask()  # type: ignore[arg-type]
    assert (seen.state, seen.error) == (ModelState.UNREACHABLE, "it did not answer within 0.05 s")


def test_the_whole_is_as_bad_as_its_worst() -> None:
    def check(state: State) -> Check:
        return replace(redis_rules.clock(0, 0.0, "x"), state=state)

    assert worst(check(state).state for state in (State.OK, State.FAIL, State.WARN)) is State.FAIL
    assert worst([]) is State.OK
