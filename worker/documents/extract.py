"""Reads one document in a process of its own: `python -m worker.documents.extract LIMITS`, content on standard
input, JSON on standard output. Parsers of foreign files crash and loop; here they take nothing with them.
"""

from __future__ import annotations

import io
import re
import resource
import sys
import zipfile
from contextlib import suppress
from typing import Any, Final

import msgspec

from shared.documents import Extracted, Skipped, normalise

MAX_ARCHIVE_ENTRIES: Final = 10_000
MAX_INFLATION: Final = 200  # inflated bytes per packed byte, above 10 MB
MAX_INFLATED_BYTES: Final = 512 * 1024 * 1024


class Limits(msgspec.Struct, frozen=True):
    """What reading one document may take."""

    memory_mb: int
    seconds: float
    pages: int
    characters: int


class RejectedError(Exception):
    """The document cannot be read; the message says why, in words for its owner."""


def detect(content: bytes) -> str:
    """The media type, by content alone. Raises RejectedError for what is no document."""
    if not content.strip():
        raise RejectedError("The file is empty.")
    if content[:1024].lstrip().startswith(b"%PDF-") or b"%PDF-" in content[:1024]:
        return "application/pdf"
    if content.startswith(b"PK\x03\x04"):
        return _detect_archive(content)
    if content.startswith(b"\xd0\xcf\x11\xe0"):
        raise RejectedError("This is an old Office file (.doc, .xls, .ppt); save it as DOCX or PDF.")
    text = decode(content)
    head = text[:4096].lstrip().lower()
    if re.match(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", head, re.DOTALL):
        return "text/html"
    if re.search(r"<(p|div|table|h[1-6]|ul|ol|span|article|section)\b[^>]*>.*</\1>", head, re.DOTALL):
        return "text/html"
    if re.search(r"^(#{1,6} \S|```|[-*] \[[ x]\] |\[[^\]]+\]: |\|.+\|$)", text[:65_536], re.MULTILINE):
        return "text/markdown"
    return "text/plain"


def _detect_archive(content: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            inflated = sum(entry.file_size for entry in entries)
            names = {entry.filename for entry in entries[:MAX_ARCHIVE_ENTRIES]}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise RejectedError(f"The file is a broken archive: {error}") from None
    if len(entries) > MAX_ARCHIVE_ENTRIES:
        raise RejectedError("The archive has too many entries.")
    if inflated > MAX_INFLATED_BYTES or (inflated > 10_000_000 and inflated > MAX_INFLATION * len(content)):
        raise RejectedError("The archive inflates to far more than a document holds.")
    if "word/document.xml" in names:
        return "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    raise RejectedError("This archive is no DOCX document.")


def decode(content: bytes) -> str:
    """Bytes as text: by its byte order mark, as UTF-8, else as Windows-1252. Raises RejectedError for binaries."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError:
                raise RejectedError(f"The file claims to be {encoding} but is not.") from None
    if b"\x00" in content:
        raise RejectedError("The file is binary, and no PDF, DOCX, HTML, Markdown or text.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
        strange = sum(1 for character in text[:100_000] if character == "\ufffd" or (not character.isprintable()
                      and character not in "\t\n\r\f"))  # fmt: skip
        if strange > len(text[:100_000]) / 50:
            raise RejectedError("The file is binary, and no PDF, DOCX, HTML, Markdown or text.") from None
    controls = sum(1 for character in text[:100_000] if ord(character) < 32 and character not in "\t\n\r\f\x1b")
    if controls > len(text[:100_000]) / 50:
        raise RejectedError("The file is binary, and no PDF, DOCX, HTML, Markdown or text.")
    return text


def extract(content: bytes, limits: Limits) -> Extracted:
    """The text of a document. Raises RejectedError."""
    media_type = detect(content)
    if media_type == "application/pdf":
        found = _pdf(content, limits)
    elif media_type.endswith("wordprocessingml.document"):
        found = _docx(content, media_type)
    elif media_type == "text/html":
        found = _html(content)
    else:
        found = Extracted(media_type, normalise(decode(content)), [], [])
    if not found.text.strip():
        detail = " All its pages are images; it needs text recognition first." if found.skipped else ""
        raise RejectedError("There is no readable text in the document." + detail)
    if len(found.text) > limits.characters:
        raise RejectedError(f"The text has {len(found.text)} characters; at most {limits.characters} are read.")
    return found


def _pdf(content: bytes, limits: Limits) -> Extracted:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise RejectedError("The PDF is encrypted; remove its password first.") from None
        raise RejectedError(f"The PDF is broken: {error}") from None
    count = len(document)
    if count > limits.pages:
        raise RejectedError(f"The PDF has {count} pages; at most {limits.pages} are read.")
    texts: list[str] = []
    starts: list[int] = []
    skipped: list[Skipped] = []
    at = 0
    for number in range(count):
        starts.append(at)
        try:
            page = document[number]
            text_page = page.get_textpage()
            text = normalise(text_page.get_text_bounded() or "").strip()
            text_page.close()
            page.close()
            reason = "no text on this page; perhaps it is an image"
        except pypdfium2.PdfiumError as error:
            text, reason = "", f"the page cannot be read: {error}"
        if not text:
            skipped.append(Skipped(reason=reason, start=at, end=at, page=number + 1))
        piece = text + ("\n\n" if number + 1 < count else "")
        texts.append(piece)
        at += len(piece)
    title = _clean_title((document.get_metadata_dict() or {}).get("Title"))
    return Extracted("application/pdf", "".join(texts), starts, skipped, title)


def _docx(content: bytes, media_type: str) -> Extracted:
    import docx
    from docx.table import Table

    try:
        document = docx.Document(io.BytesIO(content))
        blocks: list[str] = []
        for block in document.iter_inner_content():
            if isinstance(block, Table):
                blocks += [" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows]
            elif block.text.strip():
                blocks.append(block.text)
        title = _clean_title(document.core_properties.title)
    except Exception as error:  # the parser raises whatever its XML holds
        raise RejectedError(f"The DOCX is broken: {type(error).__name__}") from None
    return Extracted(media_type, normalise("\n\n".join(blocks)), [], [], title)


_BLOCKS: Final = frozenset(
    (
        "address article aside blockquote br caption dd div dl dt figcaption figure footer form h1 h2 h3 h4 h5 h6 "
        "header hr li main nav ol p pre section table tbody td tfoot th thead tr ul"
    ).split()
)


def _html(content: bytes) -> Extracted:
    from selectolax.lexbor import LexborHTMLParser

    match = re.search(rb"<meta[^>]+charset=[\"']?([A-Za-z0-9_-]+)", content[:4096])
    text = decode(content)
    if match and match[1].lower() not in (b"utf-8", b"utf8"):
        with suppress(LookupError):
            text = content.decode(match[1].decode(), "replace")
    tree = LexborHTMLParser(text)
    head = tree.css_first("title")
    title = _clean_title(head.text() if head is not None else None)
    tree.strip_tags(["script", "style", "noscript", "template", "svg", "head"])
    pieces: list[str] = []
    body = tree.body or tree.root
    for node in body.traverse(include_text=True) if body is not None else ():
        if node.tag == "-text":
            pieces.append(re.sub(r"\s+", " ", node.text(deep=False) or ""))
        elif node.tag in _BLOCKS:
            pieces.append("\n\n" if node.tag not in ("br", "li", "tr") else "\n")
            if node.tag in ("td", "th"):
                pieces.append(" ")
    flat = "".join(pieces)
    flat = re.sub(r"[ \t]*\n[ \t]*", "\n", flat)
    flat = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]{2,}", " ", flat)).strip()
    return Extracted("text/html", normalise(flat), [], [], title)


def _clean_title(title: Any) -> str | None:
    text = normalise(str(title or "")).strip()
    return text[:256] or None


def main() -> int:
    """Exit code 0 with the text, 3 with a reason for the owner."""
    limits = msgspec.json.decode(sys.argv[1], type=Limits)
    for kind, bound in (
        (resource.RLIMIT_AS, limits.memory_mb * 1024 * 1024),
        (resource.RLIMIT_CPU, int(limits.seconds) + 1),
        (resource.RLIMIT_CORE, 0),
    ):
        # macOS knows no RLIMIT_AS; the wall clock bound of the caller stands.
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (bound, bound))
    content = sys.stdin.buffer.read()
    try:
        found = extract(content, limits)
    except RejectedError as error:
        sys.stdout.buffer.write(msgspec.json.encode({"reason": str(error)}))
        return 3
    except MemoryError:
        sys.stdout.buffer.write(msgspec.json.encode({"reason": "The document needs too much memory to be read."}))
        return 3
    except RecursionError:
        sys.stdout.buffer.write(msgspec.json.encode({"reason": "The document is nested too deeply."}))
        return 3
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
