"""OpenAPI 3.1 from the URL table and the Structs, and the same as a page to read."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from api.problems import Problem
from api.route import Page, Route
from shared.problems import PROBLEMS

REF = "#/components/schemas/{name}"
COMMON_PROBLEMS = (
    "malformed_request",
    "invalid_request",
    "unauthenticated",
    "scope_missing",
    "internal",
    "unavailable",
)
BODY_PROBLEMS = ("too_large", "unsupported_media_type", "request_timeout")


def build(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The document. Every schema comes from a Struct."""
    kinds: list[Any] = [Problem]
    for route in routes:
        if route.body is not None:
            kinds.append(route.body)
        kinds += [_kind(answer) for _, answer in route.answers.values() if _is_struct(_kind(answer))]
    unique = list(dict.fromkeys(kinds))
    schemas, components = msgspec.json.schema_components(unique, ref_template=REF)
    by_kind = dict(zip(unique, schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Errand",
            "version": version,
            "description": "A self-hosted backend for AI applications. Errors are RFC 9457 problems.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "bearerFormat": "ek_<ULID>_<secret>"},
                "ticket": {"type": "apiKey", "in": "query", "name": "ticket"},
            },
        },
        "security": [{"key": []}],
    }


def _kind(answer: Any) -> Any:
    return answer.kind if isinstance(answer, Page) else answer


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _content(answer: Any, by_kind: dict[Any, Any]) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"content": {answer: {"schema": {"type": "string"}}}}
    if isinstance(answer, Page):
        page = {
            "type": "object",
            "properties": {
                "data": {"type": "array", "items": by_kind[answer.kind]},
                "hasMore": {"type": "boolean"},
                "next": {"type": ["string", "null"]},
            },
            "required": ["data", "hasMore", "next"],
        }
        return {"content": {"application/json": {"schema": page}}}
    if _is_struct(answer):
        return {"content": {"application/json": {"schema": by_kind[answer]}}}
    return {}


def _operation(route: Route, by_kind: dict[Any, Any]) -> dict[str, Any]:
    name = re.sub(r"[^a-z]+", "_", f"{route.method} {route.path}".lower()).strip("_")
    operation: dict[str, Any] = {"operationId": name, "summary": route.summary, "tags": [_tag(route.path)]}
    parameters: list[dict[str, Any]] = [
        {"name": part, "in": "path", "required": True, "schema": {"type": "string"}}
        for part in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": item.name, "in": item.place, "description": item.description, "schema": {"type": "string"}}
        for item in route.parameters
        if item.name != "Accept"  # OpenAPI describes Accept by the answers' media types
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = {"application/json": {"schema": by_kind[route.body]}}
        if route.upload:
            content["multipart/form-data"] = {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "title": {"type": "string"},
                        "collection": {"type": "string"},
                        "metadata": {"type": "string", "description": "a JSON object of strings"},
                        "index": {
                            "type": "string",
                            "enum": ["true", "false"],
                            "description": "false: not searched; batch files (NDJSON) are taken only so",
                        },
                    },
                    "required": ["file"],
                }
            }
        operation["requestBody"] = {"required": not route.path.endswith(("/retry", "/rotate")), "content": content}
    responses: dict[str, Any] = {
        str(status): {"description": sentence, **_content(answer, by_kind)}
        for status, (sentence, answer) in route.answers.items()
    }
    codes = dict.fromkeys(
        (*route.problems, *(BODY_PROBLEMS if route.body else ()), *(COMMON_PROBLEMS if route.scope else ()))
    )
    for code in codes:
        status = str(PROBLEMS[code].status)
        entry = responses.setdefault(
            status,
            {"description": "", "content": {"application/problem+json": {"schema": by_kind[Problem]}}},
        )
        entry["description"] = ", ".join(filter(None, [entry["description"], f"`{code}`"]))
    operation["responses"] = responses
    operation["security"] = [{"key": []}] if route.scope else []
    if route.ticket:
        operation["security"].append({"ticket": []})
    if route.scope:
        operation["description"] = f"Scope `{route.scope.value}`."
    return operation


def _tag(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[1] if parts[0] == "api" else "operations"


STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--line:#dde2e8;--paper:#fff;--tint:#f4f6f8;--blue:#1f5fbf}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa5b3;--line:#2c343d;--paper:#14181d;--tint:#1c2229;--blue:#7fb0ff}}
body{font:15px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0;display:flex}
nav{position:sticky;top:0;height:100vh;overflow:auto;width:19rem;flex:none;border-right:1px solid var(--line);padding:1.5rem;box-sizing:border-box;font-size:13px}
nav a{display:block;color:var(--soft);text-decoration:none;padding:.15rem 0;overflow-wrap:anywhere}nav a:hover{color:var(--blue)}
main{padding:1.5rem 2.5rem;max-width:56rem;min-width:0}h1{margin-top:0}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
article{border:1px solid var(--line);border-radius:8px;padding:.2rem 1.2rem 1rem;margin:1rem 0}
code,pre{font:13px/1.5 ui-monospace,monospace;background:var(--tint);border-radius:4px}code{padding:.1em .35em}
pre{padding:.8rem;overflow:auto;max-height:28rem}.m{font-weight:700;color:var(--blue)}td{padding:.25rem .8rem .25rem 0;vertical-align:top}
table{border-collapse:collapse}small{color:var(--soft)}@media(max-width:800px){nav{display:none}main{padding:1rem}}
"""


def page(document: dict[str, Any]) -> str:
    """The document as one HTML page that loads nothing from anywhere."""
    sections: dict[str, list[str]] = {}
    links: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation["tags"][0]
            anchor = operation["operationId"]
            links.setdefault(tag, []).append(f'<a href="#{anchor}"><b>{method.upper()}</b> {html.escape(path)}</a>')
            sections.setdefault(tag, []).append(_article(method, path, operation))
    schemas = "".join(
        f"<article id='schema-{name}'><h3>{name}</h3><pre>{_json(schema)}</pre></article>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    menu = "".join(f"<p><b>{tag}</b></p>{''.join(items)}" for tag, items in links.items())
    body = "".join(f"<h2>{tag}</h2>{''.join(items)}" for tag, items in sections.items())
    info = document["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{info['title']} API</title><style>{STYLE}</style><nav>{menu}<p><b>more</b></p>"
        "<a href='#schemas'>Schemas</a><a href='/openapi.json'>openapi.json</a></nav>"
        f"<main><h1>{info['title']} API <small>{info['version']}</small></h1><p>{html.escape(info['description'])} "
        "Send <code>Authorization: Bearer ek_…</code>.</p>"
        f"{body}<h2 id=schemas>Schemas</h2>{schemas}</main>"
    )


def _article(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(item['name'])}</code><td><small>{item['in']}</small>"
        f"<td>{_prose(item.get('description', ''))}"
        for item in operation.get("parameters", [])
    )
    body = ""
    if "requestBody" in operation:
        for media_type, content in operation["requestBody"]["content"].items():
            body += f"<p>Body <small>{media_type}</small></p><pre>{_json(content['schema'])}</pre>"
    answers = "".join(
        f"<tr><td><code>{status}</code><td>{_prose(answer['description'])}<td>{_types(answer)}"
        for status, answer in operation["responses"].items()
    )
    return (
        f"<article id='{operation['operationId']}'><h3><span class=m>{method.upper()}</span> "
        f"<code>{html.escape(path)}</code></h3><p>{_prose(operation['summary'])}. "
        f"<small>{_prose(operation.get('description', 'No key needed.'))}</small></p>"
        f"{f'<table>{rows}</table>' if rows else ''}{body}<p>Answers</p><table>{answers}</table></article>"
    )


def _types(answer: dict[str, Any]) -> str:
    found = []
    for media_type, content in answer.get("content", {}).items():
        reference = re.search(r"#/components/schemas/(\w+)", str(content))
        name = f"<a href='#schema-{reference[1]}'>{reference[1]}</a>" if reference else ""
        found.append(f"<small>{media_type}</small> {name}")
    return "<br>".join(found)


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _json(value: Any) -> str:
    text = html.escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    return re.sub(r"#/components/schemas/(\w+)", r"<a href='#schema-\1'>\1</a>", text)
