"""The part of the URL table that is about prompts."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from api.handlers import experiments, prompt_lists, prompts, rendering
from api.route import IDEMPOTENCY, LIST, Day, EntryPlace, Page, Parameter, Route, list_of, whole
from api.route import in_header as _h
from api.route import in_query as _q
from shared.audit import AuditEntry
from shared.diff import PromptDiff
from shared.experiments import ExperimentDraft, ExperimentView, Promotion, StatsRow
from shared.prompts import (
    MAX_VERSIONS,
    LabelList,
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

BODY: Final = ("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "request_timeout")
SHARED_TO_READ: Final = _q(
    "shared", "`true`: the prompt that every tenant has, also where you have one of its name", bool
)
SHARED_TO_CHANGE: Final = _q("shared", "`true`: the prompt that every tenant has; needs the scope `admin`", bool)
IF_MATCH: Final = _h("If-Match", "the ETag of the label as you know it, or `*`: it must exist")
VERSION: Final = whole(1, MAX_VERSIONS)
STAR: Final = Literal["*"]
PROMPT: Final = "/api/prompts/{name}"
Either = Annotated[
    str, Meta(max_length=64, pattern=r"^([1-9][0-9]{0,3}|[a-z][a-z0-9._-]*|[0-9]+[a-z._-][a-z0-9._-]*)$")
]


def _after(form: str) -> Parameter:
    return msgspec.structs.replace(LIST[1], kind=Annotated[str, Meta(pattern=f"^{form}$")])


PROMPT_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST", "/api/prompts", prompts.create, "Create a prompt with its version 1", Scope.PROMPTS,
        {201: ("The version; a name that was deleted before goes on with the next number.", VersionView)},
        body=NewPrompt, parameters=(IDEMPOTENCY, SHARED_TO_CHANGE),
        problems=(*BODY, "conflict", "idempotency_mismatch"),
    ),
    Route(
        "GET", "/api/prompts", prompt_lists.list_prompts, "List prompts, newest first", Scope.PROMPTS,
        {200: ("One page: yours, and the shared ones of whose name you have none. With filters it may be short though "
               "there are more.", Page(PromptRow))},
        parameters=(
            LIST[0], _after(r"[0-9]{1,15}\.[A-Za-z0-9._~-]{1,128}"),
            _q("prefix", "only those in this folder, for example `errand` or `team/support`"),
            _q("search", "only those with this text in name or description, in whatever case"),
            _q("label", "only those that have this label"),
            _q("shared", "`true`: only the shared ones, all of them", bool),
        ),
        problems=("invalid_request",),
    ),
    Route(
        "GET", PROMPT, prompts.show, "Read a version of a prompt (a `/` in its name is `%2F` here)", Scope.PROMPTS,
        {200: ("That version, or where the label points; without either where `production` does.", VersionView),
         304: ("Unchanged.", None)},
        parameters=(_q("label", "a label; `latest` is the newest version"),
                    _q("version", "the number of a version", VERSION), SHARED_TO_READ,
                    _h("If-None-Match", "the ETag of an earlier answer")),
        problems=("invalid_request", "not_found"),
    ),
    Route(
        "DELETE", PROMPT, prompts.delete, "Delete a prompt; jobs that are pinned to a version of it run on",
        Scope.PROMPTS, {204: ("It is in no list any more, and its labels are gone.", None)},
        parameters=(SHARED_TO_CHANGE,), problems=("not_found", "conflict"),
    ),
    Route(
        "POST", f"{PROMPT}/versions", prompts.add_version, "Add the next version; versions never change",
        Scope.PROMPTS, {201: ("The version.", VersionView)}, body=NewVersion,
        parameters=(IDEMPOTENCY, SHARED_TO_CHANGE),
        problems=(*BODY, "not_found", "conflict", "idempotency_mismatch"),
    ),
    Route(
        "GET", f"{PROMPT}/versions", prompt_lists.list_versions, "List a prompt's versions, newest first",
        Scope.PROMPTS, {200: ("One page, without the texts.", Page(VersionRow))},
        parameters=(LIST[0], msgspec.structs.replace(LIST[1], kind=whole(1, MAX_VERSIONS + 1)), SHARED_TO_READ),
        problems=("invalid_request", "not_found"),
    ),
    Route(
        "GET", f"{PROMPT}/labels", prompt_lists.list_labels, "All labels of a prompt", Scope.PROMPTS,
        {200: ("By name, without `latest`.", LabelList)}, parameters=(SHARED_TO_READ,), problems=("not_found",),
    ),
    Route(
        "GET", f"{PROMPT}/labels/{{label}}", prompts.show_label, "Read a label", Scope.PROMPTS,
        {200: ("Where it points, with an ETag that changes whenever it is moved.", LabelView)},
        parameters=(SHARED_TO_READ,), problems=("not_found",),
    ),
    Route(
        "PUT", f"{PROMPT}/labels/{{label}}", prompts.move_label,
        "Point a label at a version; a protected one with the scope `promote` only", Scope.PROMPTS,
        {200: ("The label; every process uses it within a second.", LabelView)}, body=LabelMove,
        parameters=(IF_MATCH, _h("If-None-Match", "`*`: the label must not exist", STAR), SHARED_TO_CHANGE),
        problems=(*BODY, "not_found", "conflict", "precondition_failed"),
    ),
    Route(
        "DELETE", f"{PROMPT}/labels/{{label}}", prompts.remove_label, "Remove a label", Scope.PROMPTS,
        {204: ("It is gone.", None)}, parameters=(IF_MATCH, SHARED_TO_CHANGE),
        problems=("not_found", "conflict", "precondition_failed"),
    ),
    Route(
        "POST", f"{PROMPT}/rollback", prompts.roll_back, "Point a label at the version that it had before",
        Scope.PROMPTS, {200: ("The label; once more goes one move further back.", LabelView)}, body=Rollback,
        parameters=(IDEMPOTENCY, IF_MATCH, SHARED_TO_CHANGE),
        problems=(*BODY, "not_found", "conflict", "precondition_failed", "idempotency_mismatch"),
    ),
    Route(
        "GET", f"{PROMPT}/diff", prompts.compare, "What differs between two versions, word by word", Scope.PROMPTS,
        {200: ("The messages that differ, and what else does.", PromptDiff)},
        parameters=(_q("from", "the number of a version, or a label", Either, required=True),
                    _q("to", "likewise", Either, required=True), SHARED_TO_READ),
        problems=("invalid_request", "not_found"),
    ),
    Route(
        "GET", f"{PROMPT}/audit", prompt_lists.history, "Who changed a prompt, newest first", Scope.PROMPTS,
        {200: ("One page.", Page(AuditEntry))},
        parameters=(LIST[0], msgspec.structs.replace(LIST[1], kind=EntryPlace), SHARED_TO_READ),
        problems=("invalid_request", "not_found"),
    ),
    Route(
        "POST", f"{PROMPT}/render", rendering.render_prompt, "A prompt with values in it; nothing is spent",
        Scope.PROMPTS, {200: ("The messages as a model would get them, and their tokens.", Rendered)},
        body=RenderRequest, parameters=(SHARED_TO_READ,), problems=(*BODY, "not_found"),
    ),
    Route(
        "GET", f"{PROMPT}/stats", experiments.stats, "Figures of each version, by day", Scope.PROMPTS,
        {200: ("Newest day first.", Page(StatsRow))},
        parameters=(_q("from", "the first UTC day; by default 30 days", Day),
                    _q("to", "the last, by default today", Day),
                    _q("version", "of this version only", VERSION), LIST[0],
                    _after(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.[1-9][0-9]{0,8}"), SHARED_TO_READ),
        problems=("not_found", "invalid_request"),
    ),
    Route(
        "GET", f"{PROMPT}/experiments", experiments.list_all, "Experiments that run and that are over",
        Scope.PROMPTS, {200: ("Newest first.", Page(ExperimentView))},
        parameters=(*list_of("exp"), SHARED_TO_READ),
        problems=("invalid_request", "not_found"),
    ),
    Route(
        "PUT", f"{PROMPT}/experiments/{{label}}", experiments.begin,
        "Begin an experiment on a label, or let more units in", Scope.PROMPTS,
        {200: ("The experiment.", ExperimentView)}, body=ExperimentDraft,
        parameters=(
            _h("If-Match", "the ETag of the experiment: change it only if it is still that"),
            _h("If-None-Match", "`*`: only if none runs", STAR), SHARED_TO_CHANGE,
        ),
        problems=(*BODY, "not_found", "conflict", "precondition_failed"),
    ),
    Route(
        "GET", f"{PROMPT}/experiments/{{label}}", experiments.show, "Read the experiment that runs on a label",
        Scope.PROMPTS, {200: ("Its arms, with intervals.", ExperimentView)}, parameters=(SHARED_TO_READ,),
        problems=("not_found",),
    ),
    Route(
        "DELETE", f"{PROMPT}/experiments/{{label}}", experiments.stop,
        "Stop an experiment; everybody gets the label's version", Scope.PROMPTS,
        {200: ("It, as it was at its end.", ExperimentView)},
        parameters=(_h("If-Match", "the ETag of the experiment"), SHARED_TO_CHANGE),
        problems=("not_found", "precondition_failed"),
    ),
    Route(
        "POST", f"{PROMPT}/experiments/{{label}}/promote", experiments.promote,
        "Stop an experiment and point the label at a version", Scope.PROMPTS,
        {200: ("It, as it was at its end.", ExperimentView)}, body=Promotion,
        parameters=(_h("If-Match", "the ETag of the experiment"), SHARED_TO_CHANGE),
        problems=(*BODY, "not_found", "precondition_failed"),
    ),
)  # fmt: skip
