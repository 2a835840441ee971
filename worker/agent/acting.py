"""The calls of tools that a model wants in one step: checked, approved, carried out side by side, each a journaled step
of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from shared.clock import monotonic_s
from shared.semconv import tool_call as named
from shared.tracing import Span
from worker.context import JobContext, is_yes
from worker.model.calls import ToolCall
from worker.tools.base import ArgumentsError, Tool, ToolContext, ToolResult, call_tool, check_arguments

AT_A_TIME: Final = 8
MOST_CALLS: Final = 64  # of one step
SHOWN_CHARACTERS: Final = 4_000  # of a result in events and in the job's result
TIMES_ALIKE: Final = 2  # a call that failed may be made once more


class Observation(msgspec.Struct, frozen=True):
    """What came of one call. `repeated`: it was not made, since it had been made before. `ms` is the tool's time."""

    call: ToolCall
    arguments: dict[str, Any] | None
    text: str
    is_error: bool = False
    repeated: bool = False
    ms: int = 0


class _Made(msgspec.Struct, frozen=True):
    """A result as it is journaled; or what a person told of a call that nobody knows the end of."""

    text: str = ""
    is_error: bool = False
    ms: int = 0
    told: str | None = None
    answer: Any = None


class _Time:
    """One time that a call was made."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.failed = False


def _key(name: str, arguments: Any) -> bytes:
    return msgspec.json.encode([name, arguments], order="deterministic")


class Actor:
    """Carries out the calls of one agent run."""

    def __init__(self, context: JobContext, tools: Sequence[Tool], approve: Sequence[str], bound: ToolContext) -> None:
        """`approve` names the tools (`server__*` for all of a server) whose calls a person must approve."""
        self._context = context
        self._tools = {tool.name: tool for tool in tools}
        self._approve = approve
        self._bound = bound
        self._slots = asyncio.Semaphore(AT_A_TIME)
        self._made: dict[bytes, list[_Time]] = {}  # call → the times that it was made

    async def act(self, step: int, calls: Sequence[ToolCall], ends_s: float) -> list[Observation]:
        """What came of the calls of one step, in their order; no tool runs beyond `ends_s` (monotonic).

        Those that need no approval are made first. Raises NeedsInput for the first that does and has none yet, and
        LeaseLostError.
        """
        found: list[Observation | None] = [None] * len(calls)
        ready: list[tuple[int, ToolCall, Tool, dict[str, Any]]] = []
        waiting: list[tuple[int, ToolCall, Tool, dict[str, Any]]] = []
        for place, call in enumerate(calls):
            checked: Observation | tuple[Tool, dict[str, Any]]
            if place >= MOST_CALLS:
                checked = Observation(call, None, f"Only {MOST_CALLS} calls are made in one step.", is_error=True)
            else:
                checked = self._check(step, call)
            if isinstance(checked, Observation):
                found[place] = checked
                self._tell(step, checked)
                continue
            tool, arguments = checked
            (waiting if self._needs_approval(tool) else ready).append((place, call, tool, arguments))
        outcomes = await asyncio.gather(
            *(self._carry_out(f"step/{step}", *entry, ends_s) for entry in ready), return_exceptions=True
        )
        for (place, *_), outcome in zip(ready, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            found[place] = outcome
        for entry in waiting:
            found[entry[0]] = await self._when_approved(step, *entry, ends_s)
        return [observation for observation in found if observation is not None]

    def _needs_approval(self, tool: Tool) -> bool:
        server = tool.name.partition("__")[0]
        return tool.name in self._approve or f"{server}__*" in self._approve

    def _check(self, step: int, call: ToolCall) -> tuple[Tool, dict[str, Any]] | Observation:
        """The tool and its arguments, or why the call is not made."""
        tool = self._tools.get(call.name)
        if tool is None:
            there = ", ".join(self._tools) or "none"
            return self._wrong(step, call, f"There is no tool {call.name[:64]!r}. The tools are: {there}.")
        try:
            arguments = check_arguments(tool, call.arguments)
        except ArgumentsError as error:
            return self._wrong(step, call, str(error))
        same = self._made.setdefault(_key(call.name, arguments), [])
        # What must not happen twice may have happened although it failed, for example when it took too long.
        may_repeat = same and same[-1].failed and len(same) < TIMES_ALIKE and tool.replay != "never"
        if same and not may_repeat:
            return Observation(
                call,
                arguments,
                f"You made this very call in step {same[-1].step} already; its result stands there. Use it, or do "
                "something else.",
                repeated=True,
            )
        same.append(_Time(step))  # at once: of two alike in one step the second finds the first
        return tool, arguments

    def _wrong(self, step: int, call: ToolCall, text: str) -> Observation:
        """A call that cannot be made; a model that repeats it to the letter goes in circles."""
        times = self._made.setdefault(_key(call.name, ["as written", call.arguments]), [])
        times.append(_Time(step))
        return Observation(call, None, text, is_error=True, repeated=len(times) > 1)

    async def _carry_out(
        self, label: str, place: int, call: ToolCall, tool: Tool, arguments: dict[str, Any], ends_s: float
    ) -> Observation:
        """One call, journaled."""
        step = int(label.rpartition("/")[2])
        context = self._context
        written = msgspec.json.encode(arguments, order="deterministic")

        async def make(key: str) -> bytes:
            began_s = monotonic_s()
            bounded = msgspec.structs.replace(tool, timeout_s=max(0.1, min(tool.timeout_s, ends_s - began_s)))
            bound = msgspec.structs.replace(self._bound, idempotency_key=key)
            name, attributes = named(tool.name)
            with Span(name, "internal", attributes) as span:
                result: ToolResult = await call_tool(bounded, arguments, bound)
                if result.is_error:
                    span.fail("tool_failed")
            ms = round((monotonic_s() - began_s) * 1000)
            return msgspec.json.encode(_Made(result.text, result.is_error, ms))

        context.report.event("tool.call", step=step, callId=call.id, tool=call.name, arguments=arguments)
        async with self._slots:
            journaled, reused = await context.act(
                f"{label}/{call.name}.{place + 1}",
                msgspec.json.encode([call.name, call.id]) + written,
                make,
                once=tool.replay == "never",
                what=f"the tool {call.name} was called with {written.decode()[:500]}",
            )
        made = msgspec.json.decode(journaled, type=_Made)
        text = made.text if made.told is None else f"{made.told} {_said(made.answer)}".strip()
        self._made[_key(call.name, arguments)][-1].failed = made.is_error
        observation = Observation(call, arguments, text, made.is_error, ms=made.ms)
        self._tell(step, observation, reused=reused)
        return observation

    async def _when_approved(
        self, step: int, place: int, call: ToolCall, tool: Tool, arguments: dict[str, Any], ends_s: float
    ) -> Observation:
        """A call that a person must approve: made, made with other arguments, or declined."""
        # In full, however long: what is approved must be seen.
        written = msgspec.json.encode(arguments, order="deterministic").decode()
        answer = await self._context.ask_person(
            f"approve/{step}.{place + 1}",
            f"The agent wants to call {call.name} with {written}. Approve? Answer true or false, or "
            '{"approve": true or false, "reason": "…", "arguments": {…}} to tell it why, or to change the arguments.',
        )
        given = answer if isinstance(answer, dict) else {"approve": is_yes(answer), "reason": _said(answer)}
        if not is_yes(given.get("approve")):
            reason = str(given.get("reason") or "").strip()
            text = "A person declined this call." + (f" They say: {reason}" if reason else "")
            observation = Observation(call, arguments, text, is_error=True)
            self._tell(step, observation)
            return observation
        if isinstance(changed := given.get("arguments"), dict):
            try:
                arguments = check_arguments(tool, msgspec.json.encode(changed).decode())
            except ArgumentsError as error:
                observation = Observation(call, changed, f"A person changed the arguments: {error}", is_error=True)
                self._tell(step, observation)
                return observation
            self._made.setdefault(_key(call.name, arguments), []).append(_Time(step))
        return await self._carry_out(f"step/{step}", place, call, tool, arguments, ends_s)

    def _tell(self, step: int, observation: Observation, *, reused: bool = False) -> None:
        self._context.report.event(
            "tool.result",
            step=step,
            callId=observation.call.id,
            tool=observation.call.name,
            text=observation.text[:SHOWN_CHARACTERS],
            isError=observation.is_error,
            ms=observation.ms,
            reused=reused,
        )


def _said(answer: Any) -> str:
    """A person's answer that is more than yes or no."""
    return answer.strip() if isinstance(answer, str) and answer.strip().casefold() not in ("no", "false") else ""
