"""The log of searches keeps what was found for as long as it may, tells how good it was, and forgets on request."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec
import pytest

from shared.clock import rfc3339
from shared.ids import new_id
from shared.jobs import UsageView
from shared.redis import redis_now_ms
from shared.search import (
    Candidate,
    Mode,
    NewSearchFeedback,
    Quotes,
    Scores,
    SearchAnswer,
    SearchCitation,
    SearchRecord,
    Timings,
)
from shared.search_log import Line, feedback_of, head_of
from shared.search_quality import measure, normalised
from shared.stores.searches import SearchesStore
from shared.stores.tenants import DEFAULT_TENANT
from tests.conftest import Stack, chat
from tests.test_erasure import content_of, delete, erased, everything

DAY_S = 86_400.0
DAY_MS = 86_400_000
NOTHING = {"candidates": [], "answer": None, "kept": 0, "best_score": None}


def candidate(rank: int, document: str, *, score: float = 0.8, kept: bool = True) -> Candidate:
    """The first chunk of a document."""
    return Candidate(
        rank=rank, document_id=document, chunk_id=f"{document}.0", title=f"Title of {document}", score=score,
        scores=Scores(score, None), start=3, end=90, page=2, kept=kept,
        reason=msgspec.UNSET if kept else "belowMinScore",
    )  # fmt: skip


def search(
    documents: list[str], *, at_ms: int, job: str = "job_1", took: float = 100.0, **changes: Any
) -> SearchRecord:
    """A search that kept all but the last of the documents, and answers from the first."""
    found = [candidate(rank, one, score=1 - rank / 10, kept=rank < len(documents) or rank == 1)
             for rank, one in enumerate(documents, 1)]  # fmt: skip
    kept = [one for one in found if one.kept]
    quotes = [
        SearchCitation(source=1, document_id=one.document_id or "", start=3, end=9, quote="secret") for one in kept[:1]
    ]
    values: dict[str, Any] = {
        "search_id": new_id("srch", at_ms), "job_id": job, "at": rfc3339(at_ms), "query": "When does it open?",
        "user": None, "collections": None, "mode": Mode.HYBRID, "top_k": 10, "min_score": 0.3, "filter": None,
        "rerank": None, "indexes": [], "settings_hash": "x", "candidates": found, "kept": len(kept),
        "best_score": max((one.score for one in found), default=None),
        "answer": SearchAnswer(text="A secret text [1].", citations=quotes), "quotes": Quotes(1, 0), "prompt": None,
        "model": None, "usage": UsageView(), "timings": Timings(
            queue_ms=1.0, embed_ms=2.0, retrieve_ms=3.0, texts_ms=4.0, rerank_ms=0.0, answer_ms=50.0, took_ms=took),
    }  # fmt: skip
    return SearchRecord(**{**values, **changes})


class Log:
    """The log of a stack, and documents that exist."""

    def __init__(self, stack: Stack, tenant: str = DEFAULT_TENANT) -> None:
        self.stack = stack
        self.tenant = tenant
        self.store = SearchesStore(stack.client, stack.keys)

    async def now(self) -> int:
        return await redis_now_ms(self.stack.client)

    async def documents(self, count: int) -> list[str]:
        names = [new_id("doc", await self.now()) for _ in range(count)]
        client: Any = self.stack.client
        for name in names:
            await client.hset(self.stack.keys.document(name), mapping={"id": name, "tenant": self.tenant})
        return names

    async def add(self, documents: list[str], *, ago_ms: int = 0, **changes: Any) -> str:
        record = search(documents, at_ms=await self.now() - ago_ms, **changes)
        assert await self.store.write(self.tenant, record, 30 * DAY_S)
        return record.search_id

    async def say(self, search_id: str, **what: Any) -> None:
        await self.store.add_feedback(self.tenant, search_id, NewSearchFeedback(**what))


async def listed(stack: Stack, **parameters: Any) -> list[str]:
    answer = await stack.call("GET", "/api/search/log", params={name: str(value) for name, value in parameters.items()})
    assert answer.status == 200, answer.text
    return [row["searchId"] for row in answer.json["data"]]


async def ours(stack: Stack) -> dict[str, str]:
    """The keys of the log, with all they hold."""
    return {name: held for name, held in (await everything(stack)).items() if name.startswith("search")}


async def test_a_search_is_written_once_and_read(edge: Stack) -> None:
    log = Log(edge)
    documents = await log.documents(2)
    record = search(documents, at_ms=await log.now(), user="ann")
    for _ in range(2):
        assert await log.store.write(DEFAULT_TENANT, record, 60)
    assert await listed(edge) == [record.search_id]
    shown = (await edge.call("GET", f"/api/search/{record.search_id}")).json
    assert shown == {**msgspec.to_builtins(record), "feedback": {"helpful": 0, "notHelpful": 0, "chunks": []}}
    assert shown["candidates"][1]["reason"] == "belowMinScore"
    other = await edge.tenant()
    for path in (record.search_id, "srch_01M81SGW152PHX78GHNCJWQHRS", "job_1", "nonsense"):
        assert (await edge.call("GET", f"/api/search/{path}", key=other[1])).status == 404
    assert (await edge.call("GET", "/api/search/log", key=other[1])).json["data"] == []


async def test_the_log_is_listed_newest_first_and_in_pages(edge: Stack) -> None:
    log = Log(edge)
    made = [await log.add([], ago_ms=1_000 * (7 - place), **NOTHING) for place in range(7)]
    found: list[str] = []
    path: str | None = "/api/search/log?limit=3"
    while path:
        answer = await edge.call("GET", path)
        found += [row["searchId"] for row in answer.json["data"]]
        path = f"/api/search/log?limit=3&after={answer.json['next']}" if answer.json["hasMore"] else None
    assert found == made[::-1]
    assert (await edge.call("GET", "/api/search/log?after=nonsense")).status == 422


async def test_the_log_is_filtered(edge: Stack) -> None:
    log = Log(edge)
    documents = await log.documents(3)
    good = await log.add(documents, ago_ms=4 * DAY_MS, user="ann", collections=["manuals"], query="How DEEP is it?")
    words = await log.add(documents, ago_ms=3 * DAY_MS, mode=Mode.KEYWORD, best_score=0.41)
    empty = await log.add([], ago_ms=2 * DAY_MS, user="bob", **NOTHING)
    await log.say(good, helpful=True)
    await log.say(words, chunk_id=f"{documents[0]}.0", relevant=False)
    now = await log.now()
    two, three = rfc3339(now - 2 * DAY_MS - 60_000), rfc3339(now - 3 * DAY_MS - 60_000)
    for parameters, wanted in [
        ({"user": "ann"}, [good]), ({"user": "nobody"}, []), ({"collection": "manuals"}, [good]),
        ({"mode": "keyword"}, [words]), ({"noResult": "true"}, [empty]), ({"noResult": "false"}, [words, good]),
        ({"maxScore": 0.41}, [empty, words]), ({"feedback": "good"}, [good]), ({"feedback": "bad"}, [words]),
        ({"feedback": "any"}, [words, good]), ({"q": "how deep"}, [good]), ({"from": two}, [empty]),
        ({"to": three}, [good]), ({"from": three, "to": two}, [words]), ({"user": "bob", "noResult": "false"}, []),
    ]:  # fmt: skip
        assert await listed(edge, **parameters) == wanted, parameters
    for wrong in ("mode=x", "noResult=1", "maxScore=2", "maxScore=nan", "feedback=so", "from=today", "x=1"):
        assert (await edge.call("GET", f"/api/search/log?{wrong}")).status == 422, wrong


async def test_a_page_looks_at_so_many_searches_only(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a filter that fits the oldest only, then pages are short until it comes, and none is left out."""
    monkeypatch.setattr("shared.stores.searches.MAX_SCANNED", 3)
    monkeypatch.setattr("shared.stores.searches.BATCH", 2)
    log = Log(edge)
    made = [await log.add([], ago_ms=1_000 * (9 - place), user="ann" if not place else None, **NOTHING)
            for place in range(8)]  # fmt: skip
    found, pages, after = [], 0, ""
    while True:
        page = (await edge.call("GET", f"/api/search/log?user=ann{after}")).json
        found += [row["searchId"] for row in page["data"]]
        pages += 1
        if not page["hasMore"]:
            break
        after = f"&after={page['next']}"
    assert (found, pages) == ([made[0]], 3)


async def test_nothing_outlives_its_retention(edge: Stack) -> None:
    log = Log(edge)
    documents = await log.documents(2)
    now = await log.now()
    assert not await log.store.write(DEFAULT_TENANT, search(documents, at_ms=now), 0)
    assert not await log.store.write(DEFAULT_TENANT, search(documents, at_ms=now - 2_000), 1)
    assert await ours(edge) == {}
    short = search(documents, at_ms=now, user="ann")
    assert await log.store.write(DEFAULT_TENANT, short, 1)
    assert len(await ours(edge)) == 5
    for pause_s in (0.6, 0.5):
        await asyncio.sleep(pause_s)
        assert await log.store.write(DEFAULT_TENANT, search(documents, at_ms=await log.now(), user="ann"), 1)
    # The first has expired by itself: its id went from the indexes, which live on, with the last write.
    assert short.search_id not in str(await ours(edge))
    await asyncio.sleep(1.2)
    assert await ours(edge) == {}


async def test_old_searches_leave_every_index_at_the_next_write(edge: Stack) -> None:
    """Given searches that were to be kept for long, when less is kept from now on, then a few go with each write, also
    with none that is kept."""
    log = Log(edge)
    documents = await log.documents(2)
    old = [await log.add(documents, ago_ms=DAY_MS, user="ann") for _ in range(3)]
    new = await log.add(documents, ago_ms=60_000, user="ann")
    kept = search(documents, at_ms=await log.now(), user="ann")
    assert await log.store.write(DEFAULT_TENANT, kept, 3_600)
    left = await ours(edge)
    assert not [name for name, held in left.items() if any(one in name + held for one in old)]
    # The indexes live as long as the longest of what they hold.
    assert await listed(edge) == [kept.search_id, new]
    assert await edge.client.pttl(edge.keys.searches_of_document(DEFAULT_TENANT, documents[0])) > 20 * DAY_MS
    assert not await log.store.write(DEFAULT_TENANT, search(documents, at_ms=await log.now()), 0)
    assert await ours(edge) == {}


async def test_what_was_deleted_while_it_was_searched_is_not_written(edge: Stack) -> None:
    log = Log(edge)
    first, second, third = await log.documents(3)
    await edge.client.delete(edge.keys.document(second))
    record = search([first, second, third], at_ms=await log.now())
    assert await log.store.write(DEFAULT_TENANT, record, 60)
    shown = await log.store.search(DEFAULT_TENANT, record.search_id)
    assert [one.document_id for one in shown.candidates] == [first, None, third]
    assert shown.answer is None  # the second was among the sources
    assert second not in str(await ours(edge))


async def test_feedback_is_counted(edge: Stack) -> None:
    log = Log(edge)
    documents = await log.documents(2)
    made = await log.add(documents)
    path, chunk = f"/api/search/{made}/feedback", f"{documents[0]}.0"
    relevant = {"chunkId": chunk, "relevant": True}
    not_relevant = {"chunkId": f"{documents[1]}.0", "relevant": False}
    for body in ({"helpful": True}, {"helpful": False}, relevant, relevant, not_relevant):
        answer = await edge.call("POST", path, body)
        assert answer.status == 201, answer.text
    assert answer.json["searchId"] == made
    chunks = [{"chunkId": chunk, "relevant": 2, "notRelevant": 0},
              {"chunkId": f"{documents[1]}.0", "relevant": 0, "notRelevant": 1}]  # fmt: skip
    wanted = {"helpful": 1, "notHelpful": 1, "chunks": sorted(chunks, key=lambda one: str(one["chunkId"]))}
    assert answer.json["feedback"] == wanted
    assert (await edge.call("GET", f"/api/search/{made}")).json["feedback"] == wanted
    # The same person changes their mind.
    for helpful in (True, True, False):
        answer = await edge.call("POST", path, {"helpful": helpful, "user": "ann"})
    assert (answer.json["feedback"]["helpful"], answer.json["feedback"]["notHelpful"]) == (1, 2)
    strange = await edge.call("POST", path, {"chunkId": "another", "relevant": True})
    assert (strange.status, strange.json["errors"][0]["path"]) == (422, "$.chunkId")
    for wrong in ({}, {"helpful": True, "chunkId": chunk}, {"chunkId": chunk}, {"helpful": 1}):
        assert (await edge.call("POST", path, wrong)).status == 422
    _, key = await edge.tenant()
    assert (await edge.call("POST", path, {"helpful": True}, key=key)).status == 404


async def test_feedback_under_an_idempotency_key_counts_once(edge: Stack) -> None:
    made = await Log(edge).add([], **NOTHING)
    path, headers = f"/api/search/{made}/feedback", {"Idempotency-Key": "once"}
    first = await edge.call("POST", path, {"helpful": True}, headers=headers)
    await edge.call("POST", path, {"helpful": False})
    again = await edge.call("POST", path, {"helpful": True}, headers=headers)
    assert (again.status, again.json, again.headers["Idempotent-Replayed"]) == (201, first.json, "true")
    other = await edge.call("POST", path, {"helpful": False}, headers=headers)
    assert other.json["code"] == "idempotency_mismatch"
    assert (await edge.call("GET", f"/api/search/{made}")).json["feedback"]["helpful"] == 1


async def finished_job(stack: Stack, text: str) -> str:
    job_id = await stack.submit(chat(text))
    assert (await stack.finished(job_id))["status"] == "complete"
    assert await stack.client.exists(stack.keys.log(job_id), stack.keys.journal(job_id)) == 2
    return job_id


async def test_a_search_is_erased_with_the_texts_of_its_job(stack: Stack) -> None:
    log = Log(stack)
    documents = await log.documents(2)
    job_id = await finished_job(stack, "Say it.")
    made = await log.add(documents, user="ann", job=job_id)
    await log.say(made, helpful=False)
    receipt = await stack.call("DELETE", f"/api/search/{made}")
    assert (receipt.status, receipt.json["searchId"], receipt.json["jobId"]) == (200, made, job_id)
    for method in ("GET", "DELETE"):
        assert (await stack.call(method, f"/api/search/{made}")).status == 404
    assert await listed(stack) == []
    assert (await stack.call("POST", f"/api/search/{made}/feedback", {"helpful": True})).status == 404
    assert await stack.client.exists(stack.keys.journal(job_id)) == 0
    assert await stack.client.xlen(stack.keys.log(job_id)) <= 1  # how it ended
    assert "result" not in (await stack.call("GET", f"/api/jobs/{job_id}")).json
    # What is left keeps a late worker from writing it again.
    assert list(await ours(stack)) == [f"search:{made}"]
    record = search(documents, at_ms=await log.now(), search_id=made)
    assert await log.store.write(DEFAULT_TENANT, record, 60)
    assert (await stack.call("GET", f"/api/search/{made}")).status == 404
    await stack.jobs.sweep()
    assert (await stack.call("GET", f"/api/jobs/{job_id}")).status == 410


async def test_a_job_that_has_not_ended_yet_is_waited_for(edge: Stack) -> None:
    log = Log(edge)
    client: Any = edge.client
    job = {"tenant": DEFAULT_TENANT, "status": "processing", "result": "{}"}
    await client.hset(edge.keys.job("job_1"), mapping=job)
    made = await log.add(await log.documents(1))
    erasing = asyncio.create_task(log.store.erase(DEFAULT_TENANT, made))
    await asyncio.sleep(0.05)
    assert await client.hexists(edge.keys.job("job_1"), "result")
    await client.hset(edge.keys.job("job_1"), "status", "complete")
    await erasing
    assert not await client.hexists(edge.keys.job("job_1"), "result")


async def test_a_job_of_another_tenant_is_left_alone(edge: Stack) -> None:
    log = Log(edge)
    client: Any = edge.client
    job = {"tenant": "ten_other", "status": "complete", "result": "{}"}
    await client.hset(edge.keys.job("job_1"), mapping=job)
    await log.store.erase(DEFAULT_TENANT, await log.add(await log.documents(1)))
    assert await client.hexists(edge.keys.job("job_1"), "result")


async def test_all_searches_of_a_user_are_erased(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stores.searches.PAGE", 2)
    log = Log(edge)
    documents = await log.documents(3)
    for _ in range(5):
        await log.add(documents, user="ann", query="Of Ann.")
    kept = await log.add(documents, user="bob")
    tenant, key = await edge.tenant()
    theirs = await Log(edge, tenant).add([], user="ann", **NOTHING)
    assert (await edge.call("DELETE", "/api/search/log")).status == 422
    for count in (5, 0):
        answer = await edge.call("DELETE", "/api/search/log", params={"user": "ann"})
        assert (answer.status, answer.json) == (200, {"erased": count})
    assert await listed(edge) == [kept]
    left = {name: held for name, held in (await ours(edge)).items() if theirs not in name + held}
    assert "Ann" not in str(left)
    assert '"ann"' not in str(left)
    assert (await edge.call("GET", f"/api/search/{theirs}", key=key)).status == 200


async def test_a_document_is_taken_out_of_all_searches(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stores.searches.PAGE", 2)
    log = Log(stack)
    first, second, third = await log.documents(3)
    job_id = await finished_job(stack, "Say it.")
    source = await log.add([first, second, third], job=job_id)
    seen = [await log.add([second, third, first]) for _ in range(3)]  # it was not kept in these
    without = await log.add([second])
    for document in (first, second):
        await log.say(source, chunk_id=f"{document}.0", relevant=True)
    await stack.client.delete(stack.keys.document(first))
    assert await log.store.erase_document(DEFAULT_TENANT, first) == 4
    assert await log.store.erase_document(DEFAULT_TENANT, first) == 0
    assert first not in str(await ours(stack))

    shown = (await stack.call("GET", f"/api/search/{source}")).json
    blank = {"rank": 1, "documentId": None, "chunkId": None, "title": None, "score": 0.9, "kept": True, "erased": True,
             "start": 0, "end": 0, "scores": {"vector": 0.9, "keyword": None}}  # fmt: skip
    assert shown["candidates"][0] == blank
    assert shown["answer"] is None
    assert [one["chunkId"] for one in shown["feedback"]["chunks"]] == [f"{second}.0"]
    assert await stack.client.exists(stack.keys.journal(job_id)) == 0
    assert await stack.client.xlen(stack.keys.log(job_id)) <= 1  # how it ended
    view = (await stack.call("GET", f"/api/jobs/{job_id}")).json
    assert view["status"] == "complete"
    assert "result" not in view
    for made in seen:
        assert (await stack.call("GET", f"/api/search/{made}")).json["answer"]["text"] == "A secret text [1]."
    assert (await stack.call("GET", f"/api/search/{without}")).json["candidates"][0]["documentId"] == second
    gone = await stack.call("POST", f"/api/search/{source}/feedback", {"chunkId": f"{first}.0", "relevant": True})
    assert gone.status == 422


async def test_two_documents_that_are_erased_at_a_time_are_both_gone(edge: Stack) -> None:
    log = Log(edge)
    documents = await log.documents(6)
    made = await log.add(documents)
    await asyncio.gather(*(log.store.erase_document(DEFAULT_TENANT, one) for one in documents[:5]))
    shown = await log.store.search(DEFAULT_TENANT, made)
    assert [one.document_id for one in shown.candidates] == [None] * 5 + documents[5:]


async def test_the_erasure_of_a_tenant_leaves_nothing_of_its_log(make_stack: Any) -> None:
    stack: Stack = await make_stack(workers=("batch",))
    tenant, key = await stack.tenant()
    log, other = Log(stack, tenant), Log(stack)
    documents = await log.documents(2)
    made = [await log.add(documents, user="ann") for _ in range(3)]
    await stack.call("POST", f"/api/search/{made[0]}/feedback", {"helpful": True}, key=key,
                     headers={"Idempotency-Key": "x"})  # fmt: skip
    await log.store.erase(tenant, made[1])
    kept = await other.add(await other.documents(1), user="ann")
    job_id = await delete(stack, tenant)
    # As a worker would that was frozen, and comes back.
    assert not await log.store.write(tenant, search([], at_ms=await log.now(), **NOTHING), 60)
    receipt = await erased(stack, job_id)
    assert receipt["remaining"] == 0
    left = await ours(stack)
    assert len(left) == 4
    assert not [name for name, held in left.items() if tenant in name + held]
    assert await listed(stack) == [kept]
    assert f"b'{DEFAULT_TENANT}'" in await content_of(stack, stack.keys.search(kept).encode())


def line(query: str, ranked: list[str], *, best: float | None = 0.9, votes: dict[str, tuple[int, int]] | None = None,
         helpful: int = 0, unhelpful: int = 0, **more: Any) -> Line:  # fmt: skip
    """A search that showed these chunks."""
    record = search(ranked or ["none"], at_ms=1_700_000_000_000, query=query, best_score=best, kept=len(ranked), **more)
    head = msgspec.structs.replace(head_of(record), ranked=ranked)
    said = {chunk: {"r": yes, "n": no} for chunk, (yes, no) in (votes or {}).items()}
    return Line(record.search_id, head, feedback_of(helpful, unhelpful, said))


def test_quality_is_what_one_reckons_by_hand() -> None:
    """Given four searches for two queries and a failed one, then judgements of a query are pooled over its searches."""
    lines = [
        line("When does it open?", ["a", "b", "c"], votes={"b": (2, 1), "a": (0, 1)}, helpful=3, unhelpful=1, took=100),
        line("when  does it OPEN", ["x", "c"], votes={"c": (1, 0), "x": (1, 1)}, best=0.4, took=200),
        line("Where?", [], best=None, took=300),
        line("where", ["y"], best=0.7, unhelpful=1, took=400),
        line("Broken", [], best=None, error="timeout"),
    ]
    found = measure(lines, k=2)
    assert (found.searches, found.failed, found.no_result_rate) == (5, 1, 0.25)
    assert found.low_score_rate == 0.5
    assert found.mean_best_score == pytest.approx((0.9 + 0.4 + 0.7) / 3)
    assert (found.helpful_rate, found.helpful, found.not_helpful) == (0.6, 3, 2)
    # b and c are relevant, a and x are not; the first search has them at 2 and 3, the second c at 2.
    assert (found.judged_searches, found.judged_chunks) == (2, 4)
    ideal = 1 + 1 / math.log2(3)
    first, second = (1 / math.log2(3) + 1 / math.log2(4)) / ideal, (1 / math.log2(3)) / ideal
    assert found.ndcg_at10.mean == pytest.approx((first + second) / 2)
    assert found.mrr.mean == 0.5
    assert found.recall_at_k.mean == 0.5
    assert found.judged_at10.mean == 1.0
    low, high = found.ndcg_at10.low, found.ndcg_at10.high
    assert low is not None
    assert high is not None
    assert second - 1e-9 <= low <= (first + second) / 2 <= high <= first + 1e-9
    assert (found.latency["tookMs"].p50, found.latency["tookMs"].p95) == (200, 400)
    assert found.latency["answerMs"].p50 == 50
    assert [(one.query, one.searches, one.ndcg) for one in found.worst] == [
        ("Where?", 2, None), ("When does it open?", 2, pytest.approx((first + second) / 2)),
    ]  # fmt: skip
    assert [(gap.query, gap.count, gap.best_score) for gap in found.gaps] == [("Where?", 2, 0.7)]
    assert measure([]).ndcg_at10.mean is None
    # A search that shows nothing of what is known to be relevant counts, but nothing of it could be judged.
    found = measure([line("Why?", ["a"], votes={"a": (1, 0)}), line("Why?", [], best=None)])
    assert (found.ndcg_at10.mean, found.judged_at10.mean) == (0.5, 1.0)
    assert normalised(" Wo  LIEGT es?! ") == "wo liegt es"


async def test_quality_is_of_the_newest_searches_of_a_time(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(edge)
    documents = await log.documents(3)
    for age in range(5):
        await log.add([], ago_ms=(age + 1) * DAY_MS, query=f"Old {age}", collections=["manuals"], **NOTHING)
    made = await log.add(documents, query="How deep?", collections=["lakes"])
    await log.say(made, chunk_id=f"{documents[1]}.0", relevant=True)
    found = (await edge.call("GET", "/api/search/quality")).json
    assert (found["searches"], found["more"], found["noResultRate"]) == (6, False, pytest.approx(5 / 6))
    assert found["mrr"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["latency"]["tookMs"] == {"p50": 100.0, "p95": 100.0}
    assert len(found["gaps"]) == 5
    path = "/api/search/quality?"
    assert (await edge.call("GET", path + "collection=lakes")).json["noResultRate"] == 0
    assert (await edge.call("GET", f"{path}to={rfc3339(await log.now() - DAY_MS)}")).json["judgedSearches"] == 0
    assert (await edge.call("GET", path + "k=1")).json["recallAtK"]["mean"] == 0
    for wrong in ("k=0", "k=51", "lowScore=2", "from=x", "user=ann"):
        assert (await edge.call("GET", path + wrong)).status == 422, wrong
    monkeypatch.setattr("api.handlers.search_log.MAX_SEARCHES", 4)
    few = (await edge.call("GET", "/api/search/quality")).json
    assert (few["searches"], few["more"]) == (4, True)


async def test_the_log_needs_its_scope(edge: Stack) -> None:
    tenant, _ = await edge.tenant()
    made = await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {"scopes": ["jobs", "documents"]})
    for method, path in (("GET", "/log"), ("DELETE", "/log?user=a"), ("GET", "/quality"), ("GET", "/srch_1"),
                         ("DELETE", "/srch_1")):  # fmt: skip
        assert (await edge.call(method, f"/api/search{path}", key=made.json["key"])).status == 403
