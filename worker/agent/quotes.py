"""The citations of an agent's answer: what stands in it between quotation marks and in a document that was read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Final

from shared.documents import Extracted
from shared.errors import DocumentRejected, InvalidInput
from shared.jobs import Output
from worker.context import JobContext
from worker.documents.cite import Prover

MOST_DOCUMENTS: Final = 50
MOST_QUOTES: Final = 100
LEAST_LETTERS: Final = 12  # a shorter quote is a name or a word

# No quote holds its own opening mark, and none is endless: else many marks would take the square of their number.
_QUOTED = re.compile(r"“([^“”]{1,4000})”|\"([^\"\n]{1,4000})\"|«([^«»]{1,4000})»|„([^„“”]{1,4000})[“”]")


class DocumentCitation(Output, frozen=True, omit_defaults=True):
    """A proven quote: the document's own wording at code points `start` to `end` (exclusive) of its text."""

    quote: str
    document_id: str
    start: int
    end: int
    page: int | None = None


def quotes_of(answer: str) -> list[str]:
    """What stands between quotation marks and is more than a name, each once."""
    quotes: dict[str, None] = {}
    for match in _QUOTED.finditer(answer):
        quote = next(group for group in match.groups() if group)
        if sum(character.isalnum() for character in quote) >= LEAST_LETTERS:
            quotes[quote] = None
            if len(quotes) == MOST_QUOTES:
                break
    return list(quotes)


async def cite_answer(answer: str, documents: Sequence[str], context: JobContext) -> list[DocumentCitation]:
    """The citations, in the order of the answer; a quote that stands in no document is none."""
    quotes = await asyncio.to_thread(quotes_of, answer)
    if not quotes:
        return []
    found: dict[str, DocumentCitation] = {}
    for document_id in documents[:MOST_DOCUMENTS]:
        try:
            extracted, _ = await context.deps.library.load(context.job.tenant, document_id)
        except (InvalidInput, DocumentRejected):
            continue  # deleted meanwhile, or never readable
        missing = [quote for quote in quotes if quote not in found]
        if not missing:
            break
        found.update(await asyncio.to_thread(_prove, missing, document_id, extracted))
    return [found[quote] for quote in quotes if quote in found]


def _prove(quotes: Sequence[str], document_id: str, extracted: Extracted) -> dict[str, DocumentCitation]:
    prover = Prover(extracted.text, 0, extracted.pages)
    proven = {}
    for quote in quotes:
        citation = prover.prove(quote)
        if citation is not None:
            proven[quote] = DocumentCitation(
                quote=citation.quote,
                document_id=document_id,
                start=citation.start,
                end=citation.end,
                page=citation.page,
            )
    return proven
