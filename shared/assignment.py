"""Who is in an experiment, and in which of its arms: two independent hashes of the same unit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

_SPAN: Final = float(2**64)


def _share(salt: str, purpose: str, unit: str) -> float:
    """A number from 0 up to 1 that is always the same for these."""
    text = "\0".join((salt, purpose, unit)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / _SPAN


def is_covered(salt: str, unit: str, coverage: float) -> bool:
    """Whether a unit is in. Whoever is in stays in when `coverage` (0 to 1) grows."""
    return coverage >= 1 or _share(salt, "coverage", unit) < coverage


def arm_of(salt: str, unit: str, weights: Sequence[float]) -> int:
    """The arm of a unit, from 0; shares are as the weights. The coverage has no part in it."""
    place = _share(salt, "arm", unit) * sum(weights)
    for arm, weight in enumerate(weights):
        place -= weight
        if place < 0:
            return arm
    return len(weights) - 1
