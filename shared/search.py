"""Search: what a client asks, what it gets, and what the log keeps of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared.filters import filter_problem
from shared.jobs import Output, UsageView
from shared.rules import VISIBLE, Rule, exactly_one_of, like, needs
from shared.specs import PromptRef, ShortText, Wire

DEFAULT_TOP_K: Final = 10
MAX_TOP_K: Final = 50
SEARCH_ID: Final = "srch"  # prefix of the ids of searches
MAX_COLLECTIONS: Final = 20
MAX_CANDIDATES: Final = 50  # that the log keeps of one search
DEFAULT_COLLECTION: Final = "default"  # of documents that name none

Share = Annotated[float, Meta(ge=0, le=1)]
Query = Annotated[str, Meta(min_length=1, max_length=4_000)]


class Mode(StrEnum):
    """By what chunks are found: meaning (`vector`), words (`keyword`), or both."""

    HYBRID = "hybrid"
    VECTOR = "vector"
    KEYWORD = "keyword"


class SearchRequest(Wire, frozen=True, kw_only=True):
    """A search. `collection` is one, several, or absent for all; `minScore` without a value is the calibrated default.
    `filter` is on the documents' metadata (shared.filters). `rerank` overrides the installation's setting, `version`
    asks an index version that is not the current one (of a single collection). `log: false` is for evaluations."""

    RULES: ClassVar[list[Rule]] = [needs("version", "collection"), like("q", VISIBLE)]

    q: Query
    min_score: Share | None = None
    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K)] = DEFAULT_TOP_K
    collection: ShortText | Annotated[list[ShortText], Meta(min_length=1, max_length=MAX_COLLECTIONS)] | None = None
    mode: Mode = Mode.HYBRID
    answer: bool = True
    filter: dict[str, Any] | None = None
    rerank: bool | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    log: bool = True
    user: ShortText | None = None
    model: ShortText | None = None
    prompt: PromptRef | None = None

    def __post_init__(self) -> None:
        if not self.q.strip():
            raise ValueError("`q` holds nothing but white space")
        if self.version is not None and len(self.collections or ()) != 1:
            raise ValueError("`version` needs `collection`: the one whose index version it is")
        if self.filter is not None and (wrong := filter_problem(self.filter)) is not None:
            raise ValueError(f"`filter` is refused: {wrong}")

    @property
    def collections(self) -> list[str] | None:
        """The named collections, each once; None for all."""
        if self.collection is None:
            return None
        named = [self.collection] if isinstance(self.collection, str) else self.collection
        return list(dict.fromkeys(named))


class Scores(Output, frozen=True):
    """What `score` was made of: the cosine (-1..1), how much of the query's words stands in the chunk (0..1), and the
    re-ranker's relevance (0..1). Null where it was not looked at."""

    vector: float | None
    keyword: float | None
    rerank: float | UnsetType = UNSET


class Source(Output, frozen=True, kw_only=True):
    """A chunk that was found. `start` and `end` (exclusive) are code points of the document's text."""

    rank: int
    document_id: str
    chunk_id: str
    collection: str
    title: str | None
    text: str
    score: float
    scores: Scores
    start: int
    end: int
    page: int | UnsetType = UNSET
    metadata: dict[str, str]


class SearchCitation(Output, frozen=True, kw_only=True):
    """A proven quote of the answer: `source` is the rank of the source, `start` and `end` (exclusive) code points of
    its document's text, where `quote` stands letter by letter."""

    source: int
    document_id: str
    start: int
    end: int
    quote: str
    page: int | UnsetType = UNSET


class SearchAnswer(Output, frozen=True, kw_only=True):
    """The model's answer. `[n]` in the text names the source of rank n."""

    text: str
    citations: list[SearchCitation]


class SearchResult(Output, frozen=True, kw_only=True):
    """Answer of a search."""

    search_id: str
    job_id: str | UnsetType = UNSET
    query: str
    answer: SearchAnswer | None
    sources: list[Source]
    min_score: float
    mode: Mode
    reranked: bool = False
    usage: UsageView | UnsetType = UNSET
    took_ms: float
    warnings: list[str] = msgspec.field(default_factory=list)


class IndexUsed(Output, frozen=True, kw_only=True):
    """The index that a search looked through."""

    collection: str
    version: int
    model: str
    dimensions: int
    engine: str
    chunks: int


class Candidate(Output, frozen=True, kw_only=True):
    """A chunk that was considered. `kept`, or the `reason` why not: `belowMinScore`, `beyondTopK`, `gone` (deleted
    while it was searched). What was erased since has nothing but its place."""

    rank: int
    document_id: str | None
    chunk_id: str | None
    title: str | None
    score: float
    scores: Scores
    start: int
    end: int
    page: int | UnsetType = UNSET
    kept: bool
    reason: str | UnsetType = UNSET
    erased: bool | UnsetType = UNSET


class Timings(Output, frozen=True, kw_only=True):
    """Milliseconds: until a worker took it, the query's vector, the scan, the texts, the re-ranker, the answer, all."""

    queue_ms: float
    embed_ms: float
    retrieve_ms: float
    texts_ms: float
    rerank_ms: float
    answer_ms: float
    took_ms: float


class Quotes(Output, frozen=True):
    """Quotes of the answer that stand in the named source, and that do not and were dropped."""

    proven: int
    dropped: int


class SearchRecord(Output, frozen=True, kw_only=True):
    """One search as the log keeps it. `settingsHash` is the same for searches with the same settings and versions."""

    search_id: str
    job_id: str
    at: str
    query: str
    user: str | None
    collections: list[str] | None
    mode: Mode
    top_k: int
    min_score: float
    filter: dict[str, Any] | None
    rerank: str | None
    indexes: list[IndexUsed]
    settings_hash: str
    candidates: list[Candidate]
    kept: int
    best_score: float | None
    answer: SearchAnswer | None
    quotes: Quotes
    prompt: str | None
    model: str | None
    usage: UsageView
    timings: Timings
    error: str | UnsetType = UNSET


class ChunkFeedback(Output, frozen=True, kw_only=True):
    """How often a chunk was called relevant for the query, and how often not."""

    chunk_id: str
    relevant: int
    not_relevant: int


class Feedback(Output, frozen=True, kw_only=True):
    """What was said of a search."""

    helpful: int = 0
    not_helpful: int = 0
    chunks: list[ChunkFeedback] = msgspec.field(default_factory=list)


class NewSearchFeedback(Wire, frozen=True, kw_only=True):
    """Either `chunkId` and `relevant`, of a chunk that the search considered, or `helpful`, of the whole. `user` is who
    says it: what they say later of the same takes the place of what they said; without it each one counts."""

    RULES: ClassVar[list[Rule]] = [
        exactly_one_of("chunkId", "helpful"), needs("chunkId", "relevant"), needs("relevant", "chunkId"),
    ]  # fmt: skip

    chunk_id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    relevant: bool | None = None
    helpful: bool | None = None
    user: ShortText | None = None

    def __post_init__(self) -> None:
        of_chunk = self.chunk_id is not None and self.relevant is not None and self.helpful is None
        of_search = self.helpful is not None and self.chunk_id is None and self.relevant is None
        if not of_chunk and not of_search:
            raise ValueError("give either `chunkId` and `relevant`, or `helpful`")


class LoggedSearch(SearchRecord, frozen=True, kw_only=True):
    """A line of the log, with its feedback."""

    feedback: Feedback
