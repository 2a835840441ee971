"""How fast something grows, by a fit that a few odd samples do not move."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Point = tuple[float, float]  # time in s, value


def theil_sen(points: Sequence[Point], most: int = 300) -> float:
    """The median of the slopes between all pairs of points, per second; 0 for less than two. Of more than `most` points
    the medians of as many stretches are taken. (Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau",
    JASA 63, 1968.)"""
    if len(points) > most:
        size = -(-len(points) // most)
        parts = [points[start : start + size] for start in range(0, len(points), size)]
        points = [(statistics.median(at for at, _ in part), statistics.median(v for _, v in part)) for part in parts]
    slopes = [
        (later - value) / (at_later - at)
        for place, (at, value) in enumerate(points)
        for at_later, later in points[place + 1 :]
        if at_later > at
    ]
    return statistics.median(slopes) if slopes else 0.0


def second_half(points: Sequence[Point]) -> list[Point]:
    """The points of the second half of the time: after caches have filled and arenas have grown."""
    if not points:
        return []
    middle = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if point[0] >= middle]
