"""PromQL that the dashboards share. What all processes have in common is read by each API process alike: `max`, never
`sum`."""

from __future__ import annotations

from scripts.dashboards.panels import RATE, Query


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Per second, over all processes."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{where}}}[{RATE}]))".replace("{}", "")


def quantile(share: float, histogram: str, by: str = "", where: str = "") -> str:
    """A quantile of a histogram, over all processes."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(histogram + '_bucket', labels, where)})"


def share(part: str, whole: str) -> str:
    """A part of a whole, 0 without any of the whole."""
    return f"({part} or vector(0)) / clamp_min({whole}, 1e-9)"


def quantiles(
    histogram: str, by: str, *, where: str = "", shares: tuple[float, ...] = (0.5, 0.95)
) -> tuple[Query, ...]:
    """Lines of several quantiles for each value of a label."""
    legend = f"{{{{{by}}}}} " if by else ""
    return tuple(Query(quantile(one, histogram, by, where), f"{legend}p{one * 100:g}") for one in shares)


def or_none(expr: str) -> str:
    """0 where nothing was counted yet: a counter appears with its first count."""
    return f"{expr} or vector(0)"
