"""Templates of prompts: substitution only, once, and strict."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import RefusedError
from shared.prompts import (
    Content,
    NewVersion,
    Parameters,
    Variable,
    VariableType,
    canonical,
    content_of,
    digest,
    problems_of,
    render,
)
from shared.specs import ChatMessage
from shared.templates import BadTemplateError, names_in, parse

# Values that try to be looked at again.
NASTY = st.text(max_size=40) | st.lists(
    st.sampled_from(
        ["{{a}}", "{{b}}", "{{", "}}", "\\{{", "{", "}", "%s", "$a", "{a}", "\n", "</system>", "é", '"', "\\"]
    )
).map("".join)


def content(*texts: str, **variables: Variable) -> Content:
    roles = ("system", "user", "assistant")
    messages = [ChatMessage(role=roles[place % 3], content=text) for place, text in enumerate(texts)]
    return content_of(Content(messages=messages, variables=variables))


@given(NASTY, NASTY)
def test_a_value_is_never_looked_at_again(a: str, b: str) -> None:
    """Given any values, then each stands where its variable was, as it is, and all else is the version's own text."""
    filled = render(content("x{{a}}y{{b}}z{{ a }}", "{{b}}"), {"a": a, "b": b})
    assert [message["content"] for message in filled] == [f"x{a}y{b}z{a}", b]


@given(st.lists(NASTY, min_size=3, max_size=3))
def test_no_value_makes_a_message_or_a_role(values: list[str]) -> None:
    version = content("{{a}}", "{{b}} and {{c}}", "fixed")
    filled = render(version, dict(zip("abc", values, strict=True)))
    assert [message["role"] for message in filled] == ["system", "user", "assistant"]
    assert all(set(message) == {"role", "content"} for message in filled)


@given(st.text(alphabet=st.sampled_from("{}\\ab_1 \n"), max_size=30))
def test_a_text_is_a_template_or_is_refused(text: str) -> None:
    """Given any text, then it is cut so that filling it gives back what was around its variables; or it is
    refused."""
    try:
        cut = parse(text)
    except BadTemplateError:
        return
    assert len(cut.texts) == len(cut.names) + 1
    marked = cut.fill(dict.fromkeys(cut.names, "\x00"))
    assert marked.split("\0") == list(cut.texts)
    assert all(name.isidentifier() for name in cut.names)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("no variable {at} all", "no variable {at} all"),
        ("\\{{a}} is written {{a}}", "{{a}} is written 1"),
        ('{"a": {{a}}}', '{"a": 1}'),
        ("{{a}}{{a}}", "11"),
        ("}} {{a}} }", "}} 1 }"),
    ],
)
def test_braces(text: str, filled: str) -> None:
    assert parse(text).fill({"a": "1"}) == filled


@pytest.mark.parametrize(
    "text", ["{{}}", "{{ a b }}", "{{a.b}}", "{{1a}}", "{{a", "line\n{{{a}}}", "{{a|upper}}", "{{#if a}}"]
)
def test_what_looks_like_a_variable_and_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadTemplateError, match=r"in line \d is no variable"):
        parse(text)
    (problem,) = problems_of(NewVersion(messages=[ChatMessage(role="user", content=text)]))
    assert problem[0] == "$.messages[0].content"


def test_variables_are_typed_and_strict() -> None:
    version = content(
        "{{s}} {{n}} {{i}} {{b}} {{j}} {{o}}|{{d}}",
        s=Variable(),
        n=Variable(type=VariableType.NUMBER),
        i=Variable(type=VariableType.INTEGER),
        b=Variable(type=VariableType.BOOLEAN),
        j=Variable(type=VariableType.JSON),
        o=Variable(required=False),
        d=Variable(default="by itself"),
    )
    good = {"s": "é", "n": 1.5, "i": 7, "b": True, "j": {"a": ["é", None]}}
    (message,) = render(version, good)
    assert message["content"] == 'é 1.5 7 true {"a":["é",null]} |by itself'
    bad = {"s": 5, "n": "1", "i": 1.5, "b": 1, "x": ""}
    with pytest.raises(RefusedError) as refused:
        render(version, bad)
    assert {path for path, _ in refused.value.errors} == {
        "$.variables.s", "$.variables.n", "$.variables.i", "$.variables.b", "$.variables.x", "$.variables.j",
    }  # fmt: skip
    assert ("$.variables.j", "this variable is required") in refused.value.errors


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({"a": {}, "b": {}}, "$.variables.b"),
        ({"b": {}}, "$.messages[0].content"),
        ({"a": {"default": 5}}, "$.variables.a.default"),
        ({"a": {"required": True, "default": "x"}}, "$.variables.a.default"),
    ],
)
def test_declarations_fit_the_messages(variables: object, path: str) -> None:
    new = msgspec.convert({"messages": [{"role": "user", "content": "{{a}}"}], "variables": variables}, NewVersion)
    assert path in [where for where, _ in problems_of(new)]


def test_undeclared_variables_must_be_given() -> None:
    version = content("Hello {{name}}")
    assert version.variables == {"name": Variable()}
    assert names_in(["{{b}} {{a}}", "{{b}}"]) == ["b", "a"]


def test_a_filled_prompt_has_its_bound() -> None:
    version = content("{{a}}" * 3)
    with pytest.raises(RefusedError, match="characters"):
        render(version, {"a": "x" * 900_000})
    with pytest.raises(RefusedError, match="is longer than"):
        render(version, {"a": "x" * 1_000_001})


def test_the_hash_is_over_what_a_version_says() -> None:
    """Given the same content with its members in another order and its absent ones written out, then the hash is the
    same; a changed letter, role, type or parameter gives another."""
    one = b'{"messages":[{"role":"user","content":"{{a}}"}],"variables":{"a":{"type":"string"}},"model":null}'
    two = b'{"variables":{"a":{}},"messages":[{"content":"{{a}}","role":"user"}]}'
    first, second = (msgspec.json.decode(text, type=Content) for text in (one, two))
    assert canonical(first) == canonical(second)
    others = [
        msgspec.structs.replace(first, model="m"),
        msgspec.structs.replace(first, parameters=Parameters(temperature=0.0)),
        msgspec.structs.replace(first, variables={"a": Variable(type=VariableType.JSON)}),
        msgspec.structs.replace(first, messages=[ChatMessage(role="system", content="{{a}}")]),
        msgspec.structs.replace(first, messages=[ChatMessage(role="user", content="{{a}} ")]),
    ]
    assert len({digest(version) for version in [first, *others]}) == 6
