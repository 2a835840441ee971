"""What the OpenAPI document says is what the server does; tests of what scripts.conformance has found."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api import openapi
from api.problems import problem_answer
from api.routes import ROUTES
from scripts.conformance_checks import UNSAYABLE, refusal_of
from shared.codec import decode_body
from shared.errors import RefusedError
from shared.problems import PROBLEMS
from shared.specs import PublicJob
from tests.conftest import Stack, chat

DOCUMENT: Any = openapi.build(ROUTES, "0")


def says(name: str, value: Any) -> bool:
    """Whether the document's schema of this name takes the value."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return bool(jsonschema_rs.validator_for(schema).is_valid(value))


def takes(name: str, value: Any) -> bool:
    """Whether the server does, by the Struct alone."""
    kind = next(route.body for route in ROUTES if getattr(route.body, "__name__", "") == name)
    try:
        decode_body(msgspec.json.encode(value), kind)
    except RefusedError:
        return False
    return True


BUDGET = {"period": "day", "hardTokens": 5}


@pytest.mark.parametrize(
    ("name", "value", "is_good"),
    [
        ("NewTextDocument", {"text": "a"}, True),
        ("NewTextDocument", {"text": "a", "url": None}, True),
        ("NewTextDocument", {}, False),
        ("NewTextDocument", {"text": "a", "url": "https://a.example"}, False),
        ("NewTextDocument", {"text": " \n"}, False),
        ("NewTextDocument", {"text": "a\0b"}, False),
        ("NewSearchFeedback", {"helpful": True}, True),
        ("NewSearchFeedback", {"chunkId": "c", "relevant": False}, True),
        ("NewSearchFeedback", {"chunkId": "c"}, False),
        ("NewSearchFeedback", {"relevant": True}, False),
        ("NewSearchFeedback", {"helpful": True, "relevant": True, "chunkId": "c"}, False),
        ("NewSearchFeedback", {"helpful": None, "chunkId": None}, False),
        ("NewTenant", {"name": "a", "limits": {"budgets": [BUDGET]}}, True),
        ("NewTenant", {"name": "a", "limits": {"budgets": [{"period": "day"}]}}, False),
        ("NewTenant", {"name": "a", "limits": {"requestsBurst": 5}}, False),
        ("NewTenant", {"name": "a", "limits": {"requestsBurst": 5, "requestsPerMinute": 5}}, True),
        ("NewTenant", {"name": "a\nb"}, False),
        ("RenderRequest", {"label": "a", "version": None}, True),
        ("SearchRequest", {"q": "a", "version": 1}, False),
        ("SearchRequest", {"q": "a", "version": 1, "collection": "c"}, True),
        ("SearchRequest", {"q": " "}, False),
        ("RetryRequest", {"from": "start"}, True),
        ("RetryRequest", {"from": "end"}, False),
    ],
)
def test_rules_between_members_are_in_the_document(name: str, value: Any, is_good: bool) -> None:
    """Given a rule that a Struct checks by itself, then the document says the same."""
    assert (says(name, value), takes(name, value)) == (is_good, is_good)


def test_every_exception_has_a_reason_and_a_refusal_that_it_is_about() -> None:
    assert all(one.why and re.compile(one.refusal) for one in UNSAYABLE)
    assert len({one.refusal for one in UNSAYABLE}) == len(UNSAYABLE)
    assert refusal_of({"code": "a", "detail": "d"}) == ["a d"]
    assert refusal_of({"code": "a", "errors": [{"path": "$.b", "message": "c"}]}) == ["a $.b: c"]


def test_every_link_leads_to_a_call_that_is_there() -> None:
    known = {operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()}
    links = DOCUMENT["components"]["links"]
    assert len(links) > 20
    assert {link["operationId"] for link in links.values()} <= known
    made = DOCUMENT["paths"]["/api/documents"]["post"]["responses"]["202"]["links"]
    assert {"documentId_get_api_documents_id", "jobId_get_api_jobs_id"} <= set(made)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """As JSON Schema has it: 2.0 is an integer, 2.5 is none; what is wrong besides is still named."""
    job = decode_body(
        b'{"type":"chat","maxAttempts":2.0,"input":{"messages":[{"role":"user","content":"a"}]}}', PublicJob
    )
    assert (job.max_attempts, type(job.max_attempts)) == (2, int)
    for body, path in ((b'{"type":"chat","maxAttempts":2.5,"input":{}}', "$.maxAttempts"),
                       (b'{"type":"chat","maxAttempts":2.0,"input":{"maxTokens":0}}', "$.input.maxTokens"),
                       (b'{"type":"chat","maxAttempts":1e300,"input":{}}', "$.maxAttempts")):  # fmt: skip
        with pytest.raises(RefusedError) as refused:
            decode_body(body, PublicJob)
        assert refused.value.errors[0][0] == path


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_is_taken_or_refused(number: float) -> None:
    body = f'{{"type":"chat","maxAttempts":{number!r},"input":{{}}}}'.encode()
    if number.is_integer() and 1 <= number <= 100:
        assert decode_body(body, PublicJob).max_attempts == number
        return
    with pytest.raises(RefusedError) as refused:
        decode_body(body, PublicJob)
    assert refused.value.code == "invalid_request"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/search/quality", "GET,HEAD"),
        ("POST", "/api/search/log", "DELETE,GET,HEAD"),
        ("GET", "/api/jobs/estimate", "POST"),
        ("DELETE", "/api/jobs/estimate", "POST"),
        ("PATCH", "/api/search", "GET,POST"),
        ("PUT", "/api/jobs", "GET,HEAD,POST"),
    ],
)
async def test_a_path_is_no_id_of_another(edge: Stack, method: str, path: str, allowed: str) -> None:
    """Given a path that has a name of its own where others have an id, then methods that it has not are 405."""
    answer = await edge.call(method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed), answer.text
    assert answer.json["code"] == "method_not_allowed"


@pytest.mark.parametrize("after", ["0-0", "000-000", "1-0"])
async def test_there_is_nothing_before_the_first_entry(edge: Stack, after: str) -> None:
    """Given a cursor before anything, then the audit log has an empty page, and no defect."""
    answer = await edge.call("GET", f"/api/admin/audit?after={after}")
    assert (answer.status, answer.json) == (200, {"data": [], "hasMore": False, "next": None})
    history = await edge.call("GET", f"/api/prompts/errand%2Fagent/audit?after={after}")
    assert (history.status, history.json["data"]) == (200, [])


async def test_both_places_to_resume_a_stream_after_are_read(edge: Stack) -> None:
    """Given a good Last-Event-ID, then a bad `after` is refused all the same."""
    job = await edge.submit(chat(delaySeconds=60))
    answer = await edge.call("GET", f"/api/jobs/{job}/stream?after=x", headers={"Last-Event-ID": "1"})
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "?after")


@pytest.mark.parametrize("code", sorted(PROBLEMS))
def test_every_429_and_503_says_when_to_come_again(code: str) -> None:
    answer = problem_answer(RefusedError(code, "x"), "req")
    assert ("Retry-After" in answer.headers) == (answer.status in (429, 503))
