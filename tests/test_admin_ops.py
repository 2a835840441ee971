"""Tenants and keys; health, metrics, the published contract; logs."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from api.routes import ROUTES
from shared.problems import PROBLEMS
from shared.redis import check_durability, connect, wait_until_durable
from tests.conftest import RedisServer, Stack, chat
from tests.cutting_proxy import Cut, CuttingProxy


async def test_a_tenant_and_its_key(edge: Stack) -> None:
    limits = {"maxConcurrentJobs": 3, "weight": 2.5}
    made = await edge.call("POST", "/api/admin/tenants", {"name": "Acme", "limits": limits})
    assert made.status == 201
    assert made.json == {**made.json, "name": "Acme", "limits": limits}
    assert (await edge.call("GET", made.headers["Location"])).json == made.json
    key = await edge.call("POST", made.headers["Location"] + "/keys", {"name": "ci", "scopes": ["jobs"]})
    assert key.status == 201
    assert key.json["key"].startswith("ek_" + key.json["keyId"].removeprefix("key_"))
    shown = await edge.call("GET", key.headers["Location"])
    assert "key" not in shown.json
    assert {**shown.json, "key": key.json["key"]} == key.json
    listed = await edge.call("GET", made.headers["Location"] + "/keys")
    assert listed.json["data"] == [shown.json]
    assert (await edge.call("GET", "/api/jobs", key=key.json["key"])).status == 200
    stored = [await edge.client.hgetall(name) async for name in edge.client.scan_iter(f"{edge.keys.prefix}key:*")]
    assert key.json["key"].rpartition("_")[2] not in str(stored)


async def test_a_new_key_has_all_scopes_but_admin(edge: Stack) -> None:
    tenant, key = await edge.tenant()
    listed = await edge.call("GET", f"/api/admin/tenants/{tenant}/keys")
    assert listed.json["data"][0]["scopes"] == ["jobs", "documents", "search", "prompts", "promote", "usage"]
    assert (await edge.call("GET", "/api/admin/tenants", key=key)).status == 403


async def test_a_replayed_key_creation_omits_the_secret(edge: Stack) -> None:
    tenant, _ = await edge.tenant()
    headers = {"Idempotency-Key": "k"}
    path = f"/api/admin/tenants/{tenant}/keys"
    first = await edge.call("POST", path, {"name": "x"}, headers=headers)
    again = await edge.call("POST", path, {"name": "x"}, headers=headers)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "key" not in again.json
    assert again.json["keyId"] == first.json["keyId"]
    other = await edge.call("POST", path, {"name": "y"}, headers=headers)
    assert other.json["code"] == "idempotency_mismatch"
    tenants = [await edge.call("POST", "/api/admin/tenants", {"name": "n"}, headers=headers) for _ in range(2)]
    assert tenants[0].json == tenants[1].json


async def test_a_revoked_key_is_refused_in_every_process_at_once(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    second = await stack.start_api()
    tenant, key = await stack.tenant()
    headers = {"Authorization": f"Bearer {key}"}
    for base in (stack.base, second):
        async with stack.session.get(f"{base}/api/jobs", headers=headers) as response:
            assert response.status == 200
    key_id = "key_" + key.split("_")[1]
    assert (await stack.call("DELETE", f"/api/admin/tenants/{tenant}/keys/{key_id}")).status == 204
    import asyncio

    await asyncio.sleep(0.2)
    for base in (stack.base, second):
        async with stack.session.get(f"{base}/api/jobs", headers=headers) as response:
            assert response.status == 401
    assert (await stack.call("DELETE", f"/api/admin/tenants/{tenant}/keys/{key_id}")).status == 404


async def test_an_expired_key_is_refused(edge: Stack) -> None:
    import asyncio

    from shared.clock import rfc3339
    from shared.redis import redis_now_ms

    tenant, _ = await edge.tenant()
    path = f"/api/admin/tenants/{tenant}/keys"
    soon = rfc3339(await redis_now_ms(edge.client) + 300)
    made = await edge.call("POST", path, {"expiresAt": soon})
    assert made.json["expiresAt"] == soon
    await asyncio.sleep(0.4)
    assert (await edge.call("GET", "/api/jobs", key=made.json["key"])).status == 401
    for wrong in ("soon", "2001-01-01T00:00:00Z", "2099-01-01T00:00:00"):
        answer = await edge.call("POST", path, {"expiresAt": wrong})
        assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.expiresAt")


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/api/admin/tenants", {}, "$.name"),
        ("/api/admin/tenants", {"name": "x", "limits": {"weight": 0}}, "$.limits.weight"),
        ("/api/admin/tenants", {"name": "x", "limits": {"speed": 1}}, "$.limits.speed"),
        ("/api/admin/tenants/ten_00000000000000000000000000/keys", {"scopes": ["root"]}, "$.scopes[0]"),
    ],
)
async def test_bad_tenants_and_keys_are_refused_with_their_path(edge: Stack, path: str, body: Any, where: str) -> None:
    answer = await edge.call("POST", path, body)
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, where)


async def test_keys_of_an_unknown_tenant(edge: Stack) -> None:
    path = "/api/admin/tenants/ten_" + "1" * 26
    assert (await edge.call("GET", path)).status == 404
    assert (await edge.call("POST", path + "/keys", {})).status == 404
    assert (await edge.call("GET", path + "/keys")).status == 404


async def test_readiness_needs_a_worker(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    before = await stack.call("GET", "/readyz", key=None)
    assert (before.status, before.json["checks"]["workers"]) == (503, {"interactive": 0, "batch": 0})
    engine = await stack.start_worker("batch")
    after = await stack.call("GET", "/readyz", key=None)
    assert (after.status, after.json["checks"]["durability"]) == (200, "right")
    await stack.stop_worker(engine)
    assert (await stack.call("GET", "/readyz", key=None)).status == 503


async def test_readiness_tells_that_redis_is_gone(make_stack: Any, own_redis: RedisServer) -> None:
    stack: Stack = await make_stack(redis_url=own_redis.url)
    own_redis.kill()
    assert (await stack.call("GET", "/healthz", key=None)).status == 200
    answer = await stack.call("GET", "/readyz", key=None)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    own_redis.start()


async def test_metrics_count_what_happened(stack: Stack) -> None:
    await stack.finished(await stack.submit(chat()))
    text = (await stack.call("GET", "/metrics", key=None)).text
    assert re.search(r'errand_jobs_admitted_total\{priority="normal",type="chat"\} [1-9]', text)
    assert re.search(r'errand_attempts_settled_total\{code="",outcome="complete",type="chat"\} [1-9]', text)
    assert re.search(r'errand_job_pickup_seconds_count\{lane="interactive"\} [1-9]', text)
    assert 'errand_http_requests_total{method="POST",route="/api/jobs",status="202"}' in text
    assert "job_0" not in text
    proxied = await stack.call("GET", "/metrics", key=None, headers={"X-Forwarded-For": "1.2.3.4"})
    assert proxied.status == 401
    assert (await stack.call("GET", "/metrics", headers={"X-Forwarded-For": "1.2.3.4"})).status == 200


async def test_the_published_contract_is_valid_and_whole(edge: Stack) -> None:
    document = (await edge.call("GET", "/openapi.json", key=None)).json
    OpenAPIV31SpecValidator(document).validate()
    published = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert published == {(route.method, route.path) for route in ROUTES}
    job = document["components"]["schemas"]["ChatJob"]
    assert job["additionalProperties"] is False
    assert set(job["required"]) == {"type", "input"}


async def test_the_docs_load_nothing_from_elsewhere(edge: Stack) -> None:
    answer = await edge.call("GET", "/docs", key=None)
    assert answer.headers["Content-Type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", answer.text)
    assert "@import" not in answer.text
    for route in ROUTES:
        assert route.path in answer.text
    sent = (await edge.call("GET", "/openapi.json", key=None)).json["webhooks"]
    assert sent
    for request in sent.values():
        assert f"<article id='{request['post']['operationId']}'>" in answer.text


async def test_every_problem_code_has_its_page(edge: Stack) -> None:
    for code, kind in PROBLEMS.items():
        page = await edge.call("GET", f"/problems/{code}", key=None)
        assert page.status == 200
        assert str(kind.status) in page.text
    assert (await edge.call("GET", "/problems/nonsense", key=None)).status == 404


async def test_a_redis_that_keeps_its_word_passes(redis_server: RedisServer) -> None:
    found = await wait_until_durable(redis_server.url, allow_volatile=False)
    assert (found.wrong, found.unknown) == ((), ())


class BeforeRedis(CuttingProxy):
    """A proxy before a Redis on a socket."""

    def __init__(self, server: RedisServer, *cuts: Cut, marker: bytes) -> None:
        super().__init__("redis://127.0.0.1:1", *cuts, marker=marker)
        self._server_socket = str(server.socket)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self._server_socket)


async def test_a_start_sits_out_a_redis_that_is_killed_in_the_middle_of_its_check(redis_server: RedisServer) -> None:
    async with BeforeRedis(redis_server, Cut(0), Cut(0, reset=False), marker=b"appendfsync") as proxy:
        found = await wait_until_durable(proxy.url.replace("http:", "redis:"), allow_volatile=False)
    assert found.wrong == ()
    assert proxy.made >= 1


async def test_a_volatile_redis_is_named_with_what_mends_it(own_redis: RedisServer) -> None:
    from shared.errors import ConfigurationError

    client = connect(own_redis.url)
    await client.config_set("appendfsync", "everysec")
    await client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError) as caught:
        await wait_until_durable(own_redis.url, allow_volatile=False)
    assert "redis-cli CONFIG SET appendfsync always" in str(caught.value)
    assert "redis-cli CONFIG SET maxmemory-policy noeviction" in str(caught.value)
    assert len((await wait_until_durable(own_redis.url, allow_volatile=True)).wrong) == 2
    await client.aclose()


async def test_settings_that_cannot_be_read_only_warn(own_redis: RedisServer) -> None:
    """Managed services refuse CONFIG."""
    client = connect(own_redis.url)
    await client.execute_command("ACL", "SETUSER", "default", "-config")
    found = await check_durability(client)
    assert found.wrong == ()
    assert len(found.unknown) == 3
    await wait_until_durable(own_redis.url, allow_volatile=False)
    await client.aclose()
