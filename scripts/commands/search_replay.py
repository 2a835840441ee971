"""What the log of searches teaches: logged queries asked again, and queries without a good source."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from unicodedata import normalize

import msgspec

from scripts.client import Client
from scripts.commands.printing import out, table, usage_error
from scripts.commands.search_eval import Settings, ask, each, interval_text
from scripts.commands.search_matching import Source, same_place
from shared.ranking import interval, ndcg, overlap, paired_interval, verdict

LOG: Final = "/api/search/log"
MOST_READ: Final = 100_000  # lines of the log that are looked at


async def logged(
    client: Client, *, most: int | None = None, since: datetime | None = None, collection: str | None = None
) -> list[dict[str, Any]]:
    """Logged searches that did not fail, newest first: at most so many, not older, and of a collection (or of all)."""
    found: list[dict[str, Any]] = []
    read, after, more = 0, "", True
    while more and read < MOST_READ and (most is None or len(found) < most):
        page = await client.call("GET", f"{LOG}?limit=200{after}")
        read, more, after = read + len(page["data"]), page["hasMore"] and page["data"], f"&after={page['next']}"
        for row in page["data"]:
            if since is not None and datetime.fromisoformat(row["at"]) < since:
                return found
            if "error" not in row and (collection is None or collection in (row["collections"] or [collection])):
                found.append(row)
    return found[:most]


def _as_logged(row: dict[str, Any]) -> dict[str, Any]:
    """The settings that a logged search had. Index versions are those of now."""
    members = {
        "mode": row["mode"],
        "topK": row["topK"],
        "minScore": row["minScore"],
        "collection": row["collections"],
        "filter": row["filter"],
        "rerank": row["rerank"] is not None,
    }
    return {name: value for name, value in members.items() if value is not None}


def _kept(row: dict[str, Any]) -> list[Source]:
    """What a logged search answered, best first. Erased chunks have no id, and are left out."""
    return [one for one in row["candidates"] if one["kept"] and one["chunkId"] is not None]


def _keys(left: Sequence[Source], right: Sequence[Source]) -> tuple[list[str], list[str]]:
    """Two rankings by the same names: a chunk of another index version that is the same text has its name."""
    free = list(left)
    names = []
    for source in right:
        same = next((one for one in free if same_place(one, source)), None)
        if same is not None:
            free.remove(same)
        names.append(source["chunkId"] if same is None else same["chunkId"])
    return [source["chunkId"] for source in left], names


def _by_feedback(row: dict[str, Any], sources: Sequence[Source]) -> float | None:
    """nDCG@10 by what users said of the chunks; None where nobody called one relevant. A chunk that more called
    relevant than not is worth 1."""
    said = {one["chunkId"]: one["relevant"] > one["notRelevant"] for one in row["feedback"]["chunks"]}
    judged = [one for one in row["candidates"] if one["chunkId"] in said]
    if not any(said[one["chunkId"]] for one in judged):
        return None
    _, names = _keys(judged, sources)
    return ndcg(names, {one["chunkId"]: int(said[one["chunkId"]]) for one in judged})


def _side(rows: Sequence[dict[str, Any]], found: Sequence[list[Source]]) -> dict[str, Any]:
    """How one setting did: share of searches without a result, mean best score of the others, nDCG by feedback."""
    best = [sources[0]["score"] for sources in found if sources]
    figures = [_by_feedback(row, sources) for row, sources in zip(rows, found, strict=True)]
    return {
        "empty": sum(not sources for sources in found) / len(found),
        "meanBestScore": math.fsum(best) / len(best) if best else None,
        "ndcg": interval([one for one in figures if one is not None]),
        "perQueryNdcg": figures,
    }


async def replay(client: Client, arguments: argparse.Namespace) -> int:
    """Asks logged queries again, each as it was asked, and with a candidate's settings, and compares the answers.
    Without a candidate: what was answered then, and what is answered now."""
    if arguments.limit < 1:
        return usage_error("--limit must be 1 or more")
    candidate = Settings.of(arguments.candidate)
    rows = await logged(client, most=arguments.limit, collection=arguments.collection)
    if not rows:
        out(arguments, {"searches": 0}, "the log holds no such search")
        return 0

    async def asked(row: dict[str, Any]) -> tuple[list[Source], list[Source]]:
        own = _as_logged(row)
        now = (await ask(client, Settings(own).body(row["query"], own["topK"])))["sources"]
        if not candidate.members:
            return _kept(row), now
        body = Settings({**own, **candidate.members}).body(row["query"])
        return now, (await ask(client, body))["sources"]

    pairs = await each(rows, asked, "searches")
    names = ("now", "candidate") if candidate.members else ("then", "now")
    sides = [_side(rows, [pair[at] for pair in pairs]) for at in (0, 1)]
    overlaps = [overlap(*_keys(*pair)) for pair in pairs]
    figures = [side.pop("perQueryNdcg") for side in sides]
    both = [(one, other) for one, other in zip(*figures, strict=True) if one is not None and other is not None]
    difference = paired_interval([one for one, _ in both], [other for _, other in both])
    value = {
        "searches": len(rows),
        "judged": len(both),
        "candidate": candidate.members,
        "overlap": interval(overlaps),
        **dict(zip(names, sides, strict=True)),
        "difference": difference,
        "verdict": verdict(difference),
        "perQuery": [
            {"searchId": row["searchId"], "query": row["query"], "overlap": share, names[0]: one, names[1]: other}
            for row, share, one, other in zip(rows, overlaps, *figures, strict=True)
        ],
    }
    table_rows = [["", *(name.upper() for name in names)]]
    table_rows.append(["without a result", *(f"{side['empty']:.1%}" for side in sides)])
    bests = ["-" if side["meanBestScore"] is None else f"{side['meanBestScore']:.3f}" for side in sides]
    table_rows.append(["mean best score", *bests])
    table_rows.append([f"nDCG@10 of {len(both)} judged", *(interval_text(side["ndcg"]) for side in sides)])
    lines = [
        f"{len(rows)} logged searches; candidate: {candidate}" if candidate.members else f"{len(rows)} logged searches",
        f"  overlap@10  {interval_text(interval(overlaps))}",
    ]
    if both:
        lines.append(f"  difference  {interval_text(difference, '+')} {verdict(difference)}")
    changed = sorted((share, row["query"]) for row, share in zip(rows, overlaps, strict=True) if share < 1)[:10]
    least = table([["OVERLAP", "QUERY"], *([f"{share:.2f}", query[:80]] for share, query in changed)])
    lines += ["", table(table_rows), *(["", "answers that differ most", least] if changed else [])]
    out(arguments, msgspec.to_builtins(value), "\n".join(lines))
    return 0


def _normalised(query: str) -> str:
    """A query without its case, accents' spelling, white space and final marks."""
    return " ".join(normalize("NFKC", query).casefold().split()).strip(" ?!.,;:")


def _is_bad(row: dict[str, Any]) -> bool:
    """Whether users said that nothing good was found: not helpful more often than helpful, or chunks called not
    relevant, and none relevant."""
    said = row["feedback"]
    chunks = said["chunks"]
    if said["notHelpful"] > said["helpful"]:
        return True
    return bool(chunks) and not any(one["relevant"] >= max(one["notRelevant"], 1) for one in chunks)


async def gaps(client: Client, arguments: argparse.Namespace) -> int:
    """Queries of the log that found no good source, the most frequent first: what your documents do not answer."""
    rows = await logged(client, since=datetime.now(UTC) - timedelta(days=min(arguments.days, 36_500)))
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[_normalised(row["query"])].append(row)
    found = []
    for asked in groups.values():
        empty, bad = sum(row["kept"] == 0 for row in asked), sum(map(_is_bad, asked))
        lacking = [row for row in asked if row["kept"] == 0 or _is_bad(row)]
        if lacking:
            scores = [row["bestScore"] for row in lacking if row["bestScore"] is not None]
            found.append(
                {
                    "query": lacking[0]["query"],
                    "count": len(lacking),
                    "asked": len(asked),
                    "empty": empty,
                    "badFeedback": bad,
                    "bestScore": max(scores, default=None),
                    "lastAt": lacking[0]["at"],
                    "searchId": lacking[0]["searchId"],
                }
            )
    found.sort(key=lambda gap: (-gap["count"], gap["query"]))
    value = {"days": arguments.days, "searches": len(rows), "gaps": found}
    lines = [["COUNT", "EMPTY", "BAD", "BEST SCORE", "LAST", "SEARCH", "QUERY"]]
    for gap in found:
        best = "-" if gap["bestScore"] is None else f"{gap['bestScore']:.3f}"
        counts = [str(gap[name]) for name in ("count", "empty", "badFeedback")]
        lines.append([*counts, best, gap["lastAt"], gap["searchId"], gap["query"][:80]])
    none = f"each of {len(rows)} searches of the last {arguments.days} days found something"
    out(arguments, value, table(lines) if found else none)
    return 0
