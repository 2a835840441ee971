"""How good a ranking is, and how sure that is: nDCG, reciprocal rank, recall, precision, judged; bootstrap intervals.

A ranking is a sequence of ids, best first, each at most once. Grades say what each id is worth: 0 is judged and not
relevant, from 1 up relevant; an id without a grade is not judged, and counts as not relevant. All figures are shares
(0..1). They are those of trec_eval, as `ir-measures` gives them (tests/test_ranking.py holds them to 1e-9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from statistics import NormalDist
from typing import Final, Literal

import msgspec

Grades = Mapping[str, int]
Gain = Literal["linear", "exponential"]

LEVEL: Final = 0.95
RESAMPLES: Final = 2_000
MOST_RESAMPLED: Final = 1_000
SEED: Final = 20_260_101


class Interval(msgspec.Struct, frozen=True):
    """A mean, and the interval in which the mean of all such queries lies, at a level of `LEVEL` unless said."""

    mean: float
    low: float
    high: float


def ordered(scores: Mapping[str, float]) -> list[str]:
    """Ids by score, highest first. Of equal scores the later id in the order of code points goes first, as in
    trec_eval, so that no order is favoured that a system happened to write."""
    return [name for _, name in sorted(((score, name) for name, score in scores.items()), reverse=True)]


def ndcg(ranked: Sequence[str], grades: Grades, k: int | None = 10, gain: Gain = "linear") -> float:
    """Normalised discounted cumulative gain of the first k (None: all), discount 1 / log2(rank + 1) (Järvelin and
    Kekäläinen 2002). `linear` gain is the grade, as in trec_eval; `exponential` 2^grade - 1 (Burges 2005), which makes
    little of low grades. 0 where nothing is relevant."""
    worth = _linear if gain == "linear" else _exponential
    ideal = sorted((worth(grade) for grade in grades.values()), reverse=True)
    best = _discounted(ideal[:k])
    return _discounted([worth(grades.get(name, 0)) for name in ranked[:k]]) / best if best else 0.0


def reciprocal_rank(ranked: Sequence[str], grades: Grades, k: int | None = None) -> float:
    """1 / rank of the first relevant id among the first k (None: all), 0 without one. Its mean over queries is MRR."""
    return next((1 / rank for rank, name in enumerate(ranked[:k], 1) if grades.get(name, 0) > 0), 0.0)


def recall(ranked: Sequence[str], grades: Grades, k: int | None = None) -> float:
    """Share of the relevant ids that is among the first k. 0 where nothing is relevant."""
    relevant = sum(grade > 0 for grade in grades.values())
    return _hits(ranked[:k], grades) / relevant if relevant else 0.0


def precision(ranked: Sequence[str], grades: Grades, k: int) -> float:
    """Share of k places that hold a relevant id; a shorter ranking wastes the rest of its places."""
    return _hits(ranked[:k], grades) / k


def judged(ranked: Sequence[str], grades: Grades, k: int | None = 10) -> float:
    """Share of the first k that has a grade, of as many as there are; 0 without any. Where it is low, the other figures
    say little: what nobody judged counts as not relevant."""
    first = ranked[:k]
    return sum(name in grades for name in first) / len(first) if first else 0.0


def overlap(left: Sequence[str], right: Sequence[str], k: int = 10) -> float:
    """Share of ids that the first k of two rankings have in common, of the longer; 1 when both are empty."""
    one, other = set(left[:k]), set(right[:k])
    longest = max(len(one), len(other))
    return len(one & other) / longest if longest else 1.0


def interval(
    values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval | None:
    """Bootstrap interval of the mean of one figure per query; None without values. Bias-corrected and accelerated (BCa,
    Efron 1987), the same for the same values and seed. Values that are all alike, or one alone, give no width: with
    few queries it says too little, so mind their number. Above MOST_RESAMPLED values it is that of the normal
    distribution, which costs a thousandth and is the same there."""
    if not values:
        return None
    count = len(values)
    mean = math.fsum(values) / count
    if min(values) == max(values):
        return Interval(values[0], values[0], values[0])
    if count > MOST_RESAMPLED:
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
        reach = NormalDist().inv_cdf(0.5 + level / 2) * deviation / math.sqrt(count)
        return Interval(mean, max(mean - reach, min(values)), min(mean + reach, max(values)))
    draw = Random(seed)  # noqa: S311 - a resample, no secret
    means = sorted(math.fsum(draw.choices(values, k=count)) / count for _ in range(resamples))
    place = _bca(values, mean, means)
    tail = (1 - level) / 2
    return Interval(mean, _quantile(means, place(tail)), _quantile(means, place(1 - tail)))


def paired_interval(
    before: Sequence[float],
    after: Sequence[float],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval | None:
    """The interval of the mean difference `after - before` of the same queries in the same order (paired bootstrap;
    Sakai 2006). Two runs are told apart where it does not hold 0. Raises ValueError when their numbers differ."""
    return interval(
        [second - first for first, second in zip(before, after, strict=True)],
        level=level,
        resamples=resamples,
        seed=seed,
    )


def verdict(difference: Interval | None) -> str:
    """What a paired interval says of the second run: `better`, `worse`, or `not told apart`."""
    if difference is None or difference.low <= 0 <= difference.high:
        return "not told apart"
    return "better" if difference.low > 0 else "worse"


def _linear(grade: int) -> float:
    return float(max(grade, 0))


def _exponential(grade: int) -> float:
    return 2.0 ** max(grade, 0) - 1


def _discounted(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def _hits(ranked: Sequence[str], grades: Grades) -> int:
    return sum(grades.get(name, 0) > 0 for name in ranked)


def _bca(values: Sequence[float], mean: float, means: Sequence[float]) -> Callable[[float], float]:
    """From a share of the tail to the quantile that is to be read. Ties count half (Davison, Hinkley 1997)."""
    normal = NormalDist()
    below = sum(one < mean for one in means) + sum(one == mean for one in means) / 2
    bias = normal.inv_cdf(min(max(below, 0.5), len(means) - 0.5) / len(means))
    # The jackknife of a mean: leaving out a value moves it by that value's distance, over n - 1.
    # Scaled, since cubes of tiny distances are 0.
    most = max(abs(value - mean) for value in values)
    distances = [(value - mean) / (most or 1) for value in values]
    squares = math.fsum(one**2 for one in distances)
    skew = math.fsum(one**3 for one in distances) / (6 * squares**1.5) if squares else 0.0

    def place(share: float) -> float:
        shifted = bias + normal.inv_cdf(share)
        return normal.cdf(bias + shifted / max(1 - skew * shifted, 1e-9))

    return place


def _quantile(ascending: Sequence[float], share: float) -> float:
    """With linear interpolation."""
    at = share * (len(ascending) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (at - low)
