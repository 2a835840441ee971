"""Prompts as files, so that a team reviews them in its own git: one YAML (or JSON) file for each prompt.

The name is the path: `support/triage.yaml` is the prompt `support/triage`. A file has `messages`, and where they are
set `description`, `variables`, `model` and `parameters`; `labels` that are to point at what it says; and `version`, the
one that it was pulled from or pushed as.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from shared.codec import explain
from shared.diff import TextChange, changes
from shared.prompts import Content, NewVersion, PromptName, content_of, digest, problems_of
from shared.specs import Wire

SUFFIXES: Final = (".yaml", ".yml", ".json")
PUSHED: Final = "pushed from a file"  # the note of a version: that it is no change from elsewhere
CONTENT: Final = ("messages", "variables", "model", "parameters")


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
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def read(path: Path, root: Path) -> PromptFile:
    """The prompt in a file below `root`. Raises BadFileError."""
    name = path.relative_to(root).with_suffix("").as_posix()
    try:
        msgspec.convert(name, PromptName)
    except msgspec.ValidationError:
        raise BadFileError(
            f"{name!r} is no name of a prompt: letters, digits, `.`, `_`, `-`, folders by `/`, 128 at most"
        ) from None
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise BadFileError(f"{place}{error.problem or 'is no YAML'}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise BadFileError(str(error)) from None
    except OSError as error:
        raise BadFileError(error.strerror or str(error)) from None
    if not isinstance(raw, dict):
        raise BadFileError("it holds no object with `messages`")
    try:
        found = msgspec.convert(raw, _File)
    except msgspec.ValidationError as error:
        where, what = explain(error)
        raise BadFileError(f"{where}: {what}") from None
    if wrong := problems_of(found, is_built_in=name.startswith("errand/")):
        raise BadFileError("; ".join(f"{where}: {what}" for where, what in wrong))
    new = NewVersion(
        messages=found.messages,
        variables=found.variables,
        model=found.model,
        parameters=found.parameters,
        labels=found.labels,
        note=found.note or PUSHED,
    )
    return PromptFile(path, name, found.description, found.version, new)


def find(root: Path) -> list[Path]:
    """The files of prompts below a folder, in the order of their names."""
    return sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def written(view: dict[str, Any], path: Path) -> str:
    """The text of the file for a version as the API shows it: the same for the same version, whoever writes it."""
    whole: dict[str, Any] = {}
    if view["description"]:
        whole["description"] = view["description"]
    whole["version"] = view["version"]
    if view["labels"]:
        whole["labels"] = view["labels"]
    for member in CONTENT:
        if view[member]:
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
