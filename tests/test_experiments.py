"""Experiments on labels of prompts: assignment, figures from jobs' own ends, guardrails, stop and promote."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from shared.assignment import arm_of, is_covered
from shared.evidence import Sums
from shared.experiments import ArmSums, Experiment, Guardrail, GuardrailAction, Metric, StickyBy, Variant
from shared.figures import crossed, experiment_view, stats_rows
from tests.conftest import Answer, DevModel, Stack, chat
from tests.prompting import HELLO, make, move, path_of, version

USERS = [f"user {number}" for number in range(2_000)]
MESSAGES = [{"role": "system", "content": "Be brief."}]
VARIANTS = [{"version": 1}, {"version": 2}]


def test_whoever_is_in_stays_in_and_keeps_the_arm() -> None:
    """Given a coverage that grows, then nobody leaves, nobody changes the arm, and shares are as they should be."""
    before: set[str] = set()
    for coverage in (0.0, 0.1, 0.5, 0.9, 1.0):
        covered = {user for user in USERS if is_covered("salt", user, coverage)}
        assert before <= covered
        assert abs(len(covered) / len(USERS) - coverage) < 0.04
        before = covered
    arms = Counter(arm_of("salt", user, [1, 3]) for user in USERS)
    assert abs(arms[1] / len(USERS) - 0.75) < 0.04
    # The two hashes are independent: the arm's shares are the same among those who came in first.
    early = [user for user in USERS if is_covered("salt", user, 0.3)]
    assert abs(sum(arm_of("salt", user, [1, 1]) for user in early) / len(early) - 0.5) < 0.08
    other = sum(arm_of("salt", user, [1, 1]) == arm_of("pepper", user, [1, 1]) for user in USERS)
    assert abs(other / len(USERS) - 0.5) < 0.05


async def two_versions(stack: Stack, **more: Any) -> None:
    await make(stack, labels=["production"], **more)
    await version(stack, "You greet {{name}} loudly.")


async def begin(stack: Stack, **more: Any) -> Answer:
    options = {"headers": more.pop("headers", {})}
    body = {"variants": VARIANTS, **more}
    return await stack.call("PUT", path_of("greeting", "experiments", "production"), body, **options)


def greeting(user: str | None = None) -> dict[str, Any]:
    more = {"user": user} if user else {}
    return chat("Hi.", prompt={"name": "greeting", "variables": {"name": "Ann"}}, **more)


async def test_users_keep_their_arm(edge: Stack) -> None:
    """Given an experiment that is sticky by user, then each user's jobs have one arm, both arms have users, a job
    without a user is not in it, and the job says its arm."""
    await two_versions(edge)
    made = await begin(edge)
    assert made.status == 200, made.text
    arms: dict[str, set[int]] = {}
    for _ in range(2):
        for user in USERS[:20]:
            view = (await edge.call("GET", f"/api/jobs/{await edge.submit(greeting(user))}")).json["prompt"]
            assert view["experiment"]["id"] == made.json["id"]
            assert view["version"] == view["experiment"]["arm"] + 1
            arms.setdefault(user, set()).add(view["experiment"]["arm"])
    assert all(len(one) == 1 for one in arms.values())
    assert {arm for one in arms.values() for arm in one} == {0, 1}
    view = (await edge.call("GET", f"/api/jobs/{await edge.submit(greeting())}")).json["prompt"]
    assert (view["version"], "experiment" in view) == (1, False)
    shown = (await edge.call("GET", path_of("greeting", "experiments", "production"))).json
    assert sum(arm["assigned"] for arm in shown["arms"]) == 20, "units are counted, not jobs"
    rendered = await edge.call("POST", path_of("greeting", "render"), {"variables": {"name": "x"}, "user": USERS[0]})
    assert rendered.json["experiment"]["arm"] == arms[USERS[0]].pop()


async def test_only_the_coverage_grows(edge: Stack) -> None:
    await two_versions(edge)
    first = await begin(edge, coverage=0.5, stickyBy="job")
    assert first.json["coverage"] == 0.5
    assert (await begin(edge, coverage=0.2, stickyBy="job")).json["code"] == "conflict"
    assert (await begin(edge, coverage=0.6, stickyBy="user")).json["code"] == "conflict"
    other = await begin(edge, variants=[{"version": 1}, {"version": 2, "weight": 2}], stickyBy="job", coverage=0.6)
    assert other.json["code"] == "conflict"
    stale = await begin(edge, coverage=0.7, stickyBy="job", headers={"If-Match": '"exp_x-1"'})
    assert stale.status == 412
    assert (await begin(edge, stickyBy="job", headers={"If-None-Match": "*"})).status == 412
    grown = await begin(edge, coverage=0.7, stickyBy="job", headers={"If-Match": first.headers["ETag"]})
    assert (grown.status, grown.json["id"], grown.json["coverage"]) == (200, first.json["id"], 0.7)
    assert (await begin(edge, headers={"If-Match": "*"})).json["coverage"] == 0.7, "what is absent stays"
    await edge.call("DELETE", path_of("greeting", "experiments", "production"))
    assert (await begin(edge, headers={"If-Match": "*"})).status == 412


async def test_a_rollback_ends_the_experiment_and_a_move_waits_for_its_end(edge: Stack) -> None:
    """Given an experiment, when the label is rolled back, then everybody gets the version before at once, those in the
    experiment too, and it is kept among the ended ones, also when the label is gone; a move is refused with a hint."""
    await two_versions(edge)
    await move(edge, 2)
    rails = [{"metric": "success", "worseBy": 0.1}]
    await begin(edge, variants=[{"version": 2}, {"version": 1}], guardrails=rails, note="try")
    again = await begin(edge, variants=[{"version": 2}, {"version": 1}])
    assert (again.json["guardrails"][0]["worseBy"], again.json["note"]) == (0.1, "try")
    moved = await move(edge, 1)
    assert (moved.status, "promote" in moved.json["detail"]) == (409, True)
    back = await edge.call("POST", path_of("greeting", "rollback"), {"label": "production"})
    assert (back.json["version"], back.json["experiment"]) == (1, None)
    for user in USERS[:8]:
        view = (await edge.call("GET", f"/api/jobs/{await edge.submit(greeting(user))}")).json["prompt"]
        assert (view["version"], "experiment" in view) == (1, False)
    assert (await edge.call("DELETE", path_of("greeting", "labels", "production"))).status == 204
    (ended,) = (await edge.call("GET", path_of("greeting", "experiments"))).json["data"]
    assert (ended["label"], ended["why"]) == ("production", "The label was rolled back.")
    assert await edge.client.smembers(edge.keys.guarded) == set()  # type: ignore[misc]


async def test_a_tenant_that_is_erased_leaves_no_guard(stack: Stack) -> None:
    tenant, key = await stack.tenant()
    await make(stack, labels=["production"], key=key)
    await stack.call("POST", path_of("greeting", "versions"), {"messages": HELLO}, key=key)
    rails = [{"metric": "success", "worseBy": 0.1}]
    body = {"variants": VARIANTS, "guardrails": rails}
    begun = await stack.call("PUT", path_of("greeting", "experiments", "production"), body, key=key)
    assert begun.status == 200, begun.text
    assert len(await stack.client.smembers(stack.keys.guarded)) == 1  # type: ignore[misc]
    answer = await stack.call("DELETE", f"/api/admin/tenants/{tenant}")
    assert (await stack.finished(answer.json["jobId"]))["status"] == "complete"
    assert await stack.client.smembers(stack.keys.guarded) == set()  # type: ignore[misc]


async def test_figures_of_shared_prompts_are_the_administrators(edge: Stack) -> None:
    _, key = await edge.tenant()
    at = path_of("errand/agent", "experiments", "production")
    body = {"messages": [{"role": "system", "content": "Be brief."}]}
    await edge.call("POST", path_of("errand/agent", "versions") + "?shared=true", body)
    assert (await edge.call("PUT", at + "?shared=true", {"variants": VARIANTS})).status == 200
    for path in (at, at + "?shared=true", path_of("errand/agent", "experiments")):
        assert (await edge.call("GET", path, key=key)).status == 403
    log = (await edge.call("GET", path_of("errand/agent", "audit"), key=key)).text
    assert "key_" not in log
    assert (await edge.call("GET", at + "?shared=true")).status == 200


async def test_a_retry_with_another_prompt_leaves_figures_apart(stack: Stack, model: DevModel) -> None:
    """Given a job that has used tokens under one prompt, when it is retried with one under an experiment, then the arm
    counts the job and what its second run used; and back again, nothing is written for no experiment."""
    await two_versions(stack)
    await make(stack, "other", labels=["production"], model="gpt-4o-mini")
    await begin(stack, stickyBy="job")
    await model.faults({"kind": "cut", "times": 1})
    values = {"variables": {"name": "Ann"}}
    first = await stack.finished(await stack.submit(chat("Hi.", prompt={"name": "other", **values}, maxAttempts=1)))
    assert (first["status"], first["model"]) == ("failed", "gpt-4o-mini")
    retry = f"/api/jobs/{first['jobId']}/retry"
    assert (await stack.call("POST", retry, {"prompt": {"name": "greeting", **values}})).status == 202
    second = await stack.finished(first["jobId"])
    assert (second["status"], second["model"]) == ("complete", "errand-dev-extractive"), second
    shown = (await stack.call("GET", path_of("greeting", "experiments", "production"))).json
    arm = shown["arms"][second["prompt"]["experiment"]["arm"]]
    used = second["usage"]["totalTokens"] - first["usage"]["totalTokens"]
    assert (arm["assigned"], arm["metrics"]["tokens"]["mean"]) == (1, used)
    await model.faults({"kind": "status", "status": 400, "times": 1})
    third = await stack.finished(await stack.submit(greeting()))
    body = {"prompt": {"name": "other", **values}}
    assert (await stack.call("POST", f"/api/jobs/{third['jobId']}/retry", body)).status == 202
    assert "experiment" not in (await stack.finished(third["jobId"]))["prompt"]
    assert not await stack.client.exists(f"{stack.keys.prefix}arms:")


async def test_other_prompts_of_a_job_are_in_no_experiment(edge: Stack) -> None:
    """A job is counted for its main prompt; for the others it gets the label's version."""
    name = "errand/agent/last"
    made = await edge.call("POST", "/api/prompts", {"name": name, "messages": MESSAGES, "labels": ["production"]})
    assert made.status == 201
    await edge.call("POST", path_of(name, "versions"), {"messages": MESSAGES})
    await edge.call("PUT", path_of(name, "experiments", "production"), {"variants": VARIANTS, "stickyBy": "job"})
    for _ in range(6):
        job = await edge.submit({"type": "agent", "input": {"goal": "x"}, "user": "ann"})
        pins = await edge.client.hget(edge.keys.job(job), "pins")  # type: ignore[misc]
        assert b"exp_" not in pins


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"variants": [{"version": 1}]}, "$.variants"),
        ({"variants": [{"version": 1}, {"version": 1}]}, "$.variants"),
        ({"variants": [{"version": 1}, {"version": 9}]}, "$.variants"),
        ({"variants": [{"version": 1}, {"version": 2, "weight": 0}]}, "$.variants[1].weight"),
        ({"variants": [{"version": 1}, {"version": 2**63}]}, "$.variants[1].version"),
        ({"variants": [{"version": 1}, {"version": 2, "weight": 5e-324}]}, "$.variants[1].weight"),
        ({"variants": VARIANTS, "coverage": 1.5}, "$.coverage"),
        ({"variants": VARIANTS, "guardrails": [{"metric": "speed"}]}, "$.guardrails[0].metric"),
    ],
)
async def test_a_bad_experiment_is_refused(edge: Stack, body: Any, path: str) -> None:
    await two_versions(edge)
    answer = await edge.call("PUT", path_of("greeting", "experiments", "production"), body)
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, path), answer.text
    assert (await edge.call("PUT", path_of("greeting", "experiments", "nothing"), {"variants": VARIANTS})).status == 404


async def test_an_experiment_ends_with_its_figures(edge: Stack) -> None:
    """Given an experiment, when a version is promoted or it is stopped, then the label says so, nobody is in it any
    more, and it is kept with when, who and why."""
    await two_versions(edge)
    await begin(edge)
    job = await edge.submit(greeting("ann"))
    at = path_of("greeting", "experiments", "production")
    promoted = await edge.call("POST", f"{at}/promote", {"version": 2, "note": "it was better"})
    assert (promoted.status, promoted.json["why"]) == (200, "it was better"), promoted.text
    label = (await edge.call("GET", path_of("greeting", "labels", "production"))).json
    assert (label["version"], label["previous"], label["experiment"]) == (2, 1, None)
    assert (await edge.call("GET", at)).status == 404
    assert (await edge.call("DELETE", at)).status == 404
    view = (await edge.call("GET", f"/api/jobs/{await edge.submit(greeting('ann'))}")).json["prompt"]
    assert (view["version"], "experiment" in view) == (2, False)
    assert (await edge.call("GET", f"/api/jobs/{job}")).json["prompt"]["experiment"]["id"] == promoted.json["id"]
    await begin(edge)
    stopped = await edge.call("DELETE", at)
    assert (stopped.status, stopped.json["endedBy"].startswith("key_")) == (200, True)
    listed = (await edge.call("GET", path_of("greeting", "experiments"))).json["data"]
    assert [row["why"] for row in listed] == ["Stopped by a person.", "it was better"]
    assert sum(arm["assigned"] for arm in listed[1]["arms"]) == 1
    first = await edge.call("GET", path_of("greeting", "experiments") + "?limit=1")
    assert (first.json["data"], first.json["hasMore"]) == (listed[:1], True)
    assert 'rel="next"' in first.headers["Link"]
    rest = await edge.call("GET", path_of("greeting", "experiments") + f"?after={first.json['next']}")
    assert (rest.json["data"], rest.json["next"]) == (listed[1:], None)
    log = (await edge.call("GET", path_of("greeting", "audit"))).json["data"]
    assert [row["action"] for row in log[:4]] == [
        "prompt.experiment_stopped", "prompt.experiment_started", "prompt.experiment_promoted",
        "prompt.experiment_started",
    ]  # fmt: skip


async def test_protected_labels_protect_their_experiments(edge: Stack) -> None:
    await two_versions(edge)
    await move(edge, 1, body={"protected": True})
    tenant = (await edge.call("GET", "/api/admin/tenants")).json["data"][-1]["tenantId"]
    key = (await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {"scopes": ["prompts"]})).json["key"]
    at = path_of("greeting", "experiments", "production")
    assert (await edge.call("PUT", at, {"variants": VARIANTS}, key=key)).status == 403
    assert (await begin(edge)).status == 200
    assert (await edge.call("DELETE", at, key=key)).status == 403
    assert (await edge.call("POST", f"{at}/promote", {"version": 2}, key=key)).status == 403


async def test_figures_come_from_the_jobs_own_ends(stack: Stack, model: DevModel) -> None:
    """Given jobs of two arms of which some fail and some are judged, then the arms' figures are theirs, and so are the
    day's figures of each version; a retried job tells what its second run added."""
    await two_versions(stack)
    await begin(stack, stickyBy="job")
    views = []
    for number in range(12):
        if number == 5:
            await model.faults({"kind": "cut", "times": 1})  # in the middle: it has used tokens
        views.append(await stack.finished(await stack.submit({**greeting(), "maxAttempts": 1})))
    failed = [view for view in views if view["status"] == "failed"]
    assert len(failed) == 1
    assert failed[0]["usage"]["totalTokens"] > 0
    await stack.call("POST", f"/api/jobs/{views[0]['jobId']}/feedback", {"score": 0.5})
    shown = (await stack.call("GET", path_of("greeting", "experiments", "production"))).json
    for arm in shown["arms"]:
        mine = [view for view in views if view["prompt"]["version"] == arm["version"]]
        won = sum(view["status"] == "complete" for view in mine)
        assert (arm["assigned"], arm["metrics"]["success"]["jobs"]) == (len(mine), len(mine))
        assert arm["metrics"]["success"]["mean"] == pytest.approx(won / len(mine))
        tokens = sum(view["usage"]["totalTokens"] for view in mine)
        assert arm["metrics"]["tokens"]["mean"] == pytest.approx(tokens / len(mine))
        assert arm["metrics"]["latencyMs"]["jobs"] == won
        judged = arm["version"] == views[0]["prompt"]["version"]
        assert arm["metrics"].get("feedback", {}).get("mean") == (0.5 if judged else None)
    retried = failed[0]["jobId"]
    assert (await stack.call("POST", f"/api/jobs/{retried}/retry", {})).status == 202
    final = await stack.finished(retried)
    rows = (await stack.call("GET", path_of("greeting", "stats"))).json["data"]
    whole = [view for view in views if view["jobId"] != retried] + [final]
    for row in rows:
        mine = [view for view in whole if view["prompt"]["version"] == row["version"]]
        again = row["version"] == final["prompt"]["version"]
        assert (row["uses"], row["failures"]) == (len(mine) + again, int(again))
        assert row["totalTokens"] == sum(view["usage"]["totalTokens"] for view in mine)
        assert 0 < row["latencyP50Ms"] <= row["latencyP95Ms"] < 10_000
    assert {row["feedback"]["score"] for row in rows if row["feedback"]} == {0.5}
    stats = path_of("greeting", "stats")
    page = (await stack.call("GET", f"{stats}?limit=1")).json
    assert (page["data"], page["hasMore"]) == (rows[:1], True)
    rest = (await stack.call("GET", f"{stats}?after={page['next']}")).json
    assert (rest["data"], rest["next"]) == (rows[1:], None)
    assert (await stack.call("GET", f"{stats}?after=x")).json["errors"][0]["path"] == "?after"
    one = (await stack.call("GET", path_of("greeting", "stats") + "?version=2")).json["data"]
    assert [row["version"] for row in one] == [2]


async def test_one_jobs_feedback_is_one_unit(stack: Stack) -> None:
    """Given a job whose result is judged 60 times, then it is one unit, of which no interval is made; and a day on
    which no job ends shows its feedback."""
    await two_versions(stack)
    made = await begin(stack, stickyBy="job")
    job = await stack.submit(greeting())
    version_of = (await stack.finished(job))["prompt"]["version"]
    for key in [one async for one in stack.client.scan_iter(f"{stack.keys.prefix}pstat*")]:
        await stack.client.delete(key)
    for _ in range(60):
        assert (await stack.call("POST", f"/api/jobs/{job}/feedback", {"score": 1})).status == 201
    raw = await stack.client.hgetall(stack.keys.arms(await owner_of(stack), made.json["id"]))
    row = {name.decode(): float(value) for name, value in raw.items()}
    at = f"{version_of - 1}|feedback|"
    assert {name: row[at + name] for name in ("n", "u", "x", "nn")} == {"n": 60, "u": 1, "x": 60, "nn": 3600}
    shown = (await stack.call("GET", path_of("greeting", "experiments", "production"))).json
    assert shown["arms"][version_of - 1]["metrics"]["feedback"]["interval"] is None
    (day,) = (await stack.call("GET", path_of("greeting", "stats"))).json["data"]
    assert (day["uses"], day["feedback"]["score"]) == (0, 1)
    async for key in stack.client.scan_iter(f"{stack.keys.prefix}arm*"):
        assert await stack.client.pttl(key) > 0


async def test_users_of_one_name_in_two_tenants_are_two_users(edge: Stack) -> None:
    """Given an experiment on a shared prompt, then the user `admin` of twenty tenants is in either arm."""
    body = {"messages": [{"role": "system", "content": "Be brief."}]}
    await edge.call("POST", path_of("errand/agent", "versions") + "?shared=true", body)
    at = path_of("errand/agent", "experiments", "production") + "?shared=true"
    assert (await edge.call("PUT", at, {"variants": VARIANTS})).status == 200
    arms: Counter[int] = Counter()
    for _ in range(20):
        _, key = await edge.tenant()
        wanted = {"variables": {}, "user": "admin"}
        shown = await edge.call("POST", path_of("errand/agent", "render"), wanted, key=key)
        job = await edge.submit({"type": "agent", "input": {"goal": "Hi."}, "user": "admin"}, key=key)
        view = (await edge.call("GET", f"/api/jobs/{job}", key=key)).json["prompt"]
        assert view["experiment"]["arm"] == shown.json["experiment"]["arm"], "rendering tells the job's arm"
        arms[view["experiment"]["arm"]] += 1
    assert len(arms) == 2, "both arms have some; one in 500,000 runs has not"


async def test_a_users_jobs_are_summed_by_user(stack: Stack) -> None:
    await two_versions(stack)
    made = await begin(stack)
    for _ in range(3):
        for user in ("ann", "bob"):
            await stack.finished(await stack.submit(greeting(user)))
    raw = await stack.client.hgetall(stack.keys.arms(await owner_of(stack), made.json["id"]))
    row = {name.decode(): float(value) for name, value in raw.items()}
    for name, expected in (("n", 6), ("x", 6), ("u", 2), ("ss", 18), ("sn", 18), ("nn", 18)):
        assert sum(row.get(f"{arm}|success|{name}", 0) for arm in (0, 1)) == expected
    units = await stack.client.hkeys(f"{stack.keys.prefix}armunits:{await owner_of(stack)}:{made.json['id']}")
    assert units
    assert not any(b"ann" in unit or b"bob" in unit for unit in units), "users are not named"


async def owner_of(stack: Stack) -> str:
    return str((await stack.call("GET", "/api/admin/tenants")).json["data"][-1]["tenantId"])


POINTS_AT_2 = '{"version":2,"rev":9,"atMs":1,"by":"key_x","protected":false,"past":[1]}'


def arm(n: int, won: int) -> ArmSums:
    return ArmSums(n, {Metric.SUCCESS: Sums(n=n, x=won, units=n, ss=won, sn=won, nn=n)})


def experiment(**more: Any) -> Experiment:
    values: dict[str, Any] = {
        "id": "exp_x", "label": "production", "salt": "s", "variants": [Variant(version=1), Variant(version=2)],
        "sticky_by": StickyBy.JOB, "coverage": 1, "guardrails": [], "control": 0, "started_ms": 0, "by": "key_x",
    }  # fmt: skip
    return Experiment(**{**values, **more})


def test_a_guardrail_is_crossed_when_it_is_sure() -> None:
    """Given a guardrail, then a small or unsure loss does not cross it, nor one before enough jobs; a sure one does,
    also of what is better when it is less."""
    guardrail = Guardrail(metric=Metric.SUCCESS, worse_by=0.05, least_jobs=100)
    one = experiment(guardrails=[guardrail])
    assert crossed(guardrail, one, [arm(500, 450), arm(500, 430)]) == []
    assert crossed(guardrail, one, [arm(90, 90), arm(90, 30)]) == []
    assert crossed(guardrail, one, [arm(500, 450), arm(500, 300)]) == [1]
    assert crossed(guardrail, one, [arm(500, 300), arm(500, 450)]) == []
    slow = Guardrail(metric=Metric.LATENCY, worse_by=10, least_jobs=50)
    rows = [
        ArmSums(200, {Metric.LATENCY: Sums(n=200, x=200 * ms, units=200, ss=200 * ms * ms * 1.01, sn=200 * ms, nn=200)})
        for ms in (100.0, 200.0)
    ]
    assert crossed(slow, one, rows) == [1]
    assert crossed(slow, one, rows[::-1]) == []
    view = experiment_view("p", "production", one, [arm(500, 450), arm(500, 300)])
    assert view.guardrails[0].crossed_by == [1]
    assert view.arms[1].metrics["success"].conclusive
    assert view.sample_ratio.p_value > 0.5
    assert experiment_view("p", "production", one, [arm(900, 1), arm(500, 1)]).sample_ratio.mismatch


@pytest.mark.parametrize(
    ("action", "bad", "ends_at"),
    [(GuardrailAction.STOP, 1, 2), (GuardrailAction.ROLLBACK, 1, 2), (GuardrailAction.ROLLBACK, 0, 1)],
)
async def test_a_crossed_guardrail_ends_the_experiment_by_itself(
    edge: Stack, action: GuardrailAction, bad: int, ends_at: int
) -> None:
    """Given two API processes and an arm that is surely worse, then within seconds the experiment has ended, once, with
    an entry that has the figures; with `rollback` the label is where it was before, if it pointed at the bad one."""
    other = await edge.start_api()
    await two_versions(edge)
    await version(edge, "Third for {{name}}.")
    await move(edge, 2)
    guardrails = [{"metric": "success", "worseBy": 0.05, "action": action.value}]
    # The control is the label's version; one that the label does not point at leaves the first for it.
    variants = [{"version": 2}, {"version": 3}] if bad else [{"version": 3}, {"version": 2}]
    if not bad:
        await move(edge, 1)
    made = await begin(edge, variants=variants, guardrails=guardrails)
    assert made.status == 200, made.text
    if not bad:
        record = edge.keys.prompt(await owner_of(edge), "greeting")
        await edge.client.hset(record, "l:production", POINTS_AT_2)  # type: ignore[misc]
    sums = {
        f"{arm}|success|{name}": value
        for arm, won in ((0, 190), (1, 60))  # arm 0 is the control in both
        for name, value in (("n", 200), ("x", won), ("u", 200), ("ss", won), ("sn", won), ("nn", 200))
    }
    await edge.client.hset(edge.keys.arms(await owner_of(edge), made.json["id"]), mapping=sums)  # type: ignore[misc]
    async with asyncio.timeout(10):
        while (await edge.call("GET", path_of("greeting", "experiments", "production"))).status == 200:
            await asyncio.sleep(0.1)
    label = (await edge.call("GET", path_of("greeting", "labels", "production"))).json
    assert label["version"] == ends_at
    await asyncio.sleep(2.5)
    log = (await edge.call("GET", path_of("greeting", "audit"))).json["data"]
    tripped = [row for row in log if row["action"] == "prompt.guardrail_tripped"]
    assert len(tripped) == 1
    assert tripped[0]["actor"] == "guardrail"
    assert tripped[0]["details"]["figures"]["new"]["arms"][1]["metrics"]["success"]["mean"] == 0.3
    (ended,) = (await edge.call("GET", path_of("greeting", "experiments"))).json["data"]
    assert ended["why"].startswith(f"Guardrail: success of version {3 if bad else 2} is worse")
    assert other != edge.base


def test_percentiles_of_a_day() -> None:
    row = {"2|n": 4, "2|f": 1, "2|t": 100, "2|c": 5 * 10**8, "2|b40": 3, "2|b80": 1, "1|n": 1, "1|t": 7, "1|u": 7}
    newest, oldest = stats_rows("20261123", row)
    assert (newest.day, newest.version, newest.uses, newest.failures) == ("2026-11-23", 2, 4, 1)
    assert (newest.cost_usd, oldest.cost_usd) == (0.5, None)
    assert 1_024 < (newest.latency_p50_ms or 0) < 1_250
    assert 2**20 < (newest.latency_p95_ms or 0) < 1.2 * 2**20
    assert oldest.latency_p50_ms is None
