"""`errand doctor` and the diagnosis of the API: each cause is a real one, and each finding says what mends it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from scripts.probes import free_port
from shared.blobs import LocalBlobs, S3Blobs
from shared.diagnosis.blob_checks import check_blobs
from shared.diagnosis.findings import State, timing
from shared.keys import Keys
from shared.redis import connect, redis_now_ms
from shared.workers import ModelState, WorkerRecord
from tests import previous
from tests.conftest import ADMIN_KEY, DevModel, RedisServer, Stack, chat
from tests.loopback import Loopback
from tests.scripted_model import ScriptedModel

ROOT = Path(__file__).parent.parent
NOWHERE = "http://127.0.0.1:1"
OWN = ("redis", "durability", "persistence", "memory", "clients", "replication", "latency", "fsync", "clock", "blobs",
       "workers", "versions", "model")  # fmt: skip


class Told:
    """What the command said."""

    def __init__(self, code: int | None, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err
        self.report: dict[str, Any] = json.loads(out) if out.startswith("{") else {}

    def of(self, subject: str) -> list[dict[str, Any]]:
        return [check for check in self.report["checks"] if check["check"] == subject]

    def one(self, subject: str) -> dict[str, Any]:
        (check,) = self.of(subject)
        return check

    def failing(self) -> set[str]:
        return {check["check"] for check in self.report["checks"] if check["state"] == "fail"}


async def doctor(url: str, *arguments: str, key: str = ADMIN_KEY, **environment: str) -> Told:
    """The command as a person runs it, with nothing in its environment that the test has not put there."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    own = {**kept, "PYTHONPATH": str(ROOT), "ERRAND_URL": url, "ERRAND_KEY": key, **environment}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.cli", "doctor", *arguments, env=own, cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    return Told(process.returncode, out.decode(), err.decode())


async def diagnosis(stack: Stack) -> Told:
    """The same, from the API alone."""
    answer = await stack.call("GET", "/api/admin/diagnosis")
    assert answer.status == 200, answer.text
    return Told(0, answer.text, "")


async def until(stack: Stack, right: Callable[[Told], Any]) -> Told:
    """The first diagnosis of which this is true."""
    async with asyncio.timeout(20):
        while not right(told := await diagnosis(stack)):
            await asyncio.sleep(0.05)
    return told


def knows(told: Told, state: str, workers: int = 1) -> bool:
    """Whether so many workers know this of the model."""
    return sum(one.get("model", {}).get("state") == state for one in told.report["workers"]) == workers


class Answering(Loopback):
    """A server that answers everything with one status."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status
        self.asked: list[str] = []

    def app(self) -> web.Application:
        async def any_path(request: web.Request) -> web.Response:
            self.asked.append(f"{request.method} {request.path}")
            return web.json_response({"error": {"message": "key sk-secret-echo", "code": "no"}}, status=self.status)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", any_path)
        return app


@pytest.fixture
async def answering() -> AsyncIterator[Callable[[int], Awaitable[Answering]]]:
    made: list[Answering] = []

    async def make(status: int) -> Answering:
        made.append(Answering(status))
        await made[-1].start()
        return made[-1]

    yield make
    for server in made:
        await server.stop()


# -- a sound installation


async def test_a_sound_installation_has_no_failure(make_stack: Any) -> None:
    """Given API, Redis, model and a worker on each lane, then each subject is looked at once, nothing fails, the exit
    code is 0, and nothing is left in Redis."""
    stack = await make_stack(workers=("interactive", "batch"))
    await until(stack, lambda told: knows(told, "reachable", 2))
    told = await doctor(stack.base, "--json")
    assert told.code == 0, told.out
    assert told.failing() == set()
    assert [check["check"] for check in told.report["checks"]] == ["api", "key", *OWN]
    assert told.report["source"] == "api"
    assert all(check["advice"] for check in told.report["checks"] if check["state"] != "ok")
    workers = told.report["workers"]
    assert sorted(lane for one in workers for lane in one["slots"]) == ["batch", "interactive"]
    fsync = told.one("fsync")["figures"]
    assert 0 < fsync["writeP50Ms"] <= fsync["writeP99Ms"]
    assert 0 < told.one("latency")["figures"]["p50Ms"] < fsync["writeP99Ms"]
    assert [key async for key in stack.client.scan_iter(match=stack.keys.probe("*"))] == []
    assert [path for path in (stack.settings.data_dir / "blobs").rglob("*") if path.is_file()] == []


async def test_people_get_one_line_for_each_check_and_below_it_what_to_do(edge: Stack) -> None:
    told = await doctor(edge.base)
    lines = told.out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("fail  workers"))
    assert "no worker on interactive; no worker on batch" in lines[at]
    assert lines[at + 1].strip() == "→ Jobs on this lane wait for ever: start `python -m worker interactive`"
    assert lines[at + 2].strip() == "→ Jobs on this lane wait for ever: start `python -m worker batch`"
    assert sum(line.startswith(("ok    ", "warn  ", "fail  ")) for line in lines) == 2 + len(OWN)
    assert lines[-1].endswith("1 fail")
    assert told.code == 1


# -- Redis


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("appendonly", "no", "yes"),
        ("appendfsync", "everysec", "always"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ],
)
async def test_a_redis_that_can_lose_jobs_is_a_failure_until_the_command_it_names_was_run(
    make_stack: Any, own_redis: RedisServer, name: str, wrong: str, right: str
) -> None:
    stack = await make_stack(redis_url=own_redis.url)
    await stack.client.config_set(name, wrong)
    check = (told := await doctor(stack.base, "--json")).one("durability")
    assert (check["state"], told.code) == ("fail", 1)
    (advice,) = check["advice"]
    command = shlex.split(advice.partition("Mend it with: redis-cli ")[2])
    assert command == ["CONFIG", "SET", name, right]
    await stack.client.execute_command(*command)
    assert (await diagnosis(stack)).one("durability")["state"] == "ok"
    async with asyncio.timeout(20):  # a Redis 6.2 that writes its first file does not end when it is asked to
        while (info := await stack.client.info("persistence"))["aof_rewrite_in_progress"] or info[
            "aof_rewrite_scheduled"
        ]:
            await asyncio.sleep(0.05)


async def test_a_volatile_redis_that_was_accepted_is_a_warning(make_stack: Any, own_redis: RedisServer) -> None:
    stack = await make_stack(redis_url=own_redis.url, allow_volatile=True)
    await stack.client.config_set("appendonly", "no")
    check = (await diagnosis(stack)).one("durability")
    assert check["state"] == "warn"
    assert "ERRAND_ALLOW_VOLATILE=1" in check["found"]


async def test_a_redis_that_is_full_refuses_the_probe_and_says_so(make_stack: Any, own_redis: RedisServer) -> None:
    """Given memory near its bound a warning, over it a failure, and the write's refusal in Redis's own words."""
    stack = await make_stack(redis_url=own_redis.url)
    used = int((await stack.client.info("memory"))["used_memory"])
    await stack.client.config_set("maxmemory", round(used / 0.85))
    near = (await diagnosis(stack)).one("memory")
    assert near["state"] == "warn"
    assert "ERRAND_RETENTION_SECONDS" in near["advice"][0]
    await stack.client.config_set("maxmemory", 1)
    full = await doctor(stack.base, "--json")
    assert full.failing() >= {"memory", "fsync"}
    assert "refuses writes: " in full.one("fsync")["found"]
    assert full.code == 1


async def test_connections_near_their_bound_are_a_failure(make_stack: Any, own_redis: RedisServer) -> None:
    stack = await make_stack(redis_url=own_redis.url)
    await diagnosis(stack)  # its connections are made
    await stack.client.config_set("maxclients", int((await stack.client.info("clients"))["connected_clients"]))
    assert (await diagnosis(stack)).one("clients")["state"] == "fail"


async def test_a_replica_takes_no_writes(make_stack: Any, own_redis: RedisServer) -> None:
    stack = await make_stack(redis_url=own_redis.url)
    await diagnosis(stack)  # the key is known
    await stack.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    told = await diagnosis(stack)
    assert told.failing() >= {"replication", "fsync"}
    assert "redis+sentinel://" in told.one("replication")["advice"][0]


async def test_an_api_whose_redis_is_away_says_that(make_stack: Any, own_redis: RedisServer) -> None:
    """Also for a key that the API still knows, and one that it cannot look up."""
    stack = await make_stack(redis_url=own_redis.url)
    assert (await doctor(stack.base)).code == 1  # no worker; the key is known now
    own_redis.kill()
    told = await doctor(stack.base, "--json")
    assert told.code == 1
    assert told.one("redis")["state"] == "fail"
    assert "out of reach" in told.one("redis")["found"]
    other = await doctor(stack.base, "--json", key=f"ek_{'0' * 26}_{'x' * 43}")
    assert other.code == 1
    assert any("log" in line for check in other.of("api") for line in check["advice"])


# -- workers and the model


async def test_the_worker_says_that_its_model_is_away(make_stack: Any) -> None:
    stack = await make_stack(workers=("both",), openai_base_url=f"{NOWHERE}/v1")
    told = await until(stack, lambda told: knows(told, "unreachable"))
    check = told.one("model")
    assert check["state"] == "fail"
    assert "OPENAI_BASE_URL" in check["advice"][0]


@pytest.mark.parametrize(
    ("status", "state", "fails"),
    [(401, "refused", True), (403, "refused", True), (404, "reachable", False), (405, "reachable", False),
     (503, "unreachable", True)],
)  # fmt: skip
async def test_what_a_model_answers_to_the_question_for_its_list(
    make_stack: Any, answering: Any, status: int, state: str, fails: bool
) -> None:
    """Given a worker without jobs, then it asks only for the list of models, which nobody bills; and the server's own
    words, which may quote a key, are nowhere."""
    server = await answering(status)
    stack = await make_stack(workers=("both",), openai_base_url=f"{server.base}/v1")
    told = await until(stack, lambda told: knows(told, state))
    assert (told.one("model")["state"] == "fail") is fails
    assert set(server.asked) == {"GET /v1/models"}
    assert "sk-secret-echo" not in told.out
    if state == "refused":
        assert "OPENAI_API_KEY" in told.one("model")["advice"][0]


async def test_a_worker_learns_from_its_own_calls(make_stack: Any, scripted: ScriptedModel) -> None:
    """Given a model without a list that refuses the key in a call, then `refused`; once it answers, `reachable`."""
    scripted.says({"status": 401, "code": "invalid_api_key", "message": "Incorrect API key sk-secret-echo"}, "Fine.")
    stack = await make_stack(workers=("both",), openai_base_url=f"{scripted.base}/v1", lease_seconds=1.0)
    await until(stack, lambda told: knows(told, "reachable"))
    assert (await stack.finished(await stack.submit(chat())))["status"] == "failed"
    told = await until(stack, lambda told: knows(told, "refused"))
    assert told.report["workers"][0]["model"]["error"] == "it answered 401"
    assert "sk-secret-echo" not in told.out
    assert (await stack.finished(await stack.submit(chat())))["status"] == "complete"
    await until(stack, lambda told: knows(told, "reachable"))


async def test_one_worker_that_cannot_reach_the_model_is_a_warning(make_stack: Any) -> None:
    stack = await make_stack(workers=("both",))
    await stack.start_worker("both", openai_base_url=f"{NOWHERE}/v1")
    told = await until(stack, lambda told: knows(told, "reachable") and knows(told, "unreachable"))
    assert told.one("model")["state"] == "warn"


async def test_the_clock_of_a_worker_is_held_against_redis(make_stack: Any) -> None:
    """Given a worker whose host is two minutes ahead, then its clock fails by its name, the API's is right, and the
    time at which it asked its model is Redis's."""
    stack = await make_stack()
    stack._spawn("scripts.havoc.skewed", "120", "worker", "both")
    told = await until(stack, lambda told: knows(told, "reachable"))
    ours, theirs = told.of("clock")
    assert (ours["state"], theirs["state"]) == ("ok", "fail")
    worker = told.report["workers"][0]
    assert worker["id"] in theirs["found"]
    assert 119_000 < theirs["figures"]["offsetMs"] < 121_000
    assert abs(await redis_now_ms(stack.client) - worker["model"]["checkedMs"]) < 30_000


async def test_a_worker_of_the_previous_release_is_named(make_stack: Any, tmp_path: Path) -> None:
    stack = await make_stack(workers=("interactive",))
    await stack.spawn_worker("batch", tree=previous.unpack(tmp_path))
    told = await diagnosis(stack)
    assert told.one("workers")["state"] == "ok"
    versions = told.one("versions")
    assert versions["state"] == "warn"
    assert "docs/upgrading.md" in versions["advice"][0]


async def test_a_worker_of_another_version_is_named_with_its_host(make_stack: Any) -> None:
    """Given a record as a release without `model` writes it, then it is read, and its version is told."""
    stack = await make_stack(workers=("both",))
    text = (
        '{"id":"w-old","host":"h1","pid":1,"version":"0.2.0rc1","slots":{"batch":3},"startedMs":1,"future":{"a":1},'
        '"draining":true}'
    )
    now_ms = await redis_now_ms(stack.client)
    await stack.client.set(stack.keys.worker("w-old"), text)
    await stack.client.zadd(stack.keys.fleet, {"w-old": now_ms + 60_000})
    assert msgspec.json.decode(text, type=WorkerRecord).model is None
    told = await diagnosis(stack)
    assert "w-old on h1 runs 0.2.0rc1" in told.one("versions")["found"]
    assert "1 draining" in told.one("workers")["found"]


# -- blobs


async def test_a_data_directory_that_cannot_be_written_is_a_failure(make_stack: Any) -> None:
    stack = await make_stack()
    (stack.settings.data_dir / "blobs").write_text("a file where the directory should be")
    check = (await diagnosis(stack)).one("blobs")
    assert check["state"] == "fail"
    assert "ERRAND_DATA_DIR" in check["advice"][0]


async def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    """Given bounds above what this disk has free, then a warning, and a failure where not one upload fits."""
    blobs = LocalBlobs(tmp_path / "blobs")
    assert (await check_blobs(blobs, needed_bytes=1, little_bytes=1)).state is State.OK
    little = await check_blobs(blobs, needed_bytes=1, little_bytes=1 << 62)
    assert (little.state, "ERRAND_BLOBS" in little.advice[0]) == (State.WARN, True)
    assert (await check_blobs(blobs, needed_bytes=1 << 62)).state is State.FAIL
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_bucket_that_is_out_of_reach_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ENDPOINT_URL": NOWHERE,
        "REGION": "eu-1",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "s",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    check = await check_blobs(S3Blobs("s3://errand-doctor", patience_s=0.2), needed_bytes=1)
    assert check.state is State.FAIL
    assert "AWS_" in check.advice[0]


# -- the key, and what can be found out without one


async def test_a_wrong_key_and_one_without_the_scope_are_told_apart(make_stack: Any) -> None:
    """Then what everybody may know is told all the same."""
    stack = await make_stack(workers=("both",))
    wrong = await doctor(stack.base, "--json", key=f"ek_{'0' * 26}_{'x' * 43}")
    _, narrow_key = await stack.tenant()
    narrow = await doctor(stack.base, "--json", key=narrow_key)
    assert (wrong.code, narrow.code) == (1, 1)
    assert wrong.failing() == narrow.failing() == {"key"}
    assert "admin.key" in wrong.one("key")["advice"][0]
    assert "--scopes admin" in narrow.one("key")["advice"][0]
    assert any("a job would run" in check["found"] for check in narrow.of("api"))
    assert narrow_key not in narrow.out + narrow.err


async def test_without_an_api_it_looks_at_redis_and_the_model_itself(
    own_redis: RedisServer, model: DevModel, tmp_path: Path
) -> None:
    client = connect(own_redis.url)
    await client.config_set("appendfsync", "everysec")
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    told = await doctor(
        url, "--json", REDIS_URL=own_redis.url, OPENAI_BASE_URL=f"{model.base}/v1", ERRAND_DATA_DIR=str(tmp_path / "d")
    )
    assert told.code == 1
    assert told.failing() == {"api", "durability"}
    assert told.report["source"] == "local"
    assert "nothing listens" in told.one("port")["found"]
    assert {check["check"] for check in told.report["checks"]} >= {"python", "settings", "fsync", "clock", "blobs"}
    assert "answers" in told.one("model")["found"]
    assert [key async for key in client.scan_iter(match=Keys("errand:").probe("*"))] == []
    await client.aclose()


async def test_when_nothing_is_reached_the_exit_code_is_two_and_no_password_is_shown() -> None:
    told = await doctor(
        NOWHERE,
        key="ek_secretkey",
        REDIS_URL="redis://user:hunter2@127.0.0.1:1/0",
        OPENAI_BASE_URL="http://user:hunter3@127.0.0.1:1/v1",
        OPENAI_API_KEY="sk-hunter4",
    )
    assert told.code == 2
    for subject in ("api", "redis", "model"):
        assert f"fail  {subject} " in told.out
    assert not any(secret in told.out + told.err for secret in ("hunter", "secretkey")), told.out


async def test_a_wrong_password_of_redis_is_told_without_showing_it(own_redis: RedisServer) -> None:
    client = connect(own_redis.url)
    await client.config_set("requirepass", "hunter5")
    told = await doctor(NOWHERE, "--json", REDIS_URL=own_redis.url.replace("unix://", "unix://:hunter6@"))
    assert "refuses us" in told.one("redis")["found"]
    assert "deploy/redis/users.acl" in told.one("redis")["advice"][0]
    assert "hunter" not in told.out
    await client.aclose()


async def test_a_port_that_something_else_has_taken(answering: Any) -> None:
    server = await answering(404)
    told = await doctor(server.base, "--json")
    assert "something else than Errand" in told.one("api")["found"]
    assert told.one("port")["state"] == "fail"
    assert told.code == 2


async def test_an_api_that_hangs_is_told_from_one_that_is_not_there() -> None:
    """Given something that takes connections and never answers, then the command ends by itself."""
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    try:
        told = await doctor("http://{}:{}".format(*server.sockets[0].getsockname()), "--json")
        assert connected.is_set()
        assert "does not answer within 5 s" in told.one("api")["found"]
        assert told.code == 2
    finally:
        server.close()


async def test_a_setting_that_is_not_valid_is_named() -> None:
    told = await doctor(NOWHERE, "--json", ERRAND_WORKER_SLOTS="0")
    assert "ERRAND_WORKER_SLOTS" in told.one("settings")["found"]
    assert told.one("settings")["state"] == "fail"


def test_percentiles_are_of_the_nearest_rank() -> None:
    found = timing([0.001 * number for number in range(1, 51)])
    assert (found.p50_ms, found.p99_ms) == (25.0, 50.0)
    assert timing([0.002]).p99_ms == 2.0


def test_no_state_of_a_model_is_unknown_to_the_record() -> None:
    assert {state.value for state in ModelState} == {"reachable", "refused", "unreachable", "unknown"}
