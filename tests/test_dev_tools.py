"""The development model calls tools as a model does: by what they are described as, step by step."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.conftest import DevModel


def tool(name: str, description: str, *required: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TEXT = {"type": "string"}
SEARCH = tool("search_documents", "Search the documents for passages.", "query", query=TEXT, limit={"type": "integer"})
CALCULATE = tool(
    "calculate", "Evaluate an expression.", "expression", expression={**TEXT, "description": "Arithmetic, as 2 * 3"}
)
READ = tool("read_document", "Read one document by its id.", "documentId", documentId=TEXT)
FETCH = tool("fetch_page", "Fetch a web page.", "url", url=TEXT)
CONVERT = tool(
    "convert", "Convert a length.", "value", "unit", value={"type": "number"}, unit={"enum": ["metres", "feet"]}
)
TOOLS = [SEARCH, CALCULATE, READ, FETCH, CONVERT]
BOTH = "Find the harbour's depth in the documents and calculate 12 * 7.5"
DEPTH = "The harbour has a depth of 14 metres. Ferries run daily."


class Agent:
    """Asks, and answers the model's calls."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self.client = client
        self.messages: list[Any] = []

    async def ask(self, text: str | None = None, **options: Any) -> Any:
        if text is not None:
            self.messages.append({"role": "user", "content": text})
        answer = await self.client.chat.completions.create(
            model="m", messages=self.messages, **{"tools": TOOLS, **options}
        )
        self.message = answer.choices[0].message
        self.messages.append(self.message.model_dump(exclude_none=True))
        return self.message

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        return [(call.function.name, json.loads(call.function.arguments)) for call in self.message.tool_calls or []]

    def give(self, *results: str) -> None:
        for call, result in zip(self.message.tool_calls, results, strict=True):
            self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


@pytest.fixture
async def agent(model: DevModel) -> AsyncIterator[Agent]:
    async with openai.AsyncOpenAI(base_url=f"{model.base}/v1", api_key="x", max_retries=0) as client:
        yield Agent(client)


async def test_parts_of_a_question_are_called_for_in_one_answer_and_then_answered(agent: Agent) -> None:
    await agent.ask(BOTH)
    assert agent.calls() == [
        ("search_documents", {"query": "harbour's depth"}),
        ("calculate", {"expression": "12 * 7.5"}),
    ]
    assert len({call.id for call in agent.message.tool_calls}) == 2
    agent.give(json.dumps({"hits": [{"text": DEPTH, "score": 0.8}]}), "90.0")
    answer = await agent.ask()
    assert not answer.tool_calls
    assert "“The harbour has a depth of 14 metres.”" in answer.content
    assert "12 * 7.5 = 90.0" in answer.content
    assert "Ferries" not in answer.content


async def test_without_parallel_calls_it_goes_step_by_step(agent: Agent) -> None:
    await agent.ask(BOTH, parallel_tool_calls=False)
    assert [name for name, _ in agent.calls()] == ["search_documents"]
    agent.give(DEPTH)
    await agent.ask(parallel_tool_calls=False)
    assert [name for name, _ in agent.calls()] == ["calculate"]
    agent.give("90")
    assert (await agent.ask(parallel_tool_calls=False)).content


async def test_a_step_takes_what_the_one_before_it_found(agent: Agent) -> None:
    await agent.ask("Search the documents for the harbour plan and read it.")
    assert agent.calls() == [("search_documents", {"query": "harbour plan"})]
    agent.give('{"hits": [{"documentId": "doc_77", "text": "The harbour plan of the year 1990."}]}')
    await agent.ask()
    assert agent.calls() == [("read_document", {"documentId": "doc_77"})]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("What does https://example.org/a say?", [("fetch_page", {"url": "https://example.org/a"})]),
        ("Convert 12.5 to feet.", [("convert", {"value": 12.5, "unit": "feet"})]),
        ("What is 15% of 200?", [("calculate", {"expression": "15 / 100 * 200"})]),
        ("1. What is 3 times 12?\n2. What is (11 + 49) / 2?",
         [("calculate", {"expression": "3 * 12"}), ("calculate", {"expression": "(11 + 49) / 2"})]),
        ("How deep is the harbour?", [("search_documents", {"query": "deep is the harbour"})]),
        ("Read document doc_5.", [("read_document", {"documentId": "doc_5"})]),
        ("Hello!", []),
    ],
)  # fmt: skip
async def test_arguments_come_from_the_question(agent: Agent, text: str, wanted: list[Any]) -> None:
    await agent.ask(text)
    assert agent.calls() == wanted


async def test_tool_choice(agent: Agent) -> None:
    assert not (await agent.ask(BOTH, tool_choice="none")).tool_calls
    agent.messages.clear()
    await agent.ask("Hello!", tool_choice="required")
    assert len(agent.calls()) == 1
    agent.messages.clear()
    await agent.ask(BOTH, tool_choice={"type": "function", "function": {"name": "calculate"}})
    assert agent.calls() == [("calculate", {"expression": "12 * 7.5"})]


async def test_it_corrects_what_a_tool_says_is_wrong_and_gives_up(agent: Agent) -> None:
    await agent.ask("Convert 12.5 to feet.", tools=[CONVERT])
    agent.give("Error: unit must be one of: ft, m")
    await agent.ask(tools=[CONVERT])
    assert agent.calls() == [("convert", {"value": 12.5, "unit": "ft"})]
    agent.give("Error: timed out, try again")
    await agent.ask(tools=[CONVERT])
    agent.give("Error: timed out, try again")
    answer = await agent.ask(tools=[CONVERT])
    assert not answer.tool_calls
    assert "timed out" in answer.content


async def test_an_error_without_a_hint_is_not_tried_again(agent: Agent) -> None:
    await agent.ask("Read document doc_5.")
    agent.give("Error: no such document")
    assert not (await agent.ask()).tool_calls


async def test_asked_to_answer_now_it_answers(agent: Agent) -> None:
    await agent.ask(BOTH, parallel_tool_calls=False)
    agent.give(DEPTH)
    answer = await agent.ask("No more tools: give your final answer now.")
    assert not answer.tool_calls
    assert "14 metres" in answer.content


async def test_tool_messages_are_answered_from_without_tools(agent: Agent) -> None:
    await agent.ask(BOTH)
    agent.give(DEPTH, "90")
    answer = await agent.ask(tools=openai.NOT_GIVEN)
    assert "14 metres" in answer.content
    assert "= 90" in answer.content


async def test_a_question_that_speaks_of_an_answer_now_is_still_a_question(agent: Agent) -> None:
    await agent.ask("What answer do the documents now give?")
    assert agent.calls()
    agent.messages.clear()
    assert not (await agent.ask("Do not call any tools: what is 3 * 12?")).tool_calls


async def test_data_by_a_schema_comes_from_the_tools(agent: Agent) -> None:
    await agent.ask(BOTH)
    agent.give(DEPTH, "90")
    schema = {"type": "object", "properties": {"depth": {"type": "integer"}}, "required": ["depth"]}
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    answer = await agent.ask(response_format=form)
    assert json.loads(answer.content) == {"depth": 14}


async def test_a_further_question_is_a_new_one(agent: Agent) -> None:
    await agent.ask("What is 3 * 12?")
    agent.give("36")
    await agent.ask()
    await agent.ask("And what is 5 + 5?")
    assert agent.calls() == [("calculate", {"expression": "5 + 5"})]


async def test_arguments_cut_on_request_and_a_thought_beside_the_calls(agent: Agent, model: DevModel) -> None:
    await model.faults({"kind": "bad_arguments"}, {"kind": "thought"})
    await agent.ask("Hello!")
    message = await agent.ask("What is 3 * 12?")
    with pytest.raises(json.JSONDecodeError):
        agent.calls()
    agent.give("Error: the arguments are not valid JSON")
    message = await agent.ask()
    assert agent.calls() == [("calculate", {"expression": "3 * 12"})]
    assert message.content
