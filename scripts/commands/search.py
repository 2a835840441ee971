"""Searching, and how good the search is."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import quote, urlencode

from scripts.client import Client
from scripts.commands.parsing import Commands, positive, without_none
from scripts.commands.printing import out, table, usage_error
from scripts.commands.search_eval import evaluate
from scripts.commands.search_replay import gaps, replay
from shared.search import Mode


def _path(search_id: str, *rest: str) -> str:
    return "/".join(["/api/search", quote(search_id, safe=""), *rest])


def _beginning(text: str, most: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def _place(source: dict[str, Any]) -> str:
    page = f", page {source['page']}" if "page" in source else ""
    return f"{source['documentId']} {source['start']}–{source['end']}{page}"


def result_text(result: dict[str, Any]) -> str:
    """A search for people: its sources, then the answer with its citations."""
    lines = []
    for source in result["sources"]:
        lines.append(f"[{source['rank']}] {source['score']:.3f}  {source['title'] or '-'}  ({_place(source)})")
        lines.append(f"    {_beginning(source['text'])}")
    if not lines:
        lines.append(f"nothing has a score of {result['minScore']:g} or more")
    if result["answer"] is not None:
        lines += ["", result["answer"]["text"]]
        lines += [f"      [{one['source']}] “{one['quote']}”  [{_place(one)}]" for one in result["answer"]["citations"]]
    lines += [f"warning: {warning}" for warning in result.get("warnings", ())]
    lines += ["", f"{result['searchId']}  {result['mode']}, {result['tookMs']:.0f} ms"]
    return "\n".join(lines)


def filters(given: list[str] | None) -> dict[str, Any] | None:
    """`k=v`, each; the same name again means one of them. Ends the command with 2 for what has no `=`."""
    found: dict[str, list[str]] = {}
    for one in given or ():
        name, sign, value = one.partition("=")
        if not sign or not name:
            raise SystemExit(usage_error(f"--filter {one!r} is not of the form NAME=VALUE"))
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()} or None


async def query(client: Client, arguments: argparse.Namespace) -> int:
    """Searches the documents, and answers from what was found."""
    body = without_none(
        q=arguments.text,
        collection=arguments.collection,
        mode=arguments.mode,
        topK=arguments.top_k,
        minScore=arguments.min_score,
        filter=filters(arguments.filter),
        rerank=arguments.rerank,
        answer=False if arguments.no_answer else None,
    )
    result = await client.call("POST", "/api/search", json=body)
    out(arguments, result, result_text(result))
    return 0


async def log(client: Client, arguments: argparse.Namespace) -> int:
    """Searches that were made, newest first."""
    page = await client.pages("/api/search/log", most=arguments.limit)
    rows = [["SEARCH", "AT", "KEPT", "BEST", "MS", "FEEDBACK", "QUERY"]]
    for row in page["data"]:
        said = row["feedback"]
        best = "-" if row["bestScore"] is None else f"{row['bestScore']:.3f}"
        opinion = f"+{said['helpful']} -{said['notHelpful']}" if said["helpful"] or said["notHelpful"] else "-"
        kept = "failed" if "error" in row else str(row["kept"])
        asked = _beginning(row["query"], 70)
        rows.append([row["searchId"], row["at"], kept, best, f"{row['timings']['tookMs']:.0f}", opinion, asked])
    out(arguments, page, table(rows))
    return 0


def record_text(row: dict[str, Any]) -> str:
    """A logged search for people: what was considered, and why it was kept or not."""
    where = ", ".join(row["collections"]) if row["collections"] else "all collections"
    timings = ", ".join(f"{name.removesuffix('Ms')} {value:.0f}" for name, value in row["timings"].items())
    lines = [
        f"{row['searchId']}  {row['at']}  {row['query']}",
        f"  {row['mode']} in {where}, top {row['topK']}, at least {row['minScore']:g}",
        f"  ms: {timings}",
        *([f"  failed: {row['error']}"] if "error" in row else []),
    ]
    said = {one["chunkId"]: f"+{one['relevant']} -{one['notRelevant']}" for one in row["feedback"]["chunks"]}
    rows = [["RANK", "SCORE", "", "CHUNK", "SAID", "TITLE"]]
    for one in row["candidates"]:
        why = "kept" if one["kept"] else one.get("reason", "-")
        chunk = one["chunkId"] or "erased"
        rows.append([str(one["rank"]), f"{one['score']:.3f}", why, chunk, said.get(chunk, ""), one["title"] or "-"])
    lines += [table(rows)] if row["candidates"] else ["  nothing was considered"]
    lines += ["", row["answer"]["text"]] if row["answer"] else []
    return "\n".join(lines)


async def show(client: Client, arguments: argparse.Namespace) -> int:
    """What a search considered, kept and answered."""
    row = await client.call("GET", _path(arguments.search))
    out(arguments, row, record_text(row))
    return 0


async def feedback(client: Client, arguments: argparse.Namespace) -> int:
    """Says whether a search helped, or whether a chunk was relevant."""
    about_chunk = arguments.relevant is not None
    if about_chunk == (arguments.helpful is not None) or about_chunk != (arguments.chunk is not None):
        return usage_error("give --helpful or --not-helpful; or --chunk CHUNK and --relevant or --not-relevant")
    body = without_none(chunkId=arguments.chunk, relevant=arguments.relevant, helpful=arguments.helpful)
    answer = await client.call("POST", _path(arguments.search, "feedback"), json=body)
    out(arguments, answer, f"said of {arguments.search}")
    return 0


def plain_text(value: Any, indent: str = "") -> str:
    """An object for people: members on lines, a list of objects as a table."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        names = list(dict.fromkeys(name for one in value for name in one))
        rows = [[name.upper() for name in names], *([_cell(one.get(name)) for name in names] for one in value)]
        return "\n".join(indent + line for line in table(rows).splitlines())
    if not isinstance(value, dict):
        return indent + _cell(value)
    width = max((len(name) for name in value), default=0)
    lines = []
    for name, member in value.items():
        nested = isinstance(member, dict) or (isinstance(member, list) and any(isinstance(one, dict) for one in member))
        if nested and member:
            lines += [f"{indent}{name}", plain_text(member, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name.ljust(width)}  {_cell(member)}")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return _beginning(value, 80)
    return "-" if value is None or value in ([], {}) else json.dumps(value, ensure_ascii=False)


async def quality(client: Client, arguments: argparse.Namespace) -> int:
    """How good the search is, from its log and feedback."""
    asked = urlencode(without_none(collection=arguments.collection, **{"from": arguments.from_, "to": arguments.to}))
    found = await client.call("GET", f"/api/search/quality{'?' if asked else ''}{asked}")
    out(arguments, found, plain_text(found))
    return 0


def register(commands: Commands) -> None:
    """`search …`."""
    group = commands.group("search", "searches documents, and measures the search")
    one = commands.action(group, "query", query)
    one.add_argument("text")
    one.add_argument("--collection", action="append", metavar="NAME", help="where to look, may be repeated; else all")
    one.add_argument("--mode", choices=[str(mode) for mode in Mode])
    one.add_argument("--top-k", type=positive, metavar="N", help="at most so many sources")
    one.add_argument("--min-score", type=float, metavar="SHARE", help="sources below it are left out")
    one.add_argument("--no-answer", action="store_true", help="the sources only")
    one.add_argument("--filter", action="append", metavar="NAME=VALUE", help="on the documents' metadata")
    one.add_argument("--rerank", action=argparse.BooleanOptionalAction, help="whether a re-ranker has the last word")
    judged = commands.action(group, "eval", evaluate)
    judged.add_argument("file", metavar="FILE", help="judged queries as JSON Lines, or TREC topics")
    judged.add_argument("--qrels", metavar="FILE", help="judgements in four columns: query, 0, name, grade")
    judged.add_argument("--set", action="append", metavar="NAME=VALUE", help="a member of every search")
    judged.add_argument("--k", type=positive, default=10, metavar="N", help="depth of recall and judged; default 10")
    judged.add_argument("--by", choices=("chunk", "document"), default="chunk", help="what is ranked; default chunk")
    judged.add_argument("--run-out", metavar="FILE", help="a TREC run; the candidate's is FILE.candidate")
    again = commands.action(group, "replay", replay)
    again.add_argument("--limit", type=positive, default=200, metavar="N", help="the newest so many; default 200")
    again.add_argument("--collection", metavar="NAME", help="searches that looked there")
    for place in (judged, again):
        place.add_argument("--candidate", action="append", metavar="NAME=VALUE", help="a member of the other searches")
    lacking = commands.action(group, "gaps", gaps)
    lacking.add_argument("--days", type=positive, default=30, metavar="N", help="of the last so many days; default 30")
    commands.action(group, "log", log).add_argument("--limit", type=positive, default=50, metavar="N")
    commands.action(group, "show", show).add_argument("search", metavar="SEARCH")
    said = commands.action(group, "feedback", feedback)
    said.add_argument("search", metavar="SEARCH")
    said.add_argument("--chunk", metavar="CHUNK")
    for name in ("helpful", "relevant"):
        either = said.add_mutually_exclusive_group()
        either.add_argument(f"--{name}", dest=name, action="store_true", default=None)
        either.add_argument(f"--not-{name}", dest=name, action="store_false", default=None)
    figures = commands.action(group, "quality", quality)
    figures.add_argument("--collection", metavar="NAME")
    figures.add_argument("--from", dest="from_", metavar="DAY")
    figures.add_argument("--to", metavar="DAY")
