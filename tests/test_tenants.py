"""Tenants while they are used: their limits are changed, one change after another, and what waits looks again."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from api.keys import TENANTS
from shared.stores.tenants import TenantsStore
from shared.tenants import TenantPatch
from tests.conftest import ADMIN_KEY, DevModel, Stack, chat
from tests.test_cli import errand


async def record_of(stack: Stack, tenant: str) -> dict[str, str]:
    raw = await stack.client.hgetall(stack.keys.tenant(tenant))
    return {name.decode(): value.decode() for name, value in raw.items()}


def path_of(tenant: str) -> str:
    return f"/api/admin/tenants/{tenant}"


async def test_a_patch_merges_into_the_limits(edge: Stack) -> None:
    """Given limits, when a patch comes, then given members replace, null removes, lists are replaced whole, and perUser
    and perPrompt are merged member by member."""
    budgets = [{"period": "day", "hardTokens": 100}, {"period": "month", "hardUsd": 5.0}]
    tenant, _ = await edge.tenant(
        requestsPerMinute=60,
        maxQueuedJobs=5,
        budgets=budgets,
        perUser={"tokensPerMinute": 100, "requestsPerMinute": 6},
        perPrompt={"a": {"tokensPerMinute": 1}, "b": {"tokensPerMinute": 2}},
    )
    patch = {
        "requestsPerMinute": 90,
        "maxQueuedJobs": None,
        "weight": 2.5,
        "budgets": [{"period": "day", "hardTokens": 200}],
        "perUser": {"tokensPerMinute": None, "requestsBurst": 3},
        "perPrompt": {"a": None, "c": {"requestsPerMinute": 9}},
    }
    answer = await edge.call("PATCH", path_of(tenant), {"limits": patch})
    assert answer.status == 200
    assert answer.json["limits"] == {
        "requestsPerMinute": 90,
        "weight": 2.5,
        "budgets": [{"period": "day", "hardTokens": 200}],
        "perUser": {"requestsPerMinute": 6, "requestsBurst": 3},
        "perPrompt": {"b": {"tokensPerMinute": 2}, "c": {"requestsPerMinute": 9}},
    }
    assert answer.json == (await edge.call("GET", path_of(tenant))).json


async def test_scripts_read_the_limits_of_now(edge: Stack) -> None:
    """Given limits, when they are changed, then what the scripts read is too; when they are removed, it is gone."""
    tenant, _ = await edge.tenant(maxConcurrentJobs=2, maxQueuedJobs=0, weight=3.0, requestsPerMinute=6)
    before = await record_of(edge, tenant)
    assert [before[name] for name in ("max_concurrent", "max_queued", "weight")] == ["2", "0", "3.0"]
    assert before["policy"] == '{"rpm":6,"rb":6}'
    await edge.call("PATCH", path_of(tenant), {"limits": {"maxConcurrentJobs": 4, "maxQueuedJobs": None}})
    after = await record_of(edge, tenant)
    assert (after["max_concurrent"], after.get("max_queued")) == ("4", None)
    gone = dict.fromkeys(("maxConcurrentJobs", "weight", "requestsPerMinute"))
    await edge.call("PATCH", path_of(tenant), {"limits": gone})
    after = await record_of(edge, tenant)
    assert not {"max_concurrent", "max_queued", "weight", "policy"} & set(after)
    assert (after["limits"], after["revision"]) == ("{}", "2")


async def test_the_revision_counts_changes_of_limits_only(edge: Stack) -> None:
    """Given a tenant, when its or its key's limits change, then the revision rises by one; when its name changes, or
    nothing does, it stays."""
    tenant, key = await edge.tenant(weight=1.0)
    key_path = f"{path_of(tenant)}/keys/key_{key.split('_')[1]}"
    seen = []
    for path, body in (
        (path_of(tenant), {"name": "Acme"}),
        (path_of(tenant), {"limits": {"weight": 1.0}}),
        (path_of(tenant), {}),
        (path_of(tenant), {"limits": {"weight": 2.0}}),
        (key_path, {"name": "ci"}),
        (key_path, {"limits": {"requestsPerMinute": 5}}),
    ):
        assert (await edge.call("PATCH", path, body)).status == 200
        seen.append((await record_of(edge, tenant)).get("revision"))
    assert seen == [None, None, None, "1", "1", "2"]
    assert (await edge.call("GET", path_of(tenant))).json["name"] == "Acme"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"limits": {"weight": 0}}, "$.limits.weight"),
        ({"limits": {"speed": None}}, "$.limits.speed"),
        ({"limits": {"perUser": {"weight": 2}}}, "$.limits.perUser.weight"),
        ({"limits": {"budgets": [{"period": "day"}]}}, "$.limits.budgets[0]"),
        ({"limits": {"budgets": [{"period": "day", "hardTokens": 1}] * 2}}, "$.limits"),
        ({"limits": {"requestsPerMinute": None}}, "$.limits"),
        ({"limits": {"perUser": {"requestsBurst": 5}}}, "$.limits.perUser"),
        ({"limits": None}, "$.limits"),
        ({"name": ""}, "$.name"),
        ({"name": None}, "$.name"),
        ({"name": "a\nb"}, "$.name"),
        ({"nom": "x"}, "$.nom"),
    ],
)
async def test_a_bad_patch_is_refused_and_changes_nothing(edge: Stack, body: Any, where: str) -> None:
    """The fifth to seventh are good by themselves: what they make of the stored limits is not."""
    tenant, _ = await edge.tenant(requestsPerMinute=6, requestsBurst=3)
    before = await record_of(edge, tenant)
    answer = await edge.call("PATCH", path_of(tenant), body)
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, where)
    assert await record_of(edge, tenant) == before


@pytest.mark.parametrize("name", ["a\nb", "\x00", "tab\t", "line\u2028", "\x9b"])
async def test_names_have_no_control_characters(edge: Stack, name: str) -> None:
    tenant, key = await edge.tenant()
    key_path = f"{path_of(tenant)}/keys"
    for method, path in (
        ("POST", "/api/admin/tenants"),
        ("PATCH", path_of(tenant)),
        ("POST", key_path),
        ("PATCH", f"{key_path}/key_{key.split('_')[1]}"),
    ):
        answer = await edge.call(method, path, {"name": name})
        assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.name")


async def test_a_patch_of_nobody_is_404(edge: Stack) -> None:
    answer = await edge.call("PATCH", path_of("ten_" + "1" * 26), {"name": "x"})
    assert answer.status == 404
    assert not await edge.client.exists(edge.keys.tenant("ten_" + "1" * 26))
    _, key = await edge.tenant()
    assert (await edge.call("PATCH", path_of("ten_" + "0" * 26), {"name": "x"}, key=key)).status == 403


async def test_changes_at_the_same_time_are_all_made(make_stack: Any) -> None:
    """Given twenty changes of different members at once over two API processes, then each is made, and the revision has
    counted each; none is lost in another's reading."""
    stack: Stack = await make_stack()
    second = await stack.start_api()
    tenant, _ = await stack.tenant()
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}

    async def change(number: int) -> int:
        base = (stack.base, second)[number % 2]
        body = {"limits": {"perPrompt": {f"p{number}": {"requestsPerMinute": number + 1}}}}
        async with stack.session.patch(base + path_of(tenant), json=body, headers=admin) as response:
            return response.status

    assert set(await asyncio.gather(*(change(number) for number in range(20)))) == {200}
    limits = (await stack.call("GET", path_of(tenant))).json["limits"]
    assert limits["perPrompt"] == {f"p{number}": {"requestsPerMinute": number + 1} for number in range(20)}
    assert (await record_of(stack, tenant))["revision"] == "20"


async def test_a_change_that_is_overtaken_reads_again(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a change whose reading is old when it writes, then it is made on top of the other, not over it."""
    tenant, _ = await edge.tenant(weight=1.0)
    store: TenantsStore = edge._runners[0].app[TENANTS]
    read = store._tenant
    overtaken = False

    async def read_then_lose(wanted: str) -> dict[str, str]:
        nonlocal overtaken
        row = await read(wanted)
        if not overtaken:
            overtaken = True
            await store.change_tenant(tenant, patch_of(maxQueuedJobs=7))
        return row

    monkeypatch.setattr(store, "_tenant", read_then_lose)
    view = await store.change_tenant(tenant, patch_of(weight=2.0))
    assert (view.limits.weight, view.limits.max_queued_jobs) == (2.0, 7)
    assert (await record_of(edge, tenant))["revision"] == "2"


def patch_of(**limits: Any) -> TenantPatch:
    return msgspec.convert({"limits": limits}, TenantPatch)


async def test_a_raised_budget_lets_a_waiting_job_go_on(stack: Stack, model: DevModel) -> None:
    """Given a job that waits for a spent budget of its tenant, when the budget is raised, then it is complete, by
    itself, within seconds."""
    tenant, key = await stack.tenant(budgets=[{"period": "total", "hardTokens": 12}])
    job_id = await stack.submit(chat("The harbour opens at nine. The ferry leaves at ten. " * 3), key=key)
    view = await waiting(stack, job_id, key)
    assert view["waiting"]["kind"] == "budget"
    raised = {"limits": {"budgets": [{"period": "total", "hardTokens": 100_000}]}}
    assert (await stack.call("PATCH", path_of(tenant), raised)).status == 200
    async with asyncio.timeout(10):
        assert (await stack.finished(job_id, key=key))["status"] == "complete"


async def test_a_raised_budget_of_a_key_lets_a_waiting_job_go_on(stack: Stack, model: DevModel) -> None:
    tenant, _ = await stack.tenant()
    keys = f"{path_of(tenant)}/keys"
    made = (await stack.call("POST", keys, {"limits": {"budgets": [{"period": "day", "hardTokens": 12}]}})).json
    job_id = await stack.submit(chat("The harbour opens at nine. The ferry leaves at ten. " * 3), key=made["key"])
    view = await waiting(stack, job_id, made["key"])
    assert view["waiting"]["limit"]["scope"] == "key"
    assert (await stack.call("PATCH", f"{keys}/{made['keyId']}", {"limits": {"budgets": None}})).status == 200
    async with asyncio.timeout(10):
        assert (await stack.finished(job_id, key=made["key"]))["status"] == "complete"


async def test_a_raised_concurrency_frees_parked_jobs_at_once(edge: Stack) -> None:
    """Given a tenant that is parked at its concurrency limit, when the limit is raised, then the next claim takes its
    jobs, though none of them has ended."""
    tenant, key = await edge.tenant(maxConcurrentJobs=1)
    for _ in range(3):
        await edge.submit(chat(), key=key)

    async def claim() -> int:
        jobs, _ = await edge.jobs.claim(worker="w1", lanes=[("interactive", 9)], count=9, lease_ms=15_000)
        return len(jobs)

    assert (await claim(), await claim()) == (1, 0)
    await edge.call("PATCH", path_of(tenant), {"limits": {"maxConcurrentJobs": None}})
    assert await claim() == 2


async def waiting(stack: Stack, job_id: str, key: str) -> Any:
    async with asyncio.timeout(10):
        while (view := (await stack.call("GET", f"/api/jobs/{job_id}", key=key)).json)["status"] != "waiting":
            await asyncio.sleep(0.02)
    return view


async def test_a_tenant_that_is_being_deleted_is_changed_no_more(edge: Stack) -> None:
    """Given a tenant whose erasure has begun, then it says so, alone and in the list; whoever changes it, or makes,
    changes or rotates a key of it, is told that it is being deleted."""
    tenant, key = await edge.tenant()
    other, _ = await edge.tenant()
    assert (await edge.call("GET", path_of(tenant))).json["deletion"] is None
    job = (await edge.call("DELETE", path_of(tenant))).json
    before = await record_of(edge, tenant)
    view = (await edge.call("GET", path_of(tenant))).json
    assert view["deletion"] == {"jobId": job["jobId"], "since": job["createdAt"]}
    listed = {row["tenantId"]: row for row in (await edge.call("GET", "/api/admin/tenants")).json["data"]}
    assert (listed[tenant], listed[other]["deletion"]) == (view, None)
    keys = f"{path_of(tenant)}/keys"
    own = f"{keys}/key_{key.split('_')[1]}"
    for method, path, body in (
        ("PATCH", path_of(tenant), {"name": "x"}),
        ("PATCH", path_of(tenant), {}),
        ("POST", keys, {}),
        ("PATCH", own, {"name": "x"}),
        ("POST", f"{own}/rotate", {}),
    ):
        answer = await edge.call(method, path, body)
        assert (answer.status, answer.json["code"]) == (409, "conflict"), (method, path)
        assert "is being deleted" in answer.json["detail"]
    assert await record_of(edge, tenant) == before
    shown = await errand(edge, "tenants", "show", tenant)
    assert f"deletion  since {job['createdAt']}, by {job['jobId']}" in shown.out
    nobody = "/api/admin/tenants/ten_01M81SGW152PHX78GHNCJWQHRS"
    for path in (nobody, f"{nobody}/keys/key_{key.split('_')[1]}"):
        assert (await edge.call("PATCH", path, {"name": "x"})).status == 404
