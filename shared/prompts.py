"""Prompts: what a version holds, how it is judged and filled, and how it is named. docs/adr/0015-prompts.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared import templates
from shared.errors import RefusedError
from shared.jobs import ExperimentArm, Output
from shared.rules import Rule, not_both
from shared.specs import ChatMessage, ShortText, Wire

SHARED: Final = "shared"  # owner of the prompts that every tenant has
BUILT_IN: Final = "errand/"  # folder of the prompts of the built-in jobs
PRODUCTION: Final = "production"
LATEST: Final = "latest"
MAX_MESSAGES: Final = 100
MAX_CHARACTERS: Final = 500_000  # of all messages of a version together
MAX_VALUE_CHARACTERS: Final = 1_000_000
MAX_RENDERED: Final = 2_000_000  # characters of all messages, filled
MAX_VARIABLES: Final = 100
MAX_DEFAULTS: Final = 100_000  # characters of all defaults of a version together
MAX_PROMPTS: Final = 10_000  # of an owner
MAX_ARCHIVED: Final = 100_000  # of an owner, with those that are not
MAX_VERSIONS: Final = 10_000  # of a prompt
MAX_LABELS: Final = 100  # of a prompt
MAX_PAST: Final = 100  # moves of a label that can be rolled back

# `$` alone would let a line break at the end pass.
PromptName = Annotated[
    str, Meta(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$(?!\n)")
]
# Digits alone are the number of a version, wherever either may stand.
LabelName = Annotated[str, Meta(max_length=64, pattern=r"^([a-z][a-z0-9._-]*|[0-9]+[a-z._-][a-z0-9._-]*)$(?!\n)")]
VariableName = Annotated[str, Meta(pattern=f"^{templates.NAME}$(?!\\n)")]


class VariableType(StrEnum):
    """What a variable takes. A string goes in as it is, everything else as JSON."""

    STRING = "string"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    JSON = "json"


class Variable(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """A variable of a prompt. It is required unless it has a `default`, or says that it is not: then it is empty."""

    type: VariableType = VariableType.STRING
    required: bool | None = None
    default: Any = None
    description: Annotated[str, Meta(max_length=1_000)] | None = None

    @property
    def is_required(self) -> bool:
        """Whether a value must be given."""
        return self.required if self.required is not None else self.default is None


class Parameters(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """How the model is asked, where the job does not say."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


Values = Annotated[dict[Annotated[str, Meta(max_length=64)], Any], Meta(max_length=MAX_VARIABLES)]
Variables = Annotated[dict[VariableName, Variable], Meta(max_length=MAX_VARIABLES)]


class Content(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """What a version says: all that its hash is over."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    variables: Variables = msgspec.field(default_factory=dict)
    model: ShortText | None = None
    parameters: Parameters | None = None


Note = Annotated[str, Meta(max_length=2_000)]


class NewVersion(Content, frozen=True, kw_only=True):
    """Body of `POST /api/prompts/{name}/versions`. `labels` point at it at once."""

    note: Note | None = None
    labels: Annotated[list[LabelName], Meta(max_length=20)] = msgspec.field(default_factory=list)


class NewPrompt(NewVersion, frozen=True, kw_only=True):
    """Body of `POST /api/prompts`: the prompt and its version 1."""

    name: PromptName
    description: Note | None = None


class Version(Content, frozen=True, kw_only=True):
    """A version as it is stored. `by` is the id of the key that made it, or `system`; `at_ms` when."""

    version: int
    sha256: str
    note: str | None = None
    by: str
    at_ms: int


class VersionView(Output, frozen=True, kw_only=True):
    """A version. `label` is the one by which it was found, null when it was asked for by its number; `labels` are all
    that point at it; `shared` says whether it is one that every tenant has."""

    name: str
    description: str | None
    version: int
    latest_version: int
    label: str | None
    labels: list[str]
    shared: bool
    messages: list[ChatMessage]
    variables: dict[str, Variable]
    model: str | None
    parameters: Parameters | None
    note: str | None
    sha256: str
    created_at: str
    created_by: str


class Pin(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The version of a prompt that a job uses in all its attempts; `arm` is that of `experiment`, counted from 0."""

    name: str
    version: int
    owner: str
    label: str | None = None
    experiment: str | None = None
    arm: int | None = None
    sticky_by: str | None = None

    @property
    def spelled(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


def content_of(new: Content) -> Content:
    """The content alone; variables that are used and not declared are strings that must be given, if none are
    declared at all."""
    variables = new.variables
    if not variables:
        variables = {name: Variable() for name in templates.names_in(message.content for message in new.messages)}
    return Content(messages=new.messages, variables=variables, model=new.model, parameters=new.parameters)


def canonical(content: Content) -> bytes:
    """The one JSON text of a content: members sorted, absent ones left out."""
    builtins = msgspec.to_builtins(
        Content(
            messages=content.messages,
            variables=content.variables,
            model=content.model,
            parameters=content.parameters,
        )
    )
    return msgspec.json.encode(builtins, order="sorted")


def digest(content: Content) -> str:
    """SHA-256 of that text, hexadecimal."""
    return hashlib.sha256(canonical(content)).hexdigest()


def problems_of(new: Content, *, is_built_in: bool = False) -> list[tuple[str, str]]:
    """What is wrong with a new version, as (JSON path, sentence)."""
    if sum(len(message.content) for message in new.messages) > MAX_CHARACTERS:
        return [("$.messages", f"the messages have more than {MAX_CHARACTERS:,} characters together")]
    found: list[tuple[str, str]] = []
    used: dict[str, int] = {}
    for place, message in enumerate(new.messages):
        try:
            for name in templates.parse(message.content).names:
                used.setdefault(name, place)
        except templates.BadTemplateError as error:
            found.append((f"$.messages[{place}].content", str(error)))
    if len(used) > MAX_VARIABLES:
        found.append(("$.messages", f"the messages use more than {MAX_VARIABLES} variables"))
    elif new.variables:
        for name, place in used.items():
            if name not in new.variables:
                found.append((f"$.messages[{place}].content", f"the variable {name!r} is not declared in `variables`"))
    for name, variable in new.variables.items():
        found += _variable_problems(name, variable, is_used=name in used)
    if sum(len(_text_of(one.default)) for one in new.variables.values() if one.default is not None) > MAX_DEFAULTS:
        found.append(("$.variables", f"the defaults have more than {MAX_DEFAULTS:,} characters together"))
    if is_built_in and (required := [name for name, one in content_or(new).items() if one.is_required]):
        found.append(("$.variables", f"jobs give no values to a built-in prompt, and {required[0]!r} is required"))
    return found


def content_or(new: Content) -> Mapping[str, Variable]:
    """The variables that a version would have; none when its templates are broken."""
    try:
        return content_of(new).variables
    except templates.BadTemplateError:
        return {}


def _variable_problems(name: str, variable: Variable, *, is_used: bool) -> list[tuple[str, str]]:
    path = f"$.variables.{name}"
    if not is_used:
        return [(path, "no message uses it")]
    if variable.required and variable.default is not None:
        return [(f"{path}.default", "a required variable needs no default")]
    if variable.default is not None and (wrong := _wrong_value(variable, variable.default)):
        return [(f"{path}.default", wrong)]
    return []


def _wrong_value(variable: Variable, value: Any) -> str | None:
    """What is wrong with a value of a variable, or None."""
    match variable.type:
        case VariableType.STRING:
            fits = isinstance(value, str)
        case VariableType.NUMBER:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        case VariableType.INTEGER:
            fits = isinstance(value, int) and not isinstance(value, bool)
        case VariableType.BOOLEAN:
            fits = isinstance(value, bool)
        case VariableType.JSON:
            fits = True
    if not fits:
        return f"must be of type {variable.type.value}"
    if len(_text_of(value)) > MAX_VALUE_CHARACTERS:
        return f"is longer than {MAX_VALUE_CHARACTERS:,} characters"
    return None


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def value_problems(content: Content, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with the values for a version, as (path below `variables`, sentence)."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        variable = content.variables.get(name)
        if variable is None:
            known = ", ".join(content.variables) or "none"
            found.append((name, f"the prompt has no such variable; it has {known}"))
        elif wrong := _wrong_value(variable, value):
            found.append((name, wrong))
    found += [
        (name, "this variable is required")
        for name, variable in content.variables.items()
        if variable.is_required and name not in values
    ]
    return found


def render(content: Content, values: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages with these values in them, as a model takes them. A JSON string of type `json` is quoted.

    Raises RefusedError naming each `$.variables.<name>` that is wrong, and when the whole is too long.
    """
    if wrong := value_problems(content, values):
        raise RefusedError(
            "invalid_request",
            "; ".join(f"$.variables.{name}: {text}" for name, text in wrong),
            errors=tuple((f"$.variables.{name}", text) for name, text in wrong),
        )
    texts = {name: _filled(variable, values, name) for name, variable in content.variables.items()}
    parsed = [templates.parse(message.content) for message in content.messages]
    # Before anything is filled: a long value that stands in a thousand places is more than a process has memory for.
    if sum(template.length(texts) for template in parsed) > MAX_RENDERED:
        sentence = f"the filled messages have more than {MAX_RENDERED:,} characters"
        raise RefusedError("invalid_request", f"$.variables: {sentence}", errors=(("$.variables", sentence),))
    return [
        {"role": message.role, "content": template.fill(texts)}
        for message, template in zip(content.messages, parsed, strict=True)
    ]


def _filled(variable: Variable, values: Mapping[str, Any], name: str) -> str:
    value = values.get(name, variable.default)
    if value is None and name not in values:
        return ""
    if variable.type is VariableType.STRING:
        return str(value)
    return msgspec.json.encode(value).decode()


def pins_of(text: str | bytes) -> list[Pin]:
    """A job's pins, as its record keeps them; the first is the main one."""
    return _decode_pins(text) if text else []


def spelled_pins(pins: Sequence[Pin]) -> str:
    """The same for the record."""
    return msgspec.json.encode(pins).decode()


_decode_pins = msgspec.json.Decoder(list[Pin]).decode


class LabelMove(Wire, frozen=True, kw_only=True):
    """Body of `PUT /api/prompts/{name}/labels/{label}`: where it points; `protected` labels are moved with the scope
    `promote` only."""

    version: Annotated[int, Meta(ge=1, le=MAX_VERSIONS)]
    protected: bool | None = None
    note: Note | None = None


class Rollback(Wire, frozen=True, kw_only=True):
    """Body of `POST /api/prompts/{name}/rollback`."""

    label: LabelName = PRODUCTION
    note: Note | None = None


class RenderRequest(Wire, frozen=True, kw_only=True):
    """Body of `POST /api/prompts/{name}/render`; `user` shows what that end user would get."""

    RULES: ClassVar[list[Rule]] = [not_both("version", "label")]

    variables: Values = msgspec.field(default_factory=dict)
    label: ShortText | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    user: ShortText | None = None
    model: ShortText | None = None


class Label(msgspec.Struct, frozen=True, rename="camel"):
    """A label as it is stored. `past` are the versions before, the newest last; `rev` counts its moves."""

    version: int
    rev: int
    at_ms: int
    by: str
    protected: bool = False
    past: list[int] = msgspec.field(default_factory=list)


class LabelView(Output, frozen=True, kw_only=True):
    """A label. `previous` is where a rollback leads, null when there is nothing before; `experiment` runs on it."""

    label: str
    version: int
    previous: int | None
    protected: bool
    changed_at: str
    changed_by: str
    experiment: str | None


class LabelList(Output, frozen=True, kw_only=True):
    """All labels of a prompt that were set, by name."""

    data: list[LabelView]


class PromptRow(Output, frozen=True, kw_only=True):
    """A prompt in a list: `labels` are the names, `labelVersions` where they point."""

    name: str
    description: str | None
    shared: bool
    latest_version: int
    labels: list[str]
    label_versions: dict[str, int]
    created_at: str
    updated_at: str


class VersionRow(Output, frozen=True, kw_only=True):
    """A version in a list."""

    version: int
    labels: list[str]
    note: str | None
    sha256: str
    created_at: str
    created_by: str


class Rendered(Output, frozen=True, kw_only=True):
    """A prompt as a model would get it; `tokens` counts it for `model`."""

    name: str
    version: int
    label: str | None
    experiment: ExperimentArm | UnsetType = UNSET
    messages: list[dict[str, str]]
    model: str
    tokens: int
