"""The output of a batch job: one blob per batch, in which a line can be found again by its place."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from shared.blobs import Blobs
from worker.batch.plan import Entry

CACHE_BYTES: Final = 16 * 1024 * 1024  # of vectors that lines elsewhere repeat


class Failure(msgspec.Struct, frozen=True):
    """Why an item has no vector; `code` is one of the job error codes."""

    code: str
    message: str


class _Line(msgspec.Struct):
    embedding: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Failure | msgspec.UnsetType = msgspec.UNSET


Found = bytes | Failure

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


def render(entry: Entry, found: Found) -> bytes:
    """One line of the output."""
    head = b'{"index":%d' % entry.index
    if entry.id is not None:
        head += b',"id":' + _encode(entry.id)
    if isinstance(found, Failure):
        return head + b',"error":' + _encode(found) + b"}\n"
    return head + b',"embedding":' + found + b"}\n"


class Part(msgspec.Struct):
    """A part that is written. `ends` are the offsets behind each line, None until somebody needs them."""

    key: str
    size_bytes: int
    ends: array[int] | None = None


class Parts:
    """The parts of one job that are written, by their number."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._parts: dict[int, Part] = {}
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._cached_bytes = 0

    async def write(self, number: int, key: str, lines: list[bytes]) -> Part:
        """Writes a part, durably."""
        content = b"".join(lines)
        await self._blobs.put(key, content)
        ends, at = array("L"), 0
        for line in lines:
            at += len(line)
            ends.append(at)
        part = self._parts[number] = Part(key, len(content), ends)
        return part

    def known(self, number: int, key: str, size_bytes: int) -> None:
        """A part that an earlier attempt wrote."""
        self._parts[number] = Part(key, size_bytes)

    async def line(self, number: int, place: int) -> Found:
        """What line `place` of a part holds. Raises BlobMissingError."""
        if (found := self._cache.get((number, place))) is not None:
            self._cache.move_to_end((number, place))
            return found
        part = self._parts[number]
        if part.ends is None:
            part.ends = await _ends(self._blobs.stream(part.key))
        start = part.ends[place - 1] if place else 0
        line = _decode(await self._blobs.get_range(part.key, start, part.ends[place]))
        if isinstance(line.error, Failure):
            return line.error  # not kept: a retry may mend it
        vector = bytes(_raw(line.embedding))
        self._keep((number, place), vector)
        return vector

    async def lines(self, number: int) -> list[Found]:
        """All lines of a part."""
        content = await self._blobs.get(self._parts[number].key)
        rows = [_decode(row) for row in content.splitlines()]
        return [row.error if isinstance(row.error, Failure) else bytes(_raw(row.embedding)) for row in rows]

    def _keep(self, place: tuple[int, int], vector: bytes) -> None:
        if place not in self._cache:
            self._cache[place] = vector
            self._cached_bytes += len(vector)
        while self._cached_bytes > CACHE_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= len(oldest)


def _raw(value: Any) -> msgspec.Raw:
    if not isinstance(value, msgspec.Raw):
        raise msgspec.ValidationError("a line of the output has neither a vector nor an error")
    return value


async def _ends(chunks: AsyncIterator[bytes]) -> array[int]:
    """The offsets behind each line of a content."""
    ends, before = array("L"), 0
    async for chunk in chunks:
        at = chunk.find(b"\n")
        while at >= 0:
            ends.append(before + at + 1)
            at = chunk.find(b"\n", at + 1)
        before += len(chunk)
    return ends
