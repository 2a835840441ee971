"""Documents: what a client sends, how a document is shown, and its extracted text."""

from __future__ import annotations

import unicodedata
from enum import StrEnum
from typing import Annotated, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared.jobs import Output
from shared.rules import CONTENT, Rule, exactly_one_of, like
from shared.specs import Metadata, ShortText, Wire


class DocumentStatus(StrEnum):
    """`pending` until its ingest job has read it."""

    PENDING = "pending"
    READY = "ready"
    REJECTED = "rejected"


class DocumentSource(Wire, frozen=True, kw_only=True):
    """Exactly one of `text` and `url`, which is fetched by the guarded fetcher."""

    RULES: ClassVar[list[Rule]] = [exactly_one_of("text", "url"), like("text", CONTENT)]

    text: Annotated[str, Meta(min_length=1)] | None = None
    url: Annotated[str, Meta(min_length=1, max_length=4_096, pattern=r"^https?://")] | None = None
    title: ShortText | None = None
    metadata: Metadata | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.url is None):
            raise ValueError("exactly one of `text` and `url` is needed")
        if self.text is not None and ("\0" in self.text or not self.text.strip()):
            raise ValueError("`text` holds a NUL character, or nothing but white space")


class NewTextDocument(DocumentSource, frozen=True, kw_only=True):
    """Body of `POST /api/documents` as JSON. `index: false`: its text is kept, and not searched."""

    collection: ShortText | None = None
    index: bool = True


class DocumentPatch(Wire, frozen=True, kw_only=True):
    """Body of `PATCH /api/documents/{id}`: what is absent stays; `metadata` replaces all of it."""

    title: ShortText | None = None
    metadata: Metadata | None = None


class DocumentView(Output, frozen=True, kw_only=True):
    """A stored document. `characters` and `pages` are null until it is ready; `chunks` counts those in search; `items`
    the lines of a batch file. `revision` counts its contents; size and hash are null until a `url` was fetched."""

    document_id: str
    job_id: str | None
    title: str | None
    filename: str | None
    collection: str | None
    metadata: dict[str, str]
    media_type: str | None
    url: str | UnsetType = UNSET
    size_bytes: int | None
    sha256: str | None
    revision: int
    status: DocumentStatus
    characters: int | None
    pages: int | None
    chunks: int
    items: int | UnsetType = UNSET
    skipped: msgspec.Raw | UnsetType = UNSET
    error: str | UnsetType = UNSET
    created_at: str


class DocumentAccepted(Output, frozen=True):
    """Answer to `POST /api/documents`."""

    document_id: str
    job_id: str


class Skipped(Output, frozen=True):
    """A part of the document without readable text. `start` and `end` are code points of the text."""

    reason: str
    start: int
    end: int
    page: int | UnsetType = UNSET


class Extracted(msgspec.Struct, frozen=True, rename="camel"):
    """A document's text, normalised once. All offsets everywhere are code points of `text`, end exclusive.

    `pages` holds the start of each page; empty where the format has none.
    """

    media_type: str
    text: str
    pages: list[int]
    skipped: list[Skipped]
    title: str | None = None


def normalise(text: str) -> str:
    """The text into which all offsets point: NFC, line ends as `\\n`, no NUL, no lone surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    text = text.encode("utf-8", "replace").decode("utf-8")
    return unicodedata.normalize("NFC", text)


def page_of(pages: list[int], offset: int) -> int | None:
    """The page (from 1) on which `offset` lies; None where the document has no pages."""
    if not pages:
        return None
    low, high = 0, len(pages)
    while low < high:
        middle = (low + high) // 2
        if pages[middle] <= offset:
            low = middle + 1
        else:
            high = middle
    return max(low, 1)
