"""`errand search`: files of judged queries, what is counted as found, and the commands against an API that answers as
agreed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from scripts import cli
from scripts.commands.search_files import BadSearchFileError, Relevant, read_qrels, read_questions
from scripts.commands.search_matching import holds, rankings, same_place
from shared.search import SearchRequest

TEXTS = {
    "doc_a": ("docs/a.md", "A", "The harbour was dredged in March to a depth of fourteen metres."),
    "doc_b": ("b.md", None, "The new crane costs nine million francs, paid over ten years."),
    "doc_c": ("c.md", "C", "Ferries leave at six, nine and noon from the northern pier."),
}


def source(document: str, rank: int, score: float, chunk: int = 0) -> dict[str, Any]:
    _, title, text = TEXTS[document]
    return {
        "rank": rank, "documentId": document, "chunkId": f"{document}-{chunk}", "collection": "default", "title": title,
        "text": text if chunk == 0 else f"Something else, part {chunk}.", "score": score,
        "scores": {"vector": score, "keyword": None}, "start": chunk * 100, "end": chunk * 100 + len(text),
        "metadata": {},
    }  # fmt: skip


@dataclass
class Api:
    """An API whose answers a test chooses."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    rank: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda _: []
    log: list[dict[str, Any]] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)
    refusals: int = 0
    busy: int = 0
    most_busy: int = 0

    async def search(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            msgspec.convert(body, SearchRequest)
        except msgspec.ValidationError as error:
            return problem(422, "invalid_request", str(error))
        if self.refusals:
            self.refusals -= 1
            return problem(429, "rate_limited", "too many")
        self.asked.append(body)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        await asyncio.sleep(0.005)
        self.busy -= 1
        found = [{**one, "rank": rank} for rank, one in enumerate(self.rank(body)[: body.get("topK", 10)], 1)]
        answer = None
        if body.get("answer", True):
            cited = {"source": 1, "documentId": "doc_b", "start": 4, "end": 13, "quote": "new crane"}
            answer = {"text": "Nine million [1].", "citations": [cited]}
        return web.json_response(
            {
                "searchId": "srch_1",
                "query": body["q"],
                "answer": answer,
                "sources": found,
                "warnings": [],
                "minScore": body.get("minScore", 0.3),
                "mode": body.get("mode", "hybrid"),
                "tookMs": 7.0,
            }
        )

    async def document(self, request: web.Request) -> web.Response:
        found = TEXTS.get(request.match_info["id"])
        if found is None:
            return problem(404, "not_found", "no such document")
        return web.json_response({"documentId": request.match_info["id"], "filename": found[0], "title": found[1]})

    async def lines(self, request: web.Request) -> web.Response:
        start = int(request.query.get("after", 0))
        end = start + min(int(request.query["limit"]), 2)
        more = end < len(self.log)
        return web.json_response({"data": self.log[start:end], "hasMore": more, "next": str(end) if more else None})

    async def one(self, request: web.Request) -> web.Response:
        return web.json_response(next(row for row in self.log if row["searchId"] == request.match_info["id"]))

    async def feedback(self, request: web.Request) -> web.Response:
        self.said.append(await request.json())
        return web.json_response({"helpful": 1, "notHelpful": 0, "chunks": []})

    async def quality(self, request: web.Request) -> web.Response:
        worst = [{"query": "a gap", "ndcg": 0.0}]
        return web.json_response({"searches": 12, "ndcg": {"mean": 0.75}, "worst": worst, "asked": dict(request.query)})


def problem(status: int, code: str, detail: str) -> web.Response:
    return web.json_response({"status": status, "code": code, "detail": detail}, status=status)


@pytest_asyncio.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """The API on a port of its own, known to the commands."""
    made = Api()
    app = web.Application()
    app.router.add_post("/api/search", made.search)
    app.router.add_get("/api/search/log", made.lines)
    app.router.add_get("/api/search/quality", made.quality)
    app.router.add_get("/api/search/{id}", made.one)
    app.router.add_post("/api/search/{id}/feedback", made.feedback)
    app.router.add_get("/api/documents/{id}", made.document)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setenv("ERRAND_KEY", "ek_test")
    yield made
    await runner.cleanup()


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def errand(api: Api, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    async def ran(*arguments: str) -> Ran:
        capsys.readouterr()
        try:
            code = await cli.run(cli.parser().parse_args(["search", *arguments, "--url", api.url]))
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ran(code, *capsys.readouterr())

    return ran


def written(path: Path, *rows: dict[str, Any] | str) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ('{"query": "a", "relevant": ["x"]}\n{"query": 5}', r":2: Expected `str`, got `int` - at `\$.query`"),
        ('{"query": "a", "relevant": ["x"]}\n\n{"query"', ":3: Input data was truncated"),
        ('{"query": "a", "relevent": ["x"]}', ":1: Object contains unknown field `relevent`"),
        ('{"query": "a", "relevant": [{"grade": 2}]}', r":1: relevant\[0\] names nothing"),
        ('{"query": "a", "relevant": [{"title": "x", "grade": -1}]}', ":1: Expected `int` >= 0"),
        (
            '{"query": "how deep", "relevant": []}',
            r":1: nothing is relevant to query 1 \('how deep'\); give `relevant`",
        ),
        ('{"query": "a", "relevant": [{"title": "x", "grade": 0}]}', ":1: nothing is relevant to query 1"),
        (
            '{"query": "a", "id": "q", "relevant": ["x"]}\n{"query": "b", "id": "q", "relevant": ["x"]}',
            ":2: the id 'q'",
        ),
        ('{"query": "a", "id": "q 1", "relevant": ["x"]}', ":1: the id 'q 1' is empty or holds white space"),
        ('{"query": " ", "relevant": ["x"]}', ":1: query 1 is empty"),
        ('{"query": "a", "relevant": ["x"], "filter": {"$nor": []}}', r":1: `filter`: there is no \$nor"),
        ("\n\n", "holds no queries"),
        ("1\tone\ntwo", ":2: is neither JSON nor a topic"),
        ("<top>\n<num> Number: 1\n</top>", ":1: the topic has no <title>"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: str, wrong: str) -> None:
    """Given a file that cannot be evaluated, then the error has its path, the line and what is wrong."""
    file = tmp_path / "queries.jsonl"
    file.write_text(content)
    with pytest.raises(BadSearchFileError, match=wrong) as raised:
        read_questions(file)
    assert str(raised.value).startswith(str(file))


def test_trec_files_are_read(tmp_path: Path) -> None:
    """Given topics in both forms and qrels, then each query has its judgements, names with blanks included; a topic
    without judgement is named; bad qrels are named by their line."""
    qrels = tmp_path / "qrels"
    qrels.write_text("301 0 doc_a 2\r\n301 0 A long title 1\n302\t0\tdocs/b.md\t-1\n302 0 doc_b 1\n999 0 x 1\n")
    topics = tmp_path / "topics"
    topics.write_text(
        "<top>\n<num> Number: 301 \n<title> Organized\n  crime <desc> Description:\nnone\n</top>\n"
        "<TOP><NUM>302</NUM><TITLE>Topic: poliomyelitis</TITLE></TOP>\n"
    )
    first, second = read_questions(topics, qrels)
    assert (first.id, first.query, first.line) == ("301", "Organized crime", 1)
    assert [(one.name, one.grade) for one in first.relevant] == [("doc_a", 2), ("A long title", 1)]
    assert (second.query, [one.grade for one in second.relevant]) == ("poliomyelitis", [0, 1])
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("301\torganized crime\n302\tpolio\n")
    assert [one.query for one in read_questions(pairs, qrels)] == ["organized crime", "polio"]
    pairs.write_text("301\torganized crime\n400\tnobody judged this\n")
    with pytest.raises(
        BadSearchFileError, match=r":2: nothing is relevant to query 400 \('nobody judged this'\) in .*qrels"
    ):
        read_questions(pairs, qrels)
    for line, wrong in (
        ("1 0 a", "four columns"),
        ("1 0 a high", "no whole number"),
        ("301 0 doc_a 1", "judged twice"),
    ):
        qrels.write_text(f"301 0 doc_a 2\n{line}\n")
        with pytest.raises(BadSearchFileError, match=f":2: .*{wrong}"):
            read_qrels(qrels)
    with pytest.raises(BadSearchFileError, match="No such file"):
        read_qrels(tmp_path / "none")


def test_a_passage_is_found_in_a_chunk_that_cuts_it() -> None:
    """Given a passage, then a chunk holds it whatever its white space, and when half of it stands at its edge; not when
    less does, nor half of it in the middle."""
    passage = "dredged in March to a depth of fourteen metres"
    assert holds("It was dredged  in\nMarch to a depth\tof fourteen metres.", passage)
    assert holds("It was dredged in March to a depth of", passage)
    assert holds("to a depth of fourteen metres. More.", passage)
    assert not holds("It was dredged in Mar", passage)
    assert not holds("It was dredged in March to a depth of ten metres.", passage)


def test_what_is_found_is_counted_once() -> None:
    """Given one chunk for two judgements, then both runs have one key of the better grade for them; a second chunk of a
    judged document is worth nothing; by document all chunks and judgements of it are one."""
    both = [Relevant(document_id="doc_a"), Relevant(text="dredged in March", grade=3), Relevant(document_id="doc_c")]
    runs = [[source("doc_a", 1, 0.9), source("doc_a", 2, 0.8, 1)], [source("doc_b", 1, 0.9)]]
    (left, right), grades = rankings(both, runs, None, "chunk")
    assert (sorted(grades.values()), grades[left[0]], grades[left[1]]) == ([0, 1, 3], 3, 0)
    assert right[0] not in grades
    parts = [Relevant(title="A", text="one passage"), Relevant(title="A", text="another", grade=2)]
    (found,), grades = rankings(parts, [[source("doc_a", 1, 0.9)]], None, "document")
    assert (grades, found) == ({found[0]: 2}, [*grades])
    unfound, grades = rankings(parts, [[]], None, "document")
    assert (unfound, [*grades.values()]) == ([[]], [2])
    assert same_place(source("doc_a", 1, 1), {**source("doc_a", 1, 1), "chunkId": "new", "start": 20})
    assert not same_place(source("doc_a", 1, 1), source("doc_a", 1, 1, 1))


def good(body: dict[str, Any]) -> list[dict[str, Any]]:
    """By meaning the right document comes first, by words last."""
    right = {"how deep": "doc_a", "what price": "doc_b", "when ferry": "doc_c"}[body["q"].rstrip(" 0123456789")]
    order = [right, *(name for name in TEXTS if name != right)]
    if body.get("mode") == "keyword":
        order.reverse()
    return [source(name, 1, 0.9 - 0.1 * at) for at, name in enumerate(order)]


def judged_file(path: Path) -> str:
    rows = []
    for number in range(4):
        rows.append({"query": f"how deep {number}", "relevant": ["docs/a.md"]})
        rows.append(
            {"query": f"what price {number}", "relevant": [{"filename": "docs/b.md", "text": "nine million francs"}]}
        )
        rows.append(
            {"query": f"when ferry {number}", "relevant": [{"title": "C", "grade": 2}, "doc_gone"], "id": f"f{number}"}
        )
    return written(path, *rows)


async def test_a_candidate_is_told_apart(api: Api, errand: Callable[..., Any], tmp_path: Path) -> None:
    """Given a candidate that finds the right document last, then the table and the JSON say that it is worse, with
    figures that are right, the searches were asked as agreed, four at a time, and the runs are written."""
    api.rank = good
    file, run = judged_file(tmp_path / "q.jsonl"), tmp_path / "run.txt"
    shown = await errand("eval", file, "--set", "topK=3", "--candidate", "mode=keyword", "--run-out", str(run))
    assert shown.code == 0, shown.err
    lines = {line.split("  ")[0]: line for line in shown.out.splitlines()}
    assert lines["nDCG@10"].endswith("worse")
    assert lines["MRR@10"].endswith("worse")
    assert "not told apart" in lines["recall@10"]
    assert lines["latency p50"].split() == ["latency", "p50", "7", "ms", "7", "ms"]
    assert "candidate  topK=3 mode=keyword" in shown.out
    assert "12 of 12 queries" in shown.err
    assert all(not body["answer"] and not body["log"] and body["topK"] == 10 for body in api.asked)
    assert all(body["minScore"] == 0 for body in api.asked)
    assert (len(api.asked), api.most_busy <= 4) == (24, True)
    found = (await errand("eval", file, "--candidate", "mode=keyword", "--json")).json
    rows = {row["metric"]: row for row in found["metrics"]}
    assert rows["MRR@10"]["present"]["mean"] == 1
    assert rows["MRR@10"]["candidate"]["mean"] == pytest.approx(1 / 3)
    assert (rows["MRR@10"]["verdict"], rows["judged@10"]["verdict"]) == ("worse", None)
    assert rows["recall@10"]["present"]["mean"] == pytest.approx((4 + 4 + 4 * 0.5) / 12)
    ferry = next(row for row in found["perQuery"] if row["id"] == "f0")
    assert ferry["present"]["ndcg"] == pytest.approx(2 / (2 + 1 / 1.584962500721156))
    assert len(found["worst"]) == 10
    assert found["worst"][0]["id"].startswith("f")
    assert run.read_text().splitlines()[0] == "1 Q0 doc_a-0 1 0.900000 present"
    assert "1 Q0 doc_a-0 3 0.700000 candidate" in (tmp_path / "run.txt.candidate").read_text()
    better = await errand("eval", file, "--set", "mode=keyword", "--candidate", "mode=hybrid")
    assert next(line for line in better.out.splitlines() if line.startswith("nDCG")).endswith("better")
    same = await errand("eval", file, "--candidate", "topK=20")
    assert next(line for line in same.out.splitlines() if line.startswith("nDCG")).endswith("not told apart")


async def test_documents_are_ranked_by_their_best_chunk(api: Api, errand: Callable[..., Any], tmp_path: Path) -> None:
    """Given many chunks of one wrong document before the right one, then by chunk it stands far down, by document
    second, and the run names documents."""
    crowd = [source("doc_a", 1, 0.9 - at / 100, at) for at in range(5)]
    api.rank = lambda _: [*crowd, source("doc_b", 1, 0.5)]
    file, run = written(tmp_path / "q.jsonl", {"query": "price", "relevant": ["doc_b"]}), tmp_path / "run"
    by_chunk = (await errand("eval", file, "--json")).json
    by_document = (await errand("eval", file, "--by", "document", "--json", "--run-out", str(run))).json
    assert by_chunk["perQuery"][0]["present"]["reciprocalRank"] == pytest.approx(1 / 6)
    assert by_document["perQuery"][0]["present"]["reciprocalRank"] == 0.5
    assert api.asked[-1]["topK"] == 50
    assert [line.split()[2] for line in run.read_text().splitlines()] == ["doc_a", "doc_b"]


async def test_settings_and_refusals(api: Api, errand: Callable[..., Any], tmp_path: Path) -> None:
    """Given settings that no search has, a missing file or a wrong k, then it ends with 2 and one line; a rate limit is
    waited for; what the API refuses ends with 1."""
    file = written(tmp_path / "q.jsonl", {"query": "x", "relevant": ["doc_a"], "filter": {"lang": "en"}})
    for given, said in (
        (("--set", "mode=fuzzy"), "Invalid enum value 'fuzzy'"),
        (("--candidate", "topk=5"), "unknown field `topk`"),
        (("--set", "answer=true"), "the evaluation's own"),
        (("--set", "mode"), "NAME=VALUE"),
        (("--k", "0"), "--k must be"),
    ):
        ran = await errand("eval", file, *given)
        assert (ran.code, said in ran.err) == (2, True), ran.err
    assert (await errand("eval", str(tmp_path / "none"))).code == 2
    api.refusals = 1
    assert (await errand("eval", file)).code == 0
    assert api.asked[0]["filter"] == {"lang": "en"}
    refused = await errand("eval", file, "--candidate", "version=2")
    assert (refused.code, "needs `collection`" in refused.err) == (1, True)
    assert (await errand("eval", file, "--candidate", "version=2", "--set", "collection=a")).code == 0
    assert api.asked[-1]["version"] == 2 or api.asked[-2]["version"] == 2


def logged(number: int, query: str, found: list[dict[str, Any]], **members: Any) -> dict[str, Any]:
    kept = [{**one, "kept": True, "rank": rank} for rank, one in enumerate(found, 1)]
    at = datetime.now(UTC) - timedelta(days=members.pop("days", 0))
    return {
        "searchId": f"srch_{number}", "jobId": "job_1", "at": at.isoformat(), "query": query, "user": None,
        "collections": None, "mode": "hybrid", "topK": 10, "minScore": 0.4, "filter": None, "rerank": None,
        "candidates": kept, "kept": len(kept), "bestScore": kept[0]["score"] if kept else None, "answer": None,
        "timings": {"queueMs": 1, "tookMs": 9}, "feedback": {"helpful": 0, "notHelpful": 0, "chunks": []}, **members,
    }  # fmt: skip


async def test_logged_searches_are_asked_again(api: Api, errand: Callable[..., Any]) -> None:
    """Given logged searches, then each is asked with its own settings and with the candidate's; overlap, emptiness and
    the figures of feedback are those of the answers; failed ones and other collections are left out."""
    wanted = {"chunks": [{"chunkId": "doc_a-0", "relevant": 2, "notRelevant": 1}], "helpful": 0, "notHelpful": 0}
    api.log = [
        logged(1, "how deep", [source("doc_a", 1, 0.8)], feedback=wanted, minScore=0.25, rerank="builtin"),
        logged(2, "what price", [source("doc_b", 1, 0.7)], collections=["money"]),
        logged(3, "broken", [], error="the model is down"),
        logged(4, "when ferry", [source("doc_c", 1, 0.7)], collections=["ships"], filter={"lang": "en"}),
    ]
    api.rank = lambda body: [] if body.get("minScore", 0) > 0.8 else good(body)
    found = (await errand("replay", "--candidate", "mode=keyword", "--json")).json
    assert (found["searches"], found["judged"], found["overlap"]["mean"]) == (3, 1, 1)
    assert (found["now"]["ndcg"]["mean"], found["candidate"]["ndcg"]["mean"]) == (1, pytest.approx(0.5))
    first = [body for body in api.asked if body["q"] == "how deep"]
    assert [body.get("mode") for body in first] == ["hybrid", "keyword"]
    assert all(body["rerank"] and body["minScore"] == 0.25 and not body["log"] for body in first)
    assert next(body for body in api.asked if body["q"] == "when ferry")["filter"] == {"lang": "en"}
    empty = await errand("replay", "--candidate", "minScore=0.9", "--collection", "ships")
    assert "2 logged searches" in empty.out
    assert "100.0%" in empty.out
    plain = await errand("replay", "--limit", "1", "--json")
    assert plain.json["overlap"]["mean"] == pytest.approx(1 / 3)
    assert {"then", "now"} <= set(plain.json)
    api.log = []
    assert "holds no such search" in (await errand("replay")).out


async def test_gaps_are_grouped_by_their_query(api: Api, errand: Callable[..., Any]) -> None:
    """Given queries that found nothing or were called bad, then they are one line however they were written, the most
    frequent first; good, failed and old ones are none."""
    bad = {"helpful": 0, "notHelpful": 1, "chunks": []}
    api.log = [
        logged(1, "Opening hours?", []),
        logged(2, "how deep", [source("doc_a", 1, 0.8)]),
        logged(3, " opening  HOURS", [], bestScore=0.2),
        logged(4, "price", [source("doc_b", 1, 0.5)], feedback=bad),
        logged(5, "opening hours", [], error="failed"),
        logged(6, "price", [], days=40),
    ]
    found = (await errand("gaps", "--json")).json
    assert [(gap["count"], gap["empty"], gap["badFeedback"], gap["bestScore"]) for gap in found["gaps"]] == [
        (2, 2, 0, 0.2),
        (1, 0, 1, 0.5),
    ]
    assert found["gaps"][0]["query"] == "Opening hours?"
    shown = await errand("gaps", "--days", "60")
    assert [line.split()[0] for line in shown.out.splitlines()] == ["COUNT", "2", "2"]
    api.log = api.log[1:2]
    assert "found something" in (await errand("gaps")).out


async def test_a_search_is_asked_and_looked_at(api: Api, errand: Callable[..., Any]) -> None:
    """Given a query, then its sources and its answer are shown; so are log, search, feedback and quality."""
    api.rank = lambda _: [source("doc_b", 1, 0.9), {**source("doc_a", 1, 0.8), "page": 3}]
    shown = await errand(
        "query", "what price", "--filter", "lang=en", "--filter", "lang=de", "--top-k", "5", "--rerank"
    )
    assert (shown.code, api.asked[0]["filter"], api.asked[0]["rerank"]) == (0, {"lang": ["en", "de"]}, True)
    assert "[1] 0.900  -  (doc_b 0–61)" in shown.out
    assert "page 3" in shown.out
    assert "[1] “new crane”  [doc_b 4–13]" in shown.out
    assert "Nine million" not in (await errand("query", "x", "--no-answer")).out
    assert (await errand("query", "x", "--filter", "lang")).code == 2
    api.rank = lambda _: []
    assert "nothing has a score of 0.6" in (await errand("query", "x", "--no-answer", "--min-score", "0.6")).out
    api.log = [logged(number, f"query {number}", [source("doc_a", 1, 0.8)]) for number in range(5)]
    assert len((await errand("log", "--limit", "3")).out.splitlines()) == 4
    assert "kept  doc_a-0" in (await errand("show", "srch_2")).out
    assert (await errand("feedback", "srch_2", "--not-helpful")).code == 0
    assert (await errand("feedback", "srch_2", "--chunk", "doc_a-0", "--relevant")).code == 0
    assert api.said == [{"helpful": False}, {"chunkId": "doc_a-0", "relevant": True}]
    for wrong in ((), ("--relevant",), ("--chunk", "c"), ("--helpful", "--chunk", "c", "--relevant")):
        assert (await errand("feedback", "srch_2", *wrong)).code == 2
    quality = await errand("quality", "--from", "2026-11-01")
    assert quality.out.splitlines()[:3] == ["searches  12", "ndcg", "  mean  0.75"]
    assert "a gap" in quality.out
