"""The catalogue of a job's events, and the two forms they have in Redis.

In the log (a stream, id `<seq>-0`) an event is three fields: `t` type, `a` time in ms, `d` its members as a JSON
object. Live, it is one pub/sub message: `<seq> <ms> <type> <json object>`. Both become the same wire object.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shared.clock import rfc3339

EVENT_TYPES: Final[dict[str, str]] = {
    "job.queued": "The job waits for a worker: at admission, when its time has come, after a hand-back or a retry.",
    "job.queue": "While it waits: `position`, `aheadTokens`, `eta`, `waitingOn`, when they changed much.",
    "job.started": "An attempt began. `attempt` counts from 1; `worker` is the worker's id.",
    "job.progress": "`fraction` 0..1 or null, `stage`, `message`.",
    "job.step": "`step` is its place, `state` is started, finished or failed; `reused`: it came from the journal.",
    "delta": "`text` that the model has just made.",
    "search.sources": "What a search found: `searchId`, `query`, `sources`, `minScore`, `mode`, `warnings`.",
    "search.answer": "How it was answered: `searchId`, `answer` (null where there is none), `usage`, `tookMs`.",
    "tool.call": "The agent calls a tool.",
    "tool.result": "What the tool answered.",
    "job.usage": "The job's usage so far, after a model call was booked.",
    "job.warning": "`code` and `message` of something that a person should see and that does not stop the job.",
    "job.waiting": "The job waits: `kind` is input, budget or backoff; with `resumeAt` where that is known.",
    "attempt.restarted": "Text events with a number above `discardAfter` and below this one are void.",
    "job.complete": "Final. The job view has the result.",
    "job.failed": "Final. `error` has `code`, `message`, `retryable`.",
    "job.cancelled": "Final. The job view has the receipt.",
    "job.expired": "Final. The job did not start within `expiresInSeconds`.",
}

FINAL_TYPES: Final = frozenset({"job.complete", "job.failed", "job.cancelled", "job.expired"})


class Event(msgspec.Struct, frozen=True):
    """One event. `data` is a JSON object's bytes; `at_ms` is Redis time."""

    seq: int
    at_ms: int
    type: str
    data: bytes

    @property
    def is_final(self) -> bool:
        """Whether this event ends a run of the job."""
        return self.type in FINAL_TYPES

    def to_json(self) -> bytes:
        """The wire object `{"seq", "type", "at", …members}`."""
        members = one_line(self.data)[1:-1]
        head = f'{{"seq":{self.seq},"type":"{self.type}","at":"{rfc3339(self.at_ms)}"'.encode()
        return head + b"," + members + b"}" if members else head + b"}"


def one_line(data: bytes) -> bytes:
    """JSON in which no character is left that some clients take for the end of a line: they split event streams at
    U+0085, U+2028 and U+2029 too."""
    if b"\xe2\x80" in data or b"\xc2\x85" in data:
        for code, escaped in ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029")):
            data = data.replace(code, escaped)
    return data


def from_log(entry_id: bytes, fields: list[bytes]) -> Event:
    """An event from its stream entry, whose fields are names and values in turn, as Redis lists them."""
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    return Event(int(entry_id.partition(b"-")[0]), int(values[b"a"]), values[b"t"].decode(), values[b"d"])


def from_message(message: bytes) -> Event:
    """An event from its pub/sub message."""
    seq, at_ms, kind, data = message.split(b" ", 3)
    return Event(int(seq), int(at_ms), kind.decode(), data)


class NewEvent(msgspec.Struct, frozen=True):
    """An event that a worker is about to append; number and time are given by the script."""

    type: str
    data: dict[str, Any]
