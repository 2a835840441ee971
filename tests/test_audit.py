"""The audit log: one entry for each change, none for what changed nothing, and no secret in any."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.keys import TENANTS
from shared.clock import parse_rfc3339
from shared.ids import hash_secret
from shared.redis import redis_now_ms
from shared.stores import audit as audit_store
from tests.conftest import ADMIN_KEY, Stack
from tests.test_cli import errand

ADMIN_ID = f"key_{ADMIN_KEY.split('_')[1]}"
DEFAULT = f"ten_{'0' * 26}"


async def log_of(stack: Stack, **filters: Any) -> list[dict[str, Any]]:
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    answer = await stack.call("GET", f"/api/admin/audit?limit=200&{query}")
    assert answer.status == 200, answer.text
    return list(answer.json["data"])


async def test_each_change_has_its_entry(edge: Stack) -> None:
    """Given a tenant and a key that are made, changed, rotated and revoked, then the log has these entries, newest
    first, each with who, when, by which request, and the values before and after."""
    tell = {"X-Request-Id": "req-1"}
    before_ms = await redis_now_ms(edge.client)
    body: dict[str, Any] = {"name": "Acme", "limits": {"weight": 2.0, "perUser": {"requestsPerMinute": 5}}}
    tenant = (await edge.call("POST", "/api/admin/tenants", body, headers=tell)).json["tenantId"]
    path = f"/api/admin/tenants/{tenant}"
    patch: dict[str, Any] = {"perUser": {"requestsPerMinute": 6}, "weight": None, "maxQueuedJobs": 9}
    await edge.call("PATCH", path, {"name": "Acme Ltd", "limits": patch}, headers=tell)
    new = {"name": "ci", "scopes": ["jobs"], "expiresAt": "2099-01-01T00:00:00Z", "limits": {"tokensPerMinute": 7}}
    key = (await edge.call("POST", f"{path}/keys", new, headers=tell)).json
    key_path = f"{path}/keys/{key['keyId']}"
    change = {"scopes": ["jobs", "usage"], "expiresAt": None, "name": "ci", "limits": {"tokensPerMinute": None}}
    await edge.call("PATCH", key_path, change, headers=tell)
    await edge.call("POST", f"{key_path}/rotate", {"overlapSeconds": 60}, headers=tell)
    await edge.call("DELETE", key_path, headers=tell)
    entries = (await log_of(edge, tenant=tenant))[::-1]
    after_ms = await redis_now_ms(edge.client)
    assert [(entry["action"], entry["keyId"], entry["details"]) for entry in entries] == [
        ("tenant.created", None, {"name": {"new": "Acme"}, "limits": {"new": body["limits"]}}),
        (
            "tenant.changed",
            None,
            {
                "name": {"old": "Acme", "new": "Acme Ltd"},
                "limits.weight": {"old": 2.0},
                "limits.perUser.requestsPerMinute": {"old": 5, "new": 6},
                "limits.maxQueuedJobs": {"new": 9},
            },
        ),
        (
            "key.created",
            key["keyId"],
            {
                "name": {"new": "ci"},
                "scopes": {"new": ["jobs"]},
                "expiresAt": {"new": "2099-01-01T00:00:00.000Z"},
                "limits": {"new": {"tokensPerMinute": 7}},
            },
        ),
        (
            "key.changed",
            key["keyId"],
            {
                "scopes": {"old": ["jobs"], "new": ["jobs", "usage"]},
                "expiresAt": {"old": "2099-01-01T00:00:00.000Z"},
                "limits.tokensPerMinute": {"old": 7},
            },
        ),
        ("key.rotated", key["keyId"], {"overlapSeconds": {"new": 60}}),
        ("key.revoked", key["keyId"], {}),
    ]
    for entry in entries:
        assert (entry["actor"], entry["actorTenantId"], entry["requestId"]) == (ADMIN_ID, DEFAULT, "req-1")
        assert entry["tenantId"] == tenant
        assert before_ms <= parse_rfc3339(entry["at"]) <= after_ms


async def test_what_changes_nothing_has_no_entry(edge: Stack) -> None:
    """Given requests that are refused, replayed, or change nothing, then the log stays as it is."""
    tenant, key = await edge.tenant(weight=1.0)
    path, again = f"/api/admin/tenants/{tenant}", {"Idempotency-Key": "k"}
    key_path = f"{path}/keys/key_{key.split('_')[1]}"
    await edge.call("POST", "/api/admin/tenants", {"name": "x"}, headers=again)
    await edge.call("POST", f"{path}/keys", {"name": "x"}, headers=again)
    await edge.call("POST", f"{key_path}/rotate", {}, headers=again)
    before = await log_of(edge)
    unknown = f"/api/admin/tenants/ten_{'1' * 26}"
    admin = f"/api/admin/tenants/{DEFAULT}/keys/{ADMIN_ID}"
    for method, where, body, headers, status in (
        ("POST", "/api/admin/tenants", {"name": "x"}, again, 201),
        ("POST", f"{path}/keys", {"name": "x"}, again, 201),
        ("POST", f"{key_path}/rotate", {}, again, 200),
        ("POST", "/api/admin/tenants", {"name": "y"}, again, 422),
        ("POST", f"{key_path}/rotate", {"overlapSeconds": 1}, again, 422),
        ("PATCH", path, {}, {}, 200),
        ("PATCH", path, {"name": "other", "limits": {"weight": 1.0}}, {}, 200),
        ("PATCH", key_path, {"name": None, "limits": {"budgets": None}}, {}, 200),
        ("PATCH", path, {"limits": {"weight": 0}}, {}, 422),
        ("PATCH", path, {"limits": {"requestsBurst": 1}}, {}, 422),
        ("PATCH", unknown, {"name": "x"}, {}, 404),
        ("POST", f"{unknown}/keys", {}, {}, 404),
        ("DELETE", f"{unknown}/keys/key_x", None, {}, 404),
        ("POST", f"{path}/keys/key_x/rotate", {}, {}, 404),
        ("DELETE", admin, None, {}, 409),
        ("POST", f"{admin}/rotate", {}, {}, 409),
        ("PATCH", admin, {"scopes": ["jobs"]}, {}, 409),
        ("GET", path, None, {}, 200),
    ):
        answer = await edge.call(method, where, body, headers=headers)
        assert answer.status == status, (method, where, answer.text)
    assert (await edge.call("PATCH", path, {"name": "x"}, key=key)).status == 403
    assert (await edge.call("PATCH", path, {"name": "x"}, key=None)).status == 401
    assert await log_of(edge) == before


async def test_starts_are_in_the_log_once(make_stack: Any) -> None:
    """Given two processes that start, then tenant and admin key were made once, by system; when another admin key is
    set, then its making and the end of the first are there; when one with another secret is, the rotation."""
    stack: Stack = await make_stack()
    await stack.start_api()
    tenants = stack._runners[0].app[TENANTS]
    fresh = "ek_01M81SGW152PHX78GHNCJWQHRT_" + "b" * 43
    fresh_id = f"key_{fresh.split('_')[1]}"
    await asyncio.gather(*(tenants.ensure_admin(fresh) for _ in range(3)))
    await tenants.ensure_admin(fresh[:-43] + "c" * 43)
    answer = await stack.call("GET", f"/api/admin/audit?tenant={DEFAULT}", key=fresh[:-43] + "c" * 43)
    told = [(entry["action"], entry["keyId"], entry["actor"], entry["tenantId"]) for entry in answer.json["data"]][::-1]
    assert told == [
        ("tenant.created", None, "system", DEFAULT),
        ("key.created", ADMIN_ID, "system", DEFAULT),
        ("key.created", fresh_id, "system", DEFAULT),
        ("key.revoked", ADMIN_ID, "system", DEFAULT),
        ("key.rotated", fresh_id, "system", DEFAULT),
    ]
    assert answer.json["data"][1]["details"] == {"replacedBy": {"new": fresh_id}}
    assert {entry["requestId"] for entry in answer.json["data"]} == {None}


async def test_changes_at_the_same_time_have_an_entry_each(edge: Stack) -> None:
    """Given ten changes at once, then there are ten entries, and the value after each is the value before the next."""
    tenant, _ = await edge.tenant()
    path = f"/api/admin/tenants/{tenant}"
    await asyncio.gather(*(edge.call("PATCH", path, {"limits": {"weight": float(n)}}) for n in range(1, 11)))
    entries = (await log_of(edge, tenant=tenant, action="tenant.changed"))[::-1]
    changes = [entry["details"]["limits.weight"] for entry in entries]
    assert sorted(change["new"] for change in changes) == [float(n) for n in range(1, 11)]
    assert [change.get("old") for change in changes] == [None, *(change["new"] for change in changes[:-1])]


async def test_no_secret_is_in_the_log(edge: Stack) -> None:
    tenant, key = await edge.tenant()
    path = f"/api/admin/tenants/{tenant}/keys/key_{key.split('_')[1]}/rotate"
    rotated = (await edge.call("POST", path, {})).json["key"]
    raw = str(await edge.client.xrange(edge.keys.audit))
    for secret in (one.rpartition("_")[2] for one in (key, rotated, ADMIN_KEY)):
        assert secret not in raw
        assert hash_secret(secret)[:16] not in raw


async def test_the_log_is_read_in_pages(edge: Stack) -> None:
    """Given many entries, then pages of each size, with and without a filter, give each once, newest first."""
    tenant, _ = await edge.tenant()
    path = f"/api/admin/tenants/{tenant}"
    for n in range(12):
        await edge.call("PATCH", path, {"name": f"n{n}"})
        if n % 3 == 0:
            await edge.call("POST", f"{path}/keys", {})
    everything = await log_of(edge)
    key_id = next(one["keyId"] for one in everything if one["keyId"])
    for query, wanted in (
        ("", everything),
        ("&action=key.created", [one for one in everything if one["action"] == "key.created"]),
        (f"&tenant={DEFAULT}", [one for one in everything if one["tenantId"] == DEFAULT]),
        (f"&key={key_id}", [one for one in everything if one["keyId"] == key_id]),
        ("&actor=system", [one for one in everything if one["actor"] == "system"]),
        (f"&tenant={tenant}&action=tenant.changed", [one for one in everything if one["action"] == "tenant.changed"]),
        (f"&key=key_{'1' * 26}", []),
    ):
        for limit in (1, 2, 5, len(wanted) or 1, 200):
            found, after, pages = [], "", 0
            while True:
                answer = await edge.call("GET", f"/api/admin/audit?limit={limit}{query}{after}")
                found += answer.json["data"]
                pages += 1
                assert answer.json["hasMore"] is (answer.json["next"] is not None)
                if not answer.json["hasMore"]:
                    break
                assert 'rel="next"' in answer.headers["Link"]
                after = f"&after={answer.json['next']}"
            assert found == wanted
            assert pages == max(1, -(-len(wanted) // limit))


async def test_a_filter_looks_at_so_many_entries_at_a_time(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given few entries that are wanted among many, then a page may be short; what follows it finds the rest."""
    monkeypatch.setattr(audit_store, "BATCH", 3)
    monkeypatch.setattr(audit_store, "MAX_SCANNED", 6)
    tenant, _ = await edge.tenant()
    for n in range(15):
        await edge.call("PATCH", f"/api/admin/tenants/{tenant}", {"name": f"n{n}"})
    first = (await edge.call("GET", f"/api/admin/audit?actor=system&tenant={DEFAULT}")).json
    assert (first["data"], first["hasMore"]) == ([], True)
    found, after = [], first["next"]
    while after:
        page = (await edge.call("GET", f"/api/admin/audit?actor=system&tenant={DEFAULT}&after={after}")).json
        found += page["data"]
        after = page["next"]
    assert [entry["action"] for entry in found] == ["key.created", "tenant.created"]


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("after=x", "?after"),
        ("after=%2B", "?after"),
        ("limit=0", "?limit"),
        ("limit=201", "?limit"),
        ("action=key.stolen", "?action"),
        ("since=1", "?since"),
    ],
)
async def test_bad_questions_are_refused(edge: Stack, query: str, where: str) -> None:
    answer = await edge.call("GET", f"/api/admin/audit?{query}")
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, where)


async def test_the_log_is_for_admins(edge: Stack) -> None:
    _, key = await edge.tenant()
    assert (await edge.call("GET", "/api/admin/audit", key=key)).status == 403


async def test_the_command_line_manages_tenants_and_keys(edge: Stack) -> None:
    """Given the commands, then each does what its call does, and the log tells of it."""
    tenant = (await errand(edge, "tenants", "create", "Acme", "--limits", '{"weight": 2}')).out.strip()
    wish = ("--name", "Acme Ltd", "--limits", "-")
    changed = (await errand(edge, "tenants", "change", tenant, *wish, given=b'{"weight": 3}')).out
    assert changed.splitlines()[0] == f"{tenant}  Acme Ltd"
    assert "weight 3" in changed
    shown = await errand(edge, "tenants", "show", tenant, "--json")
    assert shown.json["limits"] == {"weight": 3.0}
    assert "Acme Ltd" in (await errand(edge, "tenants", "list")).out
    of = ("--tenant", tenant)
    wish = ("--name", "ci", "--limits", '{"requestsPerMinute": 5}')
    key = (await errand(edge, "keys", "create", *of, *wish, "--json")).json
    assert key["limits"] == {"requestsPerMinute": 5}
    key_id = key["keyId"]
    change = ("keys", "change", key_id, *of)
    until = "2099-01-01T00:00:00Z"
    wish = ("--name", "cd", "--scopes", "jobs,usage", "--expires-at", until)
    text = (await errand(edge, *change, *wish, "--limits", '{"tokensPerMinute": 9}')).out
    for part in ("cd", "jobs, usage", "2099-01-01", "tokensPerMinute 9", "requestsPerMinute 5"):
        assert part in text
    assert (await errand(edge, *change, "--expires-at", "never", "--json")).json["expiresAt"] is None
    rotated = (await errand(edge, "keys", "rotate", key_id, *of, "--overlap", "60")).out
    assert rotated.startswith(f"ek_{key_id.removeprefix('key_')}_")
    assert "works until" in rotated
    assert "works until" in (await errand(edge, "keys", "show", key_id, *of)).out
    assert key_id in (await errand(edge, "keys", "list", *of)).out
    assert (await errand(edge, "keys", "revoke", key_id, *of)).code == 0
    assert (await errand(edge, "keys", "show", key_id, *of)).code == 1
    listed = (await errand(edge, "audit", "list", *of)).out.splitlines()
    told = [line.split()[1] for line in listed[1:]]
    assert told[:4] == ["key.revoked", "key.rotated", "key.changed", "key.changed"]
    assert told[4:] == ["key.created", "tenant.changed", "tenant.created"]
    assert 'name "Acme" → "Acme Ltd"' in listed[-2]
    some = await errand(edge, "audit", "list", "--key", key_id, "--action", "key.changed", "--limit", "1", "--json")
    assert [entry["action"] for entry in some.json["data"]] == ["key.changed"]
    rotate = ("keys", "rotate", key_id, *of, "--overlap", "x")
    for wrong in (("tenants", "change", tenant), change, rotate, ("tenants", "change", tenant, "--limits", "{")):
        assert (await errand(edge, *wrong)).code == 2
    refused = await errand(edge, "tenants", "change", tenant, "--limits", '{"weight": 0}')
    assert refused.code == 1
    assert "$.limits.weight" in refused.err


async def test_the_end_of_a_tenant_is_in_the_log(stack: Stack) -> None:
    """Given a tenant that is deleted, then the log still tells of its life, who deleted it, and when it was erased."""
    tenant, _ = await stack.tenant()
    deleted = await stack.call("DELETE", f"/api/admin/tenants/{tenant}", headers={"X-Request-Id": "req-9"})
    assert deleted.status == 202
    await stack.finished(deleted.json["jobId"])
    entries = (await log_of(stack, tenant=tenant))[::-1]
    told = [entry["action"] for entry in entries]
    assert told == ["tenant.created", "key.created", "tenant.deleted", "tenant.erased"]
    assert (entries[2]["actor"], entries[2]["requestId"]) == (ADMIN_ID, "req-9")
    assert entries[2]["details"] == {"name": {"old": "other"}}
    assert [entry["action"] for entry in await log_of(stack, tenant=tenant, action="tenant.erased")] == told[3:]
