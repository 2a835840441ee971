"""The texts of documents, as a search shows parts of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from shared.blobs import BlobMissingError, Blobs
from shared.documents import Extracted, page_of

CACHE_CHARACTERS: Final = 20_000_000  # of documents' texts that a worker keeps


class Texts:
    """The texts of documents, the last used of which a worker keeps."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._kept: OrderedDict[str, Extracted] = OrderedDict()
        self._characters = 0

    async def get(self, blob: str) -> Extracted | None:
        """A document's text; None when it is gone. Raises BlobsUnavailableError."""
        if blob in self._kept:
            self._kept.move_to_end(blob)
            return self._kept[blob]
        try:
            content = await self._blobs.get(blob)
        except BlobMissingError:
            return None
        extracted = msgspec.json.decode(content, type=Extracted)
        if blob not in self._kept:
            self._kept[blob] = extracted
            self._characters += len(extracted.text)
            while self._characters > CACHE_CHARACTERS and len(self._kept) > 1:
                self._characters -= len(self._kept.popitem(last=False)[1].text)
        return extracted


def page_at(extracted: Extracted, start: int) -> int | msgspec.UnsetType:
    """The page on which a place is, where the document has pages."""
    return page_of(extracted.pages, start) or msgspec.UNSET
