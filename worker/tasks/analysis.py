"""`document-analysis`: summary, key points, answers and data of one document, with proven citations.

A document that fits one part is read in one call. A longer one is read part by part, a bounded number at a time
(map), then the notes of each task are combined (reduce). Quotes are taken while reading and proven against the part
that they came from, so citations never rest on a combined answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from shared.documents import Extracted, Skipped, normalise
from shared.errors import UpstreamRefused
from shared.jobs import Output
from shared.prompt_names import EXTRACT, MERGE, READ
from shared.specs import AnalysisInput, AnalysisTask, ExtractTask, KeyPointsTask, QuestionsTask, SummaryTask
from worker.context import Bounded, JobContext
from worker.documents.chunk import Part, split
from worker.documents.cite import Citation, Prover
from worker.journal import Step
from worker.tasks import notes as reading
from worker.tasks.extraction import extract_data
from worker.tasks.merging import merge_answers, merge_points, merge_summary
from worker.tasks.side_by_side import side_by_side

READING_SHARE: Final = 0.9  # of the progress bar; the rest is combining


class QuestionAnswer(Output, frozen=True):
    """A question and its answer; null when the document does not answer it."""

    question: str
    answer: str | None


class TaskResult(Output, frozen=True, kw_only=True):
    """The result of one task: `answer`, `points`, `answers` or `data`, by its kind."""

    kind: str
    answer: str | msgspec.UnsetType = msgspec.UNSET
    points: list[str] | msgspec.UnsetType = msgspec.UNSET
    answers: list[QuestionAnswer] | msgspec.UnsetType = msgspec.UNSET
    data: Any | msgspec.UnsetType = msgspec.UNSET
    citations: list[Citation]


class Span(Output, frozen=True):
    """A stretch of the text that was not read, and why."""

    start: int
    end: int
    reason: str
    page: int | msgspec.UnsetType = msgspec.UNSET


class Coverage(Output, frozen=True):
    """What was read: `readCharacters` and the lengths of `failed` and `skipped` add up to `totalCharacters`."""

    read_characters: int
    total_characters: int
    failed: list[Span]
    skipped: list[Span]


class AnalysisResult(Output, frozen=True):
    """One result per task, in their order, and what of the document they rest on."""

    tasks: list[TaskResult]
    coverage: Coverage


async def analyse_document(spec: AnalysisInput, context: JobContext) -> AnalysisResult:
    """Runs all tasks. A part that the model refuses is named in the coverage; when it refuses all, the job fails.

    Raises JobError.
    """
    context.report.progress(0.0, "prepare", "Opening the document")
    document, title = await _open(spec, context)
    parts = await asyncio.to_thread(split, document.text, context.deps.settings.chunk_characters)
    readable = [part for part in parts if part.text.strip()]
    said = {READ: await context.wording.main()}
    said |= {name: await context.wording.of(name) for name in (MERGE, EXTRACT)}
    model = Bounded(context, context.deps.settings.map_concurrency, said)
    read, failed = await _read_all(readable, title, spec.tasks, document, model, context)
    context.report.progress(READING_SHARE, "combine", "Combining the notes")
    done = 0

    async def combine(index: int, task: AnalysisTask) -> TaskResult:
        nonlocal done
        result = await _result(index, task, read, document, model)
        done += 1
        share = READING_SHARE + (1 - READING_SHARE) * done / len(spec.tasks)
        context.report.progress(share, "combine", f"Finished task {index + 1} ({done} of {len(spec.tasks)})")
        return result

    results = await side_by_side(combine(index, task) for index, task in enumerate(spec.tasks))
    return AnalysisResult(tasks=results, coverage=_coverage(document, parts, failed))


async def _open(spec: AnalysisInput, context: JobContext) -> tuple[Extracted, str | None]:
    source = spec.document
    if source.document_id is not None:
        return await context.deps.library.load(context.job.tenant, source.document_id)
    if source.url is not None:
        extracted = await _fetch(source.url, context)
        return extracted, source.title or extracted.title
    return Extracted("text/plain", normalise(source.text or ""), [], []), source.title


async def _fetch(url: str, context: JobContext) -> Extracted:
    """A page, as it was at the first attempt that reached it: later ones read what that one has journaled."""

    async def make(_: Step) -> bytes:
        context.report.progress(0.0, "prepare", "Fetching the document")
        extracted, _where = await context.deps.tools.pages.read(url)
        return msgspec.json.encode(extracted)

    journaled, _ = await context.journal.step("fetch", url.encode(), make)
    return msgspec.json.decode(journaled, type=Extracted)


async def _read_all(
    parts: Sequence[Part],
    title: str | None,
    tasks: Sequence[AnalysisTask],
    document: Extracted,
    model: Bounded,
    context: JobContext,
) -> tuple[list[reading.PartNotes], list[tuple[Part, str]]]:
    """The notes of all parts, in their order, read a few at a time; and the parts that the model refused."""
    done = 0
    failed: list[tuple[Part, str]] = []

    async def read(part: Part) -> reading.PartNotes | None:
        nonlocal done
        label = f"read/{part.index + 1}"
        try:
            prover = Prover(part.text, part.start, document.pages)
            return await reading.read_part(part, len(parts), title, tasks, prover, label, model)
        except UpstreamRefused as error:
            failed.append((part, error.message))
            context.report.event("job.warning", code="part_refused", message=f"Part {part.index + 1}: {error.message}")
            return None
        finally:
            done += 1
            context.report.progress(READING_SHARE * done / len(parts), "read", f"Read part {done} of {len(parts)}")

    outcomes = await side_by_side(read(part) for part in parts)
    notes = [outcome for outcome in outcomes if outcome is not None]
    if not notes:
        raise UpstreamRefused(f"The model refused every part of the document: {failed[0][1] if failed else ''}")
    return notes, failed


async def _result(
    index: int, task: AnalysisTask, read: list[reading.PartNotes], document: Extracted, model: Bounded
) -> TaskResult:
    label = f"combine/{index + 1}"
    match task:
        case SummaryTask():
            text, cited = await merge_summary(reading.of_task(read, index), label, model)
            return TaskResult(kind="summary", answer=text, citations=_unique(cited))
        case KeyPointsTask():
            points = await merge_points(reading.of_task(read, index), label, model)
            cited = [msgspec.structs.replace(found, item=number) for number, point in enumerate(points)
                     for found in point.citations]  # fmt: skip
            return TaskResult(kind="keyPoints", points=[point.text for point in points], citations=_unique(cited))
        case QuestionsTask():
            answers = await merge_answers(task.questions, reading.of_task(read, index), label, model)
            cited = [msgspec.structs.replace(found, item=number) for number, answer in enumerate(answers)
                     for found in answer.citations]  # fmt: skip
            pairs = [
                QuestionAnswer(question=question, answer=answer.text or None)
                for question, answer in zip(task.questions, answers, strict=True)
            ]
            return TaskResult(kind="questions", answers=pairs, citations=_unique(cited))
        case ExtractTask():
            data, cited = await extract_data(task, reading.of_task(read, index), document, label, model)
            return TaskResult(kind="extract", data=data, citations=_unique(cited))


def _unique(citations: Sequence[Citation]) -> list[Citation]:
    return sorted(dict.fromkeys(citations), key=lambda found: (found.start, found.end))


def _coverage(document: Extracted, parts: Sequence[Part], failed: Sequence[tuple[Part, str]]) -> Coverage:
    unread = sum(part.end - part.start for part, _ in failed)
    return Coverage(
        read_characters=len(document.text) - unread - sum(span.end - span.start for span in document.skipped),
        total_characters=len(document.text),
        failed=[Span(start=part.start, end=part.end, reason=reason) for part, reason in sorted(
            failed, key=lambda entry: entry[0].index)],
        skipped=[_span(span) for span in document.skipped],
    )  # fmt: skip


def _span(skipped: Skipped) -> Span:
    return Span(start=skipped.start, end=skipped.end, reason=skipped.reason, page=skipped.page)
