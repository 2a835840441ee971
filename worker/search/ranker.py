"""From an index in memory and a query to the best chunks, each with a relevance from 0 to 1.

The relevance is a logistic function of three things: the cosine on the model's own scale (0: as texts that have nothing
to do with each other, 1: as questions with their answers), BM25 as a share of what it could be, and the share of the
query's words, by their weight, that stand in the chunk. Its weights were fitted on questions about this project's own
documentation, so that 0.5 is where a chunk is as likely one that answers as one of the hundred best that do not:
`python -m scripts.bench.search_quality --fit` (docs/search.md).
Sums beat ranks here: Bruch, Gai, Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from shared.collections import Calibration
from shared.search import Mode
from worker.search.segment import Held, Segment

Array = Any  # numpy.ndarray


class Weights(msgspec.Struct, frozen=True):
    """Of the logistic function: its constant, and what the cosine, BM25 and coverage count for."""

    constant: float
    cosine: float
    words: float
    coverage: float

    def logit(self, cosine: Array, words: Array, coverage: Array) -> Array:
        """Grows with the relevance; the logistic function of it is the score."""
        return self.constant + self.cosine * cosine + self.words * words + self.coverage * coverage


WEIGHTS: Final = {
    Mode.HYBRID: Weights(-2.36, 1.94, 5.14, 3.74),
    Mode.VECTOR: Weights(-1.34, 3.03, 0.0, 0.0),
    Mode.KEYWORD: Weights(-1.77, 0.0, 12.37, 0.74),
}


class Hit(msgspec.Struct, frozen=True):
    """A chunk that was looked at: row `number` of its document. `vector` is the raw cosine, `keyword` the coverage."""

    held: Held
    number: int
    score: float
    vector: float | None
    keyword: float | None


class Snapshot(msgspec.Struct, frozen=True):
    """What a search looks through: the segments of one index version, and which documents of each the filter lets
    through (None: all)."""

    segments: list[Segment]
    calibration: Calibration
    allowed: list[Array | None]


class Given(msgspec.Struct, frozen=True):
    """Cosines of another engine: an array for each segment, NaN where none was found."""

    cosines: list[Array]


def rank(
    snapshot: Snapshot, query: Array | None, terms: Sequence[int], mode: Mode, limit: int, given: Given | None = None
) -> list[Hit]:
    """The `limit` best chunks, best first. `query` is the query's vector (None: no vectors are looked at); `given` are
    cosines that another engine found, by segment. For a thread: it takes milliseconds."""
    words, coverage = by_words(snapshot.segments, terms)
    weights = WEIGHTS[mode]
    low, high = snapshot.calibration.unrelated, snapshot.calibration.related
    best: list[tuple[float, int, int]] = []
    cosines: list[Array | None] = []
    for place, segment in enumerate(snapshot.segments):
        cosine: Array | None = None
        seen = segment.alive
        if given is not None:
            cosine = given.cosines[place]
        elif query is not None and segment.matrix is not None:
            cosine = np.where(segment.has_vector, segment.matrix @ query, np.nan)
        cosines.append(cosine)
        scaled = np.zeros(len(segment), dtype=np.float32)
        if cosine is not None:
            scaled = np.nan_to_num((cosine - low) / max(high - low, 1e-3), nan=0.0)
        found = seen if snapshot.allowed[place] is None else seen & snapshot.allowed[place]
        if mode is Mode.KEYWORD:
            found = found & (coverage[place] > 0)
        elif mode is Mode.VECTOR:
            found = found & ~np.isnan(_or_nan(cosine, len(segment)))
        elif given is not None:
            found = found & ((coverage[place] > 0) | ~np.isnan(_or_nan(cosine, len(segment))))
        logits = weights.logit(scaled, words[place], coverage[place])
        logits = np.where(found, logits, -np.inf)
        count = min(limit, int(found.sum()))
        if count:
            top = np.argpartition(-logits, count - 1)[:count]
            best += [(float(logits[row]), place, int(row)) for row in top]
    best.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    hits = []
    for logit, place, row in best[:limit]:
        segment = snapshot.segments[place]
        held = segment.held[int(segment.document_of[row])]
        of_vector = cosines[place]
        vector = None if of_vector is None or math.isnan(float(of_vector[row])) else float(of_vector[row])
        keyword = None if mode is Mode.VECTOR else float(coverage[place][row])
        hits.append(Hit(held, row - held.first, _logistic(logit), vector, keyword))
    return hits


def _or_nan(cosine: Array | None, count: int) -> Array:
    return np.full(count, np.nan) if cosine is None else cosine


def _logistic(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))


def by_words(segments: Sequence[Segment], terms: Sequence[int]) -> tuple[list[Array], list[Array]]:
    """BM25 as a share of what it could be, and the weighted share of the words that stand there, by segment."""
    chunks = sum(int(segment.alive.sum()) for segment in segments)
    words = sum(int(segment.lengths[segment.alive].sum()) for segment in segments)
    mean_length = words / max(chunks, 1)
    found = [[segment.of_term(term) for segment in segments] for term in terms]
    weights = []
    for postings in found:
        in_chunks = sum(int(segment.alive[rows].sum()) for segment, (rows, _) in zip(segments, postings, strict=True))
        # A word that no chunk has weighs as one that a single chunk has: else few chunks would say too much of it.
        in_chunks = max(in_chunks, 1)
        weights.append(math.log(1 + (max(chunks - in_chunks, 0) + 0.5) / (in_chunks + 0.5)))
    whole = sum(weights) or 1.0
    scores, coverages = [], []
    for place, segment in enumerate(segments):
        score = np.zeros(len(segment), dtype=np.float32)
        coverage = np.zeros(len(segment), dtype=np.float32)
        for weight, postings in zip(weights, found, strict=True):
            rows, counts = postings[place]
            if len(rows):
                score[rows] += weight * segment.saturation(rows, counts, mean_length)
                coverage[rows] += weight
        scores.append(score / whole)
        coverages.append(np.minimum(coverage / whole, 1.0))
    return scores, coverages
