"""Time as text and numbers. What is stored is Redis TIME in milliseconds; what is measured is monotonic."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")


def rfc3339(at_ms: int) -> str:
    """`at_ms` (Unix milliseconds) as RFC 3339 UTC with milliseconds, e.g. `2026-01-31T09:30:00.123Z`."""
    seconds, millis = divmod(at_ms, 1000)
    return f"{_second(seconds)}.{millis:03d}Z"


@lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    # Times that are shown lie close together: most are in a second that was written before.
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def to_ms(moment: datetime) -> int:
    """An aware datetime as Unix milliseconds. Raises ValueError when it has no time zone."""
    if moment.tzinfo is None:
        raise ValueError("the time needs a zone, for example a trailing Z")
    return round(moment.timestamp() * 1000)


# As `parse_rfc3339` takes them.
DAY: Final = "(19[7-9][0-9]|2[01][0-9]{2}|2200)-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME: Final = r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
MOMENT: Final = f"^{DAY}{_TIME}$"


def parse_rfc3339(text: str) -> int:
    """RFC 3339 text as Unix milliseconds. Raises ValueError when it is no such time or has no zone."""
    if not _DATE.match(text):  # `fromisoformat` alone takes weeks, too
        raise ValueError("the time must begin as in 2026-01-31T09:30:00Z")
    moment = datetime.fromisoformat(text)
    if not 1970 <= moment.year <= 2200:
        raise ValueError("the year must be from 1970 to 2200")
    return to_ms(moment)


def monotonic_s() -> float:
    """Seconds on the clock that measures and never jumps."""
    return time.monotonic()


def wall_ms() -> int:
    """This host's clock, Unix milliseconds: to compare with Redis's, never to store."""
    return time.time_ns() // 1_000_000
