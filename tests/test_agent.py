"""Agent runs: tools called, approved, repeated or broken off as they should be, and always an answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

import worker.tasks.agent as agent_module
import worker.tools.registry as registry_module
from api.admission import is_offered
from tests.conftest import Stack
from tests.scripted_model import ScriptedModel, call
from worker.agent.conversation import digest, fold, of_tool, tokens_of
from worker.agent.quotes import quotes_of
from worker.tools.base import Tool, ToolContext, ToolError

REPORT = (
    "The harbour was dredged in March to a depth of fourteen metres. The new crane lifts ninety tonnes. "
    "Night work ends in June."
)


@pytest.fixture
async def stack(make_stack: Any, scripted: ScriptedModel) -> Stack:
    made: Stack = await make_stack(workers=("batch",), openai_base_url=f"{scripted.base}/v1")
    return made


def agent(goal: str = "What is 2 + 3?", **more: Any) -> dict[str, Any]:
    given = more.pop("input", {})
    return {"type": "agent", "input": {"goal": goal, **given}, **more}


async def run(stack: Stack, **more: Any) -> dict[str, Any]:
    view: dict[str, Any] = await stack.finished(await stack.submit(agent(**more)))
    return view


async def document(stack: Stack, text: str = REPORT) -> str:
    made = await stack.call("POST", "/api/documents", {"text": text, "title": "Harbour report"})
    await stack.finished(made.json["jobId"])
    return str(made.json["documentId"])


# -- the loop --------------------------------------------------------------------------------------------------------


async def test_an_agent_calls_tools_and_answers(stack: Stack, scripted: ScriptedModel) -> None:
    """A thought, a call, its result, the answer: in the result, in the events, and back to the model as it was said."""
    scripted.says(("I calculate it.", [call("calculate", {"expression": "2+3"})]), "It is 5.")
    view = await run(stack)
    assert view["status"] == "complete", view
    result = view["result"]
    assert (result["answer"], result["stopReason"], result["citations"]) == ("It is 5.", "answered", [])
    first, last = result["steps"]
    assert (first["n"], first["thought"], first["tool"], first["arguments"]) == (
        1, "I calculate it.", "calculate", {"expression": "2+3"},
    )  # fmt: skip
    assert first["observation"] == "5"
    assert "tool" not in last
    assert first["tokens"] + last["tokens"] == view["usage"]["totalTokens"]
    events = await stack.log(view["jobId"])
    kinds = [event["type"] for event in events if event["type"] in ("delta", "tool.call", "tool.result")]
    assert kinds[0] == "delta"
    assert kinds.index("tool.call") < kinds.index("tool.result") < len(kinds) - 1
    assert "".join(event["text"] for event in events if event["type"] == "delta") == "I calculate it.It is 5."
    said = scripted.requests[1]["messages"]
    assert said[2]["tool_calls"][0]["function"] == {"name": "calculate", "arguments": '{"expression": "2+3"}'}
    assert said[3]["tool_call_id"] == said[2]["tool_calls"][0]["id"]
    assert "5" in said[3]["content"]


async def test_calls_of_one_step_run_side_by_side(
    stack: Stack, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three that each wait for the others: they end, so they ran at once; results stand in the calls' order."""
    arrived = asyncio.Barrier(3)

    async def meet(arguments: dict[str, Any], _: ToolContext) -> str:
        await arrived.wait()
        return f"met {arguments['n']}"

    add_tools(monkeypatch, tool("meet", meet))
    scripted.says([call("meet", {"n": number}) for number in range(3)], "Done.")
    view = await run(stack, input={"tools": ["meet"]}, timeoutSeconds=10)
    assert [step.get("observation") for step in view["result"]["steps"]] == ["met 0", "met 1", "met 2", None]
    assert [step["n"] for step in view["result"]["steps"]] == [1, 1, 1, 2]


def tool(name: str, run: Any, **more: Any) -> Tool:
    return Tool(name=name, description=name, parameters={"type": "object"}, run=run, **more)


def add_tools(monkeypatch: pytest.MonkeyPatch, *tools: Tool) -> None:
    """Tools of the test's own beside the built-in ones."""
    import api.admission as admission_module

    made = {one.name: one for one in tools}
    resolve = registry_module.Toolbox.resolve

    async def with_ours(self: Any, names: Any, *, has_documents: bool) -> list[Tool]:
        rest = [name for name in names or () if name not in made]
        found = await resolve(self, rest if names is not None else None, has_documents=has_documents)
        return [made[name] for name in names or () if name in made] + found

    monkeypatch.setattr(registry_module.Toolbox, "resolve", with_ours)
    known = admission_module.problem
    monkeypatch.setattr(
        admission_module, "problem", lambda name, settings: None if name in made else known(name, settings)
    )


async def test_malformed_arguments_go_back_to_the_model_with_the_reason(stack: Stack, scripted: ScriptedModel) -> None:
    """No JSON, a missing member, an unknown tool: three errors for the model, then it does it right."""
    scripted.says(
        [call("calculate", '{"expression": '), call("calculate", {"formula": "1"}), call("compute", {})],
        [call("calculate", {"expression": "1+1"})],
        "2",
    )
    view = await run(stack)
    assert (view["status"], view["result"]["answer"]) == ("complete", "2")
    broken, wrong, unknown, good = view["result"]["steps"][:4]
    assert "no JSON" in broken["observation"]
    assert broken["arguments"] == '{"expression": '
    assert "expression" in wrong["observation"]
    assert "calculate" in unknown["observation"]
    assert good["observation"] == "2"
    # What goes back into the conversation is JSON all the same: some servers refuse any other.
    told = scripted.requests[1]["messages"][2]["tool_calls"][0]["function"]["arguments"]
    assert told == '{"invalid":"{\\"expression\\": "}'


async def test_a_repeated_call_is_noticed_and_circles_are_left(stack: Stack, scripted: ScriptedModel) -> None:
    """The same call again is not made; after two steps of nothing else the agent must answer."""
    same = [call("calculate", {"expression": "1+1"})]

    def reply(body: dict[str, Any]) -> Any:
        return "Two." if body.get("tool_choice") == "none" else same

    scripted.says(reply)
    view = await run(stack)
    assert (view["result"]["stopReason"], view["result"]["answer"]) == ("repeatedCalls", "Two.")
    observations = [step.get("observation") for step in view["result"]["steps"]]
    assert observations[0] == "2"
    assert all("already" in seen for seen in observations[1:3])
    assert len(scripted.requests) == 4


async def test_two_alike_in_one_step_are_made_once(
    stack: Stack, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that fails; and what must not happen twice is not made again because it took too long."""
    made: list[str] = []

    async def note(arguments: dict[str, Any], _: ToolContext) -> str:
        made.append(arguments["what"])
        if arguments["what"] == "slow":
            await asyncio.sleep(60)
        return "noted"

    add_tools(monkeypatch, tool("note", note, replay="never", timeout_s=0.2))
    twice = [call("note", {"what": "a"}), call("note", {"what": "a"})]
    scripted.says(twice, [call("note", {"what": "slow"})], [call("note", {"what": "slow"})], "Done.")
    view = await run(stack, input={"tools": ["note"]})
    assert (view["status"], made) == ("complete", ["a", "slow"]), view
    assert "already" in view["result"]["steps"][1]["observation"]
    assert "already" in view["result"]["steps"][3]["observation"]


async def test_calls_that_cannot_be_made_are_no_way_to_go_on_for_ever(stack: Stack, scripted: ScriptedModel) -> None:
    """The same unknown tool, or the same broken arguments, again and again: the agent must answer."""
    for bad in (call("dance", {}), call("calculate", '{"expression": ')):
        scripted.says(lambda body, bad=bad: "No." if body.get("tool_choice") == "none" else [bad])
        view = await run(stack)
        assert (view["result"]["stopReason"], view["result"]["answer"]) == ("repeatedCalls", "No."), view
        assert len(scripted.requests) == 4


async def test_arguments_nested_without_end_go_back_to_the_model(stack: Stack, scripted: ScriptedModel) -> None:
    """Three thousand levels: an error for the model, not for the job."""
    scripted.says([call("calculate", '{"expression":' + "[" * 3_000 + "]" * 3_000 + "}")], "Never mind.")
    view = await run(stack)
    assert (view["status"], view["result"]["answer"]) == ("complete", "Never mind."), view


async def test_a_last_answer_is_made_to_fit_and_asked_again_without_tools(
    stack: Stack, scripted: ScriptedModel
) -> None:
    """A model that finds the last conversation too long, or calls tools all the same, is asked from what was found."""
    numbers = iter(range(100))

    def too_long(body: dict[str, Any]) -> Any:
        if body.get("tool_choice") == "none":
            return {"status": 400, "code": "context_length_exceeded"}
        return [call("calculate", {"expression": f"1+{next(numbers)}"})] if "tools" in body else "From what I have."

    def stubborn(body: dict[str, Any]) -> Any:
        return [call("calculate", {"expression": f"1+{next(numbers)}"})] if "tools" in body else "From what I have."

    for replies in (too_long, stubborn):
        scripted.says(replies)
        view = await run(stack, input={"maxSteps": 2})
        assert (view["status"], view["result"]["stopReason"]) == ("complete", "maxSteps"), view
        assert view["result"]["answer"] == "From what I have."


async def test_an_agent_out_of_steps_still_answers(stack: Stack, scripted: ScriptedModel) -> None:
    """Three steps, each another call; then an answer without tools is asked for."""
    numbers = iter(range(100))

    def reply(body: dict[str, Any]) -> Any:
        if body.get("tool_choice") == "none":
            return "As far as I came."
        return [call("calculate", {"expression": f"1+{next(numbers)}"})]

    scripted.says(reply)
    view = await run(stack, input={"maxSteps": 3})
    assert (view["result"]["stopReason"], view["result"]["answer"]) == ("maxSteps", "As far as I came.")
    assert [step["n"] for step in view["result"]["steps"]] == [1, 2, 3, 4]


async def test_a_token_budget_leaves_room_for_an_answer(stack: Stack, scripted: ScriptedModel) -> None:
    """The steps stop at the reserve; the last answer fits into it, and the budget is not passed."""
    numbers = iter(range(1_000))

    def reply(body: dict[str, Any]) -> Any:
        if "tools" not in body:
            return "What I have: some sums. " * 3
        return ("I go on with it. " * 20, [call("calculate", {"expression": f"1+{next(numbers)}"})])

    scripted.says(reply)
    view = await run(stack, tokenBudget=4_000)
    assert view["status"] == "complete", view
    assert (view["result"]["stopReason"], view["result"]["answer"][:11]) == ("tokenBudget", "What I have")
    assert view["usage"]["totalTokens"] <= 4_000
    assert scripted.requests[-1]["max_tokens"] >= 600
    assert "1+0" in scripted.requests[-1]["messages"][1]["content"]


async def test_an_agent_short_of_time_still_answers(stack: Stack, scripted: ScriptedModel) -> None:
    """A model that takes too long for a step is stopped in time for the last answer."""

    def reply(body: dict[str, Any]) -> Any:
        return {"delay_s": 30, "reply": "late"} if "tools" in body else "In time."

    scripted.says(reply)
    view = await run(stack, timeoutSeconds=2)
    assert (view["status"], view["result"]["stopReason"]) == ("complete", "timeLimit"), view
    assert view["result"]["answer"] == "In time."


async def test_a_tool_that_fails_or_hangs_takes_nothing_down(
    stack: Stack, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is what the model sees; a failed call may be made once more, not thrice."""
    made = 0

    async def broken(_: dict[str, Any], __: ToolContext) -> str:
        nonlocal made
        made += 1
        raise ToolError("the disk is full")

    async def hanging(_: dict[str, Any], __: ToolContext) -> str:
        await asyncio.sleep(60)
        return ""

    add_tools(monkeypatch, tool("broken", broken), tool("hanging", hanging, timeout_s=0.2))
    scripted.says(
        [call("broken", {}), call("hanging", {})], [call("broken", {})], [call("broken", {})], "It cannot be done."
    )
    view = await run(stack, input={"tools": ["broken", "hanging"]})
    seen = [step.get("observation", "") for step in view["result"]["steps"]]
    assert "the disk is full" in seen[0]
    assert "longer than 0.2 s" in seen[1]
    assert "already" in seen[3]
    assert made == 2


# -- the journal -----------------------------------------------------------------------------------------------------


async def test_a_killed_worker_costs_no_finished_step(
    make_stack: Any, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third step: the second worker replays two steps without asking the model or calling the tool."""
    stack = await make_stack(openai_base_url=f"{scripted.base}/v1", lease_seconds=1)
    calls: list[int] = []
    blocked = asyncio.Event()

    async def count(arguments: dict[str, Any], _: ToolContext) -> str:
        calls.append(arguments["n"])
        if arguments["n"] == 3 and len(calls) == 3:
            blocked.set()
            await asyncio.sleep(60)
        return f"counted {arguments['n']}"

    add_tools(monkeypatch, tool("count", count))
    scripted.says(
        [call("count", {"n": 1}, "a")], [call("count", {"n": 2}, "b")], [call("count", {"n": 3}, "c")], "Three."
    )
    first = await stack.start_worker("batch")
    job = await stack.submit(agent(input={"tools": ["count"]}))
    await asyncio.wait_for(blocked.wait(), 10)
    stack.kill_worker(first)
    await stack.start_worker("batch")
    view = await stack.finished(job)
    assert (view["status"], view["attempt"], view["result"]["answer"]) == ("complete", 2, "Three."), view
    assert len(scripted.requests) == 4
    assert calls == [1, 2, 3, 3]
    assert view["usage"]["reusedTokens"] > 0
    reused = {event["step"] for event in await stack.log(job) if event["type"] == "job.step" and event["reused"]}
    assert {"step/1", "step/2", "step/3", "step/1/count.1", "step/2/count.1"} <= reused


async def test_a_tool_that_is_described_anew_changes_nothing_for_a_job_under_way(
    make_stack: Any, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a person was asked, the server of a tool has new words for it, and the retry names another model: no step
    is asked or done again."""
    stack = await make_stack(workers=("batch",), openai_base_url=f"{scripted.base}/v1")
    paid = 0

    async def pay(_: dict[str, Any], __: ToolContext) -> str:
        nonlocal paid
        paid += 1
        return "paid"

    add_tools(monkeypatch, tool("pay", pay, replay="never"))
    scripted.says([call("pay", {}), call("calculate", {"expression": "1+1"})], {"status": 401}, "Done.")
    tools = {"tools": ["pay", "calculate"], "approve": ["calculate"]}
    job = await stack.submit(agent(input=tools))
    waiting = (await stack.until(job, "waiting"))["waiting"]
    add_tools(monkeypatch, msgspec.structs.replace(tool("pay", pay, replay="never"), description="pay the bill"))
    await stack.call("POST", f"/api/jobs/{job}/input", {"requestId": waiting["requestId"], "value": True})
    assert (await stack.finished(job))["status"] == "failed"
    await stack.call("POST", f"/api/jobs/{job}/retry", {"model": "other"})
    view = await stack.finished(job)
    assert (view["status"], paid, len(scripted.requests)) == ("complete", 1, 3), view
    assert scripted.requests[-1]["model"] == "other"
    assert scripted.requests[-1]["tools"] == scripted.requests[0]["tools"]


class Sending:
    """A tool whose calls must not happen twice; the first hangs."""

    def __init__(self) -> None:
        self.sent = 0
        self.begun = asyncio.Event()

    async def send(self, _: dict[str, Any], __: ToolContext) -> str:
        self.sent += 1
        if self.sent == 1:
            self.begun.set()
            await asyncio.sleep(60)
        return "sent"


async def cut_off(
    stack: Stack, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch, *, killed: bool = False
) -> tuple[str, Sending]:
    """A job whose worker ended in the middle of such a call, by a deploy or `killed`, and has another since."""
    sending = Sending()
    add_tools(monkeypatch, tool("send", sending.send, replay="never"))
    scripted.says([call("send", {}, "a")], "Done.")
    first = await stack.start_worker("batch")
    job = await stack.submit(agent(input={"tools": ["send"]}))
    await asyncio.wait_for(sending.begun.wait(), 10)
    if killed:
        stack.kill_worker(first)
    else:
        await stack.stop_worker(first)
    await stack.start_worker("batch")
    return job, sending


async def test_an_answer_that_is_neither_yes_nor_no_is_asked_for_again(
    make_stack: Any, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Perhaps" does not do again what must not happen twice."""
    stack = await make_stack(openai_base_url=f"{scripted.base}/v1")
    job, sending = await cut_off(stack, scripted, monkeypatch)
    asked = []
    for answer in ("It may have happened.", "Yes"):
        async with asyncio.timeout(10):
            while (waiting := (await stack.until(job, "waiting"))["waiting"])["requestId"] in asked:
                await asyncio.sleep(0.02)
        asked.append(waiting["requestId"])
        await stack.call("POST", f"/api/jobs/{job}/input", {"requestId": asked[-1], "value": answer})
    view = await stack.finished(job)
    assert (view["status"], sending.sent) == ("complete", 1), view


@pytest.mark.parametrize(("answer", "times"), [(True, 1), (False, 2)])
async def test_a_call_that_must_not_happen_twice_is_asked_about(
    make_stack: Any, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch, answer: bool, times: int
) -> None:
    """A worker lost in the middle of it: a person says whether it happened; then it is taken as done, or done."""
    stack = await make_stack(openai_base_url=f"{scripted.base}/v1", lease_seconds=1)
    job, sending = await cut_off(stack, scripted, monkeypatch, killed=True)
    waiting = (await stack.until(job, "waiting"))["waiting"]
    assert "Did it happen?" in waiting["question"]
    await stack.call("POST", f"/api/jobs/{job}/input", {"requestId": waiting["requestId"], "value": answer})
    view = await stack.finished(job)
    assert (view["status"], sending.sent) == ("complete", times), view
    assert view["result"]["steps"][0]["observation"] == ("A person says that this was done." if answer else "sent")


async def test_a_cancelled_call_that_must_not_happen_twice_stays_in_doubt(
    make_stack: Any, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy in the middle of it: not simply done again."""
    stack = await make_stack(openai_base_url=f"{scripted.base}/v1")
    job, sending = await cut_off(stack, scripted, monkeypatch)
    assert (await stack.until(job, "waiting"))["waiting"]["kind"] == "input"
    assert sending.sent == 1


# -- approval --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (True, "4"),
        ("yes", "4"),
        (False, "A person declined this call."),
        ({"approve": False, "reason": "too dear"}, "A person declined this call. They say: too dear"),
        ({"approve": True, "arguments": {"expression": "3+3"}}, "6"),
        ({"approve": True, "arguments": {"expr": "3+3"}}, "A person changed the arguments: "),
        ("use 5 instead", "A person declined this call. They say: use 5 instead"),
    ],
)
async def test_a_tool_that_needs_approval_waits_for_a_person(
    make_stack: Any, scripted: ScriptedModel, answer: Any, seen: str
) -> None:
    """The job waits without a worker, survives a restart of it, and goes on with the answer; nothing is asked twice."""
    stack = await make_stack(openai_base_url=f"{scripted.base}/v1")
    scripted.says([call("current_time", {}), call("calculate", {"expression": "2+2"})], "Done.")
    first = await stack.start_worker("batch")
    job = await stack.submit(agent(input={"tools": ["calculate", "current_time"], "approve": ["calculate"]}))
    waiting = await stack.until(job, "waiting")
    assert '"expression":"2+2"' in waiting["waiting"]["question"]
    assert not first.running
    await stack.stop_worker(first)
    body = {"requestId": waiting["waiting"]["requestId"], "value": answer}
    assert (await stack.call("POST", f"/api/jobs/{job}/input", body)).status == 200
    await stack.start_worker("batch")
    view = await stack.finished(job)
    assert view["status"] == "complete", view
    assert view["result"]["steps"][1]["observation"].startswith(seen)
    assert len(scripted.requests) == 2


async def test_what_is_approved_is_shown_in_full(stack: Stack, scripted: ScriptedModel) -> None:
    """However long the arguments are: nothing is hidden behind a cut."""
    scripted.says([call("calculate", {"expression": "1+1" + " " * 5_000 + "+41"})], "Done.")
    job = await stack.submit(agent(input={"tools": ["calculate"], "approve": ["calculate"]}))
    question = (await stack.until(job, "waiting"))["waiting"]["question"]
    assert "+41" in question


async def test_a_replay_is_not_charged_again(stack: Stack, scripted: ScriptedModel) -> None:
    """After an approval, with too little of the budget left for another step: the steps that are journaled are not held
    against it, and the approved call is made."""
    long = "word " * 800

    def reply(body: dict[str, Any]) -> Any:
        if "tools" not in body:
            return "As far as it went."
        made = sum(message["role"] == "tool" for message in body["messages"])
        return (long, [call("calculate", {"expression": "1+1"}) if made else call("current_time", {})])

    scripted.says(reply)
    job = await stack.submit(agent(tokenBudget=4_600, input={"tools": ["calculate", "current_time"],
                                                            "approve": ["calculate"]}))  # fmt: skip
    waiting = (await stack.until(job, "waiting"))["waiting"]
    await stack.call("POST", f"/api/jobs/{job}/input", {"requestId": waiting["requestId"], "value": True})
    view = await stack.finished(job)
    assert (view["status"], view["result"]["stopReason"]) == ("complete", "tokenBudget"), view
    assert [step.get("tool") for step in view["result"]["steps"]] == ["current_time", "calculate", None]
    assert view["result"]["steps"][1]["observation"] == "2"


async def test_a_slip_of_the_pen_does_not_switch_an_approval_off(
    stack: Stack, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`approve` names a tool that no server has: the job fails before the model is asked."""

    async def order(_: dict[str, Any], __: ToolContext) -> str:
        return "ordered"

    add_tools(monkeypatch, tool("shop__order", order), tool("shop__ordr", order))
    monkeypatch.setattr(agent_module, "_check_approve", lambda names, offered, check=agent_module._check_approve: check(
        names, [one for one in offered if one.name != "shop__ordr"]))  # fmt: skip
    scripted.says([call("shop__order", {})], "Done.")
    view = await run(stack, input={"tools": ["shop__order", "shop__ordr"], "approve": ["shop__ordr"]})
    assert (view["status"], view["error"]["code"]) == ("failed", "invalid_input"), view
    assert "shop__ordr" in view["error"]["message"]
    assert not scripted.requests


def test_approvals_of_a_whole_server_may_be_asked_for_with_one_tool_of_it() -> None:
    """`server__*` fits any tool of the server; another server's does not."""
    assert is_offered("shop__*", ["shop__order"])
    assert is_offered("shop__order", ["shop__*"])
    assert not is_offered("shop__*", ["calculate", "shopping__order"])
    assert not is_offered("calculate", ["shop__*"])


async def test_a_budget_ends_thoughts_and_arguments_too(stack: Stack, scripted: ScriptedModel) -> None:
    """Five thousand pieces of arguments: the stream is closed at the reserve, and the last answer fits."""

    def reply(body: dict[str, Any]) -> Any:
        if "tools" not in body:
            return "In short."
        return [call("calculate", {"expression": f"{number}+1"}) for number in range(2_500)]

    scripted.says(reply)
    view = await run(stack, tokenBudget=3_000)
    assert (view["status"], view["result"]["stopReason"]) == ("complete", "tokenBudget"), view
    assert view["usage"]["totalTokens"] <= 3_000


# -- long conversations ----------------------------------------------------------------------------------------------


async def test_a_conversation_that_is_too_long_is_folded(make_stack: Any, scripted: ScriptedModel) -> None:
    """Old results are folded with a note, the newest stays whole, and a warning says so."""
    stack = await make_stack(workers=("batch",), openai_base_url=f"{scripted.base}/v1", context_tokens=4_500)
    ids = [await document(stack, f"Part {n}. " + "The tide came in and went out. " * 120) for n in range(4)]
    scripted.says(*[[call("read_document", {"documentId": name})] for name in ids], "Tides.")
    view = await run(stack, input={"context": {"documents": ids}})
    assert view["status"] == "complete", view
    results = scripted.last_result()
    assert "Folded to save room" in results[0]
    assert "Folded" not in results[-1]
    assert len(results[-1]) > 3_000
    warnings = [event["code"] for event in await stack.log(view["jobId"]) if event["type"] == "job.warning"]
    assert "conversation_folded" in warnings


async def test_a_model_that_says_too_long_gets_a_shorter_conversation(stack: Stack, scripted: ScriptedModel) -> None:
    """Its own limit is found by halving; the job does not fail."""
    ids = [await document(stack, f"Part {n}. " + "The tide came in and went out. " * 200) for n in range(3)]

    def reply(body: dict[str, Any]) -> Any:
        if sum(len(message.get("content") or "") for message in body["messages"]) > 9_000:
            return {"status": 400, "code": "context_length_exceeded"}
        made = sum(message["role"] == "tool" for message in body["messages"])
        return [call("read_document", {"documentId": ids[made]})] if made < 3 else "Tides."

    scripted.says(reply)
    view = await run(stack, input={"context": {"documents": ids}})
    assert (view["status"], view["result"]["answer"]) == ("complete", "Tides."), view


async def test_a_replay_asks_nothing_again_though_it_would_fold_otherwise(
    make_stack: Any, scripted: ScriptedModel
) -> None:
    """The model's limit has risen while a person was asked: what was answered is not asked again."""
    stack = await make_stack(workers=("batch",), openai_base_url=f"{scripted.base}/v1")
    ids = [await document(stack, f"Part {n}. " + "The tide came in and went out. " * 200) for n in range(3)]
    limit = 9_000

    def reply(body: dict[str, Any]) -> Any:
        if sum(len(message.get("content") or "") for message in body["messages"]) > limit:
            return {"status": 400, "code": "context_length_exceeded"}
        made = sum(message["role"] == "tool" for message in body["messages"])
        if made < 3:
            return [call("read_document", {"documentId": ids[made]})]
        return [call("calculate", {"expression": "1+1"})] if made == 3 else "Tides."

    scripted.says(reply)
    tools = ["read_document", "calculate"]
    job = await stack.submit(agent(input={"context": {"documents": ids}, "tools": tools, "approve": ["calculate"]}))
    waiting = (await stack.until(job, "waiting"))["waiting"]
    asked = len(scripted.requests)
    limit = 1_000_000
    await stack.call("POST", f"/api/jobs/{job}/input", {"requestId": waiting["requestId"], "value": True})
    view = await stack.finished(job)
    assert (view["status"], view["result"]["answer"]) == ("complete", "Tides."), view
    assert len(scripted.requests) == asked + 1


def test_folding_touches_the_oldest_results_only_as_far_as_needed() -> None:
    """Pure: the same in, the same out; questions and calls stay; what cannot be folded stays."""
    messages = [{"role": "user", "content": "u" * 4_000}]
    messages += [of_tool(str(number), f"{number}" * 8_000) for number in range(3)]
    whole = tokens_of(messages)
    assert fold(messages, whole) == (messages, 0)
    folded, count = fold(messages, whole - 1_000)
    assert count == 1
    assert folded[0] == messages[0]
    assert folded[2:] == messages[2:]
    assert tokens_of(folded) <= whole - 1_000
    folded, count = fold(messages, 10)
    assert count == 3
    assert fold(messages, 10) == (folded, count)


def test_an_answer_of_quotation_marks_alone_is_read_in_no_time() -> None:
    """Two hundred thousand opening marks; a true quote after them is still found."""
    began = time.perf_counter()
    assert quotes_of("„" * 200_000 + "“ “The crane lifts ninety tonnes.”") == ["The crane lifts ninety tonnes."]
    assert time.perf_counter() - began < 2


def test_a_digest_keeps_the_newest_and_stays_in_its_room() -> None:
    """Fifty findings of 4,000 characters in 1,000 tokens."""
    text = digest("Goal", [(f"call {number}", "x" * 4_000) for number in range(50)], 1_000)
    assert len(text) <= 4_000
    assert "call 49" in text
    assert "call 0:" not in text


# -- documents -------------------------------------------------------------------------------------------------------


async def test_quotes_of_an_answer_are_proven(stack: Stack, scripted: ScriptedModel) -> None:
    """A true quote is a citation with its place; an invented one is none."""
    name = await document(stack)
    scripted.says(
        [call("search_documents", {"query": "crane"})],
        'The report says: "The new crane lifts ninety tonnes." It also says "the crane was painted green in May".',
    )
    view = await run(stack, input={"context": {"documents": [name]}})
    assert "ninety tonnes" in view["result"]["steps"][0]["observation"]
    (citation,) = view["result"]["citations"]
    start = REPORT.index("The new crane")
    assert citation["documentId"] == name
    assert REPORT[citation["start"] : citation["end"]] == citation["quote"]
    assert citation["start"] == start


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"goal": ""}, "$.input.goal"),
        ({"goal": "  "}, "$.input.goal"),
        ({"tools": ["dance"]}, "$.input.tools[0]"),
        ({"tools": ["calculate", "fetch_url"]}, "$.input.tools[1]"),
        ({"tools": ["github__search"]}, "$.input.tools[0]"),
        ({"approve": ["fetch_url"]}, "$.input.approve[0]"),
        ({"tools": ["current_time"], "approve": ["calculate"]}, "$.input.approve[0]"),
        ({"maxSteps": 0}, "$.input.maxSteps"),
        ({"context": {"documents": ["doc_01M81SGW152PHX78GHNCJWQHRS"]}}, "$.input.context.documents[0]"),
        ({"context": {"documents": []}}, "$.input.context.documents"),
    ],
)
async def test_a_bad_submission_is_refused_by_its_path(edge: Stack, given: dict[str, Any], path: str) -> None:
    """422, and the path of what is wrong."""
    answer = await edge.call("POST", "/api/jobs", {"type": "agent", "input": {"goal": "g", **given}})
    assert (answer.status, answer.json["code"]) == (422, "invalid_request"), answer.text
    assert answer.json["errors"][0]["path"] == path, answer.text
