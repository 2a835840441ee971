"""`search_documents` and `read_document`: what an agent may read are the documents of its job, else its tenant's."""

from __future__ import annotations

from typing import Any, Final

from shared.documents import page_of
from worker.documents.passages import Found, Hit, Passages
from worker.tools.base import Tool, ToolContext, ToolError

MAX_PASSAGES: Final = 20
READ_CHARACTERS: Final = 8_000  # unless asked otherwise
MAX_READ_CHARACTERS: Final = 20_000


def search_documents(passages: Passages) -> Tool:
    """The tool over this worker's documents."""

    async def run(arguments: dict[str, Any], context: ToolContext) -> str:
        found = await passages.search(
            context.tenant,
            arguments["query"],
            documents=context.documents,
            collection=context.collection,
            limit=arguments.get("limit", 5),
        )
        return describe(found, arguments["query"])

    return Tool(
        name="search_documents",
        description=(
            "Finds the passages of the available documents in which words of the query stand, best first. "
            "Use the words that the text would use; read_document gives what stands around a passage."
        ),
        parameters={
            "type": "object",
            "properties": {
                "query": {"type": "string", "minLength": 1, "maxLength": 2_000, "description": "Words to look for."},
                "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PASSAGES, "description": "5 when left out."},
            },
            "required": ["query"],
            "additionalProperties": False,
        },
        run=run,
        timeout_s=60.0,
        output_characters=30_000,
    )


def describe(found: Found, query: str) -> str:
    """What the model is told: numbered passages, each with its place, and what was not looked through."""
    notes = "".join(f"\n(Not searched: {reason})" for reason in found.left_out[:10])
    if not found.searched:
        return f"There are no documents to search.{notes}"
    if not found.hits:
        return f"Nothing was found for {query[:200]!r} in {found.searched} documents; try other words.{notes}"
    return "\n\n".join(f"[{n}] {_place(hit)}\n{hit.part.text.strip()}" for n, hit in enumerate(found.hits, 1)) + notes


def _place(hit: Hit) -> str:
    page = f"page {hit.page}, " if hit.page else ""
    title = hit.title or "Untitled"
    return f"{title} (documentId {hit.document_id}, {page}characters {hit.part.start}-{hit.part.end})"


async def _read(arguments: dict[str, Any], context: ToolContext) -> str:
    document_id = await _which(arguments.get("documentId"), context)
    extracted, title = await context.library.load(context.tenant, document_id)
    total = len(extracted.text)
    start = arguments.get("start", 0)
    if start >= total:
        raise ToolError(f"The document has {total} characters; start must be less.")
    end = min(start + arguments.get("length", READ_CHARACTERS), total)
    page = page_of(extracted.pages, start)
    head = f"{title or 'Untitled'} (documentId {document_id}, {f'page {page}, ' if page else ''}"
    rest = f"\n[Goes on: call again with start {end}.]" if end < total else "\n[This is the end of the document.]"
    return f"{head}characters {start}-{end} of {total})\n{extracted.text[start:end]}{rest}"


async def _which(asked: str | None, context: ToolContext) -> str:
    """The document to read. Raises ToolError when it is none of those that the job is about, InvalidInput when there is
    none of this id."""
    named = context.documents
    if asked is None and len(named) == 1:
        return named[0]
    if asked is None:
        several = f": one of {', '.join(named[:20])}" if named else "; search_documents gives them"
        raise ToolError(f"Say which document, as documentId{several}.")
    if asked in named or (not named and context.collection is None):
        return asked
    if context.collection is not None and await context.library.collection_of(context.tenant, asked) == (
        context.collection
    ):
        return asked
    where = [", ".join(named[:20])] if named else []
    where += [f"those of the collection {context.collection!r}"] if context.collection is not None else []
    raise ToolError(f"{asked[:64]!r} is none of this job's documents: {' and '.join(where)}.")


READ_DOCUMENT = Tool(
    name="read_document",
    description="Reads the text of one document from a place on, for example around a passage that was found.",
    parameters={
        "type": "object",
        "properties": {
            "documentId": {"type": "string", "description": "May be left out when the job has just one document."},
            "start": {"type": "integer", "minimum": 0, "description": "First character to read; 0 when left out."},
            "length": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_READ_CHARACTERS,
                "description": f"Characters to read; {READ_CHARACTERS} when left out.",
            },
        },
        "additionalProperties": False,
    },
    run=_read,
    timeout_s=90.0,
    output_characters=MAX_READ_CHARACTERS + 1_000,
)
