"""What `python -m scripts.conformance` adds to schemathesis, which loads this file: valid requests are taken, except
where a rule that JSON Schema cannot say refuses them; streams and long polls are bounded."""

from __future__ import annotations

import json
import os
import random
import re
from typing import Any, Final, NamedTuple

import schemathesis
from schemathesis.specs.openapi.checks import use_after_free

LONGEST_POLL_S: Final = 1
KNOWN: Final[dict[str, list[str]]] = json.loads(os.environ.get("ERRAND_KNOWN", "{}"))  # scripts.conformance makes them
_draw: Final = random.Random(1)  # noqa: S311 - no secret


def _half() -> bool:
    return _draw.random() < 0.5


class Unsayable(NamedTuple):
    """A refusal of what the document allows: `refusal` is a pattern of `<code> <path>: <message>`, `why` the reason."""

    refusal: str
    why: str


# Each is a rule of the HTTP contract about what exists, or between values, for which OpenAPI has no words.
UNSAYABLE: Final = (
    Unsayable("idempotency_mismatch ", "a key that was used for another body: of the requests before, not of this one"),
    Unsayable(r"invalid_request .*: (There is no document|is no batch file)", "a job names what is not there"),
    Unsayable(r"invalid_request .*prompt.*: (there is no prompt|the prompt has)", "a job names what is not there"),
    Unsayable(r"invalid_request .*prompt.*: a [a-z-]+ job takes no prompt", "which types take one"),
    Unsayable(r"invalid_request .*\.(tools|approve)\[", "which tools there are depends on the installation"),
    Unsayable(r"invalid_request .*\.url: fetching is switched off", "a setting of the installation"),
    Unsayable(r"invalid_request .*\.schema: is no valid JSON Schema", "a schema within the body"),
    Unsayable(r"invalid_request .*: `model` and `input.model` differ", "two values must be equal"),
    Unsayable(r"invalid_request .*: soft(Tokens|Usd) must not be above", "one value bounds another"),
    Unsayable(r"invalid_request .*: there may be one budget for each period", "values that differ between items"),
    Unsayable(r"invalid_request .*: `variants` names a version twice", "values that differ between items"),
    Unsayable(r"invalid_request .*: .*[bB]urst needs", "a merge patch is judged by what comes of it"),
    Unsayable(r"invalid_request .*expiresAt.*: .*(future|past|expired)", "a time is judged by the clock"),
    Unsayable(r"invalid_request (\$\.)?label: (give either a label or a version|the prompt has no label)",
              "parameters that exclude each other; what a label is when none is given"),
    Unsayable(r"invalid_request \$\.name: the shared prompts are those in", "a parameter bounds a member of the body"),
    Unsayable(r"invalid_request \$\.(messages|variables)", "the templates' own grammar"),
    Unsayable(r"invalid_request .*: (is refused: |`filter` is refused: )", "the filters' own grammar (docs/search.md)"),
    Unsayable(r"invalid_request \?filter: must be a JSON object", "JSON within a parameter"),
    Unsayable(r"invalid_request (\?|\$\.)after: is no cursor of this (list|call)",
              "cursors are opaque: only a page gives one"),
    Unsayable(r"invalid_request .*\burl: (.* is no URL|The host|The URL|Port|Only http|A URL with)",
              "the grammar of hosts, and which of them are on the public network"),
    Unsayable(r"invalid_request \?(from|to).*: (is .*, after `to`|.* is more than)", "one value bounds another"),
    Unsayable(r"invalid_request \$\.chunkId: is none of the chunks", "a search's own chunks"),
    Unsayable(r"invalid_request multipart\.index: this is a batch file", "the file's own content"),
    Unsayable(r"invalid_request multipart\.metadata: must be a JSON object", "JSON within a field"),
    Unsayable(r"invalid_request .*(no index version|`version` needs `collection`)", "a collection's own versions"),
    Unsayable(r"invalid_request \$: a document keeps its collection", "what the document was before"),
    Unsayable(r"invalid_request Last-Event-ID: is the place of another chat", "a header bounds the address"),
    Unsayable(r"invalid_request \$\.model: vectors of two models", "what the job was before"),
    Unsayable(r"invalid_request \$\.variants: the prompt has the versions", "a prompt's own versions"),
    Unsayable(r"invalid_request .*engine.*: .*vector sets", "what the installation's Redis can"),
)  # fmt: skip


def refusal_of(problem: Any) -> list[str]:
    """What a problem says, a line for each error."""
    code = problem.get("code", "")
    return [f"{code} {one['path']}: {one['message']}" for one in problem.get("errors", ())] or [
        f"{code} {problem.get('detail', '')}"
    ]


@schemathesis.check
def what_is_described_is_accepted(ctx: Any, response: Any, case: Any) -> None:
    """Requests as the document describes them are not refused for their form."""
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or response.status_code not in (400, 406, 413, 415, 422):
        return
    for line in refusal_of(response.json()):
        if not any(re.match(one.refusal, line) for one in UNSAYABLE):
            raise AssertionError(f"The document allows what was refused: {line}")


@schemathesis.check
def what_is_deleted_is_gone(ctx: Any, response: Any, case: Any) -> Any:
    """What schemathesis calls use after free. DELETE of a job cancels it, as the contract says: it can be read after
    that."""
    if not case.path.startswith("/api/jobs/"):
        return use_after_free(ctx, response, case)
    return None


@schemathesis.hook
def before_call(ctx: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Bounds what would wait: long polls, and streams of jobs that begin in a year. And half of what is drawn one by
    one is about something that is there; what is to be deleted, the chains make themselves."""
    if case.meta is not None and case.meta.phase.name.value == "fuzzing" and case.method != "DELETE" and _half():
        for before, part in re.findall(r"([a-z-]+)/{(\w+)}", case.path):
            if (there := KNOWN.get(f"{before}/{part}")) and case.path_parameters:
                case.path_parameters[part] = _draw.choice(there)
    query = case.query or {}
    if str(query.get("wait", "")).isdigit() and LONGEST_POLL_S < int(query["wait"]) <= 60:
        case.query["wait"] = LONGEST_POLL_S
    if isinstance(case.body, dict):
        for late in ("runAt", "delaySeconds"):
            if case.meta is not None and case.meta.generation.mode.is_positive and case.body.get(late):
                case.body[late] = "1990-01-01T00:00:00Z" if late == "runAt" else 0
