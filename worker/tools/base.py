"""What a tool is, how its arguments are checked, and how it is called: it never takes an agent down."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final, Literal

import jsonschema_rs
import msgspec

from shared.clock import monotonic_s
from shared.errors import ErrandError, JobError
from shared.log import get_logger
from shared.metrics import TOOL_SECONDS
from shared.redis import OUTAGE
from shared.schemas import compile_schema, violations
from shared.settings import Settings
from worker.documents.library import Library

log = get_logger()

MAX_ARGUMENTS: Final = 100_000  # characters of the model's JSON
MAX_LISTED: Final = 20  # parameters named in a message

# safe: may run again; keyed: takes an idempotency key; never: must not be repeated unasked.
Replay = Literal["safe", "keyed", "never"]


class ToolError(ErrandError):
    """A tool could not do what it was asked for; the message is for the model."""


class ArgumentsError(ErrandError):
    """The model's arguments do not fit the tool; the message tells it how to mend them."""


class ToolResult(msgspec.Struct, frozen=True):
    """What the model gets to see. `truncated` when a part was left out, which the text says too."""

    text: str
    is_error: bool = False
    truncated: bool = False


class ToolContext(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf a tool is called. `documents` are the ids that the job named, `collection` likewise; a tool with
    replay `keyed` hands `idempotency_key` on."""

    tenant: str
    library: Library
    settings: Settings
    documents: tuple[str, ...] = ()
    collection: str | None = None
    idempotency_key: str = ""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One tool. `name` has the form `^[A-Za-z0-9_-]{1,64}$`, `parameters` is the JSON Schema of an object.

    A call that takes longer than `timeout_s` fails; of a longer result `output_characters` are kept.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    run: Callable[[dict[str, Any], ToolContext], Awaitable[ToolResult | str]]
    replay: Replay = "safe"
    timeout_s: float = 30.0
    output_characters: int = 20_000


async def call_tool(tool: Tool, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
    """The result of one call with checked arguments; whatever goes wrong in the tool is a result that says so.

    Raises a member of OUTAGE when Redis is out of reach, which is no fault of the tool, and CancelledError.
    """
    started_s, error_type = monotonic_s(), "cancelled"
    try:
        async with asyncio.timeout(tool.timeout_s) as bound:
            made = await tool.run(arguments, context)
        error_type = ""
    except (ToolError, JobError) as error:
        error_type = "tool_error"
        return ToolResult(cut(str(error), tool.output_characters)[0], is_error=True)
    except OUTAGE:
        error_type = "unavailable"
        raise
    except Exception as error:
        error_type = "timeout" if isinstance(error, TimeoutError) and bound.expired() else "internal"
        if error_type == "timeout":
            return ToolResult(f"{tool.name} took longer than {tool.timeout_s:g} s and was stopped.", is_error=True)
        log.warning("tool.failed", tool=tool.name, exc_info=error)
        return ToolResult(f"{tool.name} failed for a reason of its own; it may work another time.", is_error=True)
    finally:
        TOOL_SECONDS.labels(tool.name, error_type).observe(monotonic_s() - started_s)
    result = ToolResult(made) if isinstance(made, str) else made
    text, truncated = cut(result.text, tool.output_characters)
    return ToolResult(text, is_error=result.is_error, truncated=truncated or result.truncated)


def check_arguments(tool: Tool, raw: str) -> dict[str, Any]:
    """The model's JSON as arguments of the tool; an empty text is no arguments. Raises ArgumentsError."""
    if len(raw) > MAX_ARGUMENTS:
        raise ArgumentsError(f"The arguments of {tool.name} are longer than {MAX_ARGUMENTS} characters.")
    try:
        value = msgspec.json.decode(raw) if raw.strip() else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ArgumentsError(f"The arguments of {tool.name} are no JSON: {error}. {_expected(tool)}") from None
    if not isinstance(value, dict):
        raise ArgumentsError(f"The arguments of {tool.name} must be a JSON object. {_expected(tool)}")
    if found := violations(_validator(msgspec.json.encode(tool.parameters)), value):
        raise ArgumentsError(f"The arguments of {tool.name} do not fit: {'; '.join(found)}. {_expected(tool)}")
    return value


@lru_cache(maxsize=512)
def _validator(schema: bytes) -> jsonschema_rs.Validator:
    return compile_schema(msgspec.json.decode(schema))


def _expected(tool: Tool) -> str:
    """The schema's essentials: names, types, and which are required."""
    properties = tool.parameters.get("properties") or {}
    required = tool.parameters.get("required") or []
    if not properties:
        return "It takes no arguments: {}."
    named = []
    for name, schema in list(properties.items())[:MAX_LISTED]:
        kind = schema.get("type") if isinstance(schema, dict) else None
        kinds = " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind or "any")
        named.append(f'"{name}": {kinds}' + (" (required)" if name in required else ""))
    if len(properties) > MAX_LISTED:
        named.append("…")
    return "Expected: {" + ", ".join(named) + "}."


def cut(text: str, limit: int) -> tuple[str, bool]:
    """`text` in at most about `limit` characters, cut at the end of a paragraph, line, sentence or word, with a note
    that says how much was left out; and whether it was cut."""
    if len(text) <= limit:
        return text, False
    kept = text[:limit]
    least = limit * 4 // 5
    for boundary in (r"\n\s*\n", r"\n", r"[.!?]\s", r"\s"):
        ends = [match.end() for match in re.finditer(boundary, kept[least:])]
        if ends:
            kept = kept[: least + ends[-1]]
            break
    return f"{kept.rstrip()}\n[{len(text) - len(kept):,} of {len(text):,} characters were left out here.]", True
