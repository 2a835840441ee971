"""The URL table of prompts."""

from __future__ import annotations

from typing import Final

from api.handlers import experiments, prompts
from api.route import IDEMPOTENCY, LIST, Page, Route
from api.route import in_header as _h
from api.route import in_query as _q
from shared.audit import AuditEntry
from shared.diff import PromptDiff
from shared.experiments import ExperimentDraft, ExperimentView, Promotion, StatsRow
from shared.prompts import (
    LabelMove,
    LabelView,
    NewPrompt,
    NewVersion,
    PromptRow,
    Rendered,
    RenderRequest,
    Rollback,
    VersionRow,
    VersionView,
)
from shared.tenants import Scope

_SHARED = _q("shared", "`true`: those that every tenant has (`errand/…`); to change them takes the scope `admin`")
_BODY = ("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "request_timeout")
_IF_MATCH = (
    _h("If-Match", "the ETag of the label: change it only if it is still that; `*`: only if it is there"),
    _h("If-None-Match", "`*`: only if there is no such label yet"),
)

PROMPT_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST", "/api/prompts", prompts.create, "Make a prompt and its version 1", Scope.PROMPTS,
        {201: ("Version 1.", VersionView)}, body=NewPrompt, parameters=(IDEMPOTENCY, _SHARED),
        problems=(*_BODY, "conflict", "idempotency_mismatch"),
    ),
    Route(
        "GET", "/api/prompts", prompts.list_prompts, "List prompts, newest first", Scope.PROMPTS,
        {200: ("One page.", Page(PromptRow))},
        parameters=(
            *LIST, _q("prefix", "names that begin so: a folder, for example `support/`"),
            _q("search", "part of a name or description"), _q("label", "prompts that have this label"), _SHARED,
        ),
        problems=("invalid_request",),
    ),
    Route(
        "GET", "/api/prompts/{name}", prompts.show, "Read a version of a prompt", Scope.PROMPTS,
        {200: ("The version.", VersionView), 304: ("Unchanged.", None)},
        parameters=(_q("label", "by default `production`; `latest` is the newest version"), _q("version", "a number"),
                    _SHARED, _h("If-None-Match", "the ETag of an earlier answer")),
        problems=("not_found", "invalid_request"),
    ),
    Route(
        "DELETE", "/api/prompts/{name}", prompts.archive,
        "Take a prompt out of use; jobs that are pinned on its versions go on", Scope.PROMPTS,
        {204: ("It is in no list, and has no label.", None)}, parameters=(_SHARED,), problems=("not_found",),
    ),
    Route(
        "POST", "/api/prompts/{name}/versions", prompts.add_version, "Add the next version", Scope.PROMPTS,
        {201: ("The version.", VersionView)}, body=NewVersion, parameters=(IDEMPOTENCY, _SHARED),
        problems=(*_BODY, "not_found", "conflict", "idempotency_mismatch"),
    ),
    Route(
        "GET", "/api/prompts/{name}/versions", prompts.list_versions, "List versions, newest first", Scope.PROMPTS,
        {200: ("One page.", Page(VersionRow))}, parameters=(*LIST, _SHARED), problems=("not_found", "invalid_request"),
    ),
    Route(
        "GET", "/api/prompts/{name}/labels", prompts.list_labels, "List labels", Scope.PROMPTS,
        {200: ("All of them.", Page(LabelView))}, parameters=(_SHARED,), problems=("not_found",),
    ),
    Route(
        "GET", "/api/prompts/{name}/labels/{label}", prompts.show_label, "Read a label", Scope.PROMPTS,
        {200: ("The label.", LabelView), 304: ("Unchanged.", None)}, parameters=(_SHARED,), problems=("not_found",),
    ),
    Route(
        "PUT", "/api/prompts/{name}/labels/{label}", prompts.move_label, "Point a label at a version", Scope.PROMPTS,
        {200: ("The label; every process uses it within a second.", LabelView)}, body=LabelMove,
        parameters=(*_IF_MATCH, _SHARED), problems=(*_BODY, "not_found", "conflict", "precondition_failed"),
    ),
    Route(
        "DELETE", "/api/prompts/{name}/labels/{label}", prompts.remove_label, "Take a label away", Scope.PROMPTS,
        {204: ("It is gone.", None)}, parameters=(*_IF_MATCH, _SHARED), problems=("not_found", "precondition_failed"),
    ),
    Route(
        "POST", "/api/prompts/{name}/rollback", prompts.roll_back,
        "Take a label back to the version that it had before", Scope.PROMPTS,
        {200: ("The label.", LabelView)}, body=Rollback, parameters=(_SHARED,),
        problems=(*_BODY, "not_found", "conflict"),
    ),
    Route(
        "GET", "/api/prompts/{name}/diff", prompts.diff, "What differs between two versions, word by word",
        Scope.PROMPTS, {200: ("The difference.", PromptDiff)},
        parameters=(_q("from", "a number or a label; by default the version before the newest"),
                    _q("to", "likewise; by default the newest"), _SHARED),
        problems=("not_found", "invalid_request"),
    ),
    Route(
        "GET", "/api/prompts/{name}/audit", prompts.history, "Who changed a prompt, newest first", Scope.PROMPTS,
        {200: ("One page.", Page(AuditEntry))}, parameters=(*LIST, _SHARED), problems=("not_found", "invalid_request"),
    ),
    Route(
        "POST", "/api/prompts/{name}/render", prompts.render_prompt, "What a model would get; spends nothing",
        Scope.PROMPTS, {200: ("The messages, and their tokens.", Rendered)}, body=RenderRequest, parameters=(_SHARED,),
        problems=(*_BODY, "not_found"),
    ),
    Route(
        "GET", "/api/prompts/{name}/stats", experiments.stats, "Figures of each version, by day", Scope.PROMPTS,
        {200: ("Newest day first.", Page(StatsRow))},
        parameters=(_q("from", "the first UTC day; by default 30 days"), _q("to", "the last, by default today"),
                    _q("version", "of this version only")),
        problems=("not_found", "invalid_request"),
    ),
    Route(
        "GET", "/api/prompts/{name}/experiments", experiments.list_all, "Experiments that run and that are over",
        Scope.PROMPTS, {200: ("Newest first.", Page(ExperimentView))}, parameters=(_SHARED,), problems=("not_found",),
    ),
    Route(
        "PUT", "/api/prompts/{name}/experiments/{label}", experiments.begin,
        "Begin an experiment on a label, or let more units in", Scope.PROMPTS,
        {200: ("The experiment.", ExperimentView)}, body=ExperimentDraft,
        parameters=(
            _h("If-Match", "the ETag of the experiment: change it only if it is still that"),
            _h("If-None-Match", "`*`: only if none runs"), _SHARED,
        ),
        problems=(*_BODY, "not_found", "conflict", "precondition_failed"),
    ),
    Route(
        "GET", "/api/prompts/{name}/experiments/{label}", experiments.show, "Read the experiment that runs on a label",
        Scope.PROMPTS, {200: ("Its arms, with intervals.", ExperimentView)}, parameters=(_SHARED,),
        problems=("not_found",),
    ),
    Route(
        "DELETE", "/api/prompts/{name}/experiments/{label}", experiments.stop,
        "Stop an experiment; everybody gets the label's version", Scope.PROMPTS,
        {200: ("It, as it was at its end.", ExperimentView)},
        parameters=(_h("If-Match", "the ETag of the experiment"), _SHARED),
        problems=("not_found", "precondition_failed"),
    ),
    Route(
        "POST", "/api/prompts/{name}/experiments/{label}/promote", experiments.promote,
        "Stop an experiment and point the label at a version", Scope.PROMPTS,
        {200: ("It, as it was at its end.", ExperimentView)}, body=Promotion,
        parameters=(_h("If-Match", "the ETag of the experiment"), _SHARED),
        problems=(*_BODY, "not_found", "precondition_failed"),
    ),
)  # fmt: skip
