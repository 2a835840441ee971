"""Documents that attack their reader: made here, refused or read within the bounds, and nothing is left of them."""

from __future__ import annotations

import asyncio
import io
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DocumentRejected, ReaderFailed
from shared.settings import Settings
from tests import files
from tests.conftest import Stack
from tests.test_edge import Lag
from worker.documents.chunk import split
from worker.documents.library import Library

BOUNDS = Settings(extract_seconds=10, extract_memory_mb=512, max_document_characters=5_000_000)
WORD = "word/document.xml"
SEED = files.word(["A seed."])
NAMESPACE = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def docx_with(document: bytes, *more: tuple[str, bytes]) -> bytes:
    """A DOCX whose main part is replaced, with further entries."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(SEED)) as good, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as bad:
        for entry in good.infolist():
            bad.writestr(entry.filename, document if entry.filename == WORD else good.read(entry))
        for name, content in more:
            bad.writestr(name, content)
    return made.getvalue()


def word(inner: str, head: str = "") -> bytes:
    return f'<?xml version="1.0"?>{head}<w:document {NAMESPACE}><w:body>{inner}</w:body></w:document>'.encode()


def text(inner: str) -> str:
    return f"<w:p><w:r><w:t>{inner}</w:t></w:r></w:p>"


def laughs() -> bytes:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    return word(text("&a11;"), f'<!DOCTYPE w [<!ENTITY a0 "ha">{entities}]>')


def blowup() -> bytes:
    return word(text("&a;" * 50_000), f'<!DOCTYPE w [<!ENTITY a "{"a" * 50_000}">]>')


def external(target: str) -> bytes:
    return word(text("before &a; after"), f'<!DOCTYPE w [<!ENTITY a SYSTEM "{target}">]>')


def overlapping() -> bytes:
    """One packed kernel that 5,000 entries of the directory point to (Fifield, "A better zip bomb", 2019)."""
    kernel = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = kernel.compress(bytes(10_000_000)) + kernel.flush()
    crc = zlib.crc32(bytes(10_000_000))
    name = WORD.encode()
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(data), 10_000_000, len(name), 0) + name + data
    entry = b"".join(
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(data), 10_000_000, len(name), 0, 0, 0, 0, 0, 0
        )
        + name
        for _ in range(5_000)
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 5_000, 5_000, len(entry), len(local), 0)
    return local + entry + end


def lying() -> bytes:
    """A DOCX whose main part says that it has 100 bytes, and inflates to 400 MB."""
    made = bytearray(docx_with(b" " * 400_000_000))
    for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        place = -1
        while (place := made.find(mark, place + 1)) >= 0:
            if struct.unpack_from("<L", made, place + at)[0] == 400_000_000:
                struct.pack_into("<L", made, place + at, 100)
    return bytes(made)


def pdf_of(*objects: bytes) -> bytes:
    body, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return body + b"xref\n0 %d\n0000000000 65535 f \n%strailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1, table, len(objects) + 1, len(body)
    )  # fmt: skip


def stream(data: bytes, more: bytes = b"/Filter/FlateDecode") -> bytes:
    return b"<</Length %d%s>>stream\n%s\nendstream" % (len(data), more, data)


CATALOG, PAGES = b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
PAGE = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>"

BOMBS: dict[str, Any] = {
    "docx that inflates": lambda: docx_with(word(text("a" * 300_000_000))),
    "docx that lies about its size": lying,
    "docx with overlapping entries": overlapping,
    "docx with 20,000 entries": lambda: docx_with(word(text("a")), *((f"x/{n}.xml", b"") for n in range(20_000))),
    "docx in docx": lambda: docx_with(word(text("a")), ("word/a.docx", docx_with(b" " * 100_000_000))),
    "billion laughs": lambda: docx_with(laughs()),
    "quadratic blowup": lambda: docx_with(blowup()),
    "deep docx": lambda: docx_with(word("<w:p>" * 200_000 + "</w:p>" * 200_000)),
    "pdf stream that inflates": lambda: pdf_of(CATALOG, PAGES, PAGE, stream(zlib.compress(bytes(800_000_000), 9))),
    "pdf packed twice": lambda: pdf_of(
        CATALOG, PAGES, PAGE,
        stream(zlib.compress(zlib.compress(bytes(800_000_000), 9), 9), b"/Filter[/FlateDecode/FlateDecode]"),
    ),
    "pdf whose pages are a circle": lambda: pdf_of(CATALOG, b"<</Type/Pages/Kids[2 0 R]/Count 9>>"),
    "pdf with a count of millions": lambda: pdf_of(CATALOG, b"<</Type/Pages/Kids[3 0 R]/Count 2000000000>>", PAGE),
    "deep pdf": lambda: pdf_of(CATALOG, b"[" * 300_000 + b"]" * 300_000, PAGE),
    "pdf that refers to itself": lambda: pdf_of(b"1 0 R", b"2 0 R"),
    "deep html": lambda: b"<html><body>" + b"<div>" * 300_000 + b"text",
    "html with a huge attribute": lambda: b"<html><body><p a='" + b"x" * 20_000_000 + b"'>text</p>",
    "html with many attributes": lambda: b"<html><body><p " + b"".join(b"a%d=1 " % n for n in range(300_000)) + b">text",  # noqa: E501
    "html of formatting": lambda: b"<html><body>" + b"<b><i><u><font>" * 20_000 + b"text" + b"</p><p>" * 2_000,
    "long line": lambda: b"a" * 50_000_000,
    "UTF-16": lambda: b"\xff\xfe" + ("ab " * 20_000_000).encode("utf-16-le"),
    "lone surrogates": lambda: b"\xff\xfe" + b"\x00\xd8" * 100_000,
    "NUL": lambda: b"text\0" * 100_000,
    "combining marks": ("a" + "\u0301" * 3_000_000).encode,
    "pdf and zip": lambda: b"%PDF-1.4\n" + docx_with(word(text("a"))),
    "zip that ends like a pdf": lambda: docx_with(word(text("a"))) + b"%PDF-1.4\n",
}  # fmt: skip


def readers() -> set[str]:
    """Processes of the reader on this machine that are ours."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"worker.documents.extract" in (path / "cmdline").read_bytes() and str(Path.cwd()) == str(
                (path / "cwd").readlink()
            ):
                found.add(path.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_document_bomb_is_refused_or_read_within_the_bounds(stack: Stack, bomb: str) -> None:
    """Given a document that means harm, then it is read or refused in time, the worker's loop never stands still, and
    no reader is left."""
    library: Library = stack.engines[0]._deps.library
    bounded = Library(BOUNDS, library._documents, library._blobs)
    content = await asyncio.to_thread(BOMBS[bomb])
    before, began = readers(), time.monotonic()
    async with Lag() as lag:
        try:
            found = await bounded.extract(content)
            assert len(found.text) <= BOUNDS.max_document_characters
            assert "root:" not in found.text
        except (DocumentRejected, ReaderFailed) as error:
            assert len(error.message) < 400  # noqa: PT017 - either way is right, and this one has more to say
    assert time.monotonic() - began < BOUNDS.extract_seconds + 5
    assert lag.worst_s < 0.3
    assert readers() <= before


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://127.0.0.1:1/x"])
async def test_external_entities_are_not_read(stack: Stack, target: str) -> None:
    library: Library = stack.engines[0]._deps.library
    try:
        found = await library.extract(docx_with(external(target)))
    except DocumentRejected:
        return
    assert "root:" not in found.text
    assert found.text.strip() in ("before", "before  after")


async def test_a_bomb_is_told_to_its_owner_and_others_go_on(stack: Stack) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    head = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.docx"\r\n\r\n'
    form = head + overlapping() + b"\r\n--B--\r\n"
    answer = await stack.call("POST", "/api/documents", form, headers=headers)
    assert answer.status == 202, answer.text
    ended = await stack.finished(answer.json["jobId"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "document_rejected")


def test_a_long_line_is_cut_in_time_that_grows_with_its_length() -> None:
    """Given a line without a blank, when it is four times as long, then cutting it takes some four times as long."""

    def seconds(length: int) -> float:
        line = "a" * length
        began = time.process_time()
        parts = split(line, 6_000)
        assert "".join(part.text for part in parts) == line
        assert max(len(part.text) for part in parts) <= 6_000
        return time.process_time() - began

    short = min(seconds(1_000_000) for _ in range(3))
    assert min(seconds(4_000_000) for _ in range(2)) < 8 * short + 0.1
