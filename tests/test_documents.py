"""Documents: stored, extracted by content, listed, deleted; what cannot be read is named."""

from __future__ import annotations

import asyncio
import unicodedata
from typing import Any

import aiohttp
import msgspec
import pytest

from shared.errors import DocumentRejected
from tests import files
from tests.conftest import Answer, RedisServer, Stack
from worker.documents.extract import Limits, RejectedError, detect, extract
from worker.documents.library import Library

LIMITS = Limits(memory_mb=1024, seconds=20, pages=100, characters=1_000_000)


async def upload(stack: Stack, content: bytes, filename: str = "file.bin", **fields: str) -> Answer:
    options = fields.pop("options", {})
    form = aiohttp.FormData()
    for name, value in fields.items():
        form.add_field(name, value)
    form.add_field("file", content, filename=filename)
    return await stack.call("POST", "/api/documents", data=form, **(options or {}))  # type: ignore[arg-type]


async def ingested(stack: Stack, content: bytes, **fields: str) -> tuple[Any, Any]:
    answer = await upload(stack, content, **fields)
    assert answer.status == 202, answer.text
    assert answer.headers["Location"] == f"/api/documents/{answer.json['documentId']}"
    job = await stack.finished(answer.json["jobId"])
    document = await stack.call("GET", answer.headers["Location"])
    return document.json, job


async def test_a_pdf_is_read_with_its_pages(stack: Stack) -> None:
    document, job = await ingested(stack, files.pdf(), filename="x.txt")
    assert (document["status"], document["mediaType"], document["pages"]) == ("ready", "application/pdf", 3)
    assert document["title"] == "A small report"
    assert document["skipped"][0]["page"] == 2
    assert job["type"] == "ingest"
    assert job["result"] == {
        "documentId": document["documentId"], "chunks": 1, "skipped": document["skipped"], "embedded": 1
    }  # fmt: skip
    assert document["chunks"] == 1
    text = (await stack.call("GET", f"/api/documents/{document['documentId']}/text")).text
    assert text == f"{files.PAGES[0]}\n\n\n\n{files.PAGES[2]}"
    assert document["characters"] == len(text)


async def test_a_docx_is_read_with_its_tables(stack: Stack) -> None:
    content = files.word(["Dear reader,", "this is a letter."], [["item", "price"], ["rope", "12"]])
    document, _ = await ingested(stack, content)
    assert document["mediaType"].endswith("wordprocessingml.document")
    text = (await stack.call("GET", f"/api/documents/{document['documentId']}/text")).text
    assert text == "Dear reader,\n\nthis is a letter.\n\nitem | price\n\nrope | 12"


async def test_html_is_read_without_its_code(stack: Stack) -> None:
    document, _ = await ingested(stack, files.HTML)
    assert (document["mediaType"], document["title"]) == ("text/html", "Page & title")
    text = (await stack.call("GET", f"/api/documents/{document['documentId']}/text")).text
    assert "alert" not in text
    assert "color" not in text
    assert "First bold text." in text
    assert "one\n" in text


async def test_text_is_normalised_once(stack: Stack) -> None:
    raw = "Z\u0065\u0301ro\r\nline\rend \U0001f600"
    document, _ = await ingested(stack, raw.encode())
    text = (await stack.call("GET", f"/api/documents/{document['documentId']}/text")).text
    assert text == unicodedata.normalize("NFC", "Z\u0065\u0301ro\nline\nend \U0001f600")
    assert document["mediaType"] == "text/plain"


async def test_json_text_is_a_document_too(stack: Stack) -> None:
    body = {"text": "# Title\n\nSome *text*.", "title": "T", "collection": "c", "metadata": {"a": "b"}}
    answer = await stack.call("POST", "/api/documents", body)
    await stack.finished(answer.json["jobId"])
    document = (await stack.call("GET", f"/api/documents/{answer.json['documentId']}")).json
    assert (document["title"], document["collection"], document["metadata"]) == ("T", "c", {"a": "b"})
    assert document["mediaType"] == "text/markdown"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%PDF-1.7 broken", "broken"),
        (files.pdf(password="secret"), "encrypted"),
        (files.pdf(["", ""]), "images"),
        (b"PK\x03\x04 nonsense", "archive"),
        (files.bomb(), "inflates"),
        (bytes(range(256)) * 40, "binary"),
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), "binary"),
        (b"\xd0\xcf\x11\xe0" + b"x" * 100, "old Office"),
        (b" \n\t ", "empty"),
        (b"<html><body><script>1</script></body></html>", "no readable text"),
    ],
)
async def test_what_cannot_be_read_is_rejected_with_its_reason(stack: Stack, content: bytes, reason: str) -> None:
    document, job = await ingested(stack, content)
    assert (job["status"], job["error"]["code"], job["error"]["retryable"]) == ("failed", "document_rejected", False)
    assert reason in job["error"]["message"]
    assert (document["status"], document["error"]) == ("rejected", job["error"]["message"])
    text = await stack.call("GET", f"/api/documents/{document['documentId']}/text")
    assert (text.status, text.json["code"]) == (409, "conflict")
    use = {"documentId": document["documentId"]}
    body = {"type": "document-analysis", "input": {"document": use, "tasks": [{"kind": "summary"}]}}
    failed = await stack.finished(await stack.submit(body))
    assert failed["error"]["code"] == "document_rejected"


async def test_a_reader_that_runs_wild_is_stopped(stack: Stack) -> None:
    """Given a bound of memory and time, when a document goes over it, then it is rejected and the worker lives."""
    library = stack.engines[0]._deps.library
    small = Library(
        msgspec.structs.replace(stack.settings, extract_memory_mb=128, extract_seconds=5.0),
        library._documents,
        library._blobs,
    )
    with pytest.raises(DocumentRejected, match=r"memory|failed on the document"):
        await small.extract(b"<p>x</p>" * 6_000_000)
    hasty = Library(msgspec.structs.replace(stack.settings, extract_seconds=0.001), library._documents, library._blobs)
    with pytest.raises(DocumentRejected, match="longer than"):
        await hasty.extract(b"<p>text</p>")


@pytest.mark.parametrize(
    ("fields", "status", "path"),
    [
        ({"nonsense": "1"}, 422, "multipart"),
        ({"metadata": "{"}, 422, "multipart.metadata"),
        ({"metadata": '{"a":1}'}, 422, "multipart.metadata"),
        ({"index": "maybe"}, 422, "multipart.index"),
        ({"title": ""}, 422, "multipart.title"),
    ],
)
async def test_bad_fields_of_an_upload_are_named(edge: Stack, fields: dict[str, str], status: int, path: str) -> None:
    answer = await upload(edge, b"text", **fields)
    assert (answer.status, answer.json["errors"][0]["path"]) == (status, path)
    assert (await edge.call("GET", "/api/documents")).json["data"] == []


async def test_an_upload_without_or_with_an_empty_file_is_refused(edge: Stack) -> None:
    form = aiohttp.FormData({"title": "x"}, default_to_multipart=True)
    answer = await edge.call("POST", "/api/documents", data=form)
    assert answer.json["errors"][0]["path"] == "multipart.file"
    empty = await upload(edge, b"")
    assert (empty.status, empty.json["detail"]) == (422, "multipart.file: the file is empty")
    raw = await edge.call("POST", "/api/documents", data=b"junk", headers={"Content-Type": "multipart/form-data"})
    assert (raw.status, raw.json["code"]) == (400, "malformed_request")


async def test_an_upload_over_the_limit_is_refused_and_leaves_no_file(make_stack: Any) -> None:
    stack: Stack = await make_stack(max_upload_bytes=10_000)
    answer = await upload(stack, b"x" * 20_000)
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert [path for path in stack.settings.data_dir.rglob("*") if path.is_file()] == []


async def test_an_upload_can_be_repeated_with_its_idempotency_key(edge: Stack) -> None:
    options: Any = {"headers": {"Idempotency-Key": "u1"}}
    first = await upload(edge, b"same text", options=options)
    again = await upload(edge, b"same text", options=options)
    assert again.json == first.json
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len((await edge.call("GET", "/api/documents")).json["data"]) == 1
    other = await upload(edge, b"other text", options=options)
    assert (other.status, other.json["code"]) == (422, "idempotency_mismatch")
    assert len([path for path in edge.settings.data_dir.rglob("doc_*") if path.is_file()]) == 1


async def test_a_deleted_document_is_gone_with_its_files(stack: Stack) -> None:
    document, _ = await ingested(stack, b"Some text.")
    path = f"/api/documents/{document['documentId']}"
    assert (await stack.call("DELETE", path)).status == 200
    assert [(await stack.call("GET", path + suffix)).status for suffix in ("", "/text")] == [404, 404]
    assert (await stack.call("DELETE", path)).status == 404
    assert (await stack.call("GET", "/api/documents")).json["data"] == []
    assert [path for path in stack.settings.data_dir.rglob("*") if path.is_file()] == []


async def test_another_tenants_document_is_not_found(edge: Stack) -> None:
    answer = await upload(edge, b"Mine.")
    _, key = await edge.tenant()
    path = f"/api/documents/{answer.json['documentId']}"
    for method, suffix in (("GET", ""), ("GET", "/text"), ("DELETE", "")):
        assert (await edge.call(method, path + suffix, key=key)).status == 404
    use = {"documentId": answer.json["documentId"]}
    body = {"type": "document-analysis", "input": {"document": use, "tasks": [{"kind": "summary"}]}}
    assert (await edge.call("POST", "/api/jobs", body, key=key)).status == 422
    assert (await edge.call("GET", "/api/documents", key=key)).json["data"] == []


async def test_an_analysis_may_come_before_the_ingest(make_stack: Any) -> None:
    """Given a document that no worker has read yet, when an analysis of it runs first, then it reads it itself."""
    stack: Stack = await make_stack()
    answer = await upload(stack, files.pdf())
    await stack.call("DELETE", f"/api/jobs/{answer.json['jobId']}")
    use = {"documentId": answer.json["documentId"]}
    job_id = await stack.submit(
        {"type": "document-analysis", "input": {"document": use, "tasks": [{"kind": "summary"}]}}
    )
    await stack.start_worker("batch")
    view = await stack.finished(job_id)
    assert view["status"] == "complete", view
    assert view["result"]["coverage"]["skipped"][0]["page"] == 2


async def test_a_cut_upload_stores_nothing(edge: Stack, redis_server: RedisServer) -> None:
    host, port = edge.base.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    from tests.conftest import ADMIN_KEY

    writer.write(
        f"POST /api/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
        "Content-Type: multipart/form-data; boundary=B\r\nContent-Length: 9999\r\n\r\n"
        '--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'.encode()
    )
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await asyncio.sleep(0.3)
    assert (await edge.call("GET", "/api/documents")).json["data"] == []
    assert [path for path in edge.settings.data_dir.rglob("*") if path.is_file()] == []


def test_the_type_is_decided_by_content() -> None:
    assert detect(files.pdf()) == "application/pdf"
    assert detect(b"\xef\xbb\xbfhello") == "text/plain"
    assert detect("hello".encode("utf-16")) == "text/plain"
    assert detect(b"  <!DOCTYPE HTML><p>x") == "text/html"
    assert detect(b"caf\xe9 au lait") == "text/plain"
    with pytest.raises(RejectedError):
        detect(b"\x7fELF" + bytes(100))


def test_windows_text_is_read() -> None:
    assert extract("“Größe” – 5 €".encode("cp1252"), LIMITS).text == "“Größe” – 5 €"


def test_limits_of_pages_and_characters_are_kept() -> None:
    with pytest.raises(RejectedError, match="3 pages"):
        extract(files.pdf(), Limits(1024, 20, 2, 1_000))
    with pytest.raises(RejectedError, match="characters"):
        extract(b"x" * 1_001, Limits(1024, 20, 2, 1_000))
