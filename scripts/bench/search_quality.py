"""How well searches find, on questions about this project's own documentation; and the fit of the score's weights.

    ./scripts/run python -m scripts.bench.search_quality [--size 1200] [--fit]

171 questions with the passages that answer them, 40 that the documentation does not answer (scripts/samples/search).
Chunks, words, vectors (development model, 256 dimensions, float32) and ranks are those of the workers, in this process;
`errand search eval` measures the same over HTTP. `words alone` and `cosine alone` are what the parts would find without
each other; the other rows are the three modes with the weights of worker/search/ranker.py. Intervals: 95 %, bootstrap
over questions. Below: at which `minScore` how many questions keep an answering chunk, and how many that have no answer
keep anything.

`--fit` fits the weights anew: logistic regression of "answers the question" over each question's hundred best chunks,
both classes with the same weight in all; figures of the fit are cross-validated (5 parts of the questions).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.commands.search_files import read_questions
from scripts.commands.search_matching import holds
from scripts.dev_model.embedder import Embedder
from shared.collections import Entry
from shared.ranking import interval, ndcg, recall, reciprocal_rank
from shared.search import Mode
from worker.search.calibration import measure, texts
from worker.search.chunks import cut
from worker.search.pack import pack, unpack
from worker.search.quantised import unit
from worker.search.ranker import WEIGHTS, by_words
from worker.search.segment import build
from worker.search.terms import query_terms

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "scripts" / "samples" / "search"
DIMENSIONS = 256
HARD = 100  # chunks of a question that the fit sees
PARTS = 5
COLUMNS = {Mode.HYBRID: [0, 1, 2], Mode.VECTOR: [0], Mode.KEYWORD: [1, 2]}
SCORES = (0.3, 0.4, 0.5, 0.6, 0.7)

Array = Any


class Asked(NamedTuple):
    """A question: the features of every chunk (cosine on its scale, BM25 share, coverage), and its grades by chunk."""

    features: Array
    grades: dict[str, int]


def documentation() -> list[Path]:
    """README and everything under docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def asked(size: int) -> tuple[list[Asked], list[Asked], int]:
    """The questions with an answer, those without, and the number of chunks."""
    embedder = Embedder()
    calibration = measure(unit(embedder.embed(texts("", ""), DIMENSIONS)))
    packed, vectors, bodies = [], [], []
    for path in documentation():
        text, name = path.read_text(), str(path.relative_to(ROOT))
        chunks = cut(text, size)
        entry = Entry(revision=1, chunks=len(chunks), text_blob="", title=None, metadata={})
        packed.append((name, entry, unpack(pack(text, chunks))))
        own = [text[chunk.start : chunk.end] for chunk in chunks]
        bodies += [(name, body) for body in own]
        vectors.append(unit(embedder.embed(own, DIMENSIONS)))
    segment = build(packed, vectors)

    def features(query: str) -> Array:
        (words,), (coverage,) = by_words([segment], query_terms(query))
        cosine = segment.matrix @ unit(embedder.embed([query], DIMENSIONS))[0]
        scaled = (cosine - calibration.unrelated) / (calibration.related - calibration.unrelated)
        return np.stack([scaled, words, coverage], 1)

    answered = []
    for question in read_questions(SAMPLES / "queries.jsonl"):
        grades: dict[str, int] = {}
        for place in question.relevant:
            for row, (name, body) in enumerate(bodies):
                if name == place.filename and place.text is not None and holds(body, place.text):
                    grades[str(row)] = max(grades.get(str(row), 0), place.grade)
        answered.append(Asked(features(question.query), grades))
    lines = (SAMPLES / "unanswerable.jsonl").read_text().splitlines()
    unanswered = [Asked(features(line.split('"')[3]), {}) for line in lines if line.strip()]
    return answered, unanswered, len(bodies)


def ranked(one: Asked, weights: Array) -> list[str]:
    """The chunks in the order of these weights."""
    return [str(row) for row in np.argsort(-(one.features @ weights), kind="stable")]


def row(name: str, questions: Sequence[Asked], weights: Array) -> None:
    """Prints nDCG, MRR and recall."""
    orders = [ranked(one, weights) for one in questions]
    shown = []
    for title, figure in (("nDCG@10", ndcg), ("MRR@10", reciprocal_rank), ("recall@10", recall)):
        found = interval([figure(order, one.grades, 10) for order, one in zip(orders, questions, strict=True)])
        assert found is not None
        shown.append(f"{title} {found.mean:.3f} ({found.low:.3f} to {found.high:.3f})")
    print(f"    {name:<14} {'   '.join(shown)}")


def weights_of(mode: Mode) -> tuple[float, Array]:
    """Constant and weights as the workers have them."""
    weights = WEIGHTS[mode]
    return weights.constant, np.array([weights.cosine, weights.words, weights.coverage])


def thresholds(answered: Sequence[Asked], unanswered: Sequence[Asked], constant: float, weights: Array) -> None:
    """Prints what each `minScore` keeps."""

    def scores(one: Asked) -> Array:
        return 1 / (1 + np.exp(-(constant + one.features @ weights)))

    good = [max((scores(one)[int(place)] for place in one.grades), default=0.0) for one in answered]
    bad = [scores(one).max() for one in unanswered]
    for least in SCORES:
        kept, vain = np.mean([value >= least for value in good]), np.mean([value >= least for value in bad])
        print(f"      minScore {least:.1f}: {kept:4.0%} keep an answering chunk, {vain:4.0%} of the others keep any")


def fitted(answered: Sequence[Asked], unanswered: Sequence[Asked], columns: list[int]) -> tuple[float, Array]:
    """Logistic regression by Newton's method, both classes of equal weight in all."""
    rough = np.array([0.3, 1.0, 0.3])
    rows, marks = [], []
    for one in (*answered, *unanswered):
        near = {int(place) for place in np.argsort(-(one.features @ rough))[:HARD]} | set(map(int, one.grades))
        for place in near:
            rows.append(one.features[place][columns])
            marks.append(float(str(place) in one.grades))
    table, wanted = np.column_stack([np.ones(len(rows)), np.array(rows)]), np.array(marks)
    weight = np.where(wanted == 1, (len(wanted) - wanted.sum()) / wanted.sum(), 1.0)
    found = np.zeros(table.shape[1])
    for _ in range(100):
        likely = 1 / (1 + np.exp(-table @ found))
        slope = table.T @ (weight * (likely - wanted))
        bend = (table * (weight * likely * (1 - likely))[:, None]).T @ table + 1e-3 * np.eye(len(found))
        step = np.linalg.solve(bend, slope)
        found -= step
        if np.abs(step).max() < 1e-8:
            break
    weights = np.zeros(3)
    weights[columns] = found[1:]
    return float(found[0]), weights


def fit(answered: Sequence[Asked], unanswered: Sequence[Asked]) -> None:
    """Prints new weights and how they do on questions that they have not seen."""
    order = np.random.default_rng(0).permutation(len(answered))
    for mode, columns in COLUMNS.items():
        constant, weights = fitted(answered, unanswered, columns)
        unseen = []
        for part in range(PARTS):
            test = set(order[part::PARTS].tolist())
            _, learned = fitted([one for at, one in enumerate(answered) if at not in test], unanswered, columns)
            unseen += [ndcg(ranked(answered[at], learned), answered[at].grades, 10) for at in test]
        print(f"    fit, {mode:<8} constant {constant:.2f}, cosine {weights[0]:.2f}, words {weights[1]:.2f}, "
              f"coverage {weights[2]:.2f}; nDCG@10 of unseen questions {np.mean(unseen):.3f}")  # fmt: skip


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.search_quality", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--size", type=int, default=1_200, help="characters of a chunk (default %(default)s)")
    parser.add_argument("--fit", action="store_true", help="fit the weights anew")
    arguments = parser.parse_args()
    answered, unanswered, chunks = asked(arguments.size)
    print(f"  {len(answered)} questions on {chunks} chunks of {len(documentation())} files")
    row("cosine alone", answered, np.array([1.0, 0, 0]))
    row("words alone", answered, np.array([0, 1.0, 0]))
    for mode in Mode:
        constant, weights = weights_of(mode)
        row(mode, answered, weights)
        thresholds(answered, unanswered, constant, weights)
    if arguments.fit:
        fit(answered, unanswered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
