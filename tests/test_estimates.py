"""Estimates hold what runs then use; feedback is counted for the job it was given to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DevModel, Stack, analysis, chat
from tests.scripted_model import ScriptedModel, call

SAMPLE = (Path(__file__).parent.parent / "scripts/samples/harbour-report.md").read_text()
LONG = "\n\n".join(f"Year {year}. {SAMPLE}" for year in range(2000, 2006))
ALL_TASKS = (
    {"kind": "summary"},
    {"kind": "keyPoints"},
    {"kind": "questions", "questions": ["How deep is the harbour?", "What does the crane lift?", "Who paid?"]},
    {
        "kind": "extract",
        "schema": {"type": "object", "properties": {"depth": {"type": "string"}, "crane": {"type": "string"}}},
    },
)
TEXTS = [f"Berth {number} lies at the {number % 9}th quay of the harbour." for number in range(300)]

JOBS: dict[str, dict[str, Any]] = {
    "chat": chat(f"<report>{SAMPLE}</report>\nHow deep is the harbour?"),
    "chat with maxTokens": {
        "type": "chat", "input": {"messages": [{"role": "user", "content": "Say something."}], "maxTokens": 50},
    },
    "analysis of a short text": analysis(SAMPLE[:1_500], *ALL_TASKS),
    "analysis of a long text": analysis(LONG, *ALL_TASKS),
    "summary of a long text": analysis(LONG),
    "questions on a long text": analysis(LONG, ALL_TASKS[2]),
    "extraction from a short text": analysis(SAMPLE[:1_500], ALL_TASKS[3]),
    "batch embedding": {"type": "batch-embedding", "input": {"texts": TEXTS}},
    "batch embedding with repeats": {"type": "batch-embedding", "input": {"texts": TEXTS[:10] * 100}},
    "agent": {"type": "agent", "input": {"goal": "Calculate 12 * 7.5 and tell me the result."}},
    "agent with a long goal": {"type": "agent", "input": {"goal": SAMPLE + "\nWhat does the crane lift?"}},
}  # fmt: skip


@pytest.mark.parametrize("name", list(JOBS))
async def test_a_run_uses_what_was_estimated(make_stack: Any, model: DevModel, name: str) -> None:
    """Within low and high, which are not worlds apart; and the estimate spends nothing."""
    stack = await make_stack(workers=("batch", "interactive"))
    answer = await stack.call("POST", "/api/jobs/estimate", JOBS[name])
    assert answer.status == 200, answer.text
    tokens = answer.json["tokens"]
    assert (await model.stats())["calls"] == 0
    view = await stack.finished(await stack.submit(JOBS[name]))
    assert view["status"] == "complete", view
    used = view["usage"]["totalTokens"]
    assert tokens["low"] <= used <= tokens["high"], (tokens, used)
    assert tokens["low"] <= tokens["expected"] <= tokens["high"]
    if not name.startswith(("agent", "chat")):
        assert tokens["high"] <= 12 * max(tokens["low"], 1), tokens
    cost = answer.json["costUsd"]
    # The development model has no price; the embedding model's name is known.
    assert (cost is not None) == name.startswith("batch embedding")
    assert cost is None or 0 < cost["low"] <= cost["expected"] <= cost["high"]
    assert answer.json["limits"] == []


async def test_an_agent_that_reads_whole_documents_stays_within_its_estimate(make_stack: Any) -> None:
    """Three documents at once in the first of two steps."""
    scripted = ScriptedModel()
    await scripted.start()
    stack = await make_stack(workers=("batch",), openai_base_url=f"{scripted.base}/v1")
    ids = []
    for number in range(3):
        made = await stack.call("POST", "/api/documents", {"text": f"Part {number}. " + SAMPLE * 2})
        await stack.finished(made.json["jobId"])
        ids.append(made.json["documentId"])
    scripted.says([call("read_document", {"documentId": name}) for name in ids], "Read.")
    job = {"type": "agent", "input": {"goal": "Read all.", "maxSteps": 2, "context": {"documents": ids}}}
    tokens = (await stack.call("POST", "/api/jobs/estimate", job)).json["tokens"]
    view = await stack.finished(await stack.submit(job))
    assert view["status"] == "complete", view
    assert tokens["low"] <= view["usage"]["totalTokens"] <= tokens["high"], (tokens, view["usage"])
    assert tokens["high"] < 50_000
    await scripted.stop()


async def test_an_estimate_of_an_upload_goes_by_its_size(stack: Stack) -> None:
    """Ready or still to be read."""
    made = await stack.call("POST", "/api/documents", {"text": LONG})
    job = {"type": "document-analysis", "input": {"document": {"documentId": made.json["documentId"]},
                                                  "tasks": [{"kind": "summary"}]}}  # fmt: skip
    await stack.finished(made.json["jobId"])
    tokens = (await stack.call("POST", "/api/jobs/estimate", job)).json["tokens"]
    inline = (await stack.call("POST", "/api/jobs/estimate", analysis(LONG))).json["tokens"]
    assert tokens == inline


async def test_an_estimate_names_the_limits_that_the_job_would_meet(edge: Stack) -> None:
    """A full queue, a tenant at its concurrency, a budget that is too small; no worker: no eta."""
    tenant, key = await edge.tenant(maxQueuedJobs=1, maxConcurrentJobs=1)
    await edge.submit(chat(), key=key)
    answer = await edge.call("POST", "/api/jobs/estimate", chat(tokenBudget=10), key=key)
    hits = {hit["limit"]: hit for hit in answer.json["limits"]}
    assert hits["maxQueuedJobs"] == {
        "scope": "tenant", "id": tenant, "limit": "maxQueuedJobs", "unit": "jobs", "value": 1, "used": 1,
        "remaining": 0, "effect": "refused",
    }  # fmt: skip
    assert hits["tokenBudget"]["effect"] == "stops"
    assert answer.json["tokens"]["high"] == 10
    assert answer.json["eta"] is None


async def test_an_estimate_refuses_what_a_submission_would_be_refused_for(edge: Stack) -> None:
    """422 with the path; an idle worker starts at once."""
    answer = await edge.call("POST", "/api/jobs/estimate", {"type": "agent", "input": {"goal": "g", "tools": ["x"]}})
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.input.tools[0]")
    await edge.start_worker("interactive")
    answer = await edge.call("POST", "/api/jobs/estimate", chat())
    assert answer.json["eta"] == {"p50Seconds": 0, "p90Seconds": 0}


# -- feedback --------------------------------------------------------------------------------------------------------


async def test_feedback_is_counted_and_shown_in_the_job(stack: Stack) -> None:
    """Two judgements: their count and mean; the same key again is noted once."""
    job = (await stack.finished(await stack.submit(chat())))["jobId"]
    path = f"/api/jobs/{job}/feedback"
    headers = {"Idempotency-Key": "mine"}
    first = await stack.call("POST", path, {"score": 1, "comment": "Well said."}, headers=headers)
    assert (first.status, first.json["score"], first.json["comment"]) == (201, 1, "Well said."), first.text
    again = await stack.call("POST", path, {"score": 1, "comment": "Well said."}, headers=headers)
    assert (again.status, again.headers["Idempotent-Replayed"], again.json) == (201, "true", first.json)
    other = await stack.call("POST", path, {"score": -0.5}, headers=headers)
    assert (other.status, other.json["code"]) == (422, "idempotency_mismatch")
    second = await stack.call("POST", path, {"score": -0.5})
    assert second.json["feedback"] == {"count": 2, "score": 0.25}
    assert (await stack.call("GET", f"/api/jobs/{job}")).json["feedback"] == {"count": 2, "score": 0.25}
    assert (await stack.call("GET", "/api/jobs")).json["data"][0]["feedback"]["count"] == 2


async def test_feedback_is_refused_where_there_is_nothing_to_judge(edge: Stack) -> None:
    """Not started: 409; another tenant's or unknown: 404; out of range: 422 with the path."""
    job = await edge.submit(chat())
    assert (await edge.call("POST", f"/api/jobs/{job}/feedback", {"score": 1})).status == 409
    _, key = await edge.tenant()
    assert (await edge.call("POST", f"/api/jobs/{job}/feedback", {"score": 1}, key=key)).status == 404
    answer = await edge.call("POST", f"/api/jobs/{job}/feedback", {"score": 2})
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.score")
