"""Batch files: one text per line, uploaded and read without ever being held whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.batch import HEAD_BYTES, MAX_LINE_BYTES, BatchItem, LineTooLong, is_batch, lines, read_line
from tests import files
from tests.conftest import Answer, Stack
from tests.test_blobs import resident_bytes
from tests.test_documents import ingested, upload

NDJSON = b'"one"\n{"id": "b", "text": "two"}\n\n"three"\n'
MB = 1024 * 1024


async def split(content: bytes, sizes: list[int] | None = None, *, bound: int = MAX_LINE_BYTES) -> list[Any]:
    async def chunks() -> AsyncIterator[bytes]:
        at = 0
        for size in sizes or []:
            yield content[at : at + size]
            at += size
        yield content[at:]

    return [line async for line in lines(chunks(), max_line_bytes=bound)]


# -- lines -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([b"", b'"a"', b'"long enough"', b"  ", b"\t", b'{"text":"x"}', b"x" * 40])),
       st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans(), st.lists(st.integers(1, 30)))  # fmt: skip
async def test_lines_are_the_same_however_they_arrive(
    texts: list[bytes], end: bytes, last_end: bool, mark: bool, sizes: list[int]
) -> None:
    content = end.join(texts) + (end if last_end else b"")
    found = await split((b"\xef\xbb\xbf" if mark else b"") + content, sizes, bound=20)
    wanted = [text.strip() for text in texts if text.strip()]
    assert [line if isinstance(line, bytes) else b"x" * 40 for line in found] == wanted


async def test_a_line_that_is_too_long_is_named_and_passed_over() -> None:
    content = b'"a"\n' + b"x" * 21 + b"\r\n" + b"y" * 20 + b"\r\n" + b"z" * 1000
    assert await split(content, [7] * 100, bound=20) == [b'"a"', LineTooLong(21), b"y" * 20, LineTooLong(1000)]


async def test_an_endless_line_costs_no_memory() -> None:
    before = most = resident_bytes()

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal most
        for _ in range(1_000):
            yield b"x" * (256 * 1024)
            most = max(most, resident_bytes())

    (line,) = [line async for line in lines(chunks(), max_line_bytes=MAX_LINE_BYTES)]
    assert isinstance(line, LineTooLong)
    assert line.size_bytes == 1_000 * 256 * 1024
    assert most - before < 20 * MB


@pytest.mark.parametrize(
    ("line", "item"),
    [(b'"a \\u00e9"', BatchItem("a é")), (b'{"text": "b"}', BatchItem("b")),
     (b'{"id": "x", "text": "c"}', BatchItem("c", "x")), (b'{"text": "d", "id": null}', BatchItem("d"))],
)  # fmt: skip
def test_a_line_is_a_text(line: bytes, item: BatchItem) -> None:
    assert read_line(line) == item


@pytest.mark.parametrize(
    ("line", "says"),
    [(b"[1]", "JSON string"), (b'{"id": "x"}', "`text`"), (b'{"text": 1}', "text"), (b'{"text": "a", "x": 1}', "`x`"),
     (b"nope", "not JSON"), (b'"\xff"', "not JSON"), (b'"\\ud800"', "not JSON"), (b'""', "empty"), (b"", "not JSON"),
     (b'{"id": 1, "text": "a"}', "id")],
)  # fmt: skip
def test_what_is_no_text_is_told_in_a_sentence(line: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=r"\.$") as refused:
        read_line(line)
    assert says in str(refused.value)
    assert type(refused.value) is ValueError


@pytest.mark.parametrize(
    ("head", "whole", "verdict"),
    [(NDJSON, True, True), (b"\xef\xbb\xbf" + NDJSON, True, True), (NDJSON.replace(b"\n", b"\r\n"), True, True),
     (NDJSON + b'"cut', False, True), (NDJSON + b'"cut', True, True), (b'"one"', True, True), (b'"one"', False, False),
     (b"", True, False), (b"\n \n", True, False),
     (b"nope\n" + NDJSON, True, False), (b'"a"\n[1]\n', True, False), (b'{"text": "a"}', True, True),
     (b'{\n"text": "a"\n}', True, False), (b"plain text\n", True, False), (b"1\n2\n", True, False),
     (b'"caf\xe9"\n', True, False)],
)  # fmt: skip
def test_the_head_of_a_file_decides(head: bytes, whole: bool, verdict: bool) -> None:
    assert is_batch(head, whole=whole) is verdict


# -- uploads ---------------------------------------------------------------------------------------------------------


async def test_a_batch_file_is_stored_and_counted(stack: Stack) -> None:
    document, job = await ingested(stack, NDJSON + b'""\n', index="false", title="Three")
    assert (document["status"], document["mediaType"], document["items"]) == ("ready", "application/x-ndjson", 4)
    assert (document["characters"], document["title"], "skipped" in document) == (None, "Three", False)
    result = {"documentId": document["documentId"], "chunks": 0, "skipped": [], "items": 4, "badItems": 1}
    assert (job["status"], job["result"]) == ("complete", result)
    text = await stack.call("GET", f"/api/documents/{document['documentId']}/text")
    assert (text.status, text.json["code"]) == (409, "conflict")
    assert "batch file" in text.json["detail"]


async def test_the_fields_may_come_after_the_file(edge: Stack) -> None:
    form = aiohttp.FormData()
    form.add_field("file", NDJSON, filename="a.txt")
    form.add_field("index", "false")
    answer = await edge.call("POST", "/api/documents", data=form)
    assert answer.status == 202
    shown = (await edge.call("GET", answer.headers["Location"])).json
    assert (shown["mediaType"], shown["status"]) == ("application/x-ndjson", "pending")


async def test_a_batch_file_is_not_searched(edge: Stack) -> None:
    for fields in ({}, {"index": "true"}):
        answer = await upload(edge, NDJSON, **fields)
        assert (answer.status, answer.json["errors"][0]["path"]) == (422, "multipart.index")
        assert "index=false" in answer.json["errors"][0]["message"]
    assert [path for path in edge.settings.data_dir.rglob("*") if path.is_file()] == []


async def test_other_files_may_stay_out_of_search_too(stack: Stack) -> None:
    document, _ = await ingested(stack, files.pdf(), index="false")
    assert (document["mediaType"], "items" in document) == ("application/pdf", False)


async def test_a_batch_file_without_a_good_line_is_rejected(stack: Stack) -> None:
    document, job = await ingested(stack, b'""\n' * 3, index="false")
    assert (document["status"], job["status"], job["error"]["code"]) == ("rejected", "failed", "document_rejected")
    assert document["error"] == "No line of this batch file can be used. Line 1: The text is empty."


async def test_a_batch_file_is_no_document_to_analyse(stack: Stack) -> None:
    document, _ = await ingested(stack, NDJSON, index="false")
    use = {"document": {"documentId": document["documentId"]}, "tasks": [{"kind": "summary"}]}
    job = await stack.finished(await stack.submit({"type": "document-analysis", "input": use}))
    assert (job["status"], job["error"]["code"]) == ("failed", "document_rejected")
    assert "batch file" in job["error"]["message"]


async def send(stack: Stack, line: bytes, size_bytes: int, seen: list[int]) -> Answer:
    """Uploads lines until there are so many bytes; `seen` gets what was sent, and the memory held at that time."""

    async def body() -> AsyncIterator[bytes]:
        block = line * (256 * 1024 // len(line))
        sent = 0
        while sent < size_bytes:
            sent += len(block)
            seen[:] = [sent, max(seen[1] if seen else 0, resident_bytes())]
            yield block

    form = aiohttp.FormData()
    form.add_field("file", body(), filename="x", content_type="text/plain")
    form.add_field("index", "false")
    return await stack.call("POST", "/api/documents", data=form)


async def test_a_large_batch_file_is_never_whole_in_memory(make_stack: Any, tmp_path: Path) -> None:
    """Given a limit of 1 MB for documents, when 100 MB of lines are uploaded and counted, then the process does not
    grow with them."""
    stack: Stack = await make_stack(max_upload_bytes=MB)
    line = json.dumps("word " * 100).encode() + b"\n"
    await send(stack, line, 4 * MB, [])
    before, seen = resident_bytes(), [0, 0]
    answer = await send(stack, line, 100 * MB, seen)
    assert answer.status == 202, answer.text
    assert max(seen[1], resident_bytes()) - before < 30 * MB
    await stack.start_worker("batch")
    job = await stack.finished(answer.json["jobId"])
    assert job["result"]["items"] * len(line) == seen[0]
    assert resident_bytes() - before < 40 * MB
    assert [event["fraction"] for event in await stack.log(job["jobId"]) if event["type"] == "job.progress"][-1] == 1


async def test_each_kind_of_file_has_its_limit(make_stack: Any) -> None:
    """Given 1 MB for documents and 3 MB for batch files, when more comes, then it is refused before all has come."""
    stack: Stack = await make_stack(max_upload_bytes=MB, max_batch_bytes=3 * MB)
    for line, limit in ((b"plain text\n", MB), (b'"a text"\n', 3 * MB)):
        seen: list[int] = []
        try:
            answer = await send(stack, line, 200 * MB, seen)
            assert (answer.status, answer.json["code"]) == (413, "too_large")
            assert str(limit) in answer.json["detail"]
        except aiohttp.ClientError:
            pass  # it was still sending
        assert limit <= seen[0] < 60 * MB
    assert (await stack.call("GET", "/api/documents")).json["data"] == []
    assert [path for path in stack.settings.data_dir.rglob("*") if path.is_file()] == []
    assert (await send(stack, b'"a text"\n', 2 * MB, [])).status == 202


async def test_the_kind_is_decided_by_whole_lines(make_stack: Any) -> None:
    """Given a limit below the size of the head, when it is crossed within a line, then the lines before it decide."""
    stack: Stack = await make_stack(max_upload_bytes=1_024)
    answer = await upload(stack, b'"a text of some length"\n' * 3_000, index="false")
    assert answer.status == 202
    assert HEAD_BYTES < 24 * 3_000
