"""Intervals that hold at every look, and the check of the sample ratio, by simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from shared.evidence import (
    ALPHA,
    MISMATCH,
    Interval,
    Sums,
    interval_of_difference,
    interval_of_mean,
    mean,
    sample_ratio,
    variance_of_mean,
)

LOOKS = range(100, 1_001, 100)  # units of each arm


def of_jobs(count: int, total: float, squares: float) -> Sums:
    """The sums of jobs that are units of their own."""
    return Sums(n=count, x=total, units=count, ss=squares, sn=total, nn=count)


def naive(sums: Sums, control: Sums) -> Interval:
    """The usual interval, made for one look."""
    variance = (variance_of_mean(sums) or 0) + (variance_of_mean(control) or 0)
    difference = (mean(sums) or 0) - (mean(control) or 0)
    half = 1.96 * math.sqrt(variance)
    return Interval(difference - half, difference + half)


def ever_conclusive(draw: Callable[[], float], other: Callable[[], float]) -> int:
    """The number of units at which a run first excludes zero; 0 for never."""
    totals = [0.0, 0.0]
    squares = [0.0, 0.0]
    done = 0
    for look in LOOKS:
        for arm, one in enumerate((draw, other)):
            values = [one() for _ in range(look - done)]
            totals[arm] += math.fsum(values)
            squares[arm] += math.fsum(value * value for value in values)
        done = look
        found = interval_of_difference(of_jobs(done, totals[1], squares[1]), of_jobs(done, totals[0], squares[0]))
        if found is not None and found.is_conclusive:
            return done
    return 0


def counts_of(chance: random.Random, size: int, share: float) -> int:
    """A binomial number, by its normal approximation: fast, and close enough for hundreds."""
    return min(size, max(0, round(chance.gauss(size * share, math.sqrt(size * share * (1 - share))))))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_two_equal_arms_are_seldom_told_apart(share: float) -> None:
    """Given 10,000 experiments of two equal arms with a look after every hundred units, then at most one in twenty is
    ever called different; intervals that are made for one look call several times as many."""
    chance = random.Random(7)
    runs, wrong, wrong_naive = 10_000, 0, 0
    for _ in range(runs):
        won = [0, 0]
        is_wrong = is_naive = False
        for look in LOOKS:
            for arm in (0, 1):
                won[arm] += counts_of(chance, 100, share)
            sums = [of_jobs(look, total, total) for total in won]
            found = interval_of_difference(sums[1], sums[0])
            is_wrong = is_wrong or (found is not None and found.is_conclusive)
            is_naive = is_naive or naive(sums[1], sums[0]).is_conclusive
        wrong += is_wrong
        wrong_naive += is_naive
    margin = 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert wrong / runs <= ALPHA + margin
    assert wrong_naive / runs > 2.5 * ALPHA


def test_skewed_figures_keep_the_rate_too() -> None:
    """The same for token counts, which have a long tail."""
    chance = random.Random(8)
    runs = 1_000

    def tokens() -> float:
        return chance.lognormvariate(6, 1)

    wrong = sum(ever_conclusive(tokens, tokens) > 0 for _ in range(runs))
    assert wrong / runs <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def of_users(chance: random.Random, users: int, jobs_at_most: int) -> Sums:
    """Users with many jobs or few, each with a share of success of the user's own."""
    n = x = ss = sn = nn = 0.0
    for _ in range(users):
        jobs, share = chance.randint(1, jobs_at_most), min(1.0, max(0.0, chance.gauss(0.7, 0.2)))
        won = sum(chance.random() < share for _ in range(jobs))
        n, x, ss, sn, nn = n + jobs, x + won, ss + won * won, sn + won * jobs, nn + jobs * jobs
    return Sums(n=n, x=x, units=users, ss=ss, sn=sn, nn=nn)


def test_a_users_jobs_do_not_count_as_many_users() -> None:
    """Given users with up to 50 jobs, alike for each user, then sums over users keep the rate of false alarms, and sums
    that take each job for a unit do not."""
    chance = random.Random(9)
    runs, wrong, wrong_by_jobs = 400, 0, 0
    for _ in range(runs):
        arms = [of_users(chance, 150, 50) for _ in range(2)]
        found = interval_of_difference(arms[1], arms[0])
        assert found is not None
        wrong += found.is_conclusive
        jobs = [of_jobs(round(sums.n), sums.x, sums.x) for sums in arms]
        as_jobs = interval_of_difference(jobs[1], jobs[0])
        assert as_jobs is not None
        wrong_by_jobs += as_jobs.is_conclusive
    assert wrong / runs <= ALPHA
    assert wrong_by_jobs / runs > ALPHA


def test_a_difference_is_found() -> None:
    """Given 70 against 80 of 100, then four of five experiments have said so within 1,000 units of each arm."""
    chance = random.Random(10)
    runs = 300

    def won(share: float) -> Callable[[], float]:
        return lambda: float(chance.random() < share)

    found = [ever_conclusive(won(0.7), won(0.8)) for _ in range(runs)]
    assert sum(one > 0 for one in found) / runs >= 0.8


def test_the_mean_lies_in_its_interval() -> None:
    chance = random.Random(11)
    missed = 0
    for _ in range(1_000):
        values = [chance.expovariate(1) for _ in range(300)]
        found = interval_of_mean(of_jobs(300, math.fsum(values), math.fsum(value * value for value in values)))
        assert found is not None
        missed += not found.low <= 1 <= found.high
    assert missed / 1_000 <= ALPHA
    assert interval_of_mean(of_jobs(49, 40, 40)) is None
    assert interval_of_mean(of_jobs(60, 300, 1_500)) is None, "sixty times the same tells nothing of what varies"
    assert interval_of_difference(of_jobs(49, 40, 40), of_jobs(60, 40, 40)) is None
    assert mean(Sums()) is None


@pytest.mark.parametrize("share", [0.9, 0.95, 0.99, 0.999])
def test_a_high_share_lies_in_its_interval_at_every_look(share: float) -> None:
    """Given jobs that nearly always succeed, then the interval of the share is right at all eleven looks in 95 of 100
    experiments, and is not empty where none has failed yet."""
    chance = random.Random(12)
    missed = 0
    for _ in range(500):
        won, is_wrong = 0.0, False
        for count in range(1, 1_001):
            won += chance.random() < share
            if count == 50 or count % 100 == 0:
                found = interval_of_mean(of_jobs(count, won, won), bounds=(0, 1))
                assert found is not None
                assert 0 <= found.low < found.high <= 1
                is_wrong = is_wrong or not found.low <= share <= found.high
        missed += is_wrong
    assert missed / 500 <= ALPHA


@pytest.mark.parametrize("tail", [3.0, 1.5, 1.1, 0.8])
def test_heavy_users_do_not_raise_false_alarms(tail: float) -> None:
    """Given users whose numbers of jobs have a heavy tail (Pareto), with a look after every ten, then two equal arms
    are seldom told apart; where few users have nearly all jobs, nothing is said."""
    chance = random.Random(13)
    wrong = 0
    for _ in range(100):
        rows = [[0.0] * 6, [0.0] * 6]
        is_wrong = False
        for users in range(1, 301):
            for row in rows:
                jobs = min(100_000, int(chance.paretovariate(tail)))
                won = round(jobs * chance.betavariate(2, 1))
                added = (jobs, won, 1, won * won, won * jobs, jobs * jobs)
                row[:] = [one + more for one, more in zip(row, added, strict=True)]
            if users % 10 == 0:
                found = interval_of_difference(Sums(*rows[0]), Sums(*rows[1]), bounds=(0, 1))
                is_wrong = is_wrong or (found is not None and found.is_conclusive)
        wrong += is_wrong
    assert wrong / 100 <= ALPHA


def test_units_that_are_shared_out_wrongly_are_noticed() -> None:
    """Given 10,000 experiments with a look after every hundred units, then at most one in a thousand is said to have
    shared its units out wrongly; one of which a tenth of an arm is lost is found."""
    chance = random.Random(12)
    runs, wrong = 10_000, 0
    for _ in range(runs):
        first = total = 0
        for _ in range(20):
            first, total = first + counts_of(chance, 100, 2 / 3), total + 100
            if sample_ratio([first, total - first], [2, 1]) < MISMATCH:
                wrong += 1
                break
    assert wrong / runs <= MISMATCH + 3 * math.sqrt(MISMATCH / runs)
    found = sum(
        sample_ratio([one := counts_of(chance, 5_000, 0.45), 5_000 - one], [1, 1]) < MISMATCH for _ in range(100)
    )
    assert found > 90
    assert sample_ratio([0, 0], [1, 1]) == 1
    assert sample_ratio([10**6, 0], [1, 1]) < 1e-100
