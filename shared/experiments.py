"""Experiments on a label of a prompt: what is asked for, and how it is stored. docs/adr/0015-prompts.md."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared.evidence import Sums
from shared.jobs import FeedbackView, Output
from shared.prompts import MAX_VERSIONS, Note
from shared.specs import Wire


class StickyBy(StrEnum):
    """Which unit keeps its arm."""

    USER = "user"
    JOB = "job"


class Metric(StrEnum):
    """What is measured of each arm."""

    SUCCESS = "success"
    SCHEMA_VALID = "schemaValid"
    TOKENS = "tokens"
    COST = "costUsd"
    LATENCY = "latencyMs"
    FEEDBACK = "feedback"


class GuardrailAction(StrEnum):
    """What happens when a guardrail is crossed."""

    STOP = "stop"
    ROLLBACK = "rollback"


class Variant(Wire, frozen=True, kw_only=True):
    """A version, and how large its share is beside the others' weights."""

    version: Annotated[int, Meta(ge=1, le=MAX_VERSIONS)]
    weight: Annotated[float, Meta(ge=0.001, le=1_000)] = 1


class Guardrail(Wire, frozen=True, kw_only=True):
    """An arm that is surely worse than the control by more than `worseBy` (in the metric's unit) ends the experiment;
    with `rollback` the label also goes back to where it was before. Never before `leastJobs` of each arm have ended."""

    metric: Metric
    worse_by: Annotated[float, Meta(ge=0)] = 0
    action: GuardrailAction = GuardrailAction.STOP
    least_jobs: Annotated[int, Meta(ge=20, le=1_000_000)] = 100


class ExperimentDraft(Wire, frozen=True, kw_only=True):
    """Body of `PUT /api/prompts/{name}/experiments/{label}`. `coverage` is the share of units that is in; of an
    experiment that runs only it may change, and only grow, beside guardrails and note; what is absent stays."""

    variants: Annotated[list[Variant], Meta(min_length=2, max_length=10)]
    sticky_by: StickyBy | UnsetType = UNSET
    coverage: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    guardrails: Annotated[list[Guardrail], Meta(max_length=10)] | UnsetType = UNSET
    note: Note | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        versions = [variant.version for variant in self.variants]
        if len(set(versions)) < len(versions):
            raise ValueError("`variants` names a version twice")


class Promotion(Wire, frozen=True, kw_only=True):
    """Body of `POST …/experiments/{label}/promote`."""

    version: Annotated[int, Meta(ge=1, le=MAX_VERSIONS)]
    note: Note | None = None


class Experiment(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An experiment on `label` as it is stored. `control` is the arm (from 0) that the others are compared with;
    `rev` counts its changes."""

    id: str
    label: str
    salt: str
    variants: list[Variant]
    sticky_by: StickyBy
    coverage: float
    guardrails: list[Guardrail]
    control: int
    started_ms: int
    by: str
    rev: int = 1
    note: str | None = None


class Ended(Experiment, frozen=True, kw_only=True, rename="camel"):
    """One that is over: when, by whom, and why."""

    ended_ms: int
    ended_by: str
    why: str


class ArmSums(msgspec.Struct, frozen=True):
    """One arm: units that were assigned to it, and the sums of each metric."""

    assigned: int
    metrics: dict[Metric, Sums]


class IntervalView(Output, frozen=True):
    """Where the true value is, at every look, in 95 of 100 experiments."""

    low: float
    high: float


class MetricView(Output, frozen=True, kw_only=True):
    """One metric of an arm. `jobs` it rests on; `interval` of the mean and `difference` to the control are null while
    there are too few units; `conclusive`: the difference is not zero."""

    jobs: int
    mean: float
    interval: IntervalView | None
    difference: IntervalView | None
    conclusive: bool


class ArmView(Output, frozen=True, kw_only=True):
    """An arm: `assigned` units, and its figures by metric."""

    arm: int
    version: int
    weight: float
    is_control: bool
    assigned: int
    metrics: dict[str, MetricView]


class SampleRatioView(Output, frozen=True):
    """Whether units were shared out as the weights say: below 0.001 something loses some of one arm."""

    p_value: float
    mismatch: bool


class GuardrailView(Output, frozen=True, kw_only=True):
    """A guardrail, and the arms that have crossed it."""

    metric: str
    worse_by: float
    action: str
    least_jobs: int
    crossed_by: list[int]


class ExperimentView(Output, frozen=True, kw_only=True):
    """An experiment with its figures. `endedAt`, `endedBy` and `why` are null while it runs."""

    id: str
    name: str
    label: str
    sticky_by: str
    coverage: float
    started_at: str
    started_by: str
    note: str | None
    arms: list[ArmView]
    sample_ratio: SampleRatioView
    guardrails: list[GuardrailView]
    ended_at: str | None
    ended_by: str | None
    why: str | None


class StatsRow(Output, frozen=True, kw_only=True):
    """A version's figures of one UTC day. `uses` are jobs that ended as complete or failed; latencies run from the
    first start of a job to its end, right within a tenth."""

    day: str
    version: int
    uses: int
    failures: int
    total_tokens: int
    cost_usd: float | None
    latency_p50_ms: int | None
    latency_p95_ms: int | None
    feedback: FeedbackView | None
