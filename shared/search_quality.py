"""How good searches are: figures from the log and from what people said of it.

What was never shown could not be judged, so rankings that find other chunks than before look worse than they are:
`judged` says how much of the first ten somebody has judged.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from shared.jobs import Output
from shared.ranking import Grades, interval, judged, ndcg, recall, reciprocal_rank
from shared.search import Timings
from shared.search_log import Line

MAX_SEARCHES: Final = 10_000
DEFAULT_LOW_SCORE: Final = 0.5
CUT: Final = 10  # of nDCG and of what was judged
MOST: Final = 20  # worst queries, and gaps


class Figure(Output, frozen=True):
    """A mean, and the interval in which it lies by chance (95 %, bootstrap over searches); null when nothing counts."""

    mean: float | None
    low: float | None
    high: float | None


class Latency(Output, frozen=True):
    """Milliseconds that half of the searches took at most, and 95 of 100."""

    p50: float
    p95: float


class QueryFigures(Output, frozen=True, kw_only=True):
    """The searches for one query, whatever its case and spacing; `query` and `searchId` are those of the newest. `ndcg`
    is null where no chunk was judged relevant."""

    query: str
    search_id: str
    searches: int
    ndcg: float | None
    helpful: int
    not_helpful: int
    best_score: float | None


class Gap(Output, frozen=True):
    """A query that has no good source: `count` searches for it kept nothing, or were called not helpful."""

    query: str
    search_id: str
    count: int
    best_score: float | None


class SearchQuality(Output, frozen=True, kw_only=True):
    """`searches` were looked at, `more` are older; `failed` ones count nowhere else. The rankings' figures are of the
    `judgedSearches`: those for whose query a chunk was called relevant more often than not, in whatever search.
    `recallAtK` is of those chunks; `judgedAt10` of what was shown."""

    searches: int
    more: bool
    failed: int
    no_result_rate: float | None
    low_score: float
    low_score_rate: float | None
    mean_best_score: float | None
    helpful_rate: float | None
    helpful: int
    not_helpful: int
    judged_searches: int
    judged_chunks: int
    k: int
    ndcg_at10: Figure
    mrr: Figure
    recall_at_k: Figure
    judged_at10: Figure
    latency: dict[str, Latency]
    worst: list[QueryFigures]
    gaps: list[Gap]


def normalised(query: str) -> str:
    """What queries have in common that differ in case, spacing or a mark at the end only."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split()).rstrip("?!. ")


def measure(
    lines: Sequence[Line],
    *,
    more: bool = False,
    collection: str | None = None,
    k: int = 10,
    low_score: float = DEFAULT_LOW_SCORE,
) -> SearchQuality:
    """The figures of searches, newest first, of one collection or of all; `more` when there are older ones."""
    chosen = [line for line in lines if collection is None or collection in line.head.collections]
    sound = [line for line in chosen if not line.head.failed]
    pool = pooled(sound)
    marked = [(line, grades) for line in sound if _has_relevant(grades := pool[normalised(line.head.query)])]
    best = [line.head.best_score for line in sound if line.head.best_score is not None]

    def figure(of: Callable[[Sequence[str], Grades], float], *, shown: bool = False) -> Figure:
        return _figure([of(line.head.ranked, grades) for line, grades in marked if line.head.ranked or not shown])

    groups: dict[str, list[Line]] = defaultdict(list)
    for line in sound:
        groups[normalised(line.head.query)].append(line)
    helpful, not_helpful = _said(sound)
    return SearchQuality(
        searches=len(chosen),
        more=more,
        failed=len(chosen) - len(sound),
        no_result_rate=_share(sum(line.head.kept == 0 for line in sound), len(sound)),
        low_score=low_score,
        low_score_rate=_share(sum((line.head.best_score or 0.0) < low_score for line in sound), len(sound)),
        mean_best_score=math.fsum(best) / len(best) if best else None,
        helpful_rate=_share(helpful, helpful + not_helpful),
        helpful=helpful,
        not_helpful=not_helpful,
        judged_searches=len(marked),
        judged_chunks=sum(len(grades) for grades in pool.values()),
        k=k,
        ndcg_at10=figure(lambda ranked, grades: ndcg(ranked, grades, CUT)),
        mrr=figure(reciprocal_rank),
        recall_at_k=figure(lambda ranked, grades: recall(ranked, grades, k)),
        judged_at10=figure(lambda ranked, grades: judged(ranked, grades, CUT), shown=True),
        latency=_latency([line.head.timings for line in sound]),
        worst=_worst([_query(group, pool[query]) for query, group in groups.items()]),
        gaps=_gaps(groups.values()),
    )


def pooled(lines: Sequence[Line]) -> Mapping[str, Grades]:
    """Per normalised query, 1 for each chunk that was called relevant more often than not in all its searches, 0 for
    each other that was judged."""
    votes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for line in lines:
        of_query = votes[normalised(line.head.query)]
        for chunk in line.feedback.chunks:
            if chunk.relevant or chunk.not_relevant:
                of_query[chunk.chunk_id] += chunk.relevant - chunk.not_relevant
    return {query: {chunk: int(sum_ > 0) for chunk, sum_ in of.items()} for query, of in votes.items()}


def _has_relevant(grades: Grades) -> bool:
    return any(grade > 0 for grade in grades.values())


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _figure(values: list[float]) -> Figure:
    found = interval(values)
    return Figure(None, None, None) if found is None else Figure(found.mean, found.low, found.high)


def _said(lines: Iterable[Line]) -> tuple[int, int]:
    """How often they were called helpful, and how often not."""
    said = [(line.feedback.helpful, line.feedback.not_helpful) for line in lines]
    return sum(helpful for helpful, _ in said), sum(not_helpful for _, not_helpful in said)


def _latency(timings: Sequence[Timings]) -> dict[str, Latency]:
    if not timings:
        return {}
    found = {}
    for field in msgspec.structs.fields(Timings):
        values = sorted(getattr(one, field.name) for one in timings)
        found[field.encode_name] = Latency(_percentile(values, 0.5), _percentile(values, 0.95))
    return found


def _percentile(values: Sequence[float], share: float) -> float:
    """The least of the sorted values that so many are not above (nearest rank)."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def _worst(queries: Iterable[QueryFigures]) -> list[QueryFigures]:
    ranked = sorted(queries, key=lambda query: (_worth(query), -query.searches))
    return [query for query in ranked if _worth(query) < 1][:MOST]


def _query(group: Sequence[Line], grades: Grades) -> QueryFigures:
    helpful, not_helpful = _said(group)
    means = [ndcg(line.head.ranked, grades, CUT) for line in group] if _has_relevant(grades) else []
    return QueryFigures(
        query=group[0].head.query,
        search_id=group[0].search_id,
        searches=len(group),
        ndcg=math.fsum(means) / len(means) if means else None,
        helpful=helpful,
        not_helpful=not_helpful,
        best_score=_best(group),
    )


def _worth(query: QueryFigures) -> float:
    """1 for a query of which nothing bad is known."""
    said = query.helpful + query.not_helpful
    return min(1.0 if query.ndcg is None else query.ndcg, query.helpful / said if said else 1.0)


def _gaps(groups: Iterable[Sequence[Line]]) -> list[Gap]:
    found = []
    for group in groups:
        bad = [one for one in group if one.head.kept == 0 or one.feedback.not_helpful > one.feedback.helpful]
        if bad:
            found.append(Gap(bad[0].head.query, bad[0].search_id, len(bad), _best(bad)))
    return sorted(found, key=lambda gap: -gap.count)[:MOST]


def _best(lines: Sequence[Line]) -> float | None:
    return max((line.head.best_score for line in lines if line.head.best_score is not None), default=None)
