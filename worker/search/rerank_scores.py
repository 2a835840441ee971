"""What a re-ranker's answer is worth: the scores in it, or why there are none. Values only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

from shared.errors import ErrandError

ROUNDING: Final = 1e-3  # beyond 0 and 1, that a relevance may be off by: half precision is no better
FARTHEST: Final = 700.0  # where exp() of a float overflows


class Outcome(StrEnum):
    """What came of asking a re-ranker."""

    OK = "ok"
    TIMEOUT = "timeout"
    ERROR = "error"
    BAD_ANSWER = "bad_answer"


class RerankError(ErrandError):
    """The re-ranker gave no scores. The message is a sentence for people, `reason` a few words for the log; neither
    holds anything of the query, the documents or the answer. `is_down`: nobody was there, or it broke."""

    def __init__(self, outcome: Outcome, sentence: str, reason: str, *, is_down: bool = False) -> None:
        super().__init__(sentence)
        self.outcome = outcome
        self.sentence = sentence
        self.reason = reason
        self.is_down = is_down


def bad_answer(reason: str) -> RerankError:
    """The answer has not the asked form."""
    return RerankError(Outcome.BAD_ANSWER, "The re-ranker's answer makes no sense.", reason)


def by_index(scored: Iterable[tuple[int, float]], count: int) -> list[float]:
    """The scores in the order of the texts, from (index from 0, score) in any order. Raises RerankError unless each of
    the `count` texts has exactly one, and all are finite."""
    found: dict[int, float] = {}
    for index, score in scored:
        if not 0 <= index < count:
            raise bad_answer("an index out of range")
        if index in found:
            raise bad_answer("an index twice")
        if not math.isfinite(score):
            raise bad_answer("a score that is not finite")
        found[index] = score
    if len(found) != count:
        raise bad_answer("an index missing")
    return [found[index] for index in range(count)]


def relevance(scores: Sequence[float]) -> list[float]:
    """Scores as 0..1. When one of them is outside, they are taken for logits, and all of them go through the logistic
    function: half of an answer would not compare with the other half. Rounding is no reason."""
    if all(-ROUNDING <= score <= 1 + ROUNDING for score in scores):
        return [min(1.0, max(0.0, score)) for score in scores]
    return [1 / (1 + math.exp(-min(FARTHEST, max(-FARTHEST, score)))) for score in scores]
