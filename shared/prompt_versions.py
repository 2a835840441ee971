"""Versions of prompts, read once: they never change."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from shared.prompts import Version
from shared.stores.prompts import PromptsStore

MOST: Final = 500  # versions that a process keeps
MOST_CHARACTERS: Final = 20_000_000  # of all their messages


class Versions:
    """Those that this process has used; the least recently used go."""

    def __init__(self, store: PromptsStore) -> None:
        self._store = store
        self._known: OrderedDict[tuple[str, str, int], Version] = OrderedDict()
        self._characters = 0

    async def get(self, owner: str, name: str, number: int) -> Version | None:
        """A version, None when there is none. Raises a member of OUTAGE."""
        key = (owner, name, number)
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
            return found
        found = await self._store.version(owner, name, number)
        if found is not None and key not in self._known:
            self._known[key] = found
            self._characters += _size(found)
            while len(self._known) > MOST or (self._characters > MOST_CHARACTERS and len(self._known) > 1):
                self._characters -= _size(self._known.popitem(last=False)[1])
        return found


def _size(version: Version) -> int:
    return sum(len(message.content) for message in version.messages)
