"""A job as it is stored and as it is shown. The stored form is the Redis hash that the Lua scripts write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from shared.clock import rfc3339


class JobStatus(StrEnum):
    """The states of a job; `docs/lifecycle.md` draws the ways between them."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    PROCESSING = "processing"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


# Jobs whose result is too large for the record: it is read at `/api/jobs/{id}/output`.
OUTPUT_TYPES: Final = frozenset({"batch-embedding"})

FINAL: Final = frozenset({JobStatus.COMPLETE, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED})

# The record's fields, in the order in which `view.lua` and `list.lua` return them. `spec` and `result` are large;
# the list leaves `result` out.
VIEW_FIELDS: Final = (
    "id", "tenant", "type", "status", "priority", "user", "metadata", "model", "lane",
    "seq", "run", "attempt", "max_attempts", "created_ms", "queued_ms", "started_ms", "finished_ms", "expires_ms",
    "due_ms", "progress", "tok_in", "tok_out", "tok_embed", "tok_reused", "tok_wasted", "cost_nano", "estimated",
    "error", "waiting", "wait_reason", "wait_for", "cancel_ms", "cancelled_ms", "cancel_tokens", "upstream_closed_ms",
    "timeout_ms", "grace_ms", "pins", "prompt", "fb_count", "fb_milli", "hook", "result",
)  # fmt: skip


class Output(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of everything that goes out: camelCase; an UNSET member is left out."""


class ExperimentArm(Output, frozen=True):
    """The experiment that chose the version, and its arm, counted from 0."""

    id: str
    arm: int


class PromptView(Output, frozen=True):
    """The prompt version that a job is pinned to; `label` is null where it was asked for by its number."""

    name: str
    version: int
    label: str | None
    experiment: ExperimentArm | UnsetType = UNSET


class Progress(Output, frozen=True):
    """How far a job is. `fraction` is 0..1, or null where it cannot be known."""

    fraction: float | None
    stage: str
    message: str


class Eta(Output, frozen=True):
    """When the job will probably start, in seconds from now."""

    p50_seconds: float
    p90_seconds: float


class QueueView(Output, frozen=True):
    """Where a waiting job stands. `position` counts from 1 within the tenant's queue of that lane."""

    position: int | None
    ahead_tokens: int | None
    eta: Eta | None
    waiting_on: str


class UsageView(Output, frozen=True):
    """Tokens over all attempts. `costUsd` is null where no price is known; `reusedTokens` were not paid again."""

    input_tokens: int = 0
    output_tokens: int = 0
    embedding_tokens: int = 0
    total_tokens: int = 0
    reused_tokens: int = 0
    wasted_tokens: int = 0
    cost_usd: float | None = None
    estimated: bool = False


class LimitDetail(Output, frozen=True, kw_only=True):
    """Which limit it is: `limit` and what is `used`, `reserved` and `remaining` of it, in its unit (`tokens`, `usd`,
    `requests` or `jobs`); `period` of a budget (`minute` of a rate, null of jobs that wait); `freesAt` is when it has
    room again by itself, null when that is not known, or only a change of the limit gives any."""

    scope: str
    id: str
    unit: str
    period: str | None
    limit: int | float
    used: int | float
    reserved: int | float
    remaining: int | float
    frees_at: str | None


class JobErrorView(Output, frozen=True):
    """Why a job failed; `limit` where one ended it."""

    code: str
    message: str
    retryable: bool
    step: str | UnsetType = UNSET
    limit: LimitDetail | UnsetType = UNSET


class WaitingView(Output, frozen=True):
    """What a job in `waiting` waits for: `input`, `budget` or `backoff`; `limit` of a budget."""

    kind: str
    request_id: str | UnsetType = UNSET
    question: str | UnsetType = UNSET
    limit: LimitDetail | UnsetType = UNSET


class CancellationView(Output, frozen=True):
    """The receipt of a cancellation. Token counts are the job's total at the request and after the end."""

    requested_at: str
    finished_at: str | None
    usage_at_request: int
    usage_final: int | None
    upstream_closed_ms: int | None


class FeedbackView(Output, frozen=True):
    """What was said of the result: how often, and the mean score (-1 to 1)."""

    count: int
    score: float


class WebhookView(Output, frozen=True):
    """Where a job's events are sent to, and which."""

    url: str
    events: list[str]


class Links(Output, frozen=True, kw_only=True):
    """Paths of the job's resources on the same host; `output` for types that have one."""

    self_: str = msgspec.field(name="self")
    stream: str
    events: str
    output: str | UnsetType = UNSET


class JobView(Output, frozen=True, kw_only=True):
    """A job as the API shows it."""

    job_id: str
    type: str
    status: str
    priority: str
    user: str | None
    metadata: dict[str, str]
    model: str
    prompt: PromptView | None
    progress: Progress | None
    queue: QueueView | None
    attempt: int
    max_attempts: int
    created_at: str
    queued_at: str | None
    started_at: str | None
    finished_at: str | None
    expires_at: str | None
    usage: UsageView
    result: msgspec.Raw | UnsetType = UNSET
    error: JobErrorView | UnsetType = UNSET
    waiting: WaitingView | UnsetType = UNSET
    cancellation: CancellationView | UnsetType = UNSET
    feedback: FeedbackView | UnsetType = UNSET
    webhook: WebhookView | UnsetType = UNSET
    links: Links


class Outlook(msgspec.Struct, frozen=True):
    """What a queued job may expect. `rank` counts from 0 in its tenant's queue of the lane; times in ms, None where
    nothing is known: no worker is alive there, or none has run a job yet."""

    rank: int
    ahead_tokens: int
    waiting_on: str
    p50_ms: int | None
    p90_ms: int | None

    @classmethod
    def from_reply(cls, parts: Sequence[str]) -> Outlook:
        """From the five values that scripts return, -1 for what is unknown."""
        rank, ahead, waiting_on, middle, high = parts
        known = int(middle) >= 0
        return cls(int(rank), int(ahead), waiting_on, int(middle) if known else None, int(high) if known else None)

    @property
    def view(self) -> QueueView:
        """As the API shows it."""
        eta = None
        if self.p50_ms is not None and self.p90_ms is not None:
            eta = Eta(p50_seconds=round(self.p50_ms / 1000, 1), p90_seconds=round(self.p90_ms / 1000, 1))
        return QueueView(position=self.rank + 1, ahead_tokens=self.ahead_tokens, eta=eta, waiting_on=self.waiting_on)


class JobRow(msgspec.Struct, frozen=True):
    """The stored fields of one job, as read: text by field name, absent fields left out (the scripts empty a field
    rather than delete it). `outlook` where it is queued; `now_ms` is Redis time when it was read."""

    fields: Mapping[str, bytes]
    outlook: Outlook | None = None
    now_ms: int = 0

    @classmethod
    def from_reply(cls, values: Sequence[bytes | None], names: Sequence[str] = VIEW_FIELDS) -> JobRow:
        """The row from a script's reply, which lists the values in the order of `names`."""
        return cls({name: value for name, value in zip(names, values, strict=True) if value})

    def text(self, name: str) -> str | None:
        """A field as text, or None where it was never written."""
        value = self.fields.get(name)
        return None if value is None else value.decode()

    def number(self, name: str) -> int:
        """A field as an integer, 0 where it was never written."""
        value = self.fields.get(name)
        return int(value) if value else 0

    def moment(self, name: str) -> str | None:
        """A millisecond field as RFC 3339, or None where it was never written."""
        value = self.fields.get(name)
        return rfc3339(int(value)) if value else None

    def raw(self, name: str) -> bytes | None:
        """A field as the bytes that were stored."""
        return self.fields.get(name)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.fields["id"].decode()

    @property
    def tenant(self) -> str:
        """The id of the tenant that the job belongs to."""
        return self.fields["tenant"].decode()

    @property
    def status(self) -> JobStatus:
        """The job's state."""
        return JobStatus(self.fields["status"].decode())

    @property
    def is_final(self) -> bool:
        """Whether this run of the job has ended."""
        return self.status in FINAL


def links_of(job_id: str, kind: str) -> Links:
    """The paths of the resources of a job of type `kind`."""
    base = f"/api/jobs/{job_id}"
    output = f"{base}/output" if kind in OUTPUT_TYPES else UNSET
    return Links(self_=base, stream=f"{base}/stream", events=f"{base}/events", output=output)


def usage_of(row: JobRow) -> UsageView:
    """A job's usage. `totalTokens` is input + output + embedding over all attempts, wasted ones included."""
    tok_in, tok_out, tok_embed = row.number("tok_in"), row.number("tok_out"), row.number("tok_embed")
    cost = row.raw("cost_nano")
    return UsageView(
        input_tokens=tok_in,
        output_tokens=tok_out,
        embedding_tokens=tok_embed,
        total_tokens=tok_in + tok_out + tok_embed,
        reused_tokens=row.number("tok_reused"),
        wasted_tokens=row.number("tok_wasted"),
        cost_usd=int(cost) / 1e9 if cost else None,
        estimated=row.number("estimated") > 0,
    )


def view_of(row: JobRow) -> JobView:
    """The view of a stored job."""
    status = row.status
    usage = usage_of(row)
    progress = row.raw("progress")
    error = row.raw("error")
    return JobView(
        job_id=row.job_id,
        type=row.text("type") or "",
        status=status,
        priority=row.text("priority") or "normal",
        user=row.text("user"),
        metadata=msgspec.json.decode(row.raw("metadata") or b"{}", type=dict[str, str]),
        model=row.text("model") or "",
        prompt=prompt_of(row.raw("pins"), row.raw("prompt")),
        progress=msgspec.json.decode(progress, type=Progress) if progress else None,
        queue=queue_of(row),
        attempt=row.number("attempt"),
        max_attempts=row.number("max_attempts"),
        created_at=row.moment("created_ms") or "",
        queued_at=row.moment("queued_ms"),
        started_at=row.moment("started_ms"),
        finished_at=row.moment("finished_ms"),
        expires_at=row.moment("expires_ms"),
        usage=usage,
        result=msgspec.Raw(row.fields["result"]) if status is JobStatus.COMPLETE and "result" in row.fields else UNSET,
        error=msgspec.json.decode(error, type=JobErrorView) if error else UNSET,
        waiting=waiting_of(row) if status is JobStatus.WAITING else UNSET,
        cancellation=cancellation_of(row, usage) if "cancel_ms" in row.fields else UNSET,
        feedback=feedback_of(row.number("fb_count"), row.number("fb_milli")) if "fb_count" in row.fields else UNSET,
        webhook=webhook_of(row.text("hook")),
        links=links_of(row.job_id, row.text("type") or ""),
    )


def webhook_of(field: str | None) -> WebhookView | UnsetType:
    """A job's webhook, from the record's field (`hook_field`)."""
    if not field:
        return UNSET
    events, _, _, url = field.split(" ", 3)
    return WebhookView(url=url, events=events.strip(",").split(","))


def hook_field(url: str, events: Sequence[str], mark: str, keep_ms: int) -> str:
    """What a job's record holds of its webhook, as lib/hooks.lua reads it: `,event,event, <mark of the URL's origin>
    <how long a delivery is kept, ms> <url>`."""
    return f",{','.join(dict.fromkeys(events))}, {mark} {keep_ms} {url}"


class _Pin(msgspec.Struct, rename="camel"):
    """What the view shows of a pin; see shared.prompts.Pin."""

    name: str
    version: int
    label: str | None = None
    experiment: str | None = None
    arm: int | None = None


def prompt_of(pins: bytes | None, spelled: bytes | None) -> PromptView | None:
    """The main prompt of a job, from its record: its pins, and `name@version` where there is a main one."""
    if not pins or not spelled:
        return None
    main = msgspec.json.decode(pins, type=list[_Pin])[0]
    arm: ExperimentArm | UnsetType = UNSET
    if main.experiment is not None and main.arm is not None:
        arm = ExperimentArm(id=main.experiment, arm=main.arm)
    return PromptView(name=main.name, version=main.version, label=main.label, experiment=arm)


def feedback_of(count: int, total_milli: int) -> FeedbackView:
    """The feedback of a job, from the sum of its scores in thousandths."""
    return FeedbackView(count=count, score=round(total_milli / 1000 / count, 3))


def waiting_of(row: JobRow) -> WaitingView:
    """What a waiting job waits for."""
    asked = row.raw("waiting")
    return (
        msgspec.json.decode(asked, type=WaitingView)
        if asked
        else WaitingView(kind=row.text("wait_reason") or "backoff")
    )


def queue_of(row: JobRow) -> QueueView | None:
    """Where a job stands that has not started, or waits to start again; null for all others."""
    if row.status is JobStatus.QUEUED:
        if row.outlook is not None:
            return row.outlook.view
        if row.text("wait_reason") != "rateLimit":
            return QueueView(position=None, ahead_tokens=None, eta=None, waiting_on="worker")
    if row.status in (JobStatus.SCHEDULED, JobStatus.WAITING, JobStatus.QUEUED) and row.text("wait_reason") != "input":
        eta = None
        if row.now_ms and (due_ms := row.number("due_ms")):
            # It is ready then; what stands before it at that time nobody knows.
            left_s = round(max(0, due_ms - row.now_ms) / 1000, 1)
            eta = Eta(p50_seconds=left_s, p90_seconds=left_s)
        reason = row.text("wait_reason")
        waiting_on = reason if reason in ("rateLimit", "budget") else "schedule"
        if row.status is JobStatus.QUEUED and row.text("wait_for") == "worker":
            waiting_on = "worker"  # one of a newer release
        return QueueView(position=None, ahead_tokens=None, eta=eta, waiting_on=waiting_on)
    return None


def retry_after_s(row: JobRow) -> int | None:
    """In how many whole seconds (1 to 60) a client should ask again for a job that is not final."""
    if row.is_final:
        return None
    queue = queue_of(row)
    wait_s = queue.eta.p50_seconds if queue is not None and queue.eta is not None else 1.0
    return max(1, min(60, round(wait_s)))


def cancellation_of(row: JobRow, usage: UsageView) -> CancellationView:
    """The receipt of a job whose cancellation was asked for."""
    ended = row.raw("cancelled_ms")
    closed = row.raw("upstream_closed_ms")
    return CancellationView(
        requested_at=row.moment("cancel_ms") or "",
        finished_at=row.moment("cancelled_ms"),
        usage_at_request=row.number("cancel_tokens"),
        usage_final=usage.total_tokens if ended else None,
        upstream_closed_ms=int(closed) if closed else None,
    )


def as_json(value: Any) -> bytes:
    """Any Struct or plain value as UTF-8 JSON."""
    return msgspec.json.encode(value)
