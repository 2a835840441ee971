"""Figures of experiments and versions, from what was counted: pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from shared.clock import rfc3339
from shared.evidence import (
    MISMATCH,
    Interval,
    Sums,
    interval_of_difference,
    interval_of_mean,
    mean,
    sample_ratio,
)
from shared.experiments import (
    ArmSums,
    ArmView,
    Ended,
    Experiment,
    ExperimentView,
    Guardrail,
    GuardrailView,
    IntervalView,
    Metric,
    MetricView,
    SampleRatioView,
    StatsRow,
)
from shared.jobs import feedback_of
from shared.policy import NANO

# Of these more is worse; of the others less.
COSTS: Final = frozenset({Metric.TOKENS, Metric.COST, Metric.LATENCY})
_BOUNDS: Final = {Metric.SUCCESS: (0.0, 1.0), Metric.SCHEMA_VALID: (0.0, 1.0), Metric.FEEDBACK: (-1.0, 1.0)}
_FIELD: Final = re.compile(r"(\d+)\|(n|f|t|c|u|fn|fs|b)(\d*)")


def _view(interval: Interval | None) -> IntervalView | None:
    return None if interval is None else IntervalView(interval.low, interval.high)


def _metric_view(metric: Metric, sums: Sums, control: Sums | None) -> MetricView:
    """`control` is None for the control itself."""
    bounds = _BOUNDS.get(metric)
    difference = interval_of_difference(sums, control, bounds=bounds) if control is not None else None
    return MetricView(
        jobs=round(sums.n),
        mean=mean(sums) or 0.0,
        interval=_view(interval_of_mean(sums, bounds=bounds)),
        difference=_view(difference),
        conclusive=difference is not None and difference.is_conclusive,
    )


def _arm_view(experiment: Experiment, arm: int, sums: Sequence[ArmSums]) -> ArmView:
    variant, control = experiment.variants[arm], sums[experiment.control]
    is_control = arm == experiment.control
    return ArmView(
        arm=arm,
        version=variant.version,
        weight=variant.weight,
        is_control=is_control,
        assigned=sums[arm].assigned,
        metrics={
            metric.value: _metric_view(metric, found, None if is_control else control.metrics.get(metric, Sums()))
            for metric, found in sums[arm].metrics.items()
        },
    )


def crossed(guardrail: Guardrail, experiment: Experiment, sums: Sequence[ArmSums]) -> list[int]:
    """The arms that are surely worse than the control by more than the guardrail allows."""
    metric = guardrail.metric
    control = sums[experiment.control].metrics.get(metric, Sums())
    found = []
    for arm, one in enumerate(sums):
        own = one.metrics.get(metric, Sums())
        if arm == experiment.control or min(own.n, control.n) < guardrail.least_jobs:
            continue
        difference = interval_of_difference(own, control, bounds=_BOUNDS.get(metric))
        if difference is None:
            continue
        if (difference.low if metric in COSTS else -difference.high) > guardrail.worse_by:
            found.append(arm)
    return found


def experiment_view(name: str, label: str, experiment: Experiment, sums: Sequence[ArmSums]) -> ExperimentView:
    """An experiment as the API shows it."""
    ended = experiment if isinstance(experiment, Ended) else None
    ratio = sample_ratio([arm.assigned for arm in sums], [variant.weight for variant in experiment.variants])
    return ExperimentView(
        id=experiment.id,
        name=name,
        label=label,
        sticky_by=experiment.sticky_by.value,
        coverage=experiment.coverage,
        started_at=rfc3339(experiment.started_ms),
        started_by=experiment.by,
        note=experiment.note,
        arms=[_arm_view(experiment, arm, sums) for arm in range(len(experiment.variants))],
        sample_ratio=SampleRatioView(ratio, ratio < MISMATCH),
        guardrails=[
            GuardrailView(
                metric=one.metric.value,
                worse_by=one.worse_by,
                action=one.action.value,
                least_jobs=one.least_jobs,
                crossed_by=crossed(one, experiment, sums),
            )
            for one in experiment.guardrails
        ],
        ended_at=rfc3339(ended.ended_ms) if ended else None,
        ended_by=ended.ended_by if ended else None,
        why=ended.why if ended else None,
    )


def _percentile(buckets: Mapping[int, int], share: float) -> int | None:
    """The middle of the bucket below which so many lie; a bucket k holds from 2^(k/4) ms to 2^((k+1)/4)."""
    left = share * sum(buckets.values())
    for bucket in sorted(buckets):
        left -= buckets[bucket]
        if left <= 0:
            return round(2 ** ((bucket + 0.5) / 4))
    return None


def stats_rows(day: str, row: Mapping[str, int]) -> list[StatsRow]:
    """The figures of a day (`YYYYMMDD`), a row for each version, the newest first."""
    versions: dict[int, dict[str, int]] = {}
    buckets: dict[int, dict[int, int]] = {}
    for field, value in row.items():
        if match := _FIELD.fullmatch(field):
            version, name = int(match[1]), match[2]
            if name == "b":
                buckets.setdefault(version, {})[int(match[3])] = value
            else:
                versions.setdefault(version, {})[name] = value
    return [
        StatsRow(
            day=f"{day[:4]}-{day[4:6]}-{day[6:]}",
            version=version,
            uses=found.get("n", 0),
            failures=found.get("f", 0),
            total_tokens=found.get("t", 0),
            cost_usd=None if found.get("u", 0) == found.get("t", 0) > 0 else found.get("c", 0) / NANO,
            latency_p50_ms=_percentile(buckets.get(version, {}), 0.5),
            latency_p95_ms=_percentile(buckets.get(version, {}), 0.95),
            feedback=feedback_of(found["fn"], found.get("fs", 0)) if found.get("fn") else None,
        )
        for version, found in sorted(versions.items(), reverse=True)
    ]
