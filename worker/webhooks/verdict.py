"""What a request to a webhook came to, and what follows: pure."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from shared.webhooks import AttemptError

# Seconds from one failed request to the next: the schedule that Standard Webhooks 1.0.0 gives as its example. The first
# request is made at once.
SCHEDULE_S: Final = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER: Final = 0.1  # of a delay, to both sides
LONGEST_S: Final = 86_400.0  # that a receiver may put us off for
LONGEST_PAUSE_S: Final = 3_600.0  # … with all that goes to it
THROTTLED_S: Final = 5.0  # after a 429 that states no time


class Sent(msgspec.Struct, frozen=True):
    """What came of a request. `status` is None where no answer came; `retry_after_s` is the receiver's wish."""

    status: int | None
    error: AttemptError | None
    ms: int
    retry_after_s: float | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What follows. `outcome`: delivered, retry, failed or gone; `pause_s`: for so long nothing is sent there."""

    outcome: str
    delay_s: float | None = None
    pause_s: float | None = None


def judge(sent: Sent, tries: int, *, once: bool, chance: float) -> Verdict:
    """What follows on request number `tries` (from 1) of a round; `once`: there is no second. `chance`, 0 to 1, is the
    jitter's."""
    if sent.error is None:
        return Verdict("delivered")
    if sent.status == 410:
        return Verdict("gone")
    pause_s = None
    if sent.status in (429, 503) and (sent.retry_after_s is not None or sent.status == 429):
        pause_s = min(LONGEST_PAUSE_S, THROTTLED_S if sent.retry_after_s is None else sent.retry_after_s)
    # A name that leads inside is refused for good: an operator may open it, and a person may send it again.
    if once or tries > len(SCHEDULE_S) or sent.error is AttemptError.ADDRESS_REFUSED:
        return Verdict("failed", pause_s=pause_s)
    delay_s = SCHEDULE_S[tries - 1] * (1 - JITTER + 2 * JITTER * chance)
    wish_s = min(LONGEST_S, sent.retry_after_s or 0.0)
    return Verdict("retry", max(delay_s, wish_s), pause_s)


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """A `Retry-After` in seconds from `now_s`; None where there is none, or it cannot be read."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError):
        return None
