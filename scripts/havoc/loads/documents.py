"""Documents: stored, stored again, replaced, found, deleted, while their collections are built anew and rolled back."""

from __future__ import annotations

from typing import Any

import msgspec

from scripts.havoc.history import EXPECTED_ERRORS
from scripts.havoc.loads.ground import Ground

FIRST = 20_000_000
SHELVES = 3
KEPT = 60  # documents that stay; older ones make room
REFUSED = frozenset({"invalid_input"})  # a version is being built already, or the collection was emptied meanwhile


class Held(msgspec.Struct):
    """A document that is there, with a word that stands in no other."""

    document_id: str
    word: str
    shelf: str
    text: str


class Documents:
    """One tenant's library."""

    AT_ONCE = 4

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._clients = ground.clients
        self._key = ""
        self._held: list[Held] = []
        self._gone: set[str] = set()
        self._counts = {"ingested": 0, "replaced": 0, "deleted": 0, "searches": 0, "answers": 0, "reindexed": 0}

    async def prepare(self) -> None:
        """The tenant."""
        _, self._key = await self._ground.make_tenant("library", {"tokensPerMinute": 10**9})

    async def one(self, number: int) -> None:
        """The life of one document; each twentieth client builds a collection anew instead."""
        shelf = f"shelf{number % SHELVES}"
        if number % 20 == 19:
            await self._rebuild(number, shelf)
            return
        word = f"zq{number}qz"
        held = await self._store(number, shelf, word, self._text(number, word))
        if held is None:
            return
        await self._expect(held.word, shelf, held.document_id)
        dice = self._ground.chance.random()
        if dice < 0.2:
            await self._store_again(number, held)
        elif dice < 0.5:
            await self._replace(number, held)
        if self._ground.chance.random() < 0.3:
            await self._ask(number, held)
        if self._ground.chance.random() < 0.4:
            await self._delete(held)
            return
        self._held.append(held)
        if len(self._held) > KEPT:
            await self._delete(self._held.pop(0))

    def _text(self, number: int, word: str) -> str:
        return f"ref{FIRST + number}x: the {word} is here. {self._clients.text(40)}."

    async def _store(self, number: int, shelf: str, word: str, text: str, again: str = "") -> Held | None:
        body = {"text": text, "title": f"About {word}", "collection": shelf}
        made = await self._send("POST", "/api/documents", f"{number}{again}", body)
        job = await self._ground.job_of("documents", f"ref{FIRST + number}x{again}", self._key, made["jobId"], "ingest")
        held = Held(made["documentId"], word, shelf, text)
        if job.view is None or job.view["status"] != "complete":
            await self._delete(held)
            return None
        self._counts["ingested"] += 1
        if again and job.view["usage"]["embeddingTokens"]:
            self._ground.found.add("the same content was embedded twice", f"{job.job_id}: {job.view['usage']}")
        return held

    async def _send(self, method: str, path: str, mark: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Idempotency-Key": f"{method}-{mark}"}
        status, made = await self._clients.call(method, path, self._key, json=body, headers=headers)
        assert status == 202, made
        sent: dict[str, Any] = made
        return sent

    async def _store_again(self, number: int, held: Held) -> None:
        """The same content in another document: it is found twice and embedded once."""
        twin = await self._store(number, held.shelf, held.word, held.text, "again")
        if twin is not None:
            await self._expect(held.word, held.shelf, held.document_id, twin.document_id)
            await self._delete(twin)

    async def _replace(self, number: int, held: Held) -> None:
        word = f"{held.word}new"
        body = {"text": self._text(number, word)}
        made = await self._send("PUT", f"/api/documents/{held.document_id}", str(number), body)
        ref = f"ref{FIRST + number}xput"
        job = await self._ground.job_of("documents", ref, self._key, made["jobId"], "ingest")
        if job.view is not None and job.view["status"] == "complete":
            self._counts["replaced"] += 1
            await self._expect_none(held.word, held.shelf, held.document_id)
            held.word = word
        await self._expect(held.word, held.shelf, held.document_id)

    async def _delete(self, held: Held) -> None:
        self._gone.add(held.document_id)
        status, answer = await self._clients.call("DELETE", f"/api/documents/{held.document_id}", self._key)
        assert status in (200, 404), answer  # 404: an answer that was lost had deleted it
        self._counts["deleted"] += 1
        await self._expect_none(held.word, held.shelf, held.document_id)

    async def _search(self, word: str, shelf: str) -> list[str]:
        body = {"q": word, "collection": shelf, "mode": "keyword", "answer": False}
        while True:
            deleted = set(self._gone)
            status, answer = await self._clients.call("POST", "/api/search", self._key, json=body)
            if status == 200:
                break
            assert status in (409, 410), answer  # cancelled: its reader was away for too long
        self._counts["searches"] += 1
        documents = [source["documentId"] for source in answer["sources"]]
        if late := deleted.intersection(documents):
            self._ground.found.add("a deleted document was found", f"{late} for {word}")
        for source in answer["sources"]:
            if word not in source["text"]:
                self._ground.found.add("a search found what was not asked for", f"{word}: {source['text'][:80]}")
        return documents

    async def _expect(self, word: str, shelf: str, *documents: str) -> None:
        """Exactly these have the word."""
        found = await self._search(word, shelf)
        if sorted(found) != sorted(documents):
            self._ground.found.add("a search missed what was complete", f"{word} in {shelf}: {found} for {documents}")

    async def _expect_none(self, word: str, shelf: str, document: str) -> None:
        if document in await self._search(word, shelf):
            self._ground.found.add("what was replaced or deleted was found", f"{word}: {document}")

    async def _ask(self, number: int, held: Held) -> None:
        """A search with an answer, read as it is made."""
        question = f"ref{FIRST + number}x: where is the {held.word}?"
        shown = await self._ground.frames("/api/search", self._key, {"q": question, "collection": held.shelf})
        if shown is None:
            return
        self._counts["answers"] += 1
        if shown and shown[0][0] not in ("sources", "error"):
            self._ground.found.add("an answer without its sources", f"{held.word}: {shown[0][0]}")
        whole = [data for event, data in shown if event == "answer"]
        text = "".join(data["text"] for event, data in shown if event == "")
        if whole and whole[0]["answer"] is not None and whole[0]["answer"]["text"] != text:
            self._ground.found.add("the streamed answer is not the answer", held.word)

    async def _rebuild(self, number: int, shelf: str) -> None:
        """A further version of the index, sometimes back again; searches go on."""
        body = {"chunkCharacters": self._ground.chance.choice([300, 600, 1_200])}
        headers = {"Idempotency-Key": f"reindex-{number}"}
        path = f"/api/collections/{shelf}"
        status, made = await self._clients.call("POST", f"{path}/reindex", self._key, json=body, headers=headers)
        if status == 404:  # nothing was stored there yet
            return
        assert status == 202, made
        ref, may_fail = f"ref{FIRST + number}x", EXPECTED_ERRORS | REFUSED
        job = await self._ground.job_of("documents", ref, self._key, made["jobId"], "reindex", may_fail=may_fail)
        self._counts["reindexed"] += job.view is not None and job.view["status"] == "complete"
        if self._ground.chance.random() < 0.5:
            headers = {"Idempotency-Key": f"rollback-{number}"}
            status, made = await self._clients.call("POST", f"{path}/rollback", self._key, headers=headers)
            assert status in (200, 202, 409), made
            if status == 202:
                await self._ground.job_of(
                    "documents", f"{ref}back", self._key, made["jobId"], "reindex", may_fail=may_fail
                )

    async def finish(self) -> None:
        """All documents that are there are found, each once, and no others are listed. Then none is there."""
        for held in self._held:
            await self._expect(held.word, held.shelf, held.document_id)
        listed: set[str] = set()
        path = "/api/documents?limit=200"
        while path:
            _, page = await self._clients.call("GET", path, self._key)
            listed |= {view["documentId"] for view in page["data"]}
            path = f"/api/documents?limit=200&after={page['next']}" if page["hasMore"] else ""
        if late := listed & self._gone:
            self._ground.found.add("a deleted document is listed", str(sorted(late)[:5]))
        if missing := {held.document_id for held in self._held} - listed:
            self._ground.found.add("a document is not listed", str(sorted(missing)[:5]))
        for document_id in listed:
            await self._clients.call("DELETE", f"/api/documents/{document_id}", self._key)

    def row(self) -> str:
        """What is printed."""
        return ", ".join(f"{count} {what}" for what, count in self._counts.items())
