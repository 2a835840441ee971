"""How good a ranking is, by what people or a test set judged: grades by id, 0 for what is not relevant."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final

RESAMPLES: Final = 1_000
MANY: Final = 1_000  # values from which the mean's own normal distribution is as good as a bootstrap


def ndcg(ranked_ids: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """nDCG@k with linear gain and log2 discount, as trec_eval has it; 0 when nothing is relevant."""
    ideal = _dcg(sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:k])
    return _dcg([max(0.0, grades.get(one, 0.0)) for one in ranked_ids[:k]]) / ideal if ideal else 0.0


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


def reciprocal_rank(ranked_ids: Sequence[str], grades: Mapping[str, float], k: int | None = None) -> float:
    """1 / the place of the first relevant one (among the first k); 0 when there is none."""
    return next((1 / place for place, one in enumerate(ranked_ids[:k], 1) if grades.get(one, 0) > 0), 0.0)


def recall(ranked_ids: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """The share of the relevant ones that stand among the first k; 0 when nothing is relevant."""
    relevant = {one for one, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranked_ids[:k])) / len(relevant) if relevant else 0.0


def judged(ranked_ids: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """The share of the first k that somebody judged; 0 of none."""
    first = ranked_ids[:k]
    return sum(one in grades for one in first) / len(first) if first else 0.0


def interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """The interval in which the mean lies, by bootstrap. Raises ValueError when there are no values."""
    if not values:
        raise ValueError("there are no values")
    count, mean = len(values), math.fsum(values) / len(values)
    if count > MANY:
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
        margin = NormalDist().inv_cdf((1 + level) / 2) * spread
        return mean - margin, mean + margin
    chance = random.Random(seed)  # noqa: S311  # a sample, no secret
    means = sorted(math.fsum(chance.choices(values, k=count)) / count for _ in range(RESAMPLES))
    tail = (1 - level) / 2
    return means[round(tail * (RESAMPLES - 1))], means[round((1 - tail) * (RESAMPLES - 1))]
