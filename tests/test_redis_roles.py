"""The Redis of deploy/redis: everything runs under its roles, the roles may nothing else, and TLS is verified."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError

from scripts import embedded_redis
from scripts.probes import free_port
from shared.errors import ConfigurationError
from shared.redis import check_durability, connect, wait_until_durable
from tests.conftest import ADMIN_KEY, DevModel, Stack, chat, settings_for

DEPLOY = Path(__file__).parents[1] / "deploy" / "redis"
PASSWORDS = {role: secrets.token_hex(16) for role in ("api", "worker", "operator")}
ROOT = secrets.token_hex(16)


def users(directory: Path) -> Path:
    """The example's ACL file with passwords, and a user for the test to look with."""
    text = (DEPLOY / "users.acl").read_text()
    for role, password in PASSWORDS.items():
        text = text.replace(f"CHANGE-{role}-CHANGE", password)
    assert "CHANGE" not in text
    path = directory / "users.acl"
    path.write_text(f"{text}user root on >{ROOT} ~* &* +@all\n")
    return path


def started(command: list[str], client: redis.Redis) -> subprocess.Popen[bytes] | None:
    """A server that answers, or None when it ended at once."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.ping()
            return process
        except redis.RedisError:
            time.sleep(0.05)
    process.kill()
    process.wait()
    return None


@pytest.fixture
def acl_redis(short_dir: Path) -> Iterator[Path]:
    directory = short_dir / secrets.token_hex(4)
    directory.mkdir()
    path = directory / "redis.sock"
    command = embedded_redis.command(embedded_redis.find_server(), directory, path)
    root = redis.Redis(unix_socket_path=str(path), username="root", password=ROOT)
    process = started([*command, "--aclfile", str(users(directory))], root)
    assert process is not None, (directory / "redis.log").read_text()
    yield path
    root.close()
    process.terminate()
    process.wait(20)


def url_of(path: Path, role: str) -> str:
    return f"unix://{role}:{PASSWORDS.get(role, ROOT)}@{path}"


async def test_a_job_of_each_type_runs_under_the_roles(acl_redis: Path, model: DevModel, tmp_path: Path) -> None:
    """Given the example's ACL file, when API and workers run under their users, then jobs of all types, searches,
    streams, administration and deletions work, and Redis has refused nothing."""
    settings = settings_for(url_of(acl_redis, "api"), model, tmp_path, redis_prefix="errand:", admin_key=ADMIN_KEY)
    stack = Stack(settings, url_of(acl_redis, "root"))
    root = redis.Redis(unix_socket_path=str(acl_redis), username="root", password=ROOT)
    try:
        await stack.start_api()
        for lane in ("interactive", "batch"):
            await stack.start_worker(lane, redis_url=url_of(acl_redis, "worker"))
        assert (await stack.call("GET", "/readyz")).status == 200
        told = (await stack.call("GET", "/api/admin/diagnosis")).json
        assert [check for check in told["checks"] if check["state"] == "fail"] == []
        head = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.md"\r\n\r\n'
        form = head + b"# Crane\n\nThe new crane costs 42 francs.\r\n--B--\r\n"
        uploaded = await stack.call(
            "POST", "/api/documents", form, headers={"Content-Type": "multipart/form-data; boundary=B"}
        )
        assert uploaded.status == 202, uploaded.text
        document = uploaded.json["documentId"]
        assert (await stack.finished(uploaded.json["jobId"]))["status"] == "complete"
        for job in (
            chat(webhook={"url": "https://hooks.example/a"}),
            {"type": "agent", "input": {"goal": "What does the crane cost?", "context": {"documents": [document]}}},
            {"type": "batch-embedding", "input": {"texts": ["a", "b"]}},
            {
                "type": "document-analysis",
                "input": {"document": {"documentId": document}, "tasks": [{"kind": "summary"}]},
            },
        ):
            ended = await stack.finished(await stack.submit(job))
            assert ended["status"] == "complete", ended
        found = await stack.call("POST", "/api/search", {"q": "What does the crane cost?", "minScore": 0.1})
        assert found.status == 200, found.text
        streamed = await stack.call("POST", "/api/chat/stream", {"messages": [{"role": "user", "content": "Hi"}]})
        assert streamed.body.endswith(b"data: [DONE]\n\n")
        for path in ("secret/rotate", "deliveries/replay"):
            assert (await stack.call("POST", f"/api/webhooks/{path}", {})).status in (200, 202), path
        assert (await stack.call("GET", "/api/webhooks/deliveries")).json["data"]
        assert (await stack.call("GET", "/metrics/sd")).status == 200
        delayed = await stack.submit({**chat(), "delaySeconds": 600})
        assert (await stack.call("DELETE", f"/api/jobs/{delayed}")).json["status"] == "cancelled"
        tenant, key = await stack.tenant(requestsPerMinute=60, budgets=[{"period": "day", "hardTokens": 1_000_000}])
        await stack.finished(await stack.submit(chat(), key=key), key=key)
        for path in ("/api/jobs", "/api/usage", "/api/limits", "/api/prompts", "/api/documents", "/metrics"):
            assert (await stack.call("GET", path, key=key if path != "/metrics" else ADMIN_KEY)).status == 200, path
        assert (await stack.call("DELETE", f"/api/documents/{document}")).status in (200, 202, 204)
        gone = await stack.call("DELETE", f"/api/admin/tenants/{tenant}")
        assert gone.status in (200, 202, 204), gone.text
        await stack.jobs.reap()
        refused = [entry for entry in root.acl_log() if entry["username"] in ("api", "worker")]
        assert refused == [], [(entry["username"], entry["context"], entry["object"]) for entry in refused]
    finally:
        root.close()
        await stack.stop()


@pytest.mark.parametrize("role", ["api", "worker", "operator"])
def test_a_role_may_nothing_that_harms(acl_redis: Path, role: str) -> None:
    client = redis.Redis(unix_socket_path=str(acl_redis), username=role, password=PASSWORDS[role])
    assert client.ping()
    for command in (
        "CONFIG SET appendonly no", "FLUSHALL", "FLUSHDB", "KEYS *", "DEBUG SLEEP 0", "SHUTDOWN NOSAVE", "SAVE",
        "REPLICAOF 127.0.0.1 1", "MODULE LIST", "ACL LIST", "ACL SETUSER default on", "SCRIPT FLUSH", "MONITOR",
        "CLIENT KILL TYPE normal", "SWAPDB 0 1", "MIGRATE h 1 k 0 1", "RESTORE k 0 x", "RENAME errand:a errand:b",
        "SET other:key 1", "GET other:key", "PUBLISH other 1", "SUBSCRIBE other", "OBJECT FREQ errand:x",
    ):  # fmt: skip
        # DEBUG is refused to all before the roles are looked at.
        with pytest.raises(redis.ResponseError, match=r"(?i)no permissions|not allowed"):
            client.execute_command(*command.split())
    if role == "operator":
        with pytest.raises(NoPermissionError):
            client.set("errand:x", 1)
        with pytest.raises(NoPermissionError):
            client.eval("return 1", 0)
    else:
        with pytest.raises(redis.ResponseError, match=r"(?i)no.?perm|can't access|not allowed"):
            client.eval("return redis.call('GET', 'other:key')", 0)
        with pytest.raises(redis.ResponseError, match=r"(?i)no.?perm|can't run|not allowed"):
            client.eval("return redis.call('FLUSHALL')", 0)
    client.close()


def test_nobody_comes_without_a_name(acl_redis: Path) -> None:
    client = redis.Redis(unix_socket_path=str(acl_redis))
    with pytest.raises(redis.AuthenticationError):
        client.ping()
    client.close()


async def test_the_check_of_durability_reads_what_it_may(acl_redis: Path) -> None:
    """Given a user that may CONFIG GET, then the check knows all; one that may not is told what could not be read."""
    client = connect(url_of(acl_redis, "api"))
    found = await check_durability(client)
    assert (found.wrong, found.unknown) == ((), ())
    await client.aclose()
    root = redis.Redis(unix_socket_path=str(acl_redis), username="root", password=ROOT)
    root.execute_command("ACL", "SETUSER", "api", "-config")
    root.close()
    found = await wait_until_durable(url_of(acl_redis, "api"), allow_volatile=False)
    assert found.wrong == ()
    assert [text.split()[0] for text in found.unknown] == ["appendonly", "appendfsync", "maxmemory-policy"]


async def test_a_wrong_password_is_told_without_it(acl_redis: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with asyncio.timeout(3):  # waiting mends no password
            await wait_until_durable(f"unix://api:canary-password@{acl_redis}", allow_volatile=False)
    assert "canary" not in str(refused.value)


# -- TLS


@pytest.fixture
def tls_redis(short_dir: Path) -> Iterator[tuple[int, Path]]:
    """A server with the example's own configuration, its paths and port replaced."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not here")
    directory = short_dir / secrets.token_hex(4)
    directory.mkdir()
    subprocess.run([DEPLOY / "make-certificates.sh", directory / "tls", "localhost", "127.0.0.1"], check=True)
    port = free_port("127.0.0.1")
    users(directory)
    text = (DEPLOY / "redis-tls.conf").read_text()
    text = re.sub(r"^tls-port .*$", f"tls-port {port}", text, flags=re.MULTILINE)
    text = text.replace("/etc/redis/", f"{directory}/")
    config = directory / "redis.conf"
    config.write_text(f'{text}\ndir {directory}\nsave ""\nlogfile {directory}/redis.log\n')
    ca = directory / "tls" / "ca.crt"
    root = redis.Redis(port=port, ssl=True, ssl_ca_certs=str(ca), username="root", password=ROOT)
    for server in dict.fromkeys(filter(None, [shutil.which("redis-server"), embedded_redis.find_server()])):
        if (process := started([server, str(config)], root)) is not None:
            break
    else:
        pytest.skip("no Redis server at hand was built with TLS")
    yield port, ca
    root.close()
    process.terminate()
    process.wait(20)


async def test_a_job_runs_over_tls_and_a_wrong_authority_is_refused(
    tls_redis: tuple[int, Path], model: DevModel, tmp_path: Path
) -> None:
    port, ca = tls_redis
    address = f"localhost:{port}/0?ssl_ca_certs={ca}"
    settings = settings_for(
        f"rediss://api:{PASSWORDS['api']}@{address}", model, tmp_path, redis_prefix="errand:", admin_key=ADMIN_KEY
    )
    stack = Stack(settings, f"rediss://root:{ROOT}@{address}")
    try:
        await stack.start_api()
        await stack.start_worker("both", redis_url=f"rediss://worker:{PASSWORDS['worker']}@{address}")
        assert (await stack.finished(await stack.submit(chat())))["status"] == "complete"
    finally:
        await stack.stop()
    made = [DEPLOY / "make-certificates.sh", tmp_path / "other", "localhost"]
    await asyncio.to_thread(subprocess.run, made, check=True)
    for wrong in (f"localhost:{port}/0?ssl_ca_certs={tmp_path}/other/ca.crt", f"localhost:{port}/0"):
        with pytest.raises(ConfigurationError) as refused:
            async with asyncio.timeout(20):
                await wait_until_durable(f"rediss://api:canary-password@{wrong}", allow_volatile=False, patience_s=0.5)
        assert "canary" not in str(refused.value)
        assert "certificate verify failed" in str(refused.value).lower()


def test_certificates_name_hosts_and_addresses(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not here")
    made: Any = subprocess.run(
        [DEPLOY / "make-certificates.sh", tmp_path / "tls", "redis.example", "10.0.0.1"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    shown = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "tls" / "redis.crt", "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "DNS:redis.example" in shown
    assert "IP Address:10.0.0.1" in shown
    assert (tmp_path / "tls" / "redis.key").stat().st_mode & 0o077 == 0
