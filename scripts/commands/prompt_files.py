"""Prompts as files, so that a team reviews them in its own git: one YAML (or JSON) file for each prompt.

The name is the path: `support/triage.yaml` is the prompt `support/triage`. A file has `messages`, and where they are
set `description`, `variables`, `model` and `parameters`; `labels` that are to point at what it says; and `version`, the
one that it was pulled from or pushed as.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from scripts.commands import prompt_source
from shared.codec import explain
from shared.diff import TextChange, changes
from shared.prompts import BUILT_IN, Content, NewVersion, PromptName, content_of, digest, problems_of
from shared.specs import Wire

SUFFIXES: Final = (".yaml", ".yml", ".json")
PUSHED: Final = "pushed from a file"  # the note of a version: that it is no change from elsewhere
CONTENT: Final = ("messages", "variables", "model", "parameters")


_ODD_BREAKS: Final = re.compile("[\r\x85\u2028\u2029\ufeff]")


class BadFileError(Exception):
    """The file holds no prompt; the message says what is wrong, and where."""


class _File(NewVersion, frozen=True, kw_only=True):
    """What stands in a file."""

    description: str | None = None
    version: int | None = None


class _Served(Content, Wire, frozen=True, kw_only=True):
    """What of the API's answer is content."""


@dataclass(frozen=True)
class PromptFile:
    """A file that was read. `new` is what it says as a body of the API."""

    path: Path
    name: str
    description: str | None
    version: int | None
    new: NewVersion

    @property
    def sha256(self) -> str:
        """The hash of its content, as the API has it."""
        return digest(content_of(self.new))


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML folds line breaks other than `\n` in every style but the one that escapes them.
    style = '"' if _ODD_BREAKS.search(value) else "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def read(path: Path, root: Path) -> PromptFile:
    """The prompt in a file below `root`. Raises BadFileError."""
    name = name_in(path, root)
    try:
        msgspec.convert(name, PromptName)
    except msgspec.ValidationError:
        raise BadFileError(
            f"{name!r} is no name of a prompt: letters, digits, `.`, `_`, `-`, folders by `/`, 128 at most"
        ) from None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadFileError(getattr(error, "strerror", None) or str(error)) from None
    try:
        raw = prompt_source.load(text, is_json=path.suffix == ".json")
    except prompt_source.BadSourceError as error:
        raise BadFileError(str(error)) from None
    if not isinstance(raw, dict):
        raise BadFileError("it holds no object with `messages`")
    try:
        found = msgspec.convert(raw, _File)
        wrong = problems_of(found, is_built_in=name.startswith(BUILT_IN))
    except msgspec.ValidationError as error:
        wrong = [explain(error)]
    if wrong:
        raise BadFileError("; ".join(_told(text, where, what) for where, what in wrong))
    new = NewVersion(
        messages=found.messages,
        variables=found.variables,
        model=found.model,
        parameters=found.parameters,
        labels=found.labels,
        note=found.note or PUSHED,
    )
    return PromptFile(path, name, found.description, found.version, new)


def _told(text: str, where: str, what: str) -> str:
    line = prompt_source.line_of(text, where)
    return f"line {line}: {where}: {what}" if line is not None else f"{where}: {what}"


def name_in(path: Path, root: Path) -> str:
    """The name that a file below `root` stands for."""
    return path.relative_to(root).with_suffix("").as_posix()


def find(root: Path) -> list[Path]:
    """The files of prompts below a folder, in the order of their names. What is hidden, like `.github`, is none: no
    name of a prompt begins so."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def doubles(paths: list[Path], root: Path) -> dict[Path, str]:
    """Files that stand for a prompt that another one before them stands for, and what is wrong with each."""
    first: dict[str, Path] = {}
    found = {}
    for path in paths:
        other = first.setdefault(name_in(path, root), path)
        if other is not path:
            found[path] = f"it is the same prompt as {other}"
    return found


def written(view: dict[str, Any], path: Path) -> str:
    """The text of the file for a version as the API shows it: the same for the same version, whoever writes it."""
    whole: dict[str, Any] = {}
    if view["description"]:
        whole["description"] = view["description"]
    whole["version"] = view["version"]
    if view["labels"]:
        whole["labels"] = view["labels"]
    for member in CONTENT:
        # What is there and empty, like parameters without any, is hashed otherwise than what is not there.
        if view[member] is not None and (member != "variables" or view[member]):
            whole[member] = view[member]
    if path.suffix == ".json":
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    return str(yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def served_content(view: dict[str, Any]) -> Content:
    """The content of a version as the API shows it."""
    return msgspec.convert({member: view[member] for member in CONTENT if view[member] is not None}, _Served)


def difference(old: Content | None, new: Content) -> str:
    """What a new version would change, for people: deleted words in `[-…-]`, new ones in `{+…+}`."""
    lines: list[str] = []
    before = old.messages if old is not None else []
    for place in range(max(len(before), len(new.messages))):
        was = before[place] if place < len(before) else None
        now = new.messages[place] if place < len(new.messages) else None
        if was == now:
            continue
        role = now.role if now is not None else was.role if was is not None else ""
        told = changes(was.content if was else "", now.content if now else "")
        lines.append(f"message {place + 1} ({role}): {''.join(map(_marked, told))}")
    for member in ("variables", "model", "parameters"):
        was, now = (msgspec.to_builtins(getattr(one, member)) if one is not None else None for one in (old, new))
        if was != now and (was or now):
            lines.append(f"{member}: {json.dumps(was, ensure_ascii=False)} → {json.dumps(now, ensure_ascii=False)}")
    return "\n".join(lines)


def _marked(change: TextChange) -> str:
    match change.op:
        case "insert":
            return f"{{+{change.text}+}}"
        case "delete":
            return f"[-{change.text}-]"
    return change.text if len(change.text) <= 120 else f"{change.text[:50]} … {change.text[-50:]}"


def body_of(file: PromptFile) -> dict[str, Any]:
    """The body that makes its version."""
    body: dict[str, Any] = msgspec.to_builtins(file.new)
    return {member: value for member, value in body.items() if value is not None}
