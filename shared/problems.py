"""The problem codes of the HTTP contract, each once: status, title, whether a retry may help, explanation."""

from __future__ import annotations

from typing import Final, NamedTuple


class ProblemKind(NamedTuple):
    """One problem code. `explanation` is what `/problems/{code}` shows."""

    status: int
    title: str
    retryable: bool
    explanation: str


PROBLEMS: Final[dict[str, ProblemKind]] = {
    "malformed_request": ProblemKind(
        400,
        "The request cannot be read",
        False,
        "The body is not JSON, a header or a query parameter has not its form, or the connection ended early. "
        "Correct the request; repeating it as it is will not help.",
    ),
    "unauthenticated": ProblemKind(
        401,
        "No valid key",
        False,
        "Send `Authorization: Bearer ek_…` with a key that exists, has not expired and was not revoked.",
    ),
    "budget_exhausted": ProblemKind(
        402,
        "A budget is spent",
        False,
        "A hard limit of the tenant, key or user is reached. The answer says which and when it frees.",
    ),
    "scope_missing": ProblemKind(
        403,
        "The key may not do this",
        False,
        "The key is valid but lacks the scope that this call needs. Use a key with that scope.",
    ),
    "not_found": ProblemKind(
        404,
        "Not found",
        False,
        "There is no such resource, or it belongs to another tenant.",
    ),
    "method_not_allowed": ProblemKind(
        405,
        "Method not allowed",
        False,
        "The path exists; the `Allow` header lists the methods that it takes.",
    ),
    "not_acceptable": ProblemKind(
        406, "Not acceptable", False, "The `Accept` header names no form that this resource has."
    ),
    "request_timeout": ProblemKind(
        408, "The request took too long to arrive", True, "The body did not arrive in time. Send it again."
    ),
    "conflict": ProblemKind(
        409,
        "The resource is not in a state for this",
        False,
        "For example a retry of a job that is still running, or that is complete. Read the resource, then decide.",
    ),
    "gone": ProblemKind(410, "Gone", False, "The resource existed; its time of retention is over and it was removed."),
    "precondition_failed": ProblemKind(
        412, "The precondition failed", False, "The resource has changed since the version in `If-Match`."
    ),
    "too_large": ProblemKind(
        413,
        "The body is too large",
        False,
        "The body is over the limit that the detail names. Send less, or upload.",
    ),
    "unsupported_media_type": ProblemKind(
        415,
        "Unsupported media type",
        False,
        "Send `Content-Type: application/json`, or multipart for uploads.",
    ),
    "range_not_satisfiable": ProblemKind(
        416, "The range cannot be served", False, "The `Range` header asks for bytes that do not exist."
    ),
    "invalid_request": ProblemKind(
        422,
        "The request is not valid",
        False,
        "The body is JSON but not what this call takes. `errors` names each JSON path and what is wrong there.",
    ),
    "idempotency_mismatch": ProblemKind(
        422,
        "The idempotency key was used for another body",
        False,
        "Within 24 hours an `Idempotency-Key` stands for one body. Use a new key for a new request.",
    ),
    "rate_limited": ProblemKind(
        429,
        "Too many requests",
        True,
        "A rate limit is reached, or what is left of a budget is reserved for calls under way. Wait for `Retry-After` "
        "seconds; nothing was spent.",
    ),
    "queue_full": ProblemKind(
        429,
        "The tenant's queue is full",
        True,
        "The tenant has `maxQueuedJobs` jobs waiting. Wait for some to start, or ask for a higher limit.",
    ),
    "cancelled": ProblemKind(
        409,
        "It was cancelled",
        False,
        "Somebody cancelled the job before it was complete.",
    ),
    "upstream_unavailable": ProblemKind(
        502,
        "The model is out of reach",
        True,
        "The model could not be reached, answered with an error of its own, or broke off its answer. Try again later.",
    ),
    "upstream_refused": ProblemKind(
        502,
        "The model refused the request",
        False,
        "The model refused this very request, for example for its length or its content; the detail has its reason.",
    ),
    "upstream_rate_limited": ProblemKind(
        503, "The model is at its limit", True, "The model answered 429, also after several attempts. Try again later."
    ),
    "timeout": ProblemKind(
        504, "The answer took too long", False, "The attempt reached its time-out. What came until then was sent."
    ),
    "worker_lost": ProblemKind(
        503,
        "The answer was lost",
        True,
        "The worker that made the answer was lost. Text that was sent cannot be taken back, so it is not begun anew.",
    ),
    "internal": ProblemKind(
        500,
        "Internal error",
        True,
        "A defect of ours. The server's log has the details under the request id.",
    ),
    "unavailable": ProblemKind(
        503,
        "Unavailable for the moment",
        True,
        "Redis, the blob store or the workers cannot be reached. Repeat after `Retry-After` seconds, with the same "
        "`Idempotency-Key`.",
    ),
}
