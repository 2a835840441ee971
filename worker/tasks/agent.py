"""`agent`: a model that works towards a goal with tools, step by step, until it answers.

A step is one call of the model and the calls of tools that it asks for. Whatever ends the run early (steps, tokens,
time, a model that goes in circles), an answer from what was found is still attempted, inside a reserve that the steps
before it cannot touch.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from shared.clock import monotonic_s
from shared.errors import BadOutput, BudgetExhausted, ContextTooLong, InvalidInput
from shared.jobs import Output
from shared.prompt_defaults import AGENT, AGENT_LAST
from shared.specs import AgentInput
from worker.agent.acting import SHOWN_CHARACTERS, Actor, Observation
from worker.agent.conversation import Message, digest, fold, of_model, of_tool, tokens_of
from worker.agent.quotes import DocumentCitation, cite_answer
from worker.context import Finished, JobContext
from worker.journal import Step
from worker.model.calls import CHARACTERS_PER_TOKEN, ChatCall
from worker.tools.base import Replay, Tool, ToolContext

BUDGET_SHARE: Final = 0.2  # of a token budget that is kept for the last answer
LEAST_RESERVE: Final = 500
MOST_RESERVE: Final = 4_000
TIME_SHARE: Final = 0.2  # of the attempt's time
MOST_TIME_S: Final = 30.0
CIRCLES: Final = 2  # steps in a row that only repeat calls
FOLDINGS: Final = 5  # each to half, when the model says that the conversation is too long
ANSWER_TOKENS: Final = 2_000  # of room that folding leaves for the answer

_DOCUMENT = re.compile(r"doc_[0-9A-HJKMNP-TV-Z]{26}")


class AgentStep(Output, frozen=True, kw_only=True):
    """One call of a tool, or the model's last words. Parallel calls share `n`; `tokens` and the model's part of `ms`
    are with the first of them. `observation` is cut at 4,000 characters."""

    n: int
    thought: str | UnsetType = UNSET
    tool: str | UnsetType = UNSET
    arguments: dict[str, Any] | str | UnsetType = UNSET
    observation: str | UnsetType = UNSET
    tokens: int
    ms: int


class AgentResult(Output, frozen=True):
    """`stopReason`: answered, maxTokens (the model cut its answer), maxSteps, tokenBudget, timeLimit, repeatedCalls or
    noAnswer (the model said nothing). `citations` are quotes of the answer
    that stand in the documents that were read."""

    answer: str
    citations: list[DocumentCitation]
    steps: list[AgentStep]
    stop_reason: str


class _StopError(Exception):
    """The steps end here, for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def run_agent(spec: AgentInput, context: JobContext) -> AgentResult:
    """Runs the loop. Raises JobError, and NeedsInput while a person is asked."""
    named = tuple(spec.context.documents or ()) if spec.context is not None else ()
    offered = await context.deps.tools.resolve(spec.tools, has_documents=spec.context is not None)
    _check_approve(spec.approve, offered)
    plan = await _plan(offered, context)
    now = {tool.name: tool for tool in offered}
    tools = [
        msgspec.structs.replace(now[one.name], replay=one.replay, parameters=one.parameters)
        for one in plan.tools
        if one.name in now
    ]
    run = _Run(spec, context, plan, tools, named)
    reason = await run.steps()
    answer = run.answer or await run.last_answer(reason)
    citations = await cite_answer(answer, run.documents(), context)
    context.report.progress(1.0, "answer", f"Answered after {run.turn} steps")
    return AgentResult(answer=answer, citations=citations, steps=run.told, stop_reason=reason)


class _PlannedTool(msgspec.Struct, frozen=True):
    name: str
    description: str
    parameters: dict[str, Any]
    replay: Replay


class _Plan(msgspec.Struct, frozen=True):
    """What the model is told at the first attempt: later ones tell it the same, so that the journal knows its steps,
    whatever a server of tools or a new version of ours would say by then."""

    prompt: str
    last_prompt: str
    tools: list[_PlannedTool]


async def _plan(offered: Sequence[Tool], context: JobContext) -> _Plan:
    async def make(_: Step) -> bytes:
        tools = [_PlannedTool(tool.name, tool.description, tool.parameters, tool.replay) for tool in offered]
        return msgspec.json.encode(_Plan(AGENT, AGENT_LAST, tools))

    journaled, _reused = await context.journal.step("plan", b"", make)
    return msgspec.json.decode(journaled, type=_Plan)


def _check_approve(names: Sequence[str], offered: Sequence[Tool]) -> None:
    """Raises InvalidInput for a name that no tool has: a slip of the pen must not switch an approval off."""
    for name in names:
        matches = name.removesuffix("*") if name.endswith("__*") else None
        if not any(tool.name == name or (matches and tool.name.startswith(matches)) for tool in offered):
            there = ", ".join(tool.name for tool in offered) or "none"
            raise InvalidInput(f"`approve` names {name!r}, but the job has no such tool; its tools are: {there}.")


class _Run:
    """One attempt at a run. All that it decides follows from what is in the journal."""

    def __init__(
        self, spec: AgentInput, context: JobContext, plan: _Plan, tools: Sequence[Tool], named: Sequence[str]
    ) -> None:
        self.told: list[AgentStep] = []
        self.answer = ""
        self.is_cut = False  # the model ended the answer at its own bound
        self.turn = 0
        self._spec = spec
        self._context = context
        self._named = named
        self._tools = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
            for tool in plan.tools
        ]
        self._plan = plan
        bound = ToolContext(
            tenant=context.job.tenant,
            library=context.deps.library,
            settings=context.deps.settings,
            documents=tuple(named),
            collection=spec.context.collection if spec.context is not None else None,
        )
        self._actor = Actor(context, tools, spec.approve, bound)
        self._messages: list[Message] = [
            {"role": "system", "content": plan.prompt},
            {"role": "user", "content": _goal(spec, named)},
        ]
        self._findings: list[tuple[str, str]] = []
        self._folded = 0
        self._circles = 0
        self._most_tokens = context.deps.settings.context_tokens - ANSWER_TOKENS - self._tools_tokens()
        budget = context.job.token_budget
        self._reserve = 0 if budget is None else _between(LEAST_RESERVE, round(budget * BUDGET_SHARE), MOST_RESERVE)
        self._steps_end_s = context.ends_s - min(MOST_TIME_S, context.job.timeout_s * TIME_SHARE)

    async def steps(self) -> str:
        """Step after step until the model answers; why it ended."""
        try:
            while self.turn < self._spec.max_steps:
                self.turn += 1
                share = (self.turn - 1) / self._spec.max_steps
                self._context.report.progress(share, "step", f"Step {self.turn} of at most {self._spec.max_steps}")
                if await self._step():
                    return "maxTokens" if self.is_cut else "answered"
        except _StopError as stop:
            return stop.reason
        return "maxSteps"

    async def _step(self) -> bool:
        """Whether the model has answered."""
        said = await self._ask()
        if not said.tool_calls:
            if not said.text.strip():
                return self._nudge(said)
            self.answer = said.text
            self.told.append(AgentStep(n=self.turn, tokens=said.tokens, ms=said.ms))
            self.is_cut = said.finish_reason == "length"
            return True
        observations = await self._actor.act(self.turn, said.tool_calls, self._steps_end_s)
        self._messages.append(of_model(said.text, said.tool_calls))
        for place, seen in enumerate(observations):
            self._messages.append(of_tool(seen.call.id, seen.text))
            self._note(said, seen, is_first=place == 0)
        self._circles = self._circles + 1 if all(seen.repeated for seen in observations) else 0
        if self._circles >= CIRCLES:
            raise _StopError("repeatedCalls")
        return False

    def _nudge(self, said: Finished) -> bool:
        """A model that says nothing is asked once more."""
        if self.told and self.told[-1].tool is UNSET:
            raise _StopError("noAnswer")
        self.told.append(AgentStep(n=self.turn, tokens=said.tokens, ms=said.ms))
        self._messages.append({"role": "user", "content": "You said nothing. Answer the goal, or call a tool."})
        return False

    def _note(self, said: Finished, seen: Observation, *, is_first: bool) -> None:
        arguments = seen.arguments if seen.arguments is not None else seen.call.arguments[:SHOWN_CHARACTERS]
        self.told.append(
            AgentStep(
                n=self.turn,
                thought=said.text if is_first and said.text else UNSET,
                tool=seen.call.name,
                arguments=arguments,
                observation=seen.text[:SHOWN_CHARACTERS],
                tokens=said.tokens if is_first else 0,
                ms=seen.ms + (said.ms if is_first else 0),
            )
        )
        if not seen.is_error and not seen.repeated:
            self._findings.append((f"{seen.call.name} {seen.call.arguments}"[:500], seen.text))

    async def _ask(self) -> Finished:
        """The model's next words. Raises _StopError when tokens or time are up but for the reserve.

        The journal knows the step by the whole conversation: how far it had to be folded may differ the next time.
        """
        whole = msgspec.json.encode([self._messages, self._tools])
        for _ in range(FOLDINGS):
            messages, folded = fold(self._messages, self._most_tokens)
            if folded > self._folded:
                self._context.report.event(
                    "job.warning",
                    code="conversation_folded",
                    message=f"The conversation became too long for the model: {folded} tool results are folded.",
                )
            self._folded = max(folded, self._folded)
            left_s = self._steps_end_s - monotonic_s()
            if left_s <= 0:
                raise _StopError("timeLimit")
            try:
                async with asyncio.timeout(left_s):
                    return await self._context.complete(
                        f"step/{self.turn}",
                        ChatCall(messages, tools=self._tools or None),
                        on_text=self._context.report.text,
                        keep_back=self._reserve,
                        known_by=whole,
                    )
            except TimeoutError:
                raise _StopError("timeLimit") from None
            except BudgetExhausted:
                raise _StopError("tokenBudget") from None
            except ContextTooLong:
                self._most_tokens = tokens_of(messages) // 2
        raise InvalidInput("The goal alone is longer than the model can read.")

    def _tools_tokens(self) -> int:
        return len(msgspec.json.encode(self._tools)) // CHARACTERS_PER_TOKEN if self._tools else 0

    async def last_answer(self, reason: str) -> str:
        """An answer from what there is: from the whole conversation where that fits, else from what was found, in less
        and less. Raises JobError."""
        self._context.report.event("job.warning", code="agent_stopped", message=_STOPPED[reason])
        budget = self._context.job.token_budget
        left = None if budget is None else budget - self._context.tokens
        calls = []
        if reason in ("maxSteps", "repeatedCalls") and (
            left is None or left > 2 * (tokens_of(self._messages) + self._tools_tokens())
        ):
            messages, _ = fold(self._messages, self._most_tokens)
            messages.append({"role": "user", "content": self._plan.last_prompt})
            calls.append(ChatCall(messages, tools=self._tools or None, no_tools=True))
        most = self._context.deps.settings.context_tokens // 2
        room = min(most, left if left is not None else MOST_RESERVE * 2)
        calls += [self._from_findings(room // share, left) for share in (1, 4, 16)]
        for number, call in enumerate(calls, 1):
            try:
                said = await self._context.complete(
                    "last" if number == 1 else f"last/{number}",
                    call,
                    on_text=self._context.report.text,
                    accept=_says_something,
                )
            except (ContextTooLong, BudgetExhausted, BadOutput):
                if number == len(calls):
                    raise
                continue
            self.told.append(AgentStep(n=self.turn + 1, tokens=said.tokens, ms=said.ms))
            return said.text
        raise BadOutput(f"The model gave no answer. {_STOPPED[reason]}")

    def _from_findings(self, most_tokens: int, left: int | None) -> ChatCall:
        """A call that holds the goal and what was found, and no tools; `left` tokens of a budget may be spent."""
        goal = self._spec.goal
        found = digest(goal, self._findings, max(0, most_tokens - len(goal) // CHARACTERS_PER_TOKEN))
        messages: list[Message] = [
            {"role": "system", "content": self._plan.last_prompt},
            {"role": "user", "content": found},
        ]
        return ChatCall(messages, max_tokens=None if left is None else max(1, left - tokens_of(messages) - 10))

    def documents(self) -> list[str]:
        """The documents that the answer may quote: those that were named, and those that tools have shown."""
        shown = (name for _, text in self._findings for name in _DOCUMENT.findall(text))
        return list(dict.fromkeys([*self._named, *shown]))


_STOPPED: Final = {
    "maxSteps": "The steps that were allowed are used up; the answer rests on what was found by then.",
    "tokenBudget": "The job's token budget is nearly used up; the answer rests on what was found by then.",
    "timeLimit": "The time is nearly up; the answer rests on what was found by then.",
    "noAnswer": "The model said nothing, also after it was asked again.",
    "repeatedCalls": "The model only repeated its calls; the answer rests on what was found by then.",
}


def _says_something(text: str) -> None:
    if not text.strip():
        raise BadOutput("The model gave no answer.")


def _goal(spec: AgentInput, named: Sequence[str]) -> str:
    about = ""
    if named:
        about = "\n\nDocuments that you may read: " + ", ".join(named)
    elif spec.context is not None and spec.context.collection is not None:
        about = f"\n\nYou may search the documents of the collection {spec.context.collection!r}."
    return spec.goal + about


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
