"""Webhooks: deliveries as they are stored, as couriers get them, and as the API shows them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared.addresses import OpenHosts, Target, parse_url, target_of
from shared.clock import rfc3339
from shared.events import FINAL_TYPES
from shared.jobs import Output
from shared.specs import WebhookUrl, Wire

DEFAULT_EVENTS: Final = tuple(sorted(FINAL_TYPES))
TEST_EVENT: Final = "webhook.test"
MAX_OVERLAP_S: Final = 30 * 86_400
REPLAY_LIMIT: Final = 500  # deliveries that one call sends again


class DeliveryStatus(StrEnum):
    """`gone`: the endpoint answered 410 to this delivery, or to one of the same URL after the job was made."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    GONE = "gone"


class AttemptError(StrEnum):
    """Why a request was no success. Texts of errors name addresses: they are neither stored nor shown."""

    STATUS = "status"  # an answer other than 2xx
    REDIRECT = "redirect"  # never followed
    TIMEOUT = "timeout"
    DNS = "dns"
    TLS = "tls"
    CONNECTION = "connection"
    ADDRESS_REFUSED = "address_refused"  # the name leads to an address that is not public
    EXPIRED = "expired"  # it could not be sent within five days


class Due(msgspec.Struct, frozen=True, array_like=True):
    """A delivery that a courier now holds, in the order in which `hook_claim.lua` lists it; `lease` is its fencing
    token. `row` is the job's record at the event, JSON of texts by field; "" and 0 stand for what there is not."""

    delivery_id: str
    tenant: str
    mark: str
    lease: int
    tries: int  # requests of this round of the schedule, without this one
    url: str
    event: str
    at_ms: int
    job_id: str
    seq: int
    row: str
    result_bytes: int
    data: str
    once: bool
    secret: str
    old_secret: str


class Ended(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a delivery, as `hook_done.lua` takes it. `outcome`: delivered, retry, failed, gone or handback."""

    id: str
    tenant: str
    mark: str
    lease: int
    outcome: str
    attempt: str | None = None
    delay_ms: int | None = None
    pause_ms: int | None = None


class Attempt(msgspec.Struct, frozen=True):
    """A request as it is stored: `at` in ms, `status` None without an answer, `error` None for a success."""

    at: int
    status: int | None
    error: str | None
    ms: int


class AttemptView(Output, frozen=True):
    """A request. `statusCode` is null where no answer came, `error` is null for a success, `durationMs` goes to the
    head of the answer. Of the answer nothing else is kept."""

    at: str
    status_code: int | None
    error: AttemptError | None
    duration_ms: int


class DeliveryView(Output, frozen=True, kw_only=True):
    """A delivery. Its id is the `webhook-id` of each of its requests. `event` is a job's event, or `webhook.test`;
    `jobId` and `seq` (the event's number) are null for the latter. `attempts` counts all requests, `replays` how often
    it was sent again by hand."""

    delivery_id: str
    status: DeliveryStatus
    event: str
    job_id: str | None
    seq: int | None
    url: str
    created_at: str
    next_attempt_at: str | None
    finished_at: str | None
    attempts: int
    replays: int
    last_attempt: AttemptView | None


class DeliveryDetail(DeliveryView, frozen=True, kw_only=True):
    """A delivery with its newest requests, the oldest first, and the body that each of them had."""

    history: list[AttemptView]
    payload: msgspec.Raw


class NewTest(Wire, frozen=True):
    """Body of `POST /api/webhooks/test`."""

    url: WebhookUrl


# The years that are taken (shared.clock.parse_rfc3339), where the document can say it.
Moment = Annotated[
    str, Meta(extra_json_schema={"format": "date-time", "pattern": "^(19[7-9][0-9]|2[01][0-9]{2}|2200)-"})
]


class Replay(Wire, frozen=True):
    """Body of `POST /api/webhooks/deliveries/replay`: which are sent again. `since` and `until` (RFC 3339) bound the
    time of the event, `until` not included; `after` is `next` of the call before, which it goes on from."""

    status: Literal["failed", "gone", "delivered"] = "failed"
    since: Moment | None = None
    until: Moment | None = None
    after: str | None = None


class Replayed(Output, frozen=True):
    """How many deliveries are sent again, and where the next call goes on, when more fit."""

    replayed: int
    has_more: bool
    next: str | None


class SecretRotation(Wire, frozen=True):
    """Body of `POST /api/webhooks/secret/rotate`, which may be absent: for how long the secret so far signs beside the
    new one."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=MAX_OVERLAP_S)] = 86_400


class SecretView(Output, frozen=True):
    """What receivers verify with; `previousExpiresAt` while deliveries are also signed with the secret before it."""

    secret: str
    created_at: str
    previous_expires_at: str | UnsetType = UNSET


# What lists read of a record, in this order; one delivery is read whole.
LIST_FIELDS: Final = (
    "id", "status", "type", "job", "seq", "url", "at_ms", "due_ms", "ended_ms", "made", "replays", "attempts",
)  # fmt: skip


def aim(url: str, opened: OpenHosts) -> Target:
    """Where a webhook leads, as far as its URL tells. Raises FetchRefusedError."""
    return target_of(parse_url(url), opened)


def mark_of(target: Target) -> str:
    """Names an origin: deliveries of a tenant to one origin share a queue and a bound."""
    origin = f"{target.url.scheme}://{target.host}:{target.port}"
    return hashlib.sha256(origin.encode()).hexdigest()[:16]


def host_of(url: str) -> str:
    """What logs say of a URL: paths and queries may hold secrets."""
    try:
        return parse_url(url).host or ""
    except Exception:
        return ""


def attempts_of(lines: str) -> list[AttemptView]:
    """The requests of a record, the oldest first."""
    found = [msgspec.json.decode(line, type=Attempt) for line in lines.splitlines() if line]
    return [
        AttemptView(
            at=rfc3339(one.at),
            status_code=one.status,
            error=AttemptError(one.error) if one.error else None,
            duration_ms=one.ms,
        )
        for one in found
    ]


def members_of(row: Mapping[str, str]) -> dict[str, Any]:
    """The members of a delivery's view, from its record."""
    history = attempts_of(row.get("attempts", ""))
    status = DeliveryStatus(row["status"])
    return {
        "delivery_id": row["id"],
        "status": status,
        "event": row["type"],
        "job_id": row.get("job") or None,
        "seq": int(row["seq"]) if row.get("seq") else None,
        "url": row["url"],
        "created_at": rfc3339(int(row["at_ms"])),
        "next_attempt_at": rfc3339(int(row["due_ms"])) if status is DeliveryStatus.PENDING else None,
        "finished_at": rfc3339(int(row["ended_ms"])) if row.get("ended_ms") else None,
        "attempts": int(row["made"]),
        "replays": int(row.get("replays") or 0),
        "last_attempt": history[-1] if history else None,
    }
