"""Experiments on a label of a prompt: what is asked for, and how it is stored. docs/adr/0015-prompts.md."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from shared.prompts import Note
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

    version: Annotated[int, Meta(ge=1)]
    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1


class Guardrail(Wire, frozen=True, kw_only=True):
    """An arm that is surely worse than the control by more than `worseBy` (in the metric's unit) ends the experiment;
    with `rollback` the label also goes back to where it was before. Never before `leastJobs` of each arm have ended."""

    metric: Metric
    worse_by: Annotated[float, Meta(ge=0)] = 0
    action: GuardrailAction = GuardrailAction.STOP
    least_jobs: Annotated[int, Meta(ge=20, le=1_000_000)] = 100


class ExperimentDraft(Wire, frozen=True, kw_only=True):
    """Body of `PUT /api/prompts/{name}/experiments/{label}`. `coverage` is the share of units that is in; of an
    experiment that runs only it may change, and only grow, beside guardrails and note."""

    variants: Annotated[list[Variant], Meta(min_length=2, max_length=10)]
    sticky_by: StickyBy = StickyBy.USER
    coverage: Annotated[float, Meta(ge=0, le=1)] = 1
    guardrails: Annotated[list[Guardrail], Meta(max_length=10)] = msgspec.field(default_factory=list)
    note: Note | None = None

    def __post_init__(self) -> None:
        versions = [variant.version for variant in self.variants]
        if len(set(versions)) < len(versions):
            raise ValueError("`variants` names a version twice")


class Promotion(Wire, frozen=True, kw_only=True):
    """Body of `POST …/experiments/{label}/promote`."""

    version: Annotated[int, Meta(ge=1)]
    note: Note | None = None


class Experiment(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An experiment as it is stored. `control` is the arm (from 0) that the others are compared with; `rev` counts its
    changes."""

    id: str
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
