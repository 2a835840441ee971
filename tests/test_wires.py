"""Every kind of job against every way of speaking the OpenAI API that we know."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from tests.conftest import DevModel, Stack, chat
from tests.test_analysis import QUESTIONS, SAMPLE, SCHEMA, check_citations, check_coverage

PROFILES = ("openai", "vllm", "ollama", "azure")
STATES_USAGE = {"openai", "vllm", "azure"}


@pytest.fixture(params=PROFILES)
async def profile(request: pytest.FixtureRequest, model: DevModel) -> str:
    name = str(request.param)
    await model.profile(name)
    return name


def check_usage(view: dict[str, Any], profile: str) -> None:
    """What the model states is taken; what it does not state is estimated, and says so."""
    assert view["usage"]["estimated"] is (profile not in STATES_USAGE), view["usage"]
    assert view["usage"]["totalTokens"] > 0


async def test_a_chat(stack: Stack, model: DevModel, profile: str) -> None:
    """Its text in pieces and whole, its end, its usage: the model's own count where it states one."""
    view = await stack.finished(await stack.submit(chat("one two three four five")))
    assert (view["status"], view["result"]["finishReason"]) == ("complete", "stop"), view
    assert view["result"]["text"].endswith("one two three four five")
    pieces = [event["text"] for event in await stack.log(view["jobId"]) if event["type"] == "delta"]
    assert "".join(pieces) == view["result"]["text"]
    check_usage(view, profile)
    if profile in STATES_USAGE:
        stats = await model.stats()
        assert view["usage"]["totalTokens"] == stats["inputTokens"] + stats["outputTokens"]


async def test_an_analysis(make_stack: Any, profile: str) -> None:
    """All four tasks of a document of many parts."""
    stack = await make_stack(workers=("batch",))
    text = SAMPLE.read_text()
    tasks = [{"kind": "summary"}, {"kind": "keyPoints"}, {"kind": "questions", "questions": QUESTIONS},
             {"kind": "extract", "schema": SCHEMA}]  # fmt: skip
    job = {"type": "document-analysis", "input": {"document": {"text": text}, "tasks": tasks}}
    view = await stack.finished(await stack.submit(job))
    assert view["status"] == "complete", view
    assert check_citations(view["result"], text) > 3
    check_coverage(view["result"], text)
    check_usage(view, profile)


async def test_an_agent(make_stack: Any, model: DevModel, profile: str) -> None:
    """Tool calls however they come; the answer rests on their results."""
    stack = await make_stack(workers=("batch",))
    job = {"type": "agent", "input": {"goal": "Calculate 12 * 7.5", "tools": ["calculate"]}}
    view = await stack.finished(await stack.submit(job))
    assert (view["status"], view["result"]["stopReason"]) == ("complete", "answered"), view
    step = view["result"]["steps"][0]
    assert (step["tool"], step["observation"]) == ("calculate", "90")
    assert "90" in view["result"]["answer"]
    check_usage(view, profile)


async def test_several_tool_calls_in_one_answer(make_stack: Any, model: DevModel, profile: str) -> None:
    """Two parts of a goal, two tools, one step: each call arrives whole and with an id of its own."""
    stack = await make_stack(workers=("batch",))
    goal = "1. Calculate 12 * 7.5\n2. Tell the current time in the timezone Europe/Zurich"
    job = {"type": "agent", "input": {"goal": goal, "tools": ["calculate", "current_time"]}}
    view = await stack.finished(await stack.submit(job))
    assert view["status"] == "complete", view
    first = [step for step in view["result"]["steps"] if step["n"] == 1]
    assert {step["tool"] for step in first} == {"calculate", "current_time"}
    ids = [event["callId"] for event in await stack.log(view["jobId"]) if event["type"] == "tool.call"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_a_batch_embedding(stack: Stack, profile: str, encoding: str) -> None:
    """The same vectors in the encoding that was asked for, also from servers that know only one."""
    texts = [f"the harbour at {number}" for number in range(20)]
    job = {"type": "batch-embedding", "input": {"texts": texts, "encoding": encoding}}
    view = await stack.finished(await stack.submit(job))
    assert (view["status"], view["result"]["failed"]) == ("complete", 0), view
    answer = await stack.call("GET", f"/api/jobs/{view['jobId']}/output")
    for line in map(json.loads, answer.text.splitlines()):
        vector = line["embedding"]
        if encoding == "base64":
            content = base64.b64decode(vector)
            vector = struct.unpack(f"<{len(content) // 4}f", content)
        assert len(vector) == view["result"]["dimensions"]
        assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-3)
