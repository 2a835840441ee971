"""Every call of the URL table with what belongs to somebody in every place where an id can stand.

`<job.failed>` stands for that id of a victim (tests/victim.py), `<own.job>` for one of the caller's own. A route that
is not here fails tests/test_isolation.py, and so does a parameter or a body member that takes an id and is in no sample
of its route: add a line when you add a call.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

READS, CHANGES, ENDS, LAST = range(4)  # in this order the victim itself makes its calls


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One call. `path` fills the address; `control` is what the victim itself gets for it (any 2xx if not given; empty:
    nobody's call succeeds); `order` when it makes it. `opens`: what is
    in it is a key by itself. `is_documented`: an administrator of another tenant may, as the reference says."""

    path: dict[str, str] = {}
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    body: Any = None
    form: dict[str, str] | None = None
    frames: list[Any] | None = None  # of a WebSocket
    control: tuple[int, ...] = (200, 201, 202, 204, 206)
    order: int = READS
    opens: bool = False
    is_documented: bool = False


def filled(value: Any, names: Callable[[str], str]) -> Any:
    """The value with each `<name>` replaced."""
    match value:
        case str():
            return re.sub(r"<([a-z.-]+)>", lambda match: names(match[1]), value)
        case dict():
            return {filled(name, names): filled(one, names) for name, one in value.items()}
        case list():
            return [filled(one, names) for one in value]
    return value


def named_in(sample: Sample) -> set[str]:
    """The names that a sample stands on."""
    return set(re.findall(r"<([a-z.-]+)>", msgspec.json.encode(sample).decode()))


def address(path: str, sample: Sample, names: Callable[[str], str]) -> str:
    """Path and query."""
    values = filled(sample.path, names)
    found = re.sub(r"{(\w+)}", lambda match: quote(values[match[1]], safe=""), path)
    return found + (f"?{urlencode(filled(sample.query, names))}" if sample.query else "")


def _job(*names: str, **more: Any) -> list[Sample]:
    return [Sample(path={"id": f"<job.{name}>"}, **more) for name in names]


def _of(place: str, *names: str, **more: Any) -> list[Sample]:
    return [Sample(path={place: f"<{name}>"}, **more) for name in names]


def _prompt(name: str = "read", **more: Any) -> Sample:
    path = {"name": f"<prompt.{name}>", **more.pop("path", {})}
    return Sample(path=path, **more)


_TURNS: Final = [{"role": "user", "content": "Say something."}]
_CHAT: Final = {"type": "chat", "input": {"messages": _TURNS}}
_SOON: Final = {"Prefer": "wait=20"}
_SUMMARY: Final = [{"kind": "summary"}]
_IDEM: Final = {"Idempotency-Key": "<idem.job>"}
_MINE: Final = {"name": "<prompt.read>", "version": 1}
_MESSAGES: Final = [{"role": "system", "content": "Be brief."}]
_LABEL: Final = {"label": "<label>"}
_WANTED: Final = {"q": "When does the harbour open?", "minScore": 0}  # it would find whatever it may see
_ASKED: Final = {"q": "harbour", "minScore": "0"}
_TENANT: Final = {"tenantId": "<tenant>"}


def _key(name: str, **more: Any) -> Sample:
    return Sample(path={**_TENANT, "keyId": f"<key.{name}>"}, **more)


SAMPLES: Final[dict[str, list[Sample]]] = {
    "POST /api/jobs": [
        Sample(body=_CHAT, headers=_IDEM, order=CHANGES),
        Sample(body=_CHAT, headers={"Idempotency-Key": "<idem.used>"}, control=(422,)),
        Sample(body={**_CHAT, "prompt": _MINE, "user": "<user>", "metadata": {"case": "<metadata>"}}, headers=_SOON),
        Sample(body={**_CHAT, "prompt": {"name": "<prompt.read>", "label": "<label>"}},
               headers={"Accept": "text/event-stream"}),
        Sample(body={"type": "document-analysis", "input": {"document": {"documentId": "<doc.ready>"},
                                                            "tasks": _SUMMARY}}, headers=_SOON),
        Sample(body={"type": "agent", "input": {"goal": "When does the harbour open?",
                                                "context": {"documents": ["<doc.ready>"]}}}, headers=_SOON),
        Sample(body={"type": "agent", "input": {"goal": "When does the harbour open? See <doc.ready>.",
                                                "context": {"collection": "<collection>"}}}, headers=_SOON),
        Sample(body={"type": "batch-embedding", "input": {"documentId": "<doc.batch>"}}, headers=_SOON),
    ],
    "GET /api/jobs": [
        Sample(query={"after": "<job.scheduled>"}),
        Sample(query={"user": "<user>", "metadata.case": "<metadata>", "limit": "200"}),
    ],
    "POST /api/jobs/estimate": [
        Sample(body={**_CHAT, "prompt": _MINE, "user": "<user>"}),
        Sample(body={"type": "document-analysis", "input": {"document": {"documentId": "<doc.ready>"},
                                                            "tasks": _SUMMARY}}),
        Sample(body={"type": "agent", "input": {"goal": "Go.", "context": {"documents": ["<doc.ready>"],
                                                                           "collection": "<collection>"}}}),
        Sample(body={"type": "batch-embedding", "input": {"documentId": "<doc.batch>"}}),
    ],
    "GET /api/jobs/{id}": [
        *_job("complete", "failed", "batch", "analysis", "search", "ingest.ready", "waiting", "reindex"),
        *_job("running", "queued.read", "scheduled", query={"wait": "1"}),
        *_job("gone", control=(410,)),
        *_job("complete", headers={"If-None-Match": "<etag.job>"}, control=(304,)),
    ],
    "DELETE /api/jobs/{id}": [
        *_job("complete", order=CHANGES),
        *_job("queued", "running", "scheduled", order=ENDS, query={"wait": "1"}),
    ],
    "POST /api/jobs/{id}/retry": [
        *_job("failed", order=CHANGES),
        *_job("failed.again", order=CHANGES, body={"from": "start", "prompt": _MINE}),
    ],
    "POST /api/jobs/{id}/feedback": _job("complete", body={"score": 1}, headers=_IDEM, order=CHANGES),
    "GET /api/jobs/{id}/stream": [
        *_job("complete", "chat", "batch"),
        *_job("complete", headers={"Last-Event-ID": "1"}),
        *_job("complete", query={"after": "1"}),
        # A ticket of one job is none for another, whosever that is.
        *_job("batch", query={"ticket": "<ticket.complete>"}, control=(401,)),
        *_of("id", "own.job", query={"ticket": "<ticket.complete>"}, control=(401,)),
        *_job("complete", query={"ticket": "<own.ticket>"}, control=(401,)),
        *_job("complete", query={"ticket": "<ticket.complete>"}, opens=True),
    ],
    "POST /api/jobs/{id}/stream-ticket": _job("complete", "running", order=CHANGES),
    "POST /api/jobs/{id}/input": [
        *_job("waiting", body={"requestId": "<request>", "value": True}, order=CHANGES),
        *_of("id", "own.job", body={"requestId": "<request>", "value": True}, control=(409,)),
    ],
    "GET /api/ws": [
        Sample(frames=[{"op": "subscribe", "ref": 1, "jobId": "<job.complete>"}]),
        Sample(frames=[{"op": "subscribe", "ref": 1, "jobId": "<job.running>", "after": 0},
                       {"op": "unsubscribe", "ref": 2, "jobId": "<job.running>"}]),
        Sample(frames=[{"op": "cancel", "ref": 1, "jobId": "<job.queued>"}], order=ENDS),
        Sample(frames=[{"op": "input", "ref": 1, "jobId": "<job.waiting>", "requestId": "<request>", "value": True}],
               order=CHANGES),
        Sample(frames=[{"op": "submit", "ref": 1, "job": {**_CHAT, "prompt": _MINE}}]),
        Sample(frames=[{"op": "submit", "ref": 1, "job": {"type": "document-analysis", "input": {
            "document": {"documentId": "<doc.ready>"}, "tasks": _SUMMARY}}}]),
    ],
    "POST /api/chat": [
        Sample(body={"messages": _TURNS, "prompt": _MINE, "user": "<user>"}),
        Sample(body={"messages": _TURNS}, headers=_IDEM, order=CHANGES),
    ],
    "POST /api/chat/stream": [
        Sample(body={"messages": _TURNS, "prompt": _MINE, "user": "<user>"}),
        Sample(body={"messages": _TURNS}, headers=_IDEM, order=CHANGES),
        Sample(body={"messages": _TURNS}, headers={"Last-Event-ID": "<place.chat>"}),
    ],
    "GET /api/chat/stream": [
        Sample(query={"message": "Hello.", "user": "<user>"}, headers=_IDEM, order=CHANGES),
        Sample(query={"message": "Hello."}, headers={"Last-Event-ID": "<place.chat>"}),
    ],
    "GET /api/chat/stream/{jobId}": [
        *_of("jobId", "job.chat"),
        *_of("jobId", "job.chat", headers={"Last-Event-ID": "<place.chat>"}),
        *_of("jobId", "own.job", headers={"Last-Event-ID": "<place.chat>"}, control=(422,)),
        *_of("jobId", "job.chat", query={"ticket": "<ticket.complete>"}, control=(401,)),
        *_of("jobId", "job.chat", query={"ticket": "<ticket.chat>"}, opens=True),
    ],
    "GET /api/jobs/{id}/events": [*_job("complete", "waiting"), *_job("complete", query={"after": "1"})],
    "GET /api/jobs/{id}/output": [
        *_job("batch"),
        *_job("batch", headers={"Range": "bytes=0-9"}, control=(206,)),
        *_job("batch", headers={"Range": "bytes=0-9", "If-Range": "<etag.output>"}, control=(206,)),
        *_job("batch", headers={"If-None-Match": "<etag.output>"}, control=(304,)),
    ],
    "POST /api/documents": [
        Sample(body={"text": "A text.", "collection": "<collection>", "metadata": {"case": "<metadata>"}},
               headers=_IDEM, order=CHANGES),
        Sample(form={"file": "A text.", "collection": "<collection>", "title": "T"}, order=CHANGES),
    ],
    "GET /api/documents": [
        Sample(query={"after": "<doc.batch>"}),
        Sample(query={"collection": "<collection>", "metadata.case": "<metadata>"}),
    ],
    "GET /api/documents/{id}": _of("id", "doc.ready", "doc.batch"),
    "GET /api/documents/{id}/text": _of("id", "doc.ready"),
    "PUT /api/documents/{id}": [
        *_of("id", "doc.replaced", body={"text": "Another text."}, headers=_IDEM, order=CHANGES),
        *_of("id", "doc.replaced", form={"file": "One more text."}, order=CHANGES),
    ],
    "PATCH /api/documents/{id}": _of("id", "doc.patched", body={"title": "Another"}, order=CHANGES),
    "DELETE /api/documents/{id}": _of("id", "doc.deleted", order=ENDS),
    "GET /api/usage": [
        Sample(query={"groupBy": "day,model,type,prompt,user,key", "user": "<user>", "key": "<key.main>",
                      "prompt": "<prompt.read>@1"}),
        Sample(query={"groupBy": "type,user", "limit": "1", "after": "<cursor.usage>"}),
        Sample(query={"tenant": "<tenant>"}, is_documented=True),
        Sample(query={"key": "<key.main>"}, headers={"Accept": "text/csv"}),
    ],
    "GET /api/limits": [Sample(query={"user": "<user>", "prompt": "<prompt.read>@1"})],
    "POST /api/prompts": [
        Sample(body={"name": "<prompt.read>.new", "messages": _MESSAGES}, headers=_IDEM, order=CHANGES),
        # The name is taken: by the victim for itself, and for nobody else.
        Sample(body={"name": "<prompt.read>", "messages": _MESSAGES}, control=(409,)),
    ],
    "GET /api/prompts": [
        Sample(query={"prefix": "zqteam", "search": "zqteam", "label": "<label>"}),
        Sample(query={"after": "<cursor.prompts>", "limit": "1"}),
    ],
    "GET /api/prompts/{name}": [
        _prompt(), _prompt(query={"label": "<label>"}), _prompt(query={"version": "1"}),
        _prompt(headers={"If-None-Match": "*"}, control=(304,)),
    ],
    "DELETE /api/prompts/{name}": [_prompt("deleted", order=ENDS)],
    "POST /api/prompts/{name}/versions": [
        _prompt("moved", body={"messages": _MESSAGES}, headers=_IDEM, order=CHANGES),
    ],
    "GET /api/prompts/{name}/versions": [_prompt(), _prompt(query={"after": "2"})],
    "GET /api/prompts/{name}/labels": [_prompt()],
    "GET /api/prompts/{name}/labels/{label}": [_prompt(path=_LABEL)],
    "PUT /api/prompts/{name}/labels/{label}": [
        _prompt("moved", path=_LABEL, body={"version": 2}, headers={"If-Match": "<etag.moved>"}, order=CHANGES),
        _prompt("moved", path=_LABEL, body={"version": 2}, headers={"If-None-Match": "*"}, order=CHANGES,
                control=(412,)),
        _prompt("moved", path=_LABEL, body={"version": 1}, order=ENDS),
    ],
    "DELETE /api/prompts/{name}/labels/{label}": [
        _prompt("deleted", path=_LABEL, headers={"If-Match": "<etag.deleted>"}, order=CHANGES),
    ],
    "POST /api/prompts/{name}/rollback": [
        _prompt("begun", body={"label": "<label>"}, headers={"If-Match": "<etag.begun>", **_IDEM}, order=CHANGES),
    ],
    "GET /api/prompts/{name}/diff": [
        _prompt(query={"from": "1", "to": "2"}), _prompt(query={"from": "<label>", "to": "2"}),
    ],
    "GET /api/prompts/{name}/audit": [_prompt(), _prompt(query={"after": "<cursor.history>"})],
    "POST /api/prompts/{name}/render": [
        _prompt(body={"label": "<label>", "user": "<user>"}), _prompt(body={"version": 1}),
    ],
    "GET /api/prompts/{name}/stats": [_prompt(), _prompt(query={"version": "1", "after": "2199-01-01.1"})],
    "GET /api/prompts/{name}/experiments": [_prompt(), _prompt(query={"after": "<experiment.read>"})],
    "PUT /api/prompts/{name}/experiments/{label}": [
        _prompt("begun", path=_LABEL, body={"variants": [{"version": 1}, {"version": 2}]}, order=ENDS,
                headers={"If-None-Match": "*"}),
        _prompt("stopped", path=_LABEL, body={"variants": [{"version": 1}, {"version": 2}]}, order=CHANGES,
                headers={"If-Match": "<draft.stopped>"}),
    ],
    "GET /api/prompts/{name}/experiments/{label}": [_prompt(path=_LABEL)],
    "DELETE /api/prompts/{name}/experiments/{label}": [
        _prompt("stopped", path=_LABEL, order=ENDS),
        _prompt("read", path=_LABEL, headers={"If-Match": "<draft.read>"}, order=ENDS),
    ],
    "POST /api/prompts/{name}/experiments/{label}/promote": [
        _prompt("promoted", path=_LABEL, body={"version": 2}, headers={"If-Match": "<draft.promoted>"}, order=ENDS),
    ],
    "POST /api/search": [
        Sample(body={**_WANTED, "collection": "<collection>"}, headers=_IDEM, order=CHANGES),
        Sample(body={**_WANTED, "collection": ["<collection>"], "user": "<user>", "filter": {"case": "<metadata>"},
                     "prompt": {"name": "errand/answer", "label": "production"}}),
        Sample(body={"q": "harbour", "minScore": 0, "collection": "<collection>", "version": 3, "answer": False}),
        Sample(body={"q": "harbour", "minScore": 0, "prompt": _MINE}),
        Sample(body={"q": "harbour", "minScore": 0}, headers={"Last-Event-ID": "<place.search>"}),
        Sample(body=_WANTED, headers={"Accept": "text/event-stream"}),
    ],
    "GET /api/search": [
        Sample(query={**_ASKED, "collection": "<collection>", "user": "<user>", "answer": "false"}, headers=_IDEM,
               order=CHANGES),
        Sample(query={**_ASKED, "collection": "<collection>", "version": "3", "filter.case": "<metadata>"}),
        Sample(query=_ASKED, headers={"Last-Event-ID": "<place.search>"}),
        Sample(query={**_ASKED, "filter": '{"case":"<metadata>"}'}),
    ],
    # As the server makes it: URL-safe base64 of the last name; any place in the list will do.
    "GET /api/collections": [Sample(query={"after": "QQ"})],
    "GET /api/collections/{name}": _of("name", "collection"),
    "POST /api/collections/{name}/reindex": _of("name", "collection", body={"dimensions": 64}, headers=_IDEM,
                                                order=LAST),
    "POST /api/collections/{name}/rollback": _of("name", "collection", headers=_IDEM),
    "DELETE /api/collections/{name}/versions/{version}": [
        Sample(path={"name": "<collection>", "version": "3"}, order=CHANGES),
    ],
    "GET /api/search/log": [
        Sample(query={"after": "<search.read>"}), Sample(query={"user": "<user>", "collection": "<collection>"}),
        Sample(query={"q": "<user>"}),
    ],
    "DELETE /api/search/log": [Sample(query={"user": "<user>"}, order=LAST)],
    "GET /api/search/quality": [Sample(query={"collection": "<collection>"})],
    "GET /api/search/{searchId}": _of("searchId", "search.read"),
    "DELETE /api/search/{searchId}": _of("searchId", "search.erased", order=ENDS),
    "POST /api/search/{searchId}/feedback": [
        *_of("searchId", "search.judged", body={"chunkId": "<chunk>", "relevant": True}, headers=_IDEM, order=CHANGES),
        *_of("searchId", "search.judged", body={"helpful": True, "user": "<user>"}, order=CHANGES),
    ],
    "POST /api/admin/tenants": [
        Sample(body={"name": "zqanother", "limits": {"perPrompt": {"<prompt.read>": {"tokensPerMinute": 5}}}},
               headers=_IDEM, order=CHANGES),
    ],
    "GET /api/admin/tenants": [Sample(query={"after": "<tenant>"})],
    "GET /api/admin/tenants/{tenantId}": _of("tenantId", "tenant"),
    "PATCH /api/admin/tenants/{tenantId}": _of("tenantId", "tenant", body={"name": "Another"}, order=CHANGES),
    "DELETE /api/admin/tenants/{tenantId}": _of("tenantId", "tenant", order=LAST),
    "POST /api/admin/tenants/{tenantId}/keys": _of("tenantId", "tenant", body={"name": "k"}, headers=_IDEM,
                                                   order=CHANGES),
    "GET /api/admin/tenants/{tenantId}/keys": _of("tenantId", "tenant", query={"after": "<key.read>"}),
    "GET /api/admin/tenants/{tenantId}/keys/{keyId}": [_key("read")],
    "PATCH /api/admin/tenants/{tenantId}/keys/{keyId}": [_key("changed", body={"name": "k"}, order=CHANGES)],
    "POST /api/admin/tenants/{tenantId}/keys/{keyId}/rotate": [_key("rotated", headers=_IDEM, order=CHANGES)],
    "DELETE /api/admin/tenants/{tenantId}/keys/{keyId}": [_key("revoked", order=CHANGES)],
    "GET /api/admin/audit": [
        Sample(query={"tenant": "<tenant>", "key": "<key.main>", "actor": "<key.main>", "resource": "<prompt.read>"}),
        Sample(query={"after": "<cursor.history>"}),
    ],
    "GET /api/admin/tenants/{tenantId}/limits": _of(
        "tenantId", "tenant", query={"key": "<key.main>", "user": "<user>", "prompt": "<prompt.read>"}
    ),
    "POST /api/admin/books/check": [Sample(body={"tenantId": "<tenant>"})],
    "POST /api/admin/books/rebuild": [Sample(body={"tenantId": "<tenant>"}, order=CHANGES)],
    "GET /api/admin/diagnosis": [Sample()],
    # Nobody's: no key is needed, and none is looked at.
    "GET /healthz": [Sample()],
    "GET /readyz": [Sample()],
    "GET /api/webhooks/deliveries": [
        Sample(query={"jobId": "<job.hooked.read>"}),
        Sample(query={"after": "<delivery.replayed>"}),
    ],
    "POST /api/webhooks/deliveries/replay": [
        Sample(body={"status": "failed", "after": "<delivery.read>"}, headers=_IDEM, order=CHANGES),
    ],
    "GET /api/webhooks/deliveries/{id}": _of("id", "delivery.read"),
    "POST /api/webhooks/deliveries/{id}/replay": _of("id", "delivery.replayed", headers=_IDEM, order=CHANGES),
    "GET /api/webhooks/secret": [Sample()],
    "POST /api/webhooks/secret/rotate": [Sample(headers=_IDEM, order=ENDS)],
    # An address that is refused: nobody's test is sent here.
    "POST /api/webhooks/test": [Sample(body={"url": "http://127.0.0.1/"}, headers=_IDEM, control=(422,))],
    "GET /metrics": [Sample()],
    "GET /metrics/sd": [Sample()],
    "GET /openapi.json": [Sample()],
    "GET /docs": [Sample()],
    "GET /problems/{code}": [Sample(path={"code": "not_found"})],
}  # fmt: skip

# Parameters that name nothing that could be somebody's.
PLAIN: Final = {
    "limit", "wait", "Prefer", "Accept", "If-None-Match", "status", "type", "priority", "createdAfter", "createdBefore",
    "message", "model", "maxTokens", "temperature", "disconnectGraceSeconds", "from", "to", "groupBy", "order",
    "shared", "q", "minScore", "topK", "mode", "answer", "rerank", "log", "noResult", "maxScore", "feedback", "k",
    "lowScore", "action", "metadata.NAME",
}  # fmt: skip

# Members of bodies that name something that is somebody's, by their path without indexes.
NAMING: Final = re.compile(r"(.*(Id|\.documents|\.collection)|\$\.collection|.*prompt\.name|\$\.user)")
