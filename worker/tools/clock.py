"""`current_time`: the time of day, which no model knows by itself."""

from __future__ import annotations

import difflib
import zoneinfo
from datetime import UTC, datetime
from functools import cache
from typing import Any

from worker.tools.base import Tool, ToolContext, ToolError


@cache
def _zones() -> dict[str, str]:
    """All zones by their name in small letters."""
    return {name.lower(): name for name in zoneinfo.available_timezones()}


def describe(now: datetime, zone: str) -> str:
    """`now` (aware) in an IANA zone, e.g. `Saturday, 2026-01-31T10:30:00+01:00 (Europe/Zurich)`. Raises ToolError."""
    name = _zones().get(zone.strip().lower())
    if name is None:
        similar = difflib.get_close_matches(zone.lower(), _zones(), n=3) or [
            key for key in _zones() if key.endswith("/" + zone.strip().lower().replace(" ", "_"))
        ]
        hint = f" Perhaps {' or '.join(_zones()[key] for key in similar)}?" if similar else ""
        raise ToolError(f"There is no time zone {zone[:64]!r}; give an IANA name such as Europe/Zurich or UTC.{hint}")
    local = now.astimezone(zoneinfo.ZoneInfo(name))
    # Not %A, which speaks the language of the machine.
    day = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()[local.weekday()]
    return f"{day}, {local.isoformat(timespec='seconds')} ({name})"


async def _run(arguments: dict[str, Any], _: ToolContext) -> str:
    return describe(datetime.now(UTC), arguments.get("timezone", "UTC"))


CURRENT_TIME = Tool(
    name="current_time",
    description="The current date and time with the weekday, in UTC or in a given time zone.",
    parameters={
        "type": "object",
        "properties": {
            "timezone": {"type": "string", "description": "IANA name, e.g. Europe/Zurich; UTC when left out."}
        },
        "additionalProperties": False,
    },
    run=_run,
    timeout_s=5.0,
    output_characters=500,
)
