"""OpenAPI 3.1 from the URL table and the Structs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import inspect

from api.problems import Problem
from api.route import Page, Route, id_of, whole
from api.webhook_routes import HEADERS as HOOK_HEADERS
from shared.problems import PROBLEMS
from shared.prompts import LabelName, PromptName
from shared.specs import ShortText

REF = "#/components/schemas/{name}"
COMMON_PROBLEMS = (
    "malformed_request",
    "invalid_request",
    "unauthenticated",
    "scope_missing",
    "internal",
    "unavailable",
)
# What stands in addresses, by its name there, or by the resource before it.
PLACES: Final[dict[str, Any]] = {
    "jobs/id": id_of("job"), "deliveries/id": id_of("dlv"),
    "jobId": id_of("job"), "documents/id": id_of("doc"), "searchId": id_of("srch"),
    "tenantId": id_of("ten"), "keyId": id_of("key"), "prompts/name": PromptName, "label": LabelName,
    "collections/name": ShortText, "version": whole(1, 999_999_999), "code": Literal[tuple(PROBLEMS)],
}  # fmt: skip
# What each event of a stream is: the schema of a sequence is that of its items (as OpenAPI 3.2 says it).
EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "description": "One of the stream's events.",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "description": "JSON on one line, or `[DONE]`."},
        "retry": {"type": "integer"},
    },
    "required": ["data"],
}
# The fields of an upload; a document that is there keeps its collection, and whether it is searched.
UPLOAD_FIELDS: Final[dict[str, Any]] = {
    "file": {"type": "string", "format": "binary", "minLength": 1},
    "title": {"type": "string", "minLength": 1, "maxLength": 256},
    "collection": {"type": "string", "minLength": 1, "maxLength": 256},
    "metadata": {"type": "string", "contentMediaType": "application/json", "description": "A JSON object of strings."},
    "index": {
        "type": "string",
        "enum": ["true", "false"],
        "description": "false: not searched; batch files (NDJSON) are taken only so",
    },
}
UPLOAD: Final = frozenset(UPLOAD_FIELDS)
# Members of answers that lead on, and the addresses that they fill. Only versions of prompts have a `sha256` here: it
# is their `name` that leads on.
LINKED: Final = {
    "jobId": ("jobs/id", "/jobId"), "documentId": ("documents/id",), "searchId": ("/searchId",),
    "tenantId": ("/tenantId",), "keyId": ("/keyId",), "sha256": ("prompts/name",),
}  # fmt: skip
HEADERS: Final[dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The caller's, if it sent a sane one.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 0}},
}
BODY_PROBLEMS = ("too_large", "unsupported_media_type", "request_timeout")


def build(
    routes: Sequence[Route], version: str, webhooks: Mapping[str, tuple[str, Any]] | None = None
) -> dict[str, Any]:
    """The document. Every schema comes from a Struct. `webhooks`: sentence and body by event, what receivers get."""
    webhooks = webhooks or {}
    kinds: list[Any] = [Problem, *(kind for _, kind in webhooks.values())]
    for route in routes:
        if route.body is not None:
            kinds.append(route.body)
        kinds += [_kind(answer) for _, answer in route.answers.values() if _is_struct(_kind(answer))]
    unique = list(dict.fromkeys(kinds))
    schemas, components = msgspec.json.schema_components(unique, ref_template=REF)
    by_kind = dict(zip(unique, schemas, strict=True))
    for struct in _structs_of(unique):
        if rules := getattr(struct, "RULES", None):
            name = struct.__name__
            components[name if name in components else f"{struct.__module__}.{name}"]["allOf"] = rules
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_kind, components)
    links = _links(routes, paths)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Errand",
            "version": version,
            "description": "A self-hosted backend for AI applications. Errors are RFC 9457 problems.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "webhooks": {name: {"post": _webhook(name, text, by_kind[kind])} for name, (text, kind) in webhooks.items()},
        "components": {
            "schemas": components,
            "links": links,
            "headers": HEADERS,
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
        return {"content": {answer: {"schema": EVENT if answer == "text/event-stream" else {"type": "string"}}}}
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


def _operation_id(route: Route) -> str:
    return re.sub(r"[^a-z]+", "_", f"{route.method} {route.path}".lower()).strip("_")


def _links(routes: Sequence[Route], paths: dict[str, Any]) -> dict[str, Any]:
    """Where the answers of calls that create lead: adds to each what can be called with what it made."""
    links: dict[str, Any] = {}
    for route in routes:
        for status, (_, answer) in route.answers.items():
            if route.method != "POST" or not _is_struct(answer) or status >= 300:
                continue
            names = {field.encode_name for field in msgspec.structs.fields(answer)}
            onward = {
                name: link
                for member, places in LINKED.items()
                if member in names
                for name, link in _onward(routes, member, places)
            }
            links.update(onward)
            if onward:
                found = paths[route.path]["post"]["responses"][str(status)]
                found["links"] = {name: {"$ref": f"#/components/links/{name}"} for name in onward}
    return links


def _onward(routes: Sequence[Route], member: str, places: Sequence[str]) -> list[tuple[str, Any]]:
    """The calls whose address takes this member of an answer."""
    found = []
    for route in routes:
        parts = re.findall(r"([a-z-]+)/{(\w+)}", route.path)
        filled = {
            part: f"$response.body#/{'name' if member == 'sha256' else member}"
            for before, part in parts
            if f"{before}/{part}" in places or f"/{part}" in places
        }
        if filled and "keyId" in filled:
            filled["tenantId"] = "$request.path.tenantId"
        if filled and len(filled) == len(parts) and not route.is_stream:
            name = f"{member}_{_operation_id(route)}"
            found.append((name, {"operationId": _operation_id(route), "parameters": filled}))
    return found


def _structs_of(kinds: Sequence[Any]) -> set[type[msgspec.Struct]]:
    """All Structs that these types are made of."""
    found: set[type[msgspec.Struct]] = set()

    def look(value: Any) -> None:
        if isinstance(value, inspect.StructType):
            if value.cls in found:
                return
            found.add(value.cls)
        if isinstance(value, inspect.Type | inspect.Field):
            for name in value.__struct_fields__:
                look(getattr(value, name))
        elif isinstance(value, list | tuple):
            for one in value:
                look(one)

    look(inspect.multi_type_info(kinds))
    return found


def _place_kind(route: Route, part: str) -> Any:
    """The type of what stands in an address: `{id}` is that of the resource after which it stands."""
    if part in PLACES:
        return PLACES[part]
    before = route.path.partition(f"/{{{part}}}")[0].rpartition("/")[2]
    return PLACES.get(f"{before}/{part}", str)


def _parameter(name: str, place: str, kind: Any, components: dict[str, Any], **more: Any) -> dict[str, Any]:
    (schema,), found = msgspec.json.schema_components([kind], ref_template=REF)
    components.update({one: schema for one, schema in found.items() if one not in components})
    return {"name": name, "in": place, **more, "schema": schema}


def _operation(route: Route, by_kind: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [_tag(route.path)],
    }
    parameters: list[dict[str, Any]] = [
        _parameter(part, "path", _place_kind(route, part), components, required=True)
        for part in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        _parameter(
            item.name, item.place, item.kind, components, description=item.description,
            **({"required": True} if item.required else {}),
        )
        for item in route.parameters
        if item.name != "Accept"  # OpenAPI describes Accept by the answers' media types
    ]  # fmt: skip
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = {"application/json": {"schema": by_kind[route.body]}}
        if route.upload:
            kept = UPLOAD if "collection" in route.body.__struct_fields__ else UPLOAD - {"collection", "index"}
            content["multipart/form-data"] = {
                "schema": {
                    "type": "object",
                    "properties": {name: field for name, field in UPLOAD_FIELDS.items() if name in kept},
                    "required": ["file"],
                    "additionalProperties": False,
                }
            }
        operation["requestBody"] = {"required": not route.may_lack_body, "content": content}
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
    for status, response in responses.items():
        named = ("X-Request-Id", "Retry-After") if status in ("429", "503") else ("X-Request-Id",)
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in named}
    operation["responses"] = responses
    operation["security"] = [{"key": []}] if route.scope else []
    if route.ticket:
        operation["security"].append({"ticket": []})
    if route.scope:
        operation["description"] = f"Scope `{route.scope.value}`."
    return operation


def _webhook(name: str, text: str, schema: Any) -> dict[str, Any]:
    """A request that a receiver gets."""
    return {
        "operationId": f"webhook_{name.replace('.', '_')}",
        "summary": text.rstrip("."),
        "description": "Standard Webhooks 1.0.0. Verify the signature over the body as it came, before it is parsed.",
        "parameters": [
            {"name": header, "in": "header", "required": True, "description": says, "schema": {"type": "string"}}
            for header, says in HOOK_HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "2XX": {"description": "Received; it is not sent again."},
            "410": {"description": "No longer wanted: neither this nor what earlier jobs would send to this URL."},
            "default": {"description": "Sent again on the schedule; `Retry-After` puts it off further."},
        },
        "security": [],
    }


def _tag(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[1] if parts[0] == "api" else "operations"
