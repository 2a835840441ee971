"""The OpenAPI document as a page to read."""

from __future__ import annotations

import html
import re
from typing import Any

import msgspec

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


SENT = "what your webhooks receive"


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
    for event, operations in document.get("webhooks", {}).items():
        for method, operation in operations.items():
            links.setdefault(SENT, []).append(f'<a href="#{operation["operationId"]}">{html.escape(event)}</a>')
            sections.setdefault(SENT, []).append(_article(method, event, operation))
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
