"""Nothing is paid twice: jobs of every kind, killed in the middle, by the model's own count."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from tests.conftest import DevModel, Stack, analysis
from tests.test_analysis import QUESTIONS, SCHEMA

GOAL = "\n".join(f"{number}. Calculate {number} * 7.5" for number in range(1, 9))

# No two parts, and no two groups of notes, are alike: a request that is made twice was paid twice.
TEXT = "\n\n".join(
    f"In {1960 + year} the harbour took in {year * 317} ships. Berth {year} was dredged to {year + 3} metres. "
    f"The new crane of that year cost {year * 1_001} francs, and the quay {year * 77} more."
    for year in range(40)
)

KINDS: dict[str, dict[str, Any]] = {
    "document-analysis": analysis(
        TEXT, {"kind": "summary"}, {"kind": "keyPoints"},
        {"kind": "questions", "questions": QUESTIONS}, {"kind": "extract", "schema": SCHEMA},
    ),
    "agent": {"type": "agent", "input": {"goal": GOAL, "tools": ["calculate"]}},
    "batch-embedding": {
        "type": "batch-embedding", "input": {"texts": [f"berth {number} of the harbour" for number in range(320)]},
    },
}  # fmt: skip
AT_A_TIME = 2


async def steps(stack: Stack, job: str) -> list[dict[str, Any]]:
    return [event for event in await stack.log(job) if event["type"] == "job.step"]


async def finished_steps(stack: Stack, job: str) -> set[str]:
    """Those that the model was asked for."""
    return {event["step"] for event in await steps(stack, job) if event["state"] == "finished"} - {"plan"}


def asked(calls: list[dict[str, Any]]) -> Counter[str]:
    """How often each request was made, by its content."""
    return Counter(json.dumps(call["body"], sort_keys=True) for call in calls)


@pytest.mark.parametrize("after", [1, 4])
@pytest.mark.parametrize("kind", list(KINDS))
async def test_a_killed_job_asks_for_nothing_that_was_journaled(
    make_stack: Any, model: DevModel, kind: str, after: int
) -> None:
    """Killed after so many steps: each of these is reused by the next worker; at most what was under way is asked
    again, and counts as wasted."""
    stack = await make_stack(
        lease_seconds=1, map_concurrency=AT_A_TIME, model_max_in_flight=AT_A_TIME, embedding_items=16,
        chunk_characters=700,
    )  # fmt: skip
    await model.pace(firstTokenSeconds=0.03)
    await model.limits(latencySeconds=0.03)
    first = await stack.spawn_worker("batch")
    job = await stack.submit(KINDS[kind])
    async with asyncio.timeout(20):
        while len(await finished_steps(stack, job)) < after:
            await asyncio.sleep(0.002)
    first.kill()
    journaled = await finished_steps(stack, job)
    before = asked((await model.stats(calls=True))["list"])
    await stack.start_worker("batch")
    view = await stack.finished(job)
    assert view["status"] == "complete", view

    reused = {event["step"] for event in await steps(stack, job) if event["reused"]}
    assert journaled <= reused
    twice = {body: count for body, count in asked((await model.stats(calls=True))["list"]).items() if count > 1}
    assert all(before[body] for body in twice), [body[-1500:] for body in twice if not before[body]]
    assert sum(count - 1 for count in twice.values()) <= AT_A_TIME
    assert view["usage"]["reusedTokens"] > 0
    if not twice:
        return
    assert view["usage"]["wastedTokens"] > 0


@pytest.mark.parametrize("kind", list(KINDS))
async def test_a_retry_of_a_cancelled_job_reuses_what_it_had(make_stack: Any, model: DevModel, kind: str) -> None:
    """Cancelled in the middle, retried: complete, with nothing asked again that had been answered."""
    stack = await make_stack(
        workers=("batch",), map_concurrency=AT_A_TIME, model_max_in_flight=AT_A_TIME, embedding_items=16,
        chunk_characters=700,
    )  # fmt: skip
    await model.pace(firstTokenSeconds=0.03)
    await model.limits(latencySeconds=0.03)
    job = await stack.submit(KINDS[kind])
    async with asyncio.timeout(20):
        while len(await finished_steps(stack, job)) < 3:
            await asyncio.sleep(0.002)
    assert (await stack.call("DELETE", f"/api/jobs/{job}?wait=10")).json["status"] == "cancelled"
    journaled = await finished_steps(stack, job)
    assert (await stack.call("POST", f"/api/jobs/{job}/retry")).status == 202
    view = await stack.finished(job)
    assert view["status"] == "complete", view
    assert journaled <= {event["step"] for event in await steps(stack, job) if event["reused"]}
    twice = [count for count in asked((await model.stats(calls=True))["list"]).values() if count > 1]
    assert sum(count - 1 for count in twice) <= AT_A_TIME


@pytest.mark.parametrize("kind", list(KINDS))
async def test_a_retry_from_the_start_forgets_the_journal(make_stack: Any, model: DevModel, kind: str) -> None:
    """Everything is asked again, and the books say so."""
    stack = await make_stack(workers=("batch",), map_concurrency=AT_A_TIME, embedding_items=16, chunk_characters=700)
    await model.pace(firstTokenSeconds=0.03)
    await model.limits(latencySeconds=0.03)
    job = await stack.submit(KINDS[kind])
    async with asyncio.timeout(20):
        while len(await finished_steps(stack, job)) < 3:
            await asyncio.sleep(0.002)
    await stack.call("DELETE", f"/api/jobs/{job}?wait=10")
    await stack.call("POST", f"/api/jobs/{job}/retry", {"from": "start"})
    view = await stack.finished(job)
    assert (view["status"], view["usage"]["reusedTokens"]) == ("complete", 0), view
