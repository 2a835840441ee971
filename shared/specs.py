"""What a client may submit: one tagged Struct per job type, decoded strictly (unknown fields are refused)."""

from __future__ import annotations

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared.rules import CONTENT, VISIBLE, Rule, exactly_one_of, given, like, not_both, some_of

MAX_WAIT_S: Final = 60  # the contract's bound of every `wait`
MAX_DELAY_S: Final = 366 * 86_400
MAX_YEAR: Final = 2200
MAX_METADATA_PAIRS: Final = 16
MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_INLINE_TEXTS: Final = 10_000

ShortText = Annotated[str, Meta(min_length=1, max_length=256)]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=MAX_METADATA_PAIRS)]


class Priority(StrEnum):
    """The class of a job inside its tenant's queue."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Lane(StrEnum):
    """Which workers take a job: `interactive` has somebody waiting for each token, `batch` has not."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Base of everything that comes in from outside: camelCase, no unknown members."""


class ChatMessage(Wire, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Meta(max_length=2_000_000)]


class ChatInput(Wire, frozen=True, kw_only=True):
    """Input of a `chat` job. `maxTokens` bounds the answer; `temperature` is handed on to the model. With a `prompt`
    the messages may be absent: its own come first."""

    messages: Annotated[list[ChatMessage], Meta(max_length=1_000)] = []
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None


class DocumentSource(Wire, frozen=True, kw_only=True):
    """The document to analyse: exactly one of `text`, `documentId` and `url`; `title` goes with `text` and `url`."""

    RULES: ClassVar[list[Rule]] = [exactly_one_of("text", "documentId", "url"), like("text", CONTENT)]

    text: Annotated[str, Meta(min_length=1)] | None = None
    title: ShortText | None = None
    document_id: str | None = None
    url: Annotated[str, Meta(min_length=1, max_length=4_096, pattern=r"^https?://")] | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.text, self.document_id, self.url)) != 1:
            raise ValueError("exactly one of `text`, `documentId` and `url` is needed")
        if self.text is not None and "\0" in self.text:
            raise ValueError("`text` holds a NUL character")
        if self.text is not None and not self.text.strip():
            raise ValueError("`text` holds nothing but white space")


class SummaryTask(Wire, frozen=True, tag="summary", tag_field="kind"):
    """A short summary of the whole document."""


class KeyPointsTask(Wire, frozen=True, tag="keyPoints", tag_field="kind"):
    """The document's main points, each with its citation."""


class QuestionsTask(Wire, frozen=True, tag="questions", tag_field="kind"):
    """Answers to given questions, from the document alone."""

    questions: Annotated[list[Annotated[str, Meta(min_length=1, max_length=2_000)]], Meta(min_length=1, max_length=50)]


class ExtractTask(Wire, frozen=True, tag="extract", tag_field="kind"):
    """Data that fits a JSON Schema (draft 2020-12 unless `$schema` says otherwise)."""

    schema: dict[str, Any]

    def __post_init__(self) -> None:
        if len(json.dumps(self.schema)) > MAX_SCHEMA_BYTES:
            raise ValueError(f"`schema` is larger than {MAX_SCHEMA_BYTES} bytes")


AnalysisTask = SummaryTask | KeyPointsTask | QuestionsTask | ExtractTask


class AnalysisInput(Wire, frozen=True, kw_only=True):
    """Input of a `document-analysis` job: one document, up to 20 tasks on it."""

    document: DocumentSource
    tasks: Annotated[list[AnalysisTask], Meta(min_length=1, max_length=20)]


ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(\*)?$")]


class AgentContext(Wire, frozen=True, kw_only=True):
    """What an agent may read: documents by id, or all of a collection. Without either, its tenant's documents."""

    documents: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=100)] | None = None
    collection: ShortText | None = None


class AgentInput(Wire, frozen=True, kw_only=True):
    """Input of an `agent` job: a goal, the tools that it may use (the built-in ones when none are named), at most
    `maxSteps` calls of the model, and the tools whose calls a person must approve first."""

    RULES: ClassVar[list[Rule]] = [like("goal", VISIBLE)]

    goal: Annotated[str, Meta(min_length=1, max_length=200_000)]
    tools: Annotated[list[ToolName], Meta(max_length=64)] | None = None
    max_steps: Annotated[int, Meta(ge=1, le=200)] = 20
    context: AgentContext | None = None
    approve: Annotated[list[ToolName], Meta(max_length=64)] = []

    def __post_init__(self) -> None:
        if not self.goal.strip():
            raise ValueError("`goal` holds nothing but white space")


class EmbeddingItem(Wire, frozen=True, kw_only=True):
    """A text to embed, with an id of the client's own that its line of the output repeats."""

    id: ShortText | None = None
    text: str


class EmbeddingOptions(Wire, frozen=True, kw_only=True):
    """The vectors that are wanted; without `dimensions` the model's own number."""

    model: ShortText | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    encoding: Literal["float", "base64"] = "float"


class EmbeddingInput(EmbeddingOptions, frozen=True, kw_only=True):
    """Input of a `batch-embedding` job: exactly one of `texts`, `items` and `documentId` (an NDJSON upload)."""

    RULES: ClassVar[list[Rule]] = [exactly_one_of("texts", "items", "documentId")]

    texts: Annotated[list[str], Meta(min_length=1, max_length=MAX_INLINE_TEXTS)] | None = None
    items: Annotated[list[EmbeddingItem], Meta(min_length=1, max_length=MAX_INLINE_TEXTS)] | None = None
    document_id: str | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.texts, self.items, self.document_id)) != 1:
            raise ValueError("exactly one of `texts`, `items` and `documentId` is needed")


class EmbeddingSource(EmbeddingOptions, frozen=True, kw_only=True):
    """The same as it is stored: the texts are a blob of NDJSON lines; `documentId` where it was uploaded."""

    blob: str
    document_id: str | None = None


class NewContent(Wire, frozen=True, kw_only=True):
    """What a document is to hold from now on; members that are null stay as they are. The file is a blob, or still to
    be fetched from `url`."""

    revision: int
    blob: str
    size_bytes: int | None = None
    sha256: str | None = None
    filename: str | None = None
    url: str | None = None
    title: str | None = None
    metadata: dict[str, str] | None = None


class IngestInput(Wire, frozen=True):
    """Input of an `ingest` job, which `POST /api/documents` makes, and `PUT /api/documents/{id}` with new `content`."""

    document_id: str
    content: NewContent | None = None


class ReindexInput(Wire, frozen=True, kw_only=True):
    """Input of a `reindex` job, which `POST /api/collections/{name}/reindex` makes: a further version of the index, as
    `spec` says (shared.collections.IndexSpec), or the one of number `version`, is completed and becomes the current."""

    collection: str
    spec: dict[str, Any] | None = None
    version: int | None = None


class SearchInput(Wire, frozen=True, kw_only=True):
    """Input of a `search` job, which `/api/search` makes: `request` is a shared.search.SearchRequest, with all defaults
    in place."""

    search_id: str
    request: dict[str, Any]
    min_score: float


class ErasureInput(Wire, frozen=True):
    """Input of a `tenant-erasure` job, which `DELETE /api/admin/tenants/{tenantId}` makes."""

    tenant_id: str


class PromptRef(Wire, frozen=True):
    """Which stored prompt a job uses, and the values of its variables."""

    RULES: ClassVar[list[Rule]] = [not_both("version", "label")]

    name: ShortText
    version: Annotated[int, Meta(ge=1)] | None = None
    label: ShortText | None = None
    variables: dict[str, Any] | None = None


WebhookUrl = Annotated[str, Meta(min_length=8, max_length=2_048, pattern=r"^https?://[^\s\x00-\x1f\x7f]+$")]
WebhookEvent = Literal[
    "job.complete", "job.failed", "job.cancelled", "job.expired", "job.started", "job.waiting", "job.warning"
]


class Webhook(Wire, frozen=True):
    """Where a job's events are sent to, signed (docs/webhooks.md); without `events` the final ones."""

    url: WebhookUrl
    events: Annotated[list[WebhookEvent], Meta(min_length=1, max_length=32)] | None = None


class Submission(Wire, frozen=True, kw_only=True):
    """What every job has, whatever its type. Times are RFC 3339 with a zone."""

    LANE: ClassVar[Lane] = Lane.BATCH
    PUBLIC: ClassVar[bool] = True
    RULES: ClassVar[list[Rule]] = [
        not_both("runAt", "delaySeconds"),
        like("runAt", f"^(1[0-9]{{3}}|2[01][0-9]{{2}}|{MAX_YEAR})-"),
    ]

    priority: Priority = Priority.NORMAL
    run_at: datetime | None = None
    delay_seconds: Annotated[float, Meta(ge=0, le=MAX_DELAY_S)] | None = None
    expires_in_seconds: Annotated[float, Meta(gt=0, le=MAX_DELAY_S)] = 86_400
    timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 600
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    token_budget: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    user: ShortText | None = None
    metadata: Metadata = {}
    model: ShortText | None = None
    prompt: PromptRef | None = None
    # Never stored in a spec: a release before webhooks refuses what it does not know. The record has a field for it.
    webhook: Webhook | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.run_at is not None and self.delay_seconds is not None:
            raise ValueError("`runAt` and `delaySeconds` exclude each other")
        if self.run_at is not None and self.run_at.tzinfo is None:
            raise ValueError("`runAt` needs a time zone, for example a trailing Z")
        if self.run_at is not None and self.run_at.year > MAX_YEAR:
            raise ValueError(f"`runAt` is after the year {MAX_YEAR}")


class ChatJob(Submission, frozen=True, tag="chat", tag_field="type", kw_only=True):
    """A model's answer to a conversation, streamed as it is made."""

    LANE: ClassVar[Lane] = Lane.INTERACTIVE
    RULES: ClassVar[list[Rule]] = [
        *Submission.RULES,
        {"anyOf": [given("prompt"), {"properties": {"input": some_of("messages")}}]},
    ]
    input: ChatInput


class AnalysisJob(Submission, frozen=True, tag="document-analysis", tag_field="type", kw_only=True):
    """Summary, key points, answers and data of a document, with verified citations."""

    input: AnalysisInput


class AgentJob(Submission, frozen=True, tag="agent", tag_field="type", kw_only=True):
    """A model that works towards a goal with tools, step by step."""

    input: AgentInput


class EmbeddingJob(Submission, frozen=True, tag="batch-embedding", tag_field="type", kw_only=True):
    """Vectors for up to millions of texts, as NDJSON."""

    input: EmbeddingInput

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.input.model is not None and self.model != self.input.model:
            raise ValueError("`model` and `input.model` differ")


class StoredEmbeddingJob(Submission, frozen=True, tag="batch-embedding", tag_field="type", kw_only=True):
    """A `batch-embedding` job as it is stored."""

    input: EmbeddingSource


class IngestJob(Submission, frozen=True, tag="ingest", tag_field="type", kw_only=True):
    """Extraction of an uploaded document. Made by `POST /api/documents` only."""

    PUBLIC: ClassVar[bool] = False
    input: IngestInput


class ReindexJob(Submission, frozen=True, tag="reindex", tag_field="type", kw_only=True):
    """A further version of a collection's index. Made by `POST /api/collections/{name}/reindex` only."""

    PUBLIC: ClassVar[bool] = False
    input: ReindexInput


class SearchJob(Submission, frozen=True, tag="search", tag_field="type", kw_only=True):
    """A search, and the answer from what was found. Made by `/api/search` only."""

    LANE: ClassVar[Lane] = Lane.INTERACTIVE
    PUBLIC: ClassVar[bool] = False
    input: SearchInput


class ErasureJob(Submission, frozen=True, tag="tenant-erasure", tag_field="type", kw_only=True):
    """Erasure of a tenant. Made by `DELETE /api/admin/tenants/{tenantId}` only."""

    PUBLIC: ClassVar[bool] = False
    input: ErasureInput


AnyJob = ChatJob | AnalysisJob | AgentJob | StoredEmbeddingJob | IngestJob | ReindexJob | SearchJob | ErasureJob
PublicJob = ChatJob | AnalysisJob | AgentJob | EmbeddingJob

JOB_TYPES: Final[dict[str, type[AnyJob]]] = {
    "chat": ChatJob,
    "document-analysis": AnalysisJob,
    "agent": AgentJob,
    "batch-embedding": StoredEmbeddingJob,
    "ingest": IngestJob,
    "reindex": ReindexJob,
    "search": SearchJob,
    "tenant-erasure": ErasureJob,
}


def type_of(job: Submission) -> str:
    """The wire name of a submission's type, e.g. `document-analysis`."""
    return str(job.__struct_config__.tag)
