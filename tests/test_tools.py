"""The tools of agents: what they answer, what they refuse, and that they never take anything down."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from shared.documents import Extracted
from shared.errors import ConfigurationError, InvalidInput
from shared.mcp_servers import parse_servers
from shared.settings import Settings
from shared.toolnames import BUILT_IN, problems
from tests.conftest import Stack
from worker.documents.library import Library
from worker.documents.passages import Index, Passages, rank, terms
from worker.tools.base import (
    ArgumentsError,
    Tool,
    ToolContext,
    ToolError,
    ToolResult,
    call_tool,
    check_arguments,
    cut,
)
from worker.tools.calculate import CALCULATE, calculate
from worker.tools.clock import CURRENT_TIME, describe
from worker.tools.documents import READ_DOCUMENT, search_documents
from worker.tools.registry import Toolbox

SETTINGS = Settings()
NOWHERE: Any = None  # a library that the tool under test does not touch


def context_of(library: Any = NOWHERE, **more: Any) -> ToolContext:
    return ToolContext(**{"tenant": "ten_x", "library": library, "settings": SETTINGS, **more})


# -- calculate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0.1 + 0.2", "0.3"),
        ("1/3*3", "1"),
        ("2**10", "1024"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("2**-3", "0.125"),
        ("200 * 15%", "30"),
        ("100% - 20%", "0.8"),
        ("7 % -3", "-2"),
        ("2 × (3 − 1) ÷ 4", "1"),
        ("round(2.5)", "3"),
        ("round(1.005, 2)", "1.01"),
        ("round(-2.675, 2)", "-2.68"),
        ("sum([1, 2, 3.5]) + max(1, 2) - min(4, 3)", "5.5"),
        ("sqrt(16/9)", "1.333333333333333333333333333 (rounded to 28 digits)"),
        ("sin(pi) + cos(0)", "1"),
        ("log2(8) + log10(1000) + log(e) + log(9, 3)", "9"),
        ("8**(1/3)", "2"),
        ("floor(2.7) + ceil(2.1) + abs(-1) + factorial(5)", "126"),
        ("round(250000*0.0042/(1-1.0042**-360), 2)", "1348.17"),
        ("123456789 * 987654321", "121932631112635269"),
        ("0**0", "1"),
    ],
)
def test_sums_are_exact(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("9**9**9", "too large"),
        ("9**9**9**9**9", "too large"),
        ("10**400 * 10**400 * 10**400 * 10**400", "too large"),
        ("factorial(100000)", "0 to 400"),
        ("exp(10**9)", "too large"),
        ("1e999999999", "too large"),
        ("3.3**(10**60)", "too large"),
        ("0.5**99999", "too small"),
        ("1/0", "divides by zero"),
        ("0**-1", "divides by zero"),
        ("tan(pi/2)", "tangent"),
        ("sqrt(-1)", "negative"),
        ("(-8)**(1/3)", "negative"),
        ("log(0)", "positive"),
        ("1,234.5 * 2", "thousands separators"),
        ("sqrt(1,234)", "thousands separators"),
        ("2(3+4)", "multiplication"),
        ("1 < 2", "Comparisons"),
        ("2 ^ 3", "power"),
        ("x + 1", "unknown"),
        ("nan", "unknown"),
        ("1j", "real numbers"),
        ("'a' * 5", "real numbers"),
        ("True", "real numbers"),
        ("__import__('os').system('true')", "multiplication"),
        ("open('x')", "no function"),
        ("(1).__class__", "Only numbers"),
        ("[x for x in (1, 2)]", "Only numbers"),
        ("lambda: 1", "Only numbers"),
        ("f'{1}'", "Only numbers"),
        ("max(*[1, 2])", "Only numbers"),
        ("round(1.5, ndigits=1)", "round takes"),
        ("12 **", "no arithmetic"),
        ("", "no arithmetic"),
        ("(" * 300 + "1" + ")" * 300, "no arithmetic"),
        ("-" * 900 + "1", "nested"),
        ("1+" * 600 + "1", "characters"),
        ("٣ + 1", "Only digits"),
        ("\x00", "no arithmetic"),
    ],
)
def test_what_cannot_be_calculated_is_refused_at_once_with_a_sentence(expression: str, sentence: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ToolError, match=sentence):
        calculate(expression)
    assert time.perf_counter() - began < 0.25


@pytest.mark.parametrize(
    "expression",
    [
        "+".join(f"1/{n}" for n in range(1001, 1140)),
        "*".join(["1.0123456789"] * 76),
        "/".join(["factorial(399)"] * 60),
        "exp(2000.5)**0.9" + "*sin(10**6-0.1)" * 50,
        "(10**1200)" + "//7+10**1200" * 60,
    ],
)
def test_no_expression_takes_long(expression: str) -> None:
    assert len(expression) <= 1_000
    began = time.perf_counter()
    with suppress(ToolError):
        calculate(expression)
    assert time.perf_counter() - began < 0.25


# -- current_time ----------------------------------------------------------------------------------------------------


def test_the_time_comes_with_weekday_and_offset() -> None:
    winter = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    assert describe(winter, "UTC") == "Saturday, 2026-01-31T09:30:00+00:00 (UTC)"
    assert describe(winter, "europe/zurich") == "Saturday, 2026-01-31T10:30:00+01:00 (Europe/Zurich)"
    assert describe(winter, "Pacific/Auckland").startswith("Saturday, 2026-01-31T22:30:00+13:00")


@pytest.mark.parametrize("zone", ["Europe/Zurihc", "zurich", "../../etc/passwd", "America", "", "x" * 500])
def test_an_unknown_zone_is_refused_with_help(zone: str) -> None:
    with pytest.raises(ToolError, match="IANA") as refused:
        describe(datetime(2026, 1, 31, tzinfo=UTC), zone)
    assert ("Perhaps Europe/Zurich" in str(refused.value)) == ("uri" in zone)


async def test_the_time_is_now() -> None:
    result = await call_tool(CURRENT_TIME, {}, context_of())
    found = re.search(r"\d{4}-\S+", result.text)
    assert found
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found[0])).total_seconds()) < 5


# -- calling and checking --------------------------------------------------------------------------------------------


def tool_that(run: Any, **more: Any) -> Tool:
    return Tool(**{"name": "t", "description": "", "parameters": {"type": "object"}, "run": run, **more})


async def test_a_tool_that_takes_too_long_is_stopped_and_says_so() -> None:
    stopped = asyncio.Event()

    async def slow(arguments: dict[str, Any], context: ToolContext) -> str:
        try:
            await asyncio.sleep(2)
        finally:
            stopped.set()
        return ""

    result = await call_tool(tool_that(slow, timeout_s=0.05), {}, context_of())
    assert (result.is_error, stopped.is_set()) == (True, True)
    assert "longer than 0.05 s" in result.text


async def test_a_tool_that_breaks_is_a_result_that_tells_no_secret() -> None:
    async def broken(arguments: dict[str, Any], context: ToolContext) -> str:
        raise ValueError("secret")

    async def timed_out(arguments: dict[str, Any], context: ToolContext) -> str:
        raise TimeoutError("not ours")

    for run in (broken, timed_out):
        result = await call_tool(tool_that(run), {}, context_of())
        assert result.is_error
        assert "reason of its own" in result.text
        assert "secret" not in result.text


async def test_errors_for_the_model_reach_it_and_a_cancel_passes() -> None:
    async def refusing(arguments: dict[str, Any], context: ToolContext) -> str:
        raise ToolError("Give me less.")

    async def missing(arguments: dict[str, Any], context: ToolContext) -> str:
        raise InvalidInput("There is no document.")

    async def cancelled(arguments: dict[str, Any], context: ToolContext) -> str:
        raise asyncio.CancelledError

    assert await call_tool(tool_that(refusing), {}, context_of()) == ToolResult("Give me less.", is_error=True)
    assert await call_tool(tool_that(missing), {}, context_of()) == ToolResult("There is no document.", is_error=True)
    with pytest.raises(asyncio.CancelledError):
        await call_tool(tool_that(cancelled), {}, context_of())


async def test_a_long_result_is_cut_at_a_boundary_and_says_how_much_is_missing() -> None:
    async def talkative(arguments: dict[str, Any], context: ToolContext) -> str:
        return "One sentence. " * 1_000

    result = await call_tool(tool_that(talkative, output_characters=1_000), {}, context_of())
    assert result.truncated
    kept, _, note = result.text.partition("\n[")
    assert kept.endswith("One sentence.")
    assert 800 <= len(kept) <= 1_000
    assert note == f"{14_000 - len(kept) - 1:,} of 14,000 characters were left out here.]"
    assert cut("x" * 50, 10) == ("x" * 10 + "\n[40 of 50 characters were left out here.]", True)
    assert cut("x" * 10, 10) == ("x" * 10, False)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("", '"expression" is a required property'),
        ("{", "no JSON"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "no JSON"),
        ('{"expression": 5}', "is not of type"),
        ('{"expression": "1", "x": 1}', "'x' was unexpected"),
        ("x" * 100_001, "longer than"),
    ],
)
def test_wrong_arguments_are_explained(raw: str, said: str) -> None:
    with pytest.raises(ArgumentsError) as refused:
        check_arguments(CALCULATE, raw)
    assert said in str(refused.value)
    assert "longer" in said or 'Expected: {"expression": string (required)}' in str(refused.value)


def test_good_arguments_pass() -> None:
    assert check_arguments(CALCULATE, '{"expression": "1"}') == {"expression": "1"}
    assert check_arguments(CURRENT_TIME, " ") == {}


# -- names -----------------------------------------------------------------------------------------------------------

SERVERS = '{"wiki": {"url": "https://wiki.example/mcp", "tools": ["find"]}, "shop": {"command": "x"}}'


def test_names_are_judged_without_the_tools() -> None:
    settings = Settings(mcp_servers=SERVERS)
    assert problems(["calculate", "wiki__find", "wiki__*", "shop__whatever", "calculate"], settings) == []
    found = problems(["nonsense", "fetch_url", "mail__send", "wiki__drop", "shop__a b", "__x", "wiki__"], settings)
    assert len(found) == 7
    for sentence, words in zip(found, ("no tool 'nonsense'", "ERRAND_FETCH_ENABLED", "no MCP server 'mail'",
                                       "these may be used: find", "no name of a tool", "no MCP server ''",
                                       "no tool 'wiki__'"), strict=True):  # fmt: skip
        assert words in sentence
    assert "calculate, current_time, search_documents, read_document, wiki__*, shop__*" in found[0]
    assert problems(["fetch_url"], Settings(fetch_enabled=True)) == []


async def test_the_toolbox_gives_each_tool_once_and_refuses_what_it_has_not() -> None:
    box = Toolbox(Settings(fetch_enabled=True), NOWHERE)
    assert [tool.name for tool in await box.resolve(BUILT_IN, has_documents=False)] == list(BUILT_IN)
    assert [tool.name for tool in await box.resolve(["calculate"] * 3, has_documents=True)] == ["calculate"]
    assert [tool.name for tool in await box.resolve(None, has_documents=False)] == ["calculate", "current_time"]
    assert len(await box.resolve(None, has_documents=True)) == 4
    assert await box.resolve([], has_documents=True) == []
    with pytest.raises(InvalidInput, match=r"There is no tool 'x'; there are: calculate, current_time, .*fetch_url\."):
        await box.resolve(["calculate", "x"], has_documents=False)
    with pytest.raises(InvalidInput, match="switched off"):
        await Toolbox(SETTINGS, NOWHERE).resolve(["fetch_url"], has_documents=False)
    await box.close()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"Shop": {"command": "s3cret"}}',
        '{"shop": {"command": "s3cret", "url": "https://s3cret"}}',
        '{"shop": {}}',
        '{"shop": {"command": "x", "env": {"KEY": 5}}}',
        '{"shop": {"command": "x", "colour": "s3cret"}}',
        '{"shop": {"command": "x", "headers": {"Authorization": "s3cret"}}}',
        '{"shop": {"url": "ftp://s3cret"}}',
        '{"shop": {"command": "x", "timeoutSeconds": 0}}',
    ],
)
def test_wrong_servers_stop_the_start_and_no_secret_is_told(text: str) -> None:
    with pytest.raises(ConfigurationError, match="ERRAND_MCP_SERVERS") as refused:
        Settings.load({"ERRAND_MCP_SERVERS": text})
    assert "s3cret" not in str(refused.value)
    assert parse_servers("") == {}


# -- documents -------------------------------------------------------------------------------------------------------

HARBOUR = "The harbour's ferries leave at nine. A new crane costs 42 francs."
CAFE = "Le café est fermé le lundi. " + "Nothing else is said of it here. " * 100


async def stored(stack: Stack, text: str, **more: Any) -> str:
    answer = await stack.call("POST", "/api/documents", {"text": text, **more})
    await stack.finished(answer.json["jobId"])
    return str(answer.json["documentId"])


def library_of(stack: Stack) -> Library:
    return stack.engines[0]._deps.library


async def tenant_of(stack: Stack) -> str:
    keys = await stack.client.zrange(f"{stack.settings.redis_prefix}tenants", 0, -1)  # type: ignore[misc]
    assert len(keys) == 1
    return str(keys[0].decode())


def test_words_that_many_passages_have_still_count() -> None:
    """Given a document in which most passages speak of the crane, when its cost is looked for, then the passage with
    both words comes before those with one of them; and the commonest words alone find nothing else."""
    sections = [f"The crane was moved to berth {number}. " + "It stands there still, by the quay. " * 30
                for number in range(4)]  # fmt: skip
    sections.append("The crane costs ninety thousand francs. " + "It stands there still, by the quay. " * 30)
    sections.append("Energy costs fell. " + "Nobody knows the reason for that. " * 30)
    index = Index(Extracted("text/plain", "\n\n".join(sections), [], []), "Report")
    hits = rank([("doc_1", index)], "What does the crane cost?", 5)
    assert "ninety thousand" in hits[0].part.text
    assert {hit.part.text.split(".")[0].strip() for hit in hits[:2]} == {
        "The crane costs ninety thousand francs", "Energy costs fell",
    }  # fmt: skip


async def test_passages_are_found_by_their_words_best_first(stack: Stack) -> None:
    """Given two documents, when words of one are looked for in another case and number, without accents, then its
    passage comes first, with its place."""
    harbour = await stored(stack, HARBOUR, title="Harbour")
    cafe = await stored(stack, CAFE, title="Coffee")
    tool = search_documents(Passages(library_of(stack), 1_000_000))
    context = context_of(library_of(stack), tenant=await tenant_of(stack))
    result = await call_tool(tool, {"query": "Which CRANES cost francs?"}, context)
    assert result.text == f"[1] Harbour (documentId {harbour}, characters 0-{len(HARBOUR)})\n{HARBOUR}"
    result = await call_tool(tool, {"query": "cafe ferme", "limit": 1}, context)
    assert result.text.startswith(f"[1] Coffee (documentId {cafe}, characters 0-")
    assert "[2]" not in result.text
    result = await call_tool(tool, {"query": "zeppelin"}, context)
    assert (result.text, result.is_error) == (
        "Nothing was found for 'zeppelin' in 2 documents; try other words.",
        False,
    )


async def test_a_job_sees_the_documents_that_it_named_only(stack: Stack) -> None:
    harbour = await stored(stack, HARBOUR, collection="sea")
    other = await stored(stack, HARBOUR.replace("42", "43"), collection="land")
    library, tenant = library_of(stack), await tenant_of(stack)
    tool = search_documents(Passages(library, 1_000_000))
    for scope in ({"documents": (harbour,)}, {"collection": "sea"}):
        context = context_of(library, tenant=tenant, **scope)
        result = await call_tool(tool, {"query": "crane"}, context)
        assert harbour in result.text
        assert other not in result.text
        refused = await call_tool(READ_DOCUMENT, {"documentId": other}, context)
        assert refused.is_error
        assert "none of this job's documents" in refused.text
        assert (await call_tool(READ_DOCUMENT, {"documentId": harbour}, context)).is_error is False
    stranger = context_of(library, tenant="ten_other")
    assert (await call_tool(tool, {"query": "crane"}, stranger)).text == "There are no documents to search."
    assert (await call_tool(READ_DOCUMENT, {"documentId": harbour}, stranger)).is_error
    named = context_of(library, tenant="ten_other", documents=(harbour,))
    assert "crane" not in (await call_tool(tool, {"query": "crane"}, named)).text


async def test_a_deleted_document_is_found_no_more(stack: Stack) -> None:
    """Given a document whose passages are kept in memory, when it is deleted, then no search shows it."""
    harbour = await stored(stack, HARBOUR)
    library, tenant = library_of(stack), await tenant_of(stack)
    tool = search_documents(Passages(library, 1_000_000))
    contexts = [context_of(library, tenant=tenant), context_of(library, tenant=tenant, documents=(harbour,))]
    for context in contexts:
        assert harbour in (await call_tool(tool, {"query": "crane"}, context)).text
    await stack.call("DELETE", f"/api/documents/{harbour}")
    for context in contexts:
        assert "francs" not in (await call_tool(tool, {"query": "crane"}, context)).text


async def test_a_search_is_bounded_and_says_what_it_left_out(stack: Stack) -> None:
    old = await stored(stack, HARBOUR)
    await stored(stack, CAFE)
    library = library_of(stack)
    passages = Passages(library, len(CAFE) + 10)
    tool = search_documents(passages)
    context = context_of(library, tenant=await tenant_of(stack))
    result = await call_tool(tool, {"query": "crane"}, context)
    assert "Nothing was found" in result.text
    assert "(Not searched: 1 documents: one search looks through" in result.text
    assert old in (await call_tool(tool, {"query": "crane"}, msgspec.structs.replace(context, documents=(old,)))).text
    assert passages._characters <= len(CAFE) + 10


async def test_a_document_is_read_piece_by_piece(stack: Stack) -> None:
    text = "".join(f"Line {n} of the text \U0001f600.\n" for n in range(1_000)).strip()
    document = await stored(stack, text, title="Long")
    context = context_of(library_of(stack), tenant=await tenant_of(stack), documents=(document,))
    read, start = "", 0
    while True:
        result = await call_tool(READ_DOCUMENT, {"start": start, "length": 7_000}, context)
        head, _, rest = result.text.partition("\n")
        body, _, tail = rest.rpartition("\n")
        assert head.startswith(f"Long (documentId {document}, characters {start}-")
        assert head.endswith(f" of {len(text)})")
        read += body
        if tail == "[This is the end of the document.]":
            break
        start = int(re.findall(r"\d+", tail)[0])
        assert tail == f"[Goes on: call again with start {start}.]"
    assert read == text
    beyond = await call_tool(READ_DOCUMENT, {"start": len(text)}, context)
    assert (beyond.is_error, "start must be less" in beyond.text) == (True, True)
    two = msgspec.structs.replace(context, documents=(document, "doc_2"))
    assert "Say which document" in (await call_tool(READ_DOCUMENT, {}, two)).text


def test_words_are_folded() -> None:
    assert terms("Ferries' CAFÉS, straße 3.5 glass 東京") == ["ferry", "cafe", "strasse", "3", "5", "glass", "東", "京"]
