"""Evaluating the search: a file of judged queries, asked with the present settings and with a candidate's."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from scripts.client import ApiError, Client
from scripts.commands.parsing import as_answer
from scripts.commands.printing import note, out, table, usage_error
from scripts.commands.search_files import BadSearchFileError, Question, read_questions
from scripts.commands.search_matching import Filenames, Source, best_of_documents, needs_filenames, rankings
from shared.ranking import Interval, interval, judged, ndcg, paired_interval, recall, reciprocal_rank, verdict
from shared.search import MAX_TOP_K, SearchRequest

CONCURRENCY: Final = 4
WORST: Final = 10
TRIES: Final = 6
PASSING: Final = ("rate_limited", "queue_full", "unavailable")  # refusals after which the same search is asked again
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


class Settings(msgspec.Struct, frozen=True):
    """Members of a search that were set on the command line."""

    members: dict[str, Any]

    @classmethod
    def of(cls, given: Sequence[str] | None) -> Settings:
        """From `NAME=VALUE`, the value JSON or else a text. Ends the command with 2 for what no search has."""
        members: dict[str, Any] = {}
        for one in given or ():
            name, sign, text = one.partition("=")
            if not sign or not name:
                raise SystemExit(usage_error(f"{one!r} is not of the form NAME=VALUE"))
            if name in ("q", "answer", "log"):
                raise SystemExit(usage_error(f"{name} cannot be set: it is the evaluation's own"))
            members[name] = as_answer(text)
            try:
                # Whether `version` has its collection is seen with the query, which may name it.
                check = {"collection": "-", **members} if "version" in members else members
                msgspec.convert({"q": "-", **check}, SearchRequest)
            except msgspec.ValidationError as error:
                raise SystemExit(usage_error(f"{one}: {error}")) from None
        return cls(members)

    def body(self, query: str, least: int = 1, **own: Any) -> dict[str, Any]:
        """The search of a query with at least so many results; `own` are the query's members, which go before."""
        body = {"minScore": 0, **self.members, **own, "q": query, "answer": False, "log": False}
        body["topK"] = min(max(body.get("topK", least), least), MAX_TOP_K)
        return body

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.members.items()) or "as it is"


class Figures(msgspec.Struct, frozen=True, rename="camel"):
    """One query's figures with one setting, each a share; the time in milliseconds."""

    ndcg: float
    reciprocal_rank: float
    recall: float
    judged: float
    took_ms: float


class Run(msgspec.Struct, frozen=True):
    """One query with one setting: what was found, and what it is worth."""

    sources: list[Source]
    figures: Figures


async def each(
    items: Sequence[_Item], work: Callable[[_Item], Awaitable[_Made]], label: str, concurrency: int = CONCURRENCY
) -> list[_Made]:
    """Does so many at a time, in order, and says on standard error how far it is. The first error ends all."""
    gate, done, told = asyncio.Semaphore(concurrency), 0, time.monotonic()

    async def one(item: _Item) -> _Made:
        nonlocal done, told
        async with gate:
            made = await work(item)
        done += 1
        if done == len(items) or time.monotonic() - told > (0.2 if sys.stderr.isatty() else 10):
            told = time.monotonic()
            end = "\r" if sys.stderr.isatty() and done < len(items) else "\n"
            print(f"errand: {done} of {len(items)} {label}", file=sys.stderr, end=end, flush=True)
        return made

    tasks = [asyncio.create_task(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """One search; asked again after refusals that pass. Raises ApiError."""
    for attempt in range(1, TRIES):
        try:
            answer: dict[str, Any] = await client.call("POST", "/api/search", json=body)
            return answer
        except ApiError as error:
            if error.problem.get("code") not in PASSING:
                raise
            await asyncio.sleep(min(0.5 * 2**attempt, 15))
    last: dict[str, Any] = await client.call("POST", "/api/search", json=body)
    return last


def _figures(names: list[str], grades: dict[str, int], k: int, took_ms: float) -> Figures:
    return Figures(
        ndcg(names, grades, 10),
        reciprocal_rank(names, grades, max(k, 10)),
        recall(names, grades, k),
        judged(names, grades, k),
        took_ms,
    )


def _own(question: Question) -> dict[str, Any]:
    own = {"filter": question.filter, "collection": question.collection}
    return {name: value for name, value in own.items() if value is not None}


def summary(runs: Sequence[Sequence[Run]], k: int) -> list[dict[str, Any]]:
    """A row for each figure: the mean of each setting with its interval, and of two the difference and its verdict.
    `runs` has for each query the present run and, where there is one, the candidate's."""
    rows = []
    for member, name in (
        ("ndcg", "nDCG@10"),
        ("reciprocal_rank", f"MRR@{max(k, 10)}"),
        ("recall", f"recall@{k}"),
        ("judged", f"judged@{k}"),
    ):
        values = [[getattr(run.figures, member) for run in column] for column in zip(*runs, strict=True)]
        row: dict[str, Any] = {"metric": name, "present": interval(values[0])}
        if len(values) == 2:
            difference = paired_interval(values[0], values[1])
            row |= {"candidate": interval(values[1]), "difference": difference}
            row["verdict"] = None if member == "judged" else verdict(difference)
        rows.append(row)
    return rows


def interval_text(found: Interval | None, sign: str = "") -> str:
    """`0.712 (0.650 to 0.770)`."""
    return "-" if found is None else f"{found.mean:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


def _report(arguments: argparse.Namespace, settings: list[Settings], value: dict[str, Any]) -> str:
    names = ["PRESENT", "CANDIDATE"][: len(settings)]
    lines = [f"{value['queries']} queries by {value['by']}, intervals of 95 %"]
    lines += [f"  {name.lower():9}  {setting}" for name, setting in zip(names, settings, strict=True)]
    two = len(settings) == 2
    rows = [["", *names, *(["DIFFERENCE", ""] if two else [])]]
    for row in value["metrics"]:
        cells = [row["metric"], *(interval_text(row[name.lower()]) for name in names)]
        rows.append([*cells, interval_text(row["difference"], "+"), row["verdict"] or ""] if two else cells)
    halves = [f"{value['latencyP50Ms'][name.lower()]:.0f} ms" for name in names]
    rows.append(["latency p50", *halves, *(["", ""] if two else [])])
    lines += ["", table(rows), "", f"the {len(value['worst'])} worst, by nDCG@10"]
    worst = [["QUERY", *(f"nDCG {name}" for name in names), "RR", ""]]
    for row in value["worst"]:
        shares = [f"{row[name.lower()]['ndcg']:.3f}" for name in names]
        worst.append([row["id"], *shares, f"{row['present']['reciprocalRank']:.3f}", row["query"][:70]])
    lines.append(table(worst))
    low = next(row["present"].mean for row in value["metrics"] if row["metric"].startswith("judged"))
    if low < 0.5 and arguments.qrels:
        lines.append(f"\nmost of what was found is not judged ({low:.0%} is): the figures are bounds from below")
    return "\n".join(lines)


def run_lines(questions: Sequence[Question], runs: Sequence[Run], by: str, tag: str) -> str:
    """A TREC run: `query Q0 name rank score tag`. Names are ids of chunks, or of documents."""
    member = "documentId" if by == "document" else "chunkId"
    return "".join(
        f"{question.id} Q0 {source[member]} {rank} {source['score']:.6f} {tag}\n"
        for question, run in zip(questions, runs, strict=True)
        for rank, source in enumerate(run.sources, 1)
    )


def _write_runs(path: Path, questions: list[Question], runs: list[list[Run]], by: str) -> None:
    for number, column in enumerate(zip(*runs, strict=True)):
        target, tag = (path, "present") if number == 0 else (path.with_name(f"{path.name}.candidate"), "candidate")
        target.write_text(run_lines(questions, column, by, tag))
        note(f"{tag}: {target}")


async def evaluate(client: Client, arguments: argparse.Namespace) -> int:
    """Measures the search with judged queries: nDCG, MRR and recall, of a candidate setting beside the present one."""
    if not 1 <= arguments.k <= MAX_TOP_K:
        return usage_error(f"--k must be from 1 to {MAX_TOP_K}")
    settings = [Settings.of(arguments.set)]
    if arguments.candidate:
        settings.append(Settings({**settings[0].members, **Settings.of(arguments.candidate).members}))
    try:
        questions = read_questions(Path(arguments.file), Path(arguments.qrels) if arguments.qrels else None)
    except BadSearchFileError as error:
        return usage_error(str(error))
    by, k = arguments.by, arguments.k
    least = MAX_TOP_K if by == "document" else max(k, 10)
    filenames = Filenames(client) if needs_filenames(questions) else None

    async def asked(question: Question) -> list[Run]:
        found, took = [], []
        for setting in settings:
            answer = await ask(client, setting.body(question.query, least, **_own(question)))
            sources = answer["sources"]
            if filenames:
                await filenames.learn(source["documentId"] for source in sources)
            found.append(best_of_documents(sources) if by == "document" else sources)
            took.append(answer["tookMs"])
        ranked, grades = rankings(question.relevant, found, filenames, by)
        return [
            Run(sources, _figures(names, grades, k, took_ms))
            for sources, names, took_ms in zip(found, ranked, took, strict=True)
        ]

    runs = await each(questions, asked, "queries")
    names = ["present", "candidate"][: len(settings)]
    per_query = [
        {
            "id": question.id,
            "query": question.query,
            **{name: msgspec.to_builtins(run.figures) for name, run in zip(names, pair, strict=True)},
        }
        for question, pair in zip(questions, runs, strict=True)
    ]
    value: dict[str, Any] = {
        "queries": len(questions),
        "by": by,
        "k": k,
        "settings": {name: setting.members for name, setting in zip(names, settings, strict=True)},
        "metrics": summary(runs, k),
        "latencyP50Ms": {
            name: statistics.median(pair[at].figures.took_ms for pair in runs) for at, name in enumerate(names)
        },
        "worst": sorted(per_query, key=lambda row: row["present"]["ndcg"])[:WORST],
        "perQuery": per_query,
    }
    if arguments.run_out:
        try:
            _write_runs(Path(arguments.run_out), questions, runs, by)
        except OSError as error:
            return usage_error(f"{arguments.run_out} cannot be written: {error.strerror}")
    out(arguments, msgspec.to_builtins(value), _report(arguments, settings, value))
    return 0
