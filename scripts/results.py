"""Results of jobs, to read."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import Any


def result_text(job: dict[str, Any]) -> str:
    """The result of a complete job, by its type; as JSON where no other form is known."""
    result = job["result"]
    match job["type"]:
        case "chat":
            return str(result["text"])
        case "agent":
            return f"{result['answer']}\n{agent_summary(job)}"
        case "document-analysis":
            return analysis_text(result)
        case "batch-embedding":
            return embedding_text(result)
        case "ingest":
            return ingest_text(result)
        case "tenant-erasure":
            return receipt_text(result)
        case _:
            return json.dumps(result, indent=2, ensure_ascii=False)


def agent_summary(job: dict[str, Any]) -> str:
    """How an agent's run ended, and the quotes of its answer that were proven."""
    result = job["result"]
    steps = len({step["n"] for step in result["steps"]})
    lines = [f"[{result['stopReason']}: {steps} {'step' if steps == 1 else 'steps'}, "
             f"{job['usage']['totalTokens']} tokens]"]  # fmt: skip
    return "\n".join(lines + [citation_text(citation) for citation in result["citations"]])


def embedding_text(result: dict[str, Any]) -> str:
    """What a batch came to, in one line."""
    failed = f", {result['failed']} failed" if result["failed"] else ""
    return f"{result['count']} items{failed}, {result['dimensions']} dimensions"


def receipt_text(result: dict[str, Any]) -> str:
    """The receipt of a tenant's erasure."""
    counts, usage = result["counts"], result["usage"]
    cost = "unknown cost" if usage["costUsd"] is None else f"${usage['costUsd']:.6f}"
    used = f"{usage['totalTokens']:,} tokens, {cost}" if usage["totalTokens"] else "no tokens"
    return "\n".join(
        (
            f"{result['tenantId']} ({result['name']}) is erased",
            f"  requested {result['requestedAt']}, done {result['erasedAt']}",
            f"  jobs {counts['jobs']}, documents {counts['documents']}, files {counts['blobs']}, keys {counts['keys']}"
            f", ledger entries {counts['ledgerEntries']}, Redis keys {counts['redisKeys']}",
            f"  it had used {used}",
            f"  remaining {result['remaining']}",
        )
    )


def ingest_text(result: dict[str, Any]) -> str:
    """What was read of a document."""
    if "items" in result:
        bad = f", {result['badItems']} of them cannot be used" if result.get("badItems") else ""
        return f"{result['documentId']}: {result['items']} items{bad}"
    return f"{result['documentId']}: {result['chunks']} parts in search" + skipped_text(result["skipped"])


def analysis_text(result: dict[str, Any]) -> str:
    """The tasks' answers with their quotes, and how much was read."""
    lines = []
    for task in result["tasks"]:
        citations = task.get("citations", [])
        match task["kind"]:
            case "summary":
                lines += ["\nSummary", wrapped(task["answer"]), *citation_lines(citations)]
            case "keyPoints":
                lines.append("\nKey points")
                for number, point in enumerate(task["points"]):
                    lines += [wrapped(f"• {point}"), *citation_lines(citations, number)]
            case "questions":
                lines.append("\nQuestions")
                for number, pair in enumerate(task["answers"]):
                    lines += [wrapped(pair["question"]),
                              wrapped(pair["answer"] or "The document does not say.", "    "),
                              *citation_lines(citations, number)]  # fmt: skip
            case "extract":
                data = json.dumps(task["data"], indent=2, ensure_ascii=False)
                lines += ["\nData", textwrap.indent(data, "  "), *citation_lines(citations)]
    coverage = result["coverage"]
    read = f"\nRead {coverage['readCharacters']} of {coverage['totalCharacters']} characters."
    return "\n".join(lines) + "\n" + read + skipped_text([*coverage["failed"], *coverage["skipped"]])


def skipped_text(spans: list[dict[str, Any]]) -> str:
    """A line per part that was not read, each on a new line."""
    return "".join(
        f"\n  not read: {span['reason']}" + (f" (page {span['page']})" if "page" in span else "") for span in spans
    )


def citation_lines(citations: list[dict[str, Any]], item: Any = None) -> list[str]:
    """The proven quotes of a task (or of one of its items)."""
    return [citation_text(citation) for citation in citations if item is None or citation.get("item") == item]


def citation_text(citation: dict[str, Any]) -> str:
    """A quote and where it stands."""
    document = f"{citation['documentId']} " if "documentId" in citation else ""
    page = f", page {citation['page']}" if citation.get("page") else ""
    quote = " ".join(citation["quote"].split())
    return wrapped(f"“{quote}”  [{document}{citation['start']}–{citation['end']}{page}]", "      ")


def wrapped(text: str, indent: str = "  ") -> str:
    """Text within the terminal's width."""
    return textwrap.fill(text, _width(), initial_indent=indent, subsequent_indent=indent)


def _width() -> int:
    """Columns of the terminal, within reason."""
    return max(60, min(shutil.get_terminal_size().columns, 110))
