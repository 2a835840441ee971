"""Prompts on jobs: resolved once, pinned, said by workers, told in view, events and usage."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.prompt_defaults import DEFAULTS
from shared.prompt_names import AGENT, READ
from tests.conftest import DevModel, Stack, analysis, chat
from tests.prompting import HELLO, make, move, path_of, version

TEXT = "The harbour opens at nine. The ferry leaves at ten. The lighthouse is closed on Mondays."


async def bodies(model: DevModel) -> list[dict[str, Any]]:
    """What the model was asked, in order."""
    return [call["body"] for call in (await model.stats(calls=True))["list"]]


def first(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


async def test_a_chat_says_its_prompt_first(stack: Stack, model: DevModel) -> None:
    """Given a prompt with a variable, a model and parameters, when a chat names it, then the model gets its messages,
    filled, before the chat's own, as the prompt says where the chat says nothing; view, events and usage tell it."""
    _, key = await stack.tenant()
    parameters = {"temperature": 0.5, "maxTokens": 40}
    await make(stack, labels=["production"], model="gpt-4o-mini", parameters=parameters, key=key)
    ref = {"name": "greeting", "variables": {"name": "{{name}}"}}
    job_id = await stack.submit(chat("Hello there.", prompt=ref), key=key)
    view = await stack.finished(job_id, key=key)
    assert view["status"] == "complete", view
    assert view["prompt"] == {"name": "greeting", "version": 1, "label": "production"}
    assert view["model"] == "gpt-4o-mini"
    (body,) = await bodies(model)
    assert body["messages"] == [
        {"role": "system", "content": "You greet {{name}}."}, {"role": "user", "content": "Hello there."},
    ]  # fmt: skip
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-4o-mini", 0.5, 40)
    events = (await stack.call("GET", f"/api/jobs/{job_id}/events", key=key)).json["data"]
    assert [event["prompt"] for event in events if event["type"] == "job.started"] == ["greeting@1"]
    rows = (await stack.call("GET", "/api/usage?groupBy=prompt", key=key)).json["data"]
    assert [(row["prompt"], row["jobs"], row["totalTokens"]) for row in rows] == [
        ("greeting@1", 1, view["usage"]["totalTokens"])
    ]


async def test_what_the_job_says_goes_before_its_prompt(stack: Stack, model: DevModel) -> None:
    await make(stack, labels=["production"], model="gpt-4o-mini", parameters={"temperature": 0.5, "maxTokens": 40})
    body = {
        "messages": [{"role": "user", "content": "Hi."}], "temperature": 1.0, "maxTokens": 7, "model": "other",
        "prompt": {"name": "greeting", "version": 1, "variables": {"name": "Ann"}},
    }  # fmt: skip
    answer = await stack.call("POST", "/api/chat", body)
    assert answer.status == 200, answer.text
    (asked,) = await bodies(model)
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("other", 1.0, 7)
    view = (await stack.call("GET", f"/api/jobs/{answer.json['jobId']}")).json
    assert view["prompt"] == {"name": "greeting", "version": 1, "label": None}


async def test_a_prompt_may_be_all_that_is_said(stack: Stack, model: DevModel) -> None:
    messages = [{"role": "user", "content": "Repeat this: {{what}}"}]
    await stack.call("POST", "/api/prompts", {"name": "echo", "messages": messages, "labels": ["production"]})
    answer = await stack.call("POST", "/api/chat", {"prompt": {"name": "echo", "variables": {"what": "a ferry"}}})
    assert answer.status == 200, answer.text
    assert (await bodies(model))[0]["messages"] == [{"role": "user", "content": "Repeat this: a ferry"}]
    for path, where, body in (
        ("/api/chat", "$.messages", {}),
        ("/api/jobs", "$.input.messages", {"type": "chat", "input": {}}),
    ):
        refused = await stack.call("POST", path, body)
        assert (refused.status, refused.json["errors"][0]["path"]) == (422, where)


@pytest.mark.parametrize(
    ("ref", "path"),
    [
        ({"name": "nothing"}, "$.prompt.name"),
        ({"name": "greeting", "label": "staging", "variables": {"name": "x"}}, "$.prompt.label"),
        ({"name": "greeting", "version": 5, "variables": {"name": "x"}}, "$.prompt.version"),
        ({"name": "greeting", "version": 1, "label": "production"}, "$.prompt"),
        ({"name": "greeting"}, "$.prompt.variables.name"),
        ({"name": "greeting", "variables": {"name": 5}}, "$.prompt.variables.name"),
        ({"name": "greeting", "variables": {"name": "x", "more": 1}}, "$.prompt.variables.more"),
        ({"name": "unlabelled"}, "$.prompt"),
    ],
)
async def test_a_bad_reference_is_refused_by_its_path(edge: Stack, ref: Any, path: str) -> None:
    await make(edge, labels=["production"])
    await make(edge, "unlabelled")
    for call, body in (("/api/jobs", chat(prompt=ref)), ("/api/jobs/estimate", chat(prompt=ref)),
                       ("/api/chat", {"messages": HELLO, "prompt": ref})):  # fmt: skip
        answer = await edge.call("POST", call, body)
        assert (answer.status, answer.json["errors"][0]["path"]) == (422, path), answer.text
    assert (await edge.call("GET", "/api/jobs")).json["data"] == []


async def test_batches_of_texts_take_no_prompt(edge: Stack) -> None:
    body = {"type": "batch-embedding", "input": {"texts": ["a"]}, "prompt": {"name": "greeting"}}
    answer = await edge.call("POST", "/api/jobs", body)
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.prompt")


async def test_a_job_keeps_the_version_of_its_submission(stack: Stack, model: DevModel) -> None:
    """Given jobs that wait and one that fails, when the label moves, then they say what the label said when they were
    submitted, also when they are retried; a retry that names another prompt says that one."""
    await make(stack, labels=["production"])
    ref = {"name": "greeting", "variables": {"name": "Ann"}}
    await model.faults({"kind": "status", "status": 400, "times": 1})
    failed = await stack.submit(chat("First.", prompt=ref))
    assert (await stack.finished(failed))["status"] == "failed"
    waits = await stack.submit(chat("Second.", prompt=ref, delaySeconds=0.5))
    two = await version(stack, "Now you greet {{name}} loudly.")
    await move(stack, two)
    assert (await stack.call("POST", f"/api/jobs/{failed}/retry", {})).status == 202
    for job_id in (failed, waits):
        view = await stack.finished(job_id)
        assert (view["status"], view["prompt"]["version"]) == ("complete", 1), view
    after = await stack.finished(await stack.submit(chat("Third.", prompt=ref)))
    assert after["prompt"]["version"] == 2
    said = {body["messages"][-1]["content"]: first(body) for body in await bodies(model)}
    assert said == {"First.": "You greet Ann.", "Second.": "You greet Ann.", "Third.": "Now you greet Ann loudly."}

    await model.faults({"kind": "status", "status": 400, "times": 1})
    again = await stack.submit(chat("Fourth.", prompt={**ref, "version": 1}))
    await stack.finished(again)
    body = {"prompt": {"name": "greeting", "label": "production", "variables": {"name": "Bob"}}}
    assert (await stack.call("POST", f"/api/jobs/{again}/retry", body)).json["prompt"]["version"] == 2
    view = await stack.finished(again)
    assert (view["status"], view["prompt"]) == ("complete", {"name": "greeting", "version": 2, "label": "production"})
    assert first((await bodies(model))[-1]) == "Now you greet Bob loudly."


async def test_a_built_in_prompt_is_changed_without_a_deployment(stack: Stack, model: DevModel) -> None:
    """Given the agent's shared prompt, when an administrator moves its label to a new version, then the next run says
    it; a tenant that shadows it says its own; each names in its view what it used."""
    agent = {"type": "agent", "input": {"goal": "When does the ferry leave?", "tools": [], "maxSteps": 1}}
    view = await stack.finished(await stack.submit(agent))
    assert view["prompt"] == {"name": AGENT, "version": 1, "label": "production"}
    body = {"messages": [{"role": "system", "content": "Be brief."}], "labels": ["production"]}
    assert (await stack.call("POST", path_of(AGENT, "versions") + "?shared=true", body)).status == 201
    _, key = await stack.tenant()
    own = {"messages": [{"role": "system", "content": "Be long."}]}
    assert (await stack.call("POST", "/api/prompts", {"name": AGENT, **own}, key=key)).status == 201
    # Without the label, the shared one is still in place.
    still = await stack.finished(await stack.submit(agent, key=key), key=key)
    assert still["prompt"]["version"] == 2
    assert (await stack.call("PUT", path_of(AGENT, "labels", "production"), {"version": 1}, key=key)).status == 200
    second = await stack.finished(await stack.submit(agent))
    third = await stack.finished(await stack.submit(agent, key=key), key=key)
    assert (second["prompt"]["version"], third["prompt"]["version"]) == (2, 1)
    said = [first(body) for body in await bodies(model)]
    assert said[0] == DEFAULTS[AGENT].messages[0].content
    assert said[-2:] == ["Be brief.", "Be long."]


async def test_a_job_may_name_the_prompt_of_its_task(stack: Stack, model: DevModel) -> None:
    """Given a document analysis, when it names a prompt, then its parts are read with that; without, with the built-in
    one."""
    await make(stack, "reading", labels=["production"], parameters={"temperature": 0.25})
    ref = {"name": "reading", "variables": {"name": "Ann"}}
    view = await stack.finished(await stack.submit(analysis(TEXT, prompt=ref)))
    assert (view["status"], view["prompt"]["name"]) == ("complete", "reading"), view
    view = await stack.finished(await stack.submit(analysis(TEXT)))
    assert view["prompt"]["name"] == READ
    asked = await bodies(model)
    assert [(first(body), body["temperature"]) for body in asked] == [
        ("You greet Ann.", 0.25), (DEFAULTS[READ].messages[0].content, 0.0),
    ]  # fmt: skip


async def test_limits_by_prompt_hold(stack: Stack, model: DevModel) -> None:
    """Given a budget for a prompt, when its jobs have spent it, then its next is refused, and others are not."""
    limits = {"perPrompt": {"greeting": {"budgets": [{"period": "day", "hardTokens": 60}]}}, "onHardLimit": "fail"}
    _, key = await stack.tenant(**limits)
    await make(stack, labels=["production"], key=key)
    ref = {"name": "greeting", "variables": {"name": "Ann"}}
    await stack.finished(await stack.submit(chat("Hi.", prompt=ref), key=key), key=key)
    for _ in range(20):
        answer = await stack.call("POST", "/api/jobs", chat("Hi.", prompt=ref), key=key)
        if answer.status == 402:
            break
        await stack.finished(answer.json["jobId"], key=key)
    assert (answer.status, answer.json.get("scope"), answer.json.get("id")) in {
        (402, "prompt", "greeting")
    }, answer.text  # fmt: skip
    assert (await stack.call("POST", "/api/jobs", chat("Hi."), key=key)).status == 202


async def test_a_job_of_an_older_release_says_what_was_shipped(stack: Stack, model: DevModel) -> None:
    """Given an agent's job that was admitted before there were prompts, then it runs with the shipped text."""
    goal = {"type": "agent", "input": {"goal": "When?", "tools": [], "maxSteps": 1}, "delaySeconds": 0.3}
    job_id = await stack.submit(goal)
    await stack.client.hdel(stack.keys.job(job_id), "pins", "prompt")  # type: ignore[misc]
    view = await stack.finished(job_id)
    assert (view["status"], view["prompt"]) == ("complete", None), view
    assert first((await bodies(model))[0]) == DEFAULTS[AGENT].messages[0].content


async def test_a_replayed_submission_shows_its_own_prompt(edge: Stack) -> None:
    await make(edge, labels=["production"])
    body = chat(prompt={"name": "greeting", "variables": {"name": "Ann"}})
    headers = {"Idempotency-Key": "once"}
    await edge.call("POST", "/api/jobs", body, headers=headers)
    await move(edge, await version(edge, "Other {{name}}"))
    again = await edge.call("POST", "/api/jobs", body, headers=headers)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json["prompt"]["version"] == 1


async def test_a_deleted_tenants_prompts_go(stack: Stack) -> None:
    tenant, key = await stack.tenant()
    await make(stack, "support/greeting", labels=["production"], key=key)
    answer = await stack.call("DELETE", f"/api/admin/tenants/{tenant}")
    assert answer.status == 202
    assert (await stack.finished(answer.json["jobId"]))["status"] == "complete"
    left = [key async for key in stack.client.scan_iter(f"{stack.keys.prefix}*{tenant}*")]
    assert [one for one in left if b"prompt" in one] == []
    await asyncio.sleep(0)
