"""Figures of rankings: those of ir-measures (trec_eval), and intervals that hold what they say."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ranking import (
    Interval,
    interval,
    judged,
    ndcg,
    ordered,
    overlap,
    paired_interval,
    precision,
    recall,
    reciprocal_rank,
    verdict,
)

Runs = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]
NAMES = [f"d{number}" for number in range(30)]
# A few scores, so that many are tied; powers of two, since trec_eval reads scores in single precision.
SCORES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), max_size=30)
GRADES = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 4), max_size=20)


def theirs(runs: Runs, qrels: Qrels, names: Iterable[str]) -> dict[tuple[str, str], float]:
    """What ir-measures says, by query and measure."""
    measures = pytest.importorskip("ir_measures", reason="has no wheel for this machine")
    asked = [measures.parse_measure(name) for name in names]
    scored = [measures.ScoredDoc(q, name, score) for q, run in runs.items() for name, score in run.items()]
    judgements = [measures.Qrel(q, name, grade) for q, grades in qrels.items() for name, grade in grades.items()]
    found = measures.iter_calc(asked, judgements, scored)
    return {(one.query_id, str(one.measure)): one.value for one in found}


MEASURES = {
    "nDCG": lambda ranked, grades: ndcg(ranked, grades, None),
    "nDCG@1": lambda ranked, grades: ndcg(ranked, grades, 1),
    "nDCG@10": ndcg,
    "RR": reciprocal_rank,
    "R@5": lambda ranked, grades: recall(ranked, grades, 5),
    "R@100": lambda ranked, grades: recall(ranked, grades, 100),
    "P@1": lambda ranked, grades: precision(ranked, grades, 1),
    "P@10": lambda ranked, grades: precision(ranked, grades, 10),
}
# Not trec_eval's own, and ties the other way round there: asked with scores that differ only.
UNTIED = {
    "RR@3": lambda ranked, grades: reciprocal_rank(ranked, grades, 3),
    "Judged@10": judged,
    "Judged@3": lambda ranked, grades: judged(ranked, grades, 3),
}


def agree(runs: Runs, qrels: Qrels, ours: Mapping[str, Callable[[list[str], Mapping[str, int]], float]]) -> None:
    expected = theirs(runs, qrels, ours)
    for query, grades in qrels.items():
        for name, figure in ours.items():
            found = figure(ordered(runs.get(query, {})), grades)
            assert found == pytest.approx(expected[query, name], abs=1e-9), (query, name)


def test_figures_are_those_of_ir_measures() -> None:
    """Given 300 random queries with ties, grades of 0, results without judgement, judgements without results and
    queries without relevant or without any results, then each figure is that of ir-measures."""
    draw = random.Random(8)
    runs, qrels = {}, {}
    for number in range(300):
        query = f"q{number}"
        results = {name: draw.choice([0.0, 0.25, 0.5, 1.0]) for name in draw.sample(NAMES, draw.randint(0, 30))}
        if results:
            runs[query] = results
        top = draw.choice([0, 1, 4])
        qrels[query] = {name: draw.randint(0, top) for name in draw.sample(NAMES, draw.randint(1, 12))}
    agree(runs, qrels, MEASURES)


def test_cut_ranks_and_judgements_are_those_of_ir_measures() -> None:
    """Given random queries whose scores differ, then RR@k and judged@k are those of ir-measures."""
    draw = random.Random(9)
    runs, qrels = {}, {}
    for number in range(200):
        names = draw.sample(NAMES, draw.randint(1, 30))
        runs[f"q{number}"] = {name: float(-place) for place, name in enumerate(names)}
        qrels[f"q{number}"] = {name: draw.randint(0, 2) for name in draw.sample(NAMES, draw.randint(1, 12))}
    agree(runs, qrels, UNTIED)


@given(runs=st.dictionaries(st.sampled_from("abc"), SCORES), qrels=st.dictionaries(st.sampled_from("abc"), GRADES))
def test_any_figures_are_those_of_ir_measures(runs: dict, qrels: dict) -> None:
    """Given any runs and judgements, then each figure is that of ir-measures."""
    agree({q: run for q, run in runs.items() if run}, {q: grades for q, grades in qrels.items() if grades}, MEASURES)


@given(ranked=st.permutations(NAMES), grades=GRADES, k=st.integers(1, 40))
def test_figures_are_shares(ranked: list[str], grades: dict[str, int], k: int) -> None:
    """Given any ranking, then every figure is a share, the ideal order has an nDCG of 1, and no swap of two neighbours
    that brings the better one forward makes it less."""
    for gain in ("linear", "exponential"):
        assert 0 <= ndcg(ranked, grades, k, gain) <= 1 + 1e-12
        best = sorted(grades, key=lambda name: -grades[name])
        assert ndcg(best, grades, k, gain) == pytest.approx(1.0 if any(grades.values()) else 0.0)
        for at in range(len(ranked) - 1):
            if grades.get(ranked[at], 0) < grades.get(ranked[at + 1], 0):
                swapped = [*ranked[:at], ranked[at + 1], ranked[at], *ranked[at + 2 :]]
                assert ndcg(swapped, grades, k, gain) >= ndcg(ranked, grades, k, gain) - 1e-12
    for figure in (reciprocal_rank, recall, precision, judged):
        assert 0 <= figure(ranked, grades, k) <= 1
    assert recall(ranked, grades, k) <= recall(ranked, grades, k + 1)


def test_exponential_gain_by_hand() -> None:
    """Given grades 1 and 3 in the wrong order, then nDCG is that of the textbook: 2^grade - 1 over log2(rank + 1)."""
    expected = (1 + 7 / math.log2(3)) / (7 + 1 / math.log2(3))
    assert ndcg(["a", "b"], {"a": 1, "b": 3}, 10, "exponential") == pytest.approx(expected)
    assert ndcg(["a", "b"], {"a": 1, "b": 3}) == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_what_is_empty() -> None:
    """Given no results, no judgement or nothing relevant, then figures are 0, and two empty rankings are the same."""
    for ranked, grades in (([], {"a": 1}), (["a"], {}), (["a"], {"a": 0})):
        assert ndcg(ranked, grades) == reciprocal_rank(ranked, grades) == recall(ranked, grades) == 0
    assert judged([], {"a": 1}) == 0
    assert judged(["a", "b"], {"a": 0}) == 0.5
    assert (overlap([], []), overlap(["a"], []), overlap(["a", "b"], ["b", "c"])) == (1, 0, 0.5)
    assert interval([]) is None
    assert verdict(None) == "not told apart"


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_an_interval_is_the_same_again_and_within_the_values(values: list[float], seed: int) -> None:
    """Given any values, then the interval is ordered, lies within them, and comes again."""
    found = interval(values, resamples=200, seed=seed)
    assert found == interval(values, resamples=200, seed=seed)
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12
    assert found.mean == pytest.approx(math.fsum(values) / len(values))


def test_an_interval_is_that_of_scipy() -> None:
    """Given skewed values, then the interval is that of scipy's BCa bootstrap, but for the chance of the resamples."""
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(3)
    values = [draw.betavariate(0.5, 2) for _ in range(60)]
    mean = lambda sample, axis: sample.mean(axis=axis)  # noqa: E731
    expected = stats.bootstrap((values,), mean, n_resamples=20_000, method="BCa", random_state=1).confidence_interval
    found = interval(values, resamples=20_000)
    assert found.low == pytest.approx(expected.low, abs=0.003)
    assert found.high == pytest.approx(expected.high, abs=0.003)


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Given 400 samples of 50 from a skewed population of known mean, then about 95 % of the intervals hold it."""
    draw = random.Random(5)
    held = 0
    for number in range(400):
        found = interval([draw.betavariate(1, 3) for _ in range(50)], resamples=400, seed=number)
        held += found.low <= 0.25 <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_two_runs_are_told_apart_by_pairs() -> None:
    """Given runs whose queries differ far more from each other than the runs do, then pairs tell them apart, in both
    directions; equal runs and runs of other queries are not."""
    draw = random.Random(6)
    before = [draw.random() * 0.8 for _ in range(80)]
    after = [value + 0.03 + draw.uniform(-0.05, 0.05) for value in before]
    assert interval(after).low < interval(before).high
    assert verdict(paired_interval(before, after)) == "better"
    assert verdict(paired_interval(after, before)) == "worse"
    assert paired_interval(before, before) == Interval(0.0, 0.0, 0.0)
    assert verdict(paired_interval(before, before)) == "not told apart"
    with pytest.raises(ValueError, match="zip"):
        paired_interval(before, after[1:])
