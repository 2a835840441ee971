"""The body of a delivery: `{"type", "timestamp", "data"}`, as Standard Webhooks recommends it.

It is made from what was noted with the event, so that each request for it has the same body, whatever became of the
job.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from shared.clock import rfc3339
from shared.jobs import (
    CancellationView,
    JobErrorView,
    JobRow,
    Links,
    Output,
    PromptView,
    UsageView,
    WaitingView,
    view_of,
)
from shared.webhooks import TEST_EVENT


class WebhookJob(Output, frozen=True, kw_only=True):
    """The job as it was at the event; `seq` is the event's number in the job's log, by which receivers put events in
    order. `result` is there when it has at most 8,192 bytes; else `resultOmitted` is true, and `links.self` has it.
    `warning` is what a `job.warning` says."""

    job_id: str
    seq: int
    type: str
    status: str
    priority: str
    user: str | None
    metadata: dict[str, str]
    model: str
    prompt: PromptView | None
    attempt: int
    max_attempts: int
    created_at: str
    queued_at: str | None
    started_at: str | None
    finished_at: str | None
    usage: UsageView
    result: msgspec.Raw | UnsetType = UNSET
    result_omitted: bool | UnsetType = UNSET
    error: JobErrorView | UnsetType = UNSET
    waiting: WaitingView | UnsetType = UNSET
    cancellation: CancellationView | UnsetType = UNSET
    warning: dict[str, Any] | UnsetType = UNSET
    links: Links


class WebhookPayload(Output, frozen=True):
    """What a job's webhook gets. `timestamp` is the event's; that of the request is in its header."""

    type: str
    timestamp: str
    data: WebhookJob


class WebhookTest(Output, frozen=True):
    """What `POST /api/webhooks/test` sends besides type and timestamp."""

    message: str


class WebhookTestPayload(Output, frozen=True):
    """What `POST /api/webhooks/test` sends."""

    type: str
    timestamp: str
    data: WebhookTest


def payload(event: str, at_ms: int, row: str, seq: int, result_bytes: int, data: str) -> bytes:
    """The body of a delivery, from what its record holds; see `shared.webhooks.Due`."""
    if event == TEST_EVENT:
        test = WebhookTest(message="This is a test. The signature is made as for a job's events.")
        return msgspec.json.encode(WebhookTestPayload(event, rfc3339(at_ms), test))
    fields = msgspec.json.decode(row, type=dict[str, str])
    view = view_of(JobRow({name: value.encode() for name, value in fields.items()}))
    job = WebhookJob(
        seq=seq,
        result_omitted=True if result_bytes and view.status == "complete" and view.result is UNSET else UNSET,
        warning=msgspec.json.decode(data) if data else UNSET,
        **{name: getattr(view, name) for name in _SAME},
    )
    return msgspec.json.encode(WebhookPayload(event, rfc3339(at_ms), job))


_SAME = [
    field.name for field in msgspec.structs.fields(WebhookJob) if field.name not in ("seq", "result_omitted", "warning")
]
