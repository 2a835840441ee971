"""Stored documents."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from urllib.parse import quote

from scripts.client import Client
from scripts.commands.parsing import Commands
from scripts.commands.printing import out, table, usage_error


async def documents_add(client: Client, arguments: argparse.Namespace) -> int:
    """Uploads a file."""
    path = Path(arguments.file)
    if not path.is_file():
        return usage_error(f"there is no file {path}")
    fields = {"title": arguments.title} if arguments.title else {}
    document = await client.upload(path, **fields)
    out(arguments, document, f"{document['documentId']} (read by {document['jobId']})")
    return 0


async def documents_list(client: Client, arguments: argparse.Namespace) -> int:
    """All documents, newest first."""
    page = await client.pages("/api/documents")
    rows = [["DOCUMENT", "STATUS", "CHARACTERS", "TITLE"]]
    for document in page["data"]:
        title = document["title"] or document["filename"] or ""
        rows.append([document["documentId"], document["status"], str(document["characters"] or ""), title])
    out(arguments, page, table(rows))
    return 0


async def documents_show(client: Client, arguments: argparse.Namespace) -> int:
    """A document's record, or its text."""
    path = f"/api/documents/{quote(arguments.document, safe='')}"
    if arguments.text:
        print(await client.call("GET", f"{path}/text"))
        return 0
    document = await client.call("GET", path)
    out(arguments, document, json.dumps(document, indent=2, ensure_ascii=False))
    return 0


async def documents_delete(client: Client, arguments: argparse.Namespace) -> int:
    """Removes a document."""
    await client.call("DELETE", f"/api/documents/{quote(arguments.document, safe='')}")
    out(arguments, {"documentId": arguments.document, "deleted": True}, f"deleted {arguments.document}")
    return 0


def register(commands: Commands) -> None:
    """`documents`."""
    documents = commands.group("documents", "stored documents")
    add = commands.action(documents, "add", documents_add)
    add.add_argument("file")
    add.add_argument("--title")
    commands.action(documents, "list", documents_list)
    read = commands.action(documents, "show", documents_show)
    read.add_argument("document")
    read.add_argument("--text", action="store_true", help="print the extracted text")
    commands.action(documents, "delete", documents_delete).add_argument("document")
