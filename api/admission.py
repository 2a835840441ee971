"""From a decoded submission to the record that `admit.lua` stores, and the view that the 202 shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET

from api.hooks import hook_of, hook_view
from api.pinning import NOTHING, Chosen
from shared.clock import rfc3339, to_ms
from shared.jobs import Eta, JobStatus, JobView, PromptView, QueueView, UsageView, links_of, prompt_of
from shared.prompts import spelled_pins
from shared.schemas import BadSchemaError, compile_schema
from shared.settings import Settings
from shared.specs import (
    AgentJob,
    AnalysisJob,
    ChatJob,
    EmbeddingJob,
    ExtractTask,
    IngestJob,
    ReindexJob,
    SearchJob,
    StoredEmbeddingJob,
    Submission,
    type_of,
)
from shared.stores.jobs import CLASS, Admitted
from shared.toolnames import DEFAULTS, SEPARATOR, problem

NO_MESSAGES: Final = "at least one message is needed, or a `prompt`"
UNLOGGED_S: Final = 60.0  # a search without a line in the log: no erasure finds its texts by it
START_S: Final = 10.0  # a chat whose client waits: no worker takes it by then, 503
CHARACTERS_PER_TOKEN: Final = 4  # first guess of a job's size, for fairness only; corrected by real tokens at settle


def model_of(job: Submission, settings: Settings, of_prompt: str | None = None) -> str:
    """The model that a job asks; `of_prompt` is that of its prompt, for where it names none."""
    if isinstance(job, EmbeddingJob | StoredEmbeddingJob):
        return job.model or job.input.model or settings.embedding_model
    if isinstance(job, IngestJob | ReindexJob) or (isinstance(job, SearchJob) and not job.input.request["answer"]):
        return job.model or settings.embedding_model
    return job.model or of_prompt or settings.default_model


def record_of(
    job: Submission,
    settings: Settings,
    *,
    grace_ms: int | None = None,
    size_bytes: int = 0,
    blobs: str | None = None,
    key: str | None = None,
    chosen: Chosen = NOTHING,
) -> dict[str, Any]:
    """The first fields of a job's record; absent ones are left out. All values are text or integers. With `grace_ms`
    the job lives only while somebody listens. `size_bytes` of input are beside the spec; `blobs` die with the job;
    `key` is the API key that it came with; `chosen` are its prompts."""
    hook = hook_of(job, settings)
    if job.webhook is not UNSET:
        job = msgspec.structs.replace(job, webhook=UNSET)
    spec = msgspec.json.encode(job).decode()
    fields: dict[str, Any] = {
        "type": type_of(job),
        "priority": job.priority.value,
        "metadata": msgspec.json.encode(job.metadata).decode(),
        "model": model_of(job, settings, chosen.model),
        "spec": spec,
        "max_attempts": job.max_attempts,
        "grant": job.max_attempts,
        "timeout_ms": round(job.timeout_seconds * 1000),
        "retention_ms": round(_retention_s(job, settings) * 1000),
        "est": (len(spec) + size_bytes + chosen.characters) // CHARACTERS_PER_TOKEN,
        "user": job.user,
        "token_budget": job.token_budget,
        "grace_ms": grace_ms,
        "blobs": blobs,
        "key": key,
        "hook": hook,
        **prompt_fields(chosen),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _retention_s(job: Submission, settings: Settings) -> float:
    """How long a job is kept; a search has its line in a log of its own."""
    if not isinstance(job, SearchJob):
        return settings.retention_seconds
    return settings.search_job_seconds if job.input.request["log"] else min(UNLOGGED_S, settings.search_job_seconds)


def prompt_fields(chosen: Chosen) -> dict[str, Any]:
    """What a job's record says of its prompts: `prompt` (name@version) and the arm are those of the main one."""
    main = chosen.main
    if main is None:
        return {"pins": spelled_pins(chosen.pins)} if chosen.pins else {}
    return {
        "pins": spelled_pins(chosen.pins),
        "prompt": main.spelled,
        "exp": None if main.experiment is None else f"{main.owner}:{main.experiment}",
        "arm": None if main.arm is None else str(main.arm),
        "exp_unit": chosen.user if main.sticky_by == "user" else None,
    }


def message_problems(job: Submission) -> list[tuple[str, str]]:
    """A chat says something: itself, or through its prompt."""
    if isinstance(job, ChatJob) and not job.input.messages and job.prompt is None:
        return [("$.input.messages", NO_MESSAGES)]
    return []


def timing_of(job: Submission, settings: Settings) -> dict[str, Any]:
    """When a job may start, as `admit` takes it."""
    return {
        "class_ms": class_ms(job, settings),
        "expires_in_ms": round(job.expires_in_seconds * 1000),
        "delay_ms": round(job.delay_seconds * 1000) if job.delay_seconds else None,
        "run_at_ms": to_ms(job.run_at) if job.run_at else None,
    }


def class_ms(job: Submission, settings: Settings) -> int:
    """How far a job's class puts it back behind a `high` one that is queued at the same time."""
    return round(CLASS[job.priority] * settings.aging_seconds * 1000)


def admitted_view(job: Submission, admitted: Admitted, settings: Settings, chosen: Chosen = NOTHING) -> JobView:
    """The job as it was at admission, even if a worker was faster."""
    queued = admitted.status == JobStatus.QUEUED
    now = rfc3339(admitted.now_ms)
    return JobView(
        job_id=admitted.job_id,
        type=type_of(job),
        status=admitted.status,
        priority=job.priority.value,
        user=job.user,
        metadata=job.metadata,
        model=model_of(job, settings, chosen.model),
        prompt=prompt_view(chosen),
        progress=None,
        queue=admitted_queue(admitted),
        attempt=0,
        max_attempts=job.max_attempts,
        created_at=now,
        queued_at=now if queued else None,
        started_at=None,
        finished_at=None,
        expires_at=rfc3339(admitted.due_ms + round(job.expires_in_seconds * 1000)),
        usage=UsageView(),
        webhook=hook_view(job) or UNSET,
        links=links_of(admitted.job_id, type_of(job)),
    )


def prompt_view(chosen: Chosen) -> PromptView | None:
    """The main prompt as the job's view shows it."""
    main = chosen.main
    return None if main is None else prompt_of(spelled_pins(chosen.pins).encode(), main.spelled.encode())


def admitted_queue(admitted: Admitted) -> QueueView:
    """Where the job stood at admission."""
    if admitted.outlook is not None:
        return admitted.outlook.view
    left_s = round(max(0, admitted.due_ms - admitted.now_ms) / 1000, 1)
    return QueueView(
        position=None, ahead_tokens=None, eta=Eta(p50_seconds=left_s, p90_seconds=left_s), waiting_on="schedule"
    )


def documents_of(job: Submission) -> list[tuple[str, str]]:
    """The documents that a submission names, as (JSON path, id)."""
    match job:
        case AnalysisJob(input=wanted) if wanted.document.document_id is not None:
            return [("$.input.document.documentId", wanted.document.document_id)]
        case EmbeddingJob(input=wanted) if wanted.document_id is not None:
            return [("$.input.documentId", wanted.document_id)]
        case AgentJob(input=wanted) if wanted.context is not None:
            named = wanted.context.documents or ()
            return [(f"$.input.context.documents[{index}]", name) for index, name in enumerate(named)]
    return []


def url_problems(job: Submission, settings: Settings) -> list[tuple[str, str]]:
    """What is wrong with the URL that a document is to be fetched from, as (path, sentence)."""
    if not isinstance(job, AnalysisJob) or job.input.document.url is None or settings.fetch_enabled:
        return []
    return [("$.input.document.url", "fetching is switched off on this installation (ERRAND_FETCH_ENABLED)")]


def is_offered(name: str, offered: Sequence[str]) -> bool:
    """Whether a job that has these tools may have one of this name, or any of a server for `server__*`."""
    server, separator, rest = name.partition(SEPARATOR)
    if name in offered or not separator:
        return name in offered
    return f"{server}{SEPARATOR}*" in offered or (
        rest == "*" and any(tool.startswith(f"{server}{SEPARATOR}") for tool in offered)
    )


def tool_problems(job: Submission, settings: Settings) -> list[tuple[str, str]]:
    """What is wrong with the tools that an agent is to use, as (path, sentence)."""
    if not isinstance(job, AgentJob):
        return []
    named = job.input.tools
    found = [
        (f"$.input.{member}[{index}]", text)
        for member, names in (("tools", named or ()), ("approve", job.input.approve))
        for index, name in enumerate(names)
        if (text := problem(name, settings)) is not None
    ]
    offered = DEFAULTS if named is None else named
    found += [
        (f"$.input.approve[{index}]", f"the job does not use the tool {name!r}")
        for index, name in enumerate(job.input.approve)
        if not is_offered(name, offered)
    ]
    return found


def schema_problems(job: Submission) -> list[tuple[str, str]]:
    """What is wrong with the JSON Schemas of a submission, as (path, sentence)."""
    if not isinstance(job, AnalysisJob):
        return []
    found = []
    for index, task in enumerate(job.input.tasks):
        if isinstance(task, ExtractTask):
            try:
                compile_schema(task.schema)
            except BadSchemaError as error:
                found.append((f"$.input.tasks[{index}].schema", f"is no valid JSON Schema: {error}"))
    return found
