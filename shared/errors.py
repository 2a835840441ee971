"""The error tree.

ErrandError
├── ConfigurationError       a setting, or the Redis we were given, is wrong: the start stops
├── RefusedError             the API refuses a request; becomes an RFC 9457 problem
├── NeedsInput               the attempt waits for a person's answer; it ends, and goes on with the answer
├── OverLimit                the attempt waits for a budget or a rate; it ends, and goes on when there is room
├── LeaseLostError           a worker's lease is no longer its own: it must stop and write nothing
└── JobError                 an attempt ended badly; code, text and whether a retry may help
    ├── UpstreamUnavailable  upstream_unavailable  the model could not be reached, or cut its answer
    │   └── CircuitOpen      upstream_unavailable  … or is not asked, having failed too often in a row
    ├── UpstreamRateLimited  upstream_rate_limited the model said 429
    ├── UpstreamRefused      upstream_refused      the model refused this request for good
    │   └── ContextTooLong   upstream_refused      … because it is longer than the model can read
    ├── BadOutput            bad_output            the model's answer has not the asked form
    ├── InvalidInput         invalid_input         the job asks for what cannot be done
    ├── DocumentRejected     document_rejected     the document cannot be read
    ├── ToolFailed           tool_failed           the server of a tool that the job needs could not be reached
    ├── BudgetExhausted      budget_exhausted      the job's token budget is spent
    ├── JobTimeout           timeout               the attempt took longer than timeoutSeconds
    ├── WorkerLost           worker_lost           three workers died with this job
    └── InternalError        internal              a defect of ours
        └── BlobsUnavailableError                  the blob store cannot be reached; the API answers 503
"""

from __future__ import annotations

from typing import Any, ClassVar

MAX_ERROR_TEXT = 1_000  # characters of an error message that are stored


class ErrandError(Exception):
    """The root of all errors that Errand raises on purpose."""


class ConfigurationError(ErrandError):
    """A setting or the given Redis is wrong; the message names it and says what mends it."""


class RefusedError(ErrandError):
    """The request is refused. `code` is one of `shared.problems`; `errors` name JSON paths; `members` are further
    members of the problem object."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: tuple[tuple[str, str], ...] = (),
        headers: dict[str, str] | None = None,
        members: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}
        self.members = members or {}


class LeaseLostError(ErrandError):
    """Another worker owns the job now, or it is final; nothing more may be written for it."""


class UnreadableError(ErrandError):
    """The stored job is of a form that this release does not know: a newer one wrote it, and a newer worker runs it."""


class NeedsInput(ErrandError):  # noqa: N818 - not an error of the job: it waits for a person
    """The attempt cannot go on without a person's answer to `question`; `request_id` names it."""

    def __init__(self, request_id: str, question: str) -> None:
        super().__init__(question)
        self.request_id = request_id
        self.question = question


class OverLimit(ErrandError):  # noqa: N818 - likewise: it goes on when there is room
    """The attempt cannot go on for a limit: `kind` is `budget` (at a hard limit, or behind what others have reserved)
    or `rate`; it is looked at again in `delay_s`, or else at `due_ms` (None: when the limit is changed). `sentence`
    says it to people, `detail` in JSON; `revision` is that of the limits. `is_held`: what is left is only reserved."""

    def __init__(
        self,
        kind: str,
        sentence: str,
        detail: Any,
        *,
        delay_s: float | None = None,
        due_ms: int | None = None,
        revision: str | None = None,
        is_held: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.is_held = is_held
        self.sentence = sentence
        self.detail = detail
        self.delay_s = delay_s
        self.due_ms = due_ms
        self.revision = revision


class JobError(ErrandError):
    """An attempt ended badly. `retryable` says whether trying again may help; `limit` is the one that it met, as
    `shared.jobs.LimitDetail`."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    limit: Any = None

    def __init__(self, message: str, *, retry_after_s: float | None = None, step: str | None = None) -> None:
        super().__init__(message)
        self.message = message[:MAX_ERROR_TEXT]
        self.retry_after_s = retry_after_s
        self.step = step


class UpstreamUnavailable(JobError):  # noqa: N818 - the codes of the contract are the names
    """The model could not be reached, answered 5xx, stalled, or cut its answer in the middle."""

    code = "upstream_unavailable"
    retryable = True

    def __init__(self, message: str, *, at_once: bool = False, status: int | None = None, **more: Any) -> None:
        """`at_once`: the connection was found dead, so that the first repeat need not wait. `status` is the HTTP status
        of the model's answer, None when there was none."""
        super().__init__(message, **more)
        self.at_once = at_once
        self.status = status


class CircuitOpen(UpstreamUnavailable):
    """The model has failed so often in a row that it is not asked for a while."""


class UpstreamRateLimited(JobError):  # noqa: N818
    """The model answered 429; `retry_after_s` is its own wish when it stated one."""

    code = "upstream_rate_limited"
    retryable = True


class UpstreamRefused(JobError):  # noqa: N818
    """The model refused this very request (400, 401, 403, 404, content filter); a repeat would be too."""

    code = "upstream_refused"

    def __init__(self, message: str, *, status: int | None = None, **more: Any) -> None:
        """`status` is the HTTP status of the model's answer, None when the answer itself was the refusal."""
        super().__init__(message, **more)
        self.status = status


class ContextTooLong(UpstreamRefused):
    """The request is longer than the model can read."""


class BadOutput(JobError):  # noqa: N818
    """The model's answer has not the asked form, also after it was told so."""

    code = "bad_output"
    retryable = True


class InvalidInput(JobError):  # noqa: N818
    """The job asks for something that cannot be done."""

    code = "invalid_input"


class DocumentRejected(JobError):  # noqa: N818
    """The document cannot be read: broken, encrypted, of an unknown type, or over a limit."""

    code = "document_rejected"


class ReaderFailed(DocumentRejected):
    """The reader of a document died or took too long: perhaps of the document, perhaps of the machine; tried again."""

    retryable = True


class ToolFailed(JobError):  # noqa: N818
    """The server of a tool that the job needs could not be started or reached."""

    code = "tool_failed"
    retryable = True


class BudgetExhausted(JobError):  # noqa: N818
    """The job's own `tokenBudget` is spent."""

    code = "budget_exhausted"


class JobTimeout(JobError):  # noqa: N818
    """The attempt took longer than `timeoutSeconds`. Final: a person may retry, we do not."""

    code = "timeout"


class WorkerLost(JobError):  # noqa: N818
    """Three workers died with this job; it is taken for poison."""

    code = "worker_lost"


class InternalError(JobError):
    """A defect of ours. The client sees this sentence only; the traceback is in the worker's log."""

    code = "internal"
    retryable = True


class BlobsUnavailableError(InternalError):
    """The blob store cannot be reached, refuses us, or has lost its bucket; tried again."""
