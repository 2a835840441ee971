"""A part of an index in memory: chunks of several documents, their vectors as one matrix, their words as postings.

The ranking by words is that of Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Final

import msgspec
import numpy as np

from shared.collections import Entry
from worker.search.pack import Pack

K1: Final = 1.2  # how soon repetition of a word stops counting
B: Final = 0.75  # how much long chunks are held back

Array = Any  # numpy.ndarray


class Places(msgspec.Struct, frozen=True):
    """Where a document's chunks stand in it, and what tells them apart."""

    starts: Array
    ends: Array
    digests: bytes
    occurrences: Array


class Held(msgspec.Struct, frozen=True):
    """A document in a segment: its chunks are the rows from `first` on."""

    document_id: str
    entry: Entry
    places: Places
    first: int
    count: int


class Segment:
    """Chunks that never change; those of documents that did are dead. `matrix` is None where the vectors are in Redis
    (another engine); a row of zeros is a chunk without a vector."""

    def __init__(self, held: Sequence[Held], matrix: Array | None, postings: _Postings, lengths: Array) -> None:
        self.held = list(held)
        self.matrix = matrix
        self._postings = postings
        self.lengths = lengths
        self.alive = np.ones(len(lengths), dtype=bool)
        self.document_of = np.repeat(
            np.arange(len(self.held), dtype=np.uint32), [document.count for document in self.held]
        )
        self.has_vector = np.ones(len(lengths), dtype=bool) if matrix is None else np.any(matrix, axis=1)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays."""
        matrix = 0 if self.matrix is None else self.matrix.nbytes
        packs = sum(48 * document.count + 500 for document in self.held)
        return int(matrix + self._postings.size_bytes + self.lengths.nbytes + 9 * len(self) + packs)

    def without(self, places: Sequence[int]) -> Segment:
        """The same, without these documents; a search that is under way has the old one."""
        other = copy(self)
        other.alive = self.alive.copy()
        for place in places:
            document = self.held[place]
            other.alive[document.first : document.first + document.count] = False
        return other

    def is_alive(self, place: int) -> bool:
        """Whether a document can be found."""
        return bool(self.alive[self.held[place].first])

    def of_term(self, term: int) -> tuple[Array, Array]:
        """The rows in which a word stands, and how often; dead ones too."""
        return self._postings.of(term)

    def saturation(self, rows: Array, counts: Array, mean_length: float) -> Array:
        """What a word counts for in these rows, 0..1: more the more often it stands there, less in long chunks."""
        held_back = K1 * (1 - B + B * self.lengths[rows] / max(mean_length, 1.0))
        return counts / (counts + held_back)

    def allowed(self, fits: Mapping[int, bool]) -> Array:
        """A mask of the rows whose documents fit; `fits` by the place of the document."""
        mask = np.fromiter(
            (fits.get(place, False) for place in range(len(self.held))), dtype=bool, count=len(self.held)
        )
        return mask[self.document_of]


class _Postings:
    """Which rows hold a word: sorted by word, then by row."""

    def __init__(self, terms: Array, starts: Array, rows: Array, counts: Array) -> None:
        self.terms = terms
        self.starts = starts
        self.rows = rows
        self.counts = counts

    @property
    def size_bytes(self) -> int:
        return int(self.terms.nbytes + self.starts.nbytes + self.rows.nbytes + self.counts.nbytes)

    def of(self, term: int) -> tuple[Array, Array]:
        at = int(np.searchsorted(self.terms, term))
        if at == len(self.terms) or int(self.terms[at]) != term:
            return self.rows[:0], self.counts[:0]
        span = slice(int(self.starts[at]), int(self.starts[at + 1]))
        return self.rows[span], self.counts[span]

    def expanded(self) -> Array:
        """The word of each posting."""
        return np.repeat(self.terms, np.diff(self.starts))


def build(documents: Sequence[tuple[str, Entry, Pack]], vectors: Sequence[Array] | None) -> Segment:
    """A segment of documents that are not empty; `vectors` is a matrix for each, None where they are in Redis."""
    held: list[Held] = []
    first = 0
    for document_id, entry, pack in documents:
        places = Places(pack.starts, pack.ends, pack.digests, pack.occurrences)
        held.append(Held(document_id, entry, places, first, len(pack)))
        first += len(pack)
    packs = [pack for _, _, pack in documents]
    matrix = None
    if vectors is not None:
        matrix = np.concatenate(list(vectors)) if vectors else np.zeros((0, 0), dtype=np.float32)
    return Segment(
        held,
        matrix,
        _joined(
            [np.repeat(pack.terms, pack.found_in) for pack in packs],
            [pack.rows + np.uint32(document.first) for pack, document in zip(packs, held, strict=True)],
            [pack.counts for pack in packs],
        ),
        np.concatenate([pack.lengths for pack in packs]) if packs else np.zeros(0, dtype=np.uint32),
    )


def merge(segments: Sequence[Segment]) -> Segment:
    """One segment of what is alive in these."""
    held: list[Held] = []
    lengths, matrices, terms, rows, counts = [], [], [], [], []
    first = 0
    for segment in segments:
        to = np.cumsum(segment.alive) - 1 + first
        for document in segment.held:
            if segment.alive[document.first]:
                held.append(msgspec.structs.replace(document, first=int(to[document.first])))
        keep = segment.alive[segment._postings.rows]
        terms.append(segment._postings.expanded()[keep])
        rows.append(to[segment._postings.rows[keep]].astype(np.uint32))
        counts.append(segment._postings.counts[keep])
        lengths.append(segment.lengths[segment.alive])
        if segment.matrix is not None:
            matrices.append(segment.matrix[segment.alive])
        first += int(segment.alive.sum())
    matrix = np.concatenate(matrices) if matrices else None
    return Segment(held, matrix, _joined(terms, rows, counts), np.concatenate(lengths))


def _joined(terms: Sequence[Array], rows: Sequence[Array], counts: Sequence[Array]) -> _Postings:
    """Postings of several parts, whose rows stand one behind the other, as one."""
    if not terms:
        empty = np.zeros(0, dtype=np.uint32)
        return _Postings(empty, np.zeros(1, dtype=np.int64), empty, np.zeros(0, dtype=np.uint8))
    of_terms = np.concatenate(terms)
    order = np.argsort(of_terms, kind="stable")
    names, found_in = np.unique(of_terms, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(found_in)]).astype(np.int64)
    return _Postings(
        names.astype(np.uint32),
        starts,
        np.concatenate(rows)[order].astype(np.uint32),
        np.concatenate(counts)[order].astype(np.uint8),
    )
