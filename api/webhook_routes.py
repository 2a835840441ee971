"""The part of the URL table that is about webhooks, and what their receivers get."""

from __future__ import annotations

from typing import Any, Final

from api.handlers import webhooks
from api.route import IDEMPOTENCY, LIST, Page, Route, id_of
from api.route import in_query as _q
from shared.events import EVENT_TYPES
from shared.specs import WebhookEvent
from shared.tenants import Scope
from shared.webhook_payload import WebhookPayload, WebhookTestPayload
from shared.webhooks import (
    TEST_EVENT,
    DeliveryDetail,
    DeliveryStatus,
    DeliveryView,
    NewTest,
    Replay,
    Replayed,
    SecretRotation,
    SecretView,
)

BODY: Final = ("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "request_timeout")

# `replay` before `{id}`, which would take it for one.
WEBHOOK_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET", "/api/webhooks/deliveries", webhooks.list_deliveries, "List deliveries to webhooks, newest first",
        Scope.JOBS, {200: ("One page.", Page(DeliveryView))},
        parameters=(
            *LIST, _q("status", "what became of them", DeliveryStatus), _q("jobId", "those of one job", id_of("job")),
        ),
        problems=("invalid_request",),
    ),
    Route(
        "POST", "/api/webhooks/deliveries/replay", webhooks.replay_deliveries,
        "Send deliveries again, the oldest first, at most 500 a call", Scope.JOBS,
        {202: ("They are due now, with the schedule from its start.", Replayed)}, body=Replay,
        parameters=(IDEMPOTENCY,), problems=(*BODY, "idempotency_mismatch"),
    ),
    Route(
        "GET", "/api/webhooks/deliveries/{id}", webhooks.show_delivery, "Read a delivery, its requests and their body",
        Scope.JOBS, {200: ("The delivery.", DeliveryDetail)}, problems=("not_found",),
    ),
    Route(
        "POST", "/api/webhooks/deliveries/{id}/replay", webhooks.replay_delivery,
        "Send a delivery again, whatever became of it", Scope.JOBS,
        {202: ("It is due now, with the schedule from its start, and has the id that it had.", DeliveryDetail)},
        parameters=(IDEMPOTENCY,), problems=("not_found", "idempotency_mismatch"),
    ),
    Route(
        "GET", "/api/webhooks/secret", webhooks.show_secret, "Read the secret that signs what webhooks get",
        Scope.JOBS, {200: ("The secret, made now if there was none.", SecretView)},
    ),
    Route(
        "POST", "/api/webhooks/secret/rotate", webhooks.rotate_secret,
        "Make a new secret; the one so far signs too for a while", Scope.JOBS,
        {200: ("The new secret.", SecretView)}, body=SecretRotation, may_lack_body=True, parameters=(IDEMPOTENCY,),
        problems=(*BODY, "idempotency_mismatch"),
    ),
    Route(
        "POST", "/api/webhooks/test", webhooks.test, "Send a signed test now, once, and say what came back",
        Scope.JOBS, {200: ("What came of it: `status` is delivered, failed or gone.", DeliveryDetail)}, body=NewTest,
        parameters=(IDEMPOTENCY,), problems=(*BODY, "idempotency_mismatch"),
    ),
)  # fmt: skip

HEADERS: Final = {
    "webhook-id": "the delivery's id, the same in each of its requests: drop what you have seen",
    "webhook-timestamp": "Unix seconds of the request",
    "webhook-signature": "`v1,<base64>`, one for each secret that lives, with blanks between: HMAC-SHA256 over "
    "`<webhook-id>.<webhook-timestamp>.<body>`",
}


def events() -> dict[str, tuple[str, Any]]:
    """What receivers get: sentence and body by event, for the OpenAPI document."""
    known: tuple[str, ...] = WebhookEvent.__args__  # type: ignore[attr-defined]  # of a Literal
    found: dict[str, tuple[str, Any]] = {name: (EVENT_TYPES[name], WebhookPayload) for name in known}
    return found | {TEST_EVENT: ("A test, sent by `POST /api/webhooks/test`.", WebhookTestPayload)}
