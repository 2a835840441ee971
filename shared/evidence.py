"""What the sums of an experiment's arms show: intervals that hold at every look, and whether units were shared out as
they should be. Pure. docs/adr/0015-prompts.md.

Who looks again and again until something is there finds something in nearly every experiment of two equal arms, with
intervals that are made for one look. These are wider, and right whenever one looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

ALPHA: Final = 0.05  # how often, at most, an interval ever misses
LEAST_UNITS: Final = 50  # of an arm before anything is said: the normal approximation needs some
MISMATCH: Final = 0.001  # units were not shared out as the weights say, below this
# The mixture's variance is chosen so that intervals are narrowest at about a thousand units: 8.3 times the variance
# that the estimate has there.
_SHARPEST: Final = 1_000 / 8.3
# Of a bounded metric (a share, a score) so many units are thought at either bound when its variance is estimated: fifty
# successes out of fifty do not show that there is no failure.
_AT_BOUNDS: Final = 2.0


class Sums(msgspec.Struct, frozen=True):
    """What is kept of one metric of one arm: `n` observations with the sum `x`, of `units` (jobs, or users); over
    units, of each unit's sum s and number n: `ss` (s²), `sn` (s * n), `nn` (n²)."""

    n: float = 0
    x: float = 0
    units: float = 0
    ss: float = 0
    sn: float = 0
    nn: float = 0


class Interval(msgspec.Struct, frozen=True):
    """From `low` to `high`."""

    low: float
    high: float

    @property
    def is_conclusive(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def mean(sums: Sums) -> float | None:
    """The mean over observations; None without any."""
    return sums.x / sums.n if sums.n > 0 else None


def effective_units(sums: Sums) -> float:
    """How many units of equal size tell as much (Kish): one user with half of all jobs leaves few."""
    return sums.n**2 / sums.nn if sums.nn > 0 else 0.0


def _with_bounds(sums: Sums, low: float, high: float) -> Sums:
    """With some more units of the average size at either bound."""
    size, count = sums.n / sums.units, _AT_BOUNDS
    return Sums(
        n=sums.n + 2 * count * size,
        x=sums.x + count * size * (low + high),
        units=sums.units + 2 * count,
        ss=sums.ss + count * size**2 * (low**2 + high**2),
        sn=sums.sn + count * size**2 * (low + high),
        nn=sums.nn + 2 * count * size**2,
    )


def variance_of_mean(sums: Sums, bounds: tuple[float, float] | None = None) -> float | None:
    """How much the mean varies: that of a ratio of two sums over units (delta method), since a user's jobs are alike.
    `bounds` are those of the metric, None for none. None where there are too few units, or too few that count."""
    if sums.units < LEAST_UNITS or effective_units(sums) < LEAST_UNITS:
        return None
    if bounds is not None:
        sums = _with_bounds(sums, *bounds)
    ratio = sums.x / sums.n
    spread = sums.ss - 2 * ratio * sums.sn + ratio * ratio * sums.nn
    # Equal values of an unbounded metric tell nothing of how it varies.
    return spread / sums.n**2 * sums.units / (sums.units - 1) if spread > 1e-9 * abs(sums.ss) else None


def _half_width(variance: float, units: float, alpha: float) -> float:
    """Mixture sequential probability ratio test, turned into an interval (Johari, Pekelis, Walsh 2017)."""
    share = _SHARPEST / units  # of the mixture's variance that the estimate's is
    return math.sqrt(variance * (1 + share) * (math.log1p(1 / share) - 2 * math.log(alpha)))


def interval_of_mean(sums: Sums, alpha: float = ALPHA, bounds: tuple[float, float] | None = None) -> Interval | None:
    """Where the true mean is; None while there are too few units. `bounds`: those of the metric."""
    found, variance = mean(sums), variance_of_mean(sums, bounds)
    if found is None or variance is None:
        return None
    half = _half_width(variance, effective_units(sums), alpha)
    low, high = bounds or (-math.inf, math.inf)
    return Interval(max(low, found - half), min(high, found + half))


def interval_of_difference(
    sums: Sums, control: Sums, alpha: float = ALPHA, bounds: tuple[float, float] | None = None
) -> Interval | None:
    """By how much the mean is above the control's; None while there are too few units. See `interval_of_mean`."""
    variances = variance_of_mean(sums, bounds), variance_of_mean(control, bounds)
    means = mean(sums), mean(control)
    if variances[0] is None or variances[1] is None or means[0] is None or means[1] is None:
        return None
    units = 1 / (1 / effective_units(sums) + 1 / effective_units(control))
    half = _half_width(variances[0] + variances[1], units, alpha)
    difference = means[0] - means[1]
    return Interval(difference - half, difference + half)


def sample_ratio(counts: Sequence[int], weights: Sequence[float]) -> float:
    """How likely, at any look, units would be shared out at least as unevenly by chance: the inverse of a
    Dirichlet-multinomial martingale (Lindon, Malek 2020), at most 1."""
    total = sum(weights)
    n = sum(counts)
    log_factor = math.lgamma(len(counts)) - math.lgamma(len(counts) + n)
    for count, weight in zip(counts, weights, strict=True):
        log_factor += math.lgamma(1 + count) - count * math.log(weight / total)
    return min(1.0, math.exp(-max(-700.0, min(700.0, log_factor))))
