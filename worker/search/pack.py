"""A document's chunks as they lie in Redis: offsets, text hashes, and the words of each, small enough to keep."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from shared.stores.indexes import HASH_BYTES, Packed, read_packed
from worker.search.chunks import Chunk
from worker.search.terms import counts_of

LEVEL: Final = 1  # of zlib: the arrays are short, and read often
MOST_COUNTED: Final = 255

Array = Any  # numpy.ndarray


class Pack(msgspec.Struct, frozen=True):
    """The same, unpacked: numpy arrays."""

    starts: Array
    ends: Array
    digests: bytes
    occurrences: Array
    lengths: Array
    terms: Array
    found_in: Array
    rows: Array
    counts: Array

    def __len__(self) -> int:
        return len(self.starts)

    def digest(self, row: int) -> bytes:
        """The hash of a chunk's text."""
        return self.digests[row * HASH_BYTES : (row + 1) * HASH_BYTES]


def pack(text: str, chunks: Sequence[Chunk]) -> bytes:
    """The chunks of a text as they are stored."""
    lengths: list[int] = []
    terms: list[int] = []
    rows: list[int] = []
    counts: list[int] = []
    for row, chunk in enumerate(chunks):
        counted = counts_of(text[chunk.start : chunk.end])
        lengths.append(counted.total())
        terms += counted.keys()
        rows += [row] * len(counted)
        counts += counted.values()
    of_terms = np.array(terms, dtype=np.uint32)
    order = np.argsort(of_terms, kind="stable")
    names, found_in = np.unique(of_terms, return_counts=True)
    arrays: list[Any] = [
        np.array([chunk.start for chunk in chunks], dtype="<u4"),
        np.array([chunk.end for chunk in chunks], dtype="<u4"),
        b"".join(chunk.digest for chunk in chunks),
        np.array([chunk.occurrence for chunk in chunks], dtype="<u4"),
        np.array(lengths, dtype="<u4"),
        names.astype("<u4"),
        found_in.astype("<u4"),
        np.array(rows, dtype="<u4")[order],
        np.minimum(np.array(counts, dtype=np.int64), MOST_COUNTED).astype("u1")[order],
    ]
    packed = [zlib.compress(part if isinstance(part, bytes) else part.tobytes(), LEVEL) for part in arrays]
    return msgspec.msgpack.encode(Packed(len(chunks), *packed))


def unpack(content: bytes) -> Pack:
    """What `pack` made."""
    found = read_packed(content)

    def numbers(part: bytes, kind: str = "<u4") -> Array:
        return np.frombuffer(zlib.decompress(part), dtype=kind)

    return Pack(
        starts=numbers(found.starts),
        ends=numbers(found.ends),
        digests=zlib.decompress(found.digests),
        occurrences=numbers(found.occurrences),
        lengths=numbers(found.lengths),
        terms=numbers(found.terms),
        found_in=numbers(found.found_in),
        rows=numbers(found.rows),
        counts=numbers(found.counts, "u1"),
    )
