"""Stored documents, and the collections that they are searched in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from scripts.client import Client
from scripts.commands.parsing import Commands, job_path, positive, without_none
from scripts.commands.printing import note, out, table, usage_error


def _metadata(given: list[str] | None) -> dict[str, str] | None:
    """`NAME=VALUE` as an object. Ends the command with 2 for what is not of that form."""
    if given is None:
        return None
    found = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign or not name:
            raise SystemExit(usage_error(f"{one!r} is not of the form NAME=VALUE"))
        found[name] = value
    return found


async def _ended(client: Client, arguments: argparse.Namespace, accepted: dict[str, Any]) -> int:
    """Waits for the ingest job where that is asked for, and says what came of it."""
    if not arguments.wait:
        out(arguments, accepted, f"{accepted['documentId']} (read by {accepted['jobId']})")
        return 0
    while True:
        view = await client.call("GET", f"{job_path(accepted['jobId'])}?wait=30")
        if view["finishedAt"]:
            break
    if view["status"] != "complete":
        reason = view.get("error", {}).get("message", "")
        note(f"the ingest job is {view['status']}: {reason}")
        out(arguments, view, accepted["documentId"])
        return 1
    result = view["result"]
    out(arguments, view, f"{accepted['documentId']}: {result['chunks']} chunks, {result.get('embedded', 0)} embedded")
    return 0


async def documents_add(client: Client, arguments: argparse.Namespace) -> int:
    """Stores a file, or the page at a URL, and indexes it."""
    fields = without_none(title=arguments.title, collection=arguments.collection)
    metadata = _metadata(arguments.metadata)
    if arguments.file.startswith(("http://", "https://")):
        body = {"url": arguments.file, **fields, **without_none(metadata=metadata)}
        return await _ended(client, arguments, await client.call("POST", "/api/documents", json=body))
    path = Path(arguments.file)
    if not path.is_file():
        return usage_error(f"there is no file {path}")
    if metadata is not None:
        fields["metadata"] = json.dumps(metadata)
    return await _ended(client, arguments, await client.upload(path, **fields))


async def documents_replace(client: Client, arguments: argparse.Namespace) -> int:
    """Gives a document new content; what it has is found until that can be."""
    where = f"/api/documents/{quote(arguments.document, safe='')}"
    if arguments.file.startswith(("http://", "https://")):
        accepted = await client.call("PUT", where, json={"url": arguments.file})
        return await _ended(client, arguments, accepted)
    path = Path(arguments.file)
    if not path.is_file():
        return usage_error(f"there is no file {path}")
    return await _ended(client, arguments, await client.upload(path, where=where))


async def documents_list(client: Client, arguments: argparse.Namespace) -> int:
    """All documents, newest first."""
    query = urlencode(without_none(collection=arguments.collection, status=arguments.status))
    page = await client.pages("/api/documents" + (f"?{query}" if query else ""))
    rows = [["DOCUMENT", "STATUS", "CHUNKS", "COLLECTION", "TITLE"]]
    for document in page["data"]:
        title = document["title"] or document["filename"] or document.get("url") or ""
        chunks = str(document["chunks"] or "")
        rows.append([document["documentId"], document["status"], chunks, document["collection"] or "", title])
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
    """Removes a document, also from search and its log."""
    receipt = await client.call("DELETE", f"/api/documents/{quote(arguments.document, safe='')}")
    what = f"{receipt['chunks']} chunks, and what {receipt['searches']} searches said of it"
    out(arguments, receipt, f"deleted {arguments.document}: {what}")
    return 0


def _collection(arguments: argparse.Namespace, *rest: str) -> str:
    return "/".join(["/api/collections", *(quote(part, safe="") for part in (arguments.name, *rest))])


def _collection_text(view: dict[str, Any]) -> str:
    rows = [["VERSION", "STATE", "MODEL", "DIMENSIONS", "CHARACTERS", "DOCUMENTS", "CHUNKS", "ENGINE"]]
    for one in view["versions"]:
        counts = [str(one[name] or "") for name in ("dimensions", "chunkCharacters", "documents", "chunks")]
        rows.append([str(one["version"]), one["state"], one["model"], *counts, one["engine"]])
    return f"{view['name']}: {view['documents']} documents, {view['chunks']} chunks\n{table(rows)}"


async def collections_list(client: Client, arguments: argparse.Namespace) -> int:
    """All collections, by name."""
    page = await client.pages("/api/collections")
    rows = [["COLLECTION", "VERSION", "DOCUMENTS", "CHUNKS"]]
    for view in page["data"]:
        rows.append([view["name"], str(view["version"] or ""), str(view["documents"]), str(view["chunks"])])
    out(arguments, page, table(rows))
    return 0


async def collections_show(client: Client, arguments: argparse.Namespace) -> int:
    """A collection and the versions of its index."""
    view = await client.call("GET", _collection(arguments))
    out(arguments, view, _collection_text(view))
    return 0


async def collections_reindex(client: Client, arguments: argparse.Namespace) -> int:
    """Builds a further version of the index, and switches to it when it is whole."""
    body = without_none(
        model=arguments.model,
        dimensions=arguments.dimensions,
        chunkCharacters=arguments.chunk_characters,
        engine=arguments.engine,
    )
    view = await client.call("POST", _collection(arguments, "reindex"), json=body)
    out(arguments, view, f"{view['jobId']} builds it: errand jobs tail {view['jobId']}")
    return 0


async def collections_rollback(client: Client, arguments: argparse.Namespace) -> int:
    """Goes back to the version before."""
    view = await client.call("POST", _collection(arguments, "rollback"))
    if "jobId" in view:
        out(arguments, view, f"{view['jobId']} first puts into it what has come since")
        return 0
    out(arguments, view, _collection_text(view))
    return 0


async def collections_drop(client: Client, arguments: argparse.Namespace) -> int:
    """Removes a version that does not answer searches."""
    view = await client.call("DELETE", _collection(arguments, "versions", arguments.version))
    out(arguments, view, _collection_text(view))
    return 0


def register(commands: Commands) -> None:
    """`documents` and `collections`."""
    documents = commands.group("documents", "stored documents")
    add = commands.action(documents, "add", documents_add)
    add.add_argument("file", metavar="FILE", help="a file, or a URL")
    add.add_argument("--title")
    add.add_argument("--collection", help="where it is searched (default: `default`)")
    add.add_argument("--metadata", action="append", metavar="NAME=VALUE", help="for filters; may be repeated")
    replace = commands.action(documents, "replace", documents_replace)
    replace.add_argument("document")
    replace.add_argument("file", metavar="FILE", help="a file, or a URL")
    for one in (add, replace):
        one.add_argument("--wait", action="store_true", help="until it can be searched")
    listed = commands.action(documents, "list", documents_list)
    listed.add_argument("--collection")
    listed.add_argument("--status", choices=("pending", "ready", "rejected"))
    read = commands.action(documents, "show", documents_show)
    read.add_argument("document")
    read.add_argument("--text", action="store_true", help="print the extracted text")
    commands.action(documents, "delete", documents_delete).add_argument("document")
    collections = commands.group("collections", "collections of documents, and their search indexes")
    commands.action(collections, "list", collections_list)
    commands.action(collections, "show", collections_show).add_argument("name")
    reindex = commands.action(collections, "reindex", collections_reindex)
    reindex.add_argument("name")
    reindex.add_argument("--model", help="the embedding model (default: as it is)")
    reindex.add_argument("--dimensions", type=positive)
    reindex.add_argument("--chunk-characters", type=positive)
    reindex.add_argument("--engine", choices=("redis-exact", "redis-vset"))
    commands.action(collections, "rollback", collections_rollback).add_argument("name")
    drop = commands.action(collections, "drop", collections_drop)
    drop.add_argument("name")
    drop.add_argument("version")
