"""The tools of one worker, by name."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import InvalidInput
from shared.settings import Settings
from shared.toolnames import DEFAULTS, problem
from worker.documents.library import Library
from worker.documents.passages import Passages
from worker.fetch import Fetcher
from worker.tools.base import Tool
from worker.tools.calculate import CALCULATE
from worker.tools.clock import CURRENT_TIME
from worker.tools.documents import READ_DOCUMENT, search_documents
from worker.tools.web import fetch_url

OF_DOCUMENTS = frozenset({"search_documents", "read_document"})


class Toolbox:
    """What the agents of one worker may call; made once, closed with the worker."""

    def __init__(self, settings: Settings, library: Library) -> None:
        self._settings = settings
        tools = (
            CALCULATE,
            CURRENT_TIME,
            search_documents(Passages(library, settings.search_characters)),
            READ_DOCUMENT,
            fetch_url(Fetcher(settings), settings),
        )
        self._built_in = {tool.name: tool for tool in tools}

    async def close(self) -> None:
        """Nothing is called any more."""

    async def resolve(self, names: Sequence[str] | None, *, has_documents: bool) -> list[Tool]:
        """The tools of these names, each once, in their order. None: the defaults, those of documents only when the
        job `has_documents`. Raises InvalidInput with a sentence that says what there is."""
        if names is None:
            names = [name for name in DEFAULTS if has_documents or name not in OF_DOCUMENTS]
        found: dict[str, Tool] = {}
        for name in dict.fromkeys(names):
            if (wrong := problem(name, self._settings)) is not None:
                raise InvalidInput(f"{wrong[0].upper()}{wrong[1:]}.")
            found[name] = self._built_in[name]
        return list(found.values())
