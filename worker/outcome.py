"""What an attempt comes to: a pure decision from how it ended."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from shared.errors import BudgetExhausted, InternalError, JobError, NeedsInput, OverLimit, UnreadableError
from shared.settings import Settings
from worker.model.discipline import backoff_s

RATE_LIMITED: Final = "rate_limited"
UNREADABLE_S: Final = 2.0  # until a job of a newer release is offered again; without it a worker alone would spin
Ending = Literal["done", "cancelled", "shutdown"]


class Complete(msgspec.Struct, frozen=True):
    """The task returned its result."""


class Failed(msgspec.Struct, frozen=True):
    """Final: the error is not of a kind that may pass, or the attempts are used up."""

    error: dict[str, Any]


class RetryAfter(msgspec.Struct, frozen=True):
    """Another attempt after `delay_s`."""

    error: dict[str, Any]
    delay_s: float


class WaitForInput(msgspec.Struct, frozen=True):
    """The job waits for a person; `waiting` is what is asked."""

    waiting: dict[str, str]


class WaitForLimit(msgspec.Struct, frozen=True):
    """The job waits for a rate or a budget (`kind`); `error` is what it comes to where it may not wait."""

    kind: str
    waiting: dict[str, Any]
    error: dict[str, Any]
    delay_s: float | None
    due_ms: int | None
    revision: str | None
    is_held: bool


class Cancelled(msgspec.Struct, frozen=True):
    """A client asked for the end."""


class HandedBack(msgspec.Struct, frozen=True):
    """This worker is stopping: another goes on with the same attempt."""


class LeftToNewer(msgspec.Struct, frozen=True):
    """This release cannot read the job: the same attempt is offered again after `delay_s`, to whichever worker asks
    then. `error` is what it comes to where it may not wait."""

    error: dict[str, Any]
    delay_s: float


Outcome = Complete | Failed | RetryAfter | WaitForInput | WaitForLimit | Cancelled | HandedBack | LeftToNewer


def describe(error: JobError) -> dict[str, Any]:
    """A job error as it is stored and shown."""
    shown: dict[str, Any] = {"code": error.code, "message": error.message, "retryable": error.retryable}
    if error.step is not None:
        shown["step"] = error.step
    if error.limit is not None:
        shown["limit"] = msgspec.to_builtins(error.limit)
    return shown


def judge(
    ending: Ending,
    error: JobError | NeedsInput | OverLimit | UnreadableError | None,
    *,
    attempt: int,
    max_attempts: int,
    settings: Settings,
    chance: float,
) -> Outcome:
    """The outcome. `ending` says who stopped the task; `error` is what it raised, None when it returned a result;
    `chance` (0..1) is the jitter."""
    if ending == "cancelled":
        return Cancelled()
    if ending == "shutdown":
        return HandedBack()
    if error is None:
        return Complete()
    if isinstance(error, UnreadableError):
        return LeftToNewer(describe(InternalError(str(error))), UNREADABLE_S)
    if isinstance(error, NeedsInput):
        return WaitForInput({"kind": "input", "requestId": error.request_id, "question": error.question})
    if isinstance(error, OverLimit):
        return _at_limit(error)
    if not error.retryable or attempt >= max_attempts:
        return Failed(describe(error))
    return RetryAfter(describe(error), backoff_s(error, attempt, settings, chance))


def _at_limit(error: OverLimit) -> WaitForLimit:
    """What would pass by itself, in `delay_s`, and has cost nothing, is no spent budget for whoever cannot wait: it may
    be tried again."""
    detail = msgspec.to_builtins(error.detail)
    failed: dict[str, Any] = {
        "code": BudgetExhausted.code, "message": error.sentence, "retryable": False, "limit": detail
    }  # fmt: skip
    if error.delay_s is not None and (error.kind == "rate" or error.is_held):
        failed |= {"code": RATE_LIMITED, "retryable": True, "retryAfterMs": round(error.delay_s * 1000)}
    waiting = {"kind": "budget", "limit": detail}
    return WaitForLimit(error.kind, waiting, failed, error.delay_s, error.due_ms, error.revision, error.is_held)
