"""Documents of each kind, made here: small, real, and broken in known ways."""

from __future__ import annotations

import io
import zipfile

import docx
from fpdf import FPDF

PAGES = ["The first page speaks of ferries.", "", "The third page names the price: 42 francs."]


def pdf(pages: list[str] | None = None, *, password: str | None = None, title: str = "A small report") -> bytes:
    """A PDF; an empty string makes a page without text."""
    document = FPDF()
    document.set_title(title)
    if password:
        document.set_encryption(owner_password="owner", user_password=password)
    document.set_font("helvetica", size=12)
    for text in PAGES if pages is None else pages:
        document.add_page()
        if text:
            document.multi_cell(0, 8, text)
    return bytes(document.output())


def word(paragraphs: list[str], rows: list[list[str]] | None = None) -> bytes:
    """A DOCX with paragraphs and a table."""
    document = docx.Document()
    document.core_properties.title = "A letter"
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    if rows:
        table = document.add_table(rows=len(rows), cols=len(rows[0]))
        for row, cells in zip(table.rows, rows, strict=True):
            for cell, text in zip(row.cells, cells, strict=True):
                cell.text = text
    output = io.BytesIO()
    document.save(output)
    return output.getvalue()


def bomb() -> bytes:
    """An archive that claims to be a DOCX and inflates to 200 MB."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * 200_000_000)
    return output.getvalue()


HTML = b"""<!doctype html><html><head><title>Page &amp; title</title><style>p{color:red}</style></head>
<body><script>alert(1)</script><h1>Heading</h1><p>First <b>bold</b> text.</p><ul><li>one</li><li>two</li></ul>
<table><tr><td>a</td><td>b</td></tr></table></body></html>"""
