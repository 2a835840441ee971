"""Records of prompts: what is stored, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from shared.clock import rfc3339
from shared.prompts import (
    LATEST,
    SHARED,
    Content,
    Label,
    LabelView,
    PromptRow,
    Version,
    VersionRow,
    VersionView,
)

# Whoever changed a shared prompt, as tenants see it: the keys of others are not theirs to know.
OPERATOR: Final = "operator"
SYSTEM: Final = "system"


class Head(msgspec.Struct, frozen=True):
    """A prompt without what its versions say. `versions` is how many there are; `experiments` the JSON of what runs, by
    label. An archived one has no labels and is in no list; its versions are still there."""

    name: str
    owner: str
    description: str | None
    versions: int
    labels: dict[str, Label]
    experiments: dict[str, bytes]
    created_ms: int
    updated_ms: int
    is_archived: bool

    @property
    def is_shared(self) -> bool:
        """Whether every tenant has it."""
        return self.owner == SHARED

    def version_of(self, label: str) -> int | None:
        """Where a label points (`latest`: the newest version), None when there is no such label."""
        if label == LATEST:
            return self.versions
        found = self.labels.get(label)
        return found.version if found else None

    def labels_of(self, version: int) -> list[str]:
        """The labels that point at a version."""
        return sorted(name for name, label in self.labels.items() if label.version == version)


class Beside(msgspec.Struct, frozen=True, rename="camel"):
    """What is stored beside a version's content."""

    sha256: str
    at_ms: int
    by: str
    note: str | None = None


class _Experiment(msgspec.Struct, frozen=True):
    id: str


_decode_content = msgspec.json.Decoder(Content).decode
_decode_beside = msgspec.json.Decoder(Beside).decode
decode_label = msgspec.json.Decoder(Label).decode


def head_of(owner: str, name: str, raw: Mapping[bytes, bytes]) -> Head | None:
    """A prompt from its record, None when there is none."""
    if not raw:
        return None
    fields = {field.decode(): value for field, value in raw.items()}
    description = fields.get("description")
    return Head(
        name=name,
        owner=owner,
        description=description.decode() if description else None,
        versions=int(fields["versions"]),
        labels={field[2:]: decode_label(value) for field, value in fields.items() if field.startswith("l:")},
        experiments={field[2:]: value for field, value in fields.items() if field.startswith("x:")},
        created_ms=int(fields["created_ms"]),
        updated_ms=int(fields["updated_ms"]),
        is_archived="archived" in fields,
    )


def version_of(number: int, content: bytes, beside: bytes) -> Version:
    """A version from the two texts that are stored of it."""
    said, made = _decode_content(content), _decode_beside(beside)
    return Version(
        messages=said.messages,
        variables=said.variables,
        model=said.model,
        parameters=said.parameters,
        version=number,
        sha256=made.sha256,
        note=made.note,
        by=made.by,
        at_ms=made.at_ms,
    )


def who(by: str, *, is_blind: bool) -> str:
    """Who did it. With `is_blind` no key of another tenant is told."""
    return OPERATOR if is_blind and by != SYSTEM else by


def version_view(head: Head, version: Version, label: str | None, *, is_blind: bool) -> VersionView:
    """How a version is shown."""
    return VersionView(
        name=head.name,
        description=head.description,
        version=version.version,
        latest_version=head.versions,
        label=label,
        labels=head.labels_of(version.version),
        shared=head.is_shared,
        messages=version.messages,
        variables=version.variables,
        model=version.model,
        parameters=version.parameters,
        note=version.note,
        sha256=version.sha256,
        created_at=rfc3339(version.at_ms),
        created_by=who(version.by, is_blind=is_blind),
    )


def version_row(head: Head, number: int, beside: bytes, *, is_blind: bool) -> VersionRow:
    """How a version is shown in a list."""
    made = _decode_beside(beside)
    return VersionRow(
        version=number,
        labels=head.labels_of(number),
        note=made.note,
        sha256=made.sha256,
        created_at=rfc3339(made.at_ms),
        created_by=who(made.by, is_blind=is_blind),
    )


def label_view(name: str, label: Label, experiment: bytes | None = None, *, is_blind: bool = False) -> LabelView:
    """How a label is shown; `experiment` is the JSON of the one that runs on it."""
    return LabelView(
        label=name,
        version=label.version,
        previous=label.past[-1] if label.past else None,
        protected=label.protected,
        changed_at=rfc3339(label.at_ms),
        changed_by=who(label.by, is_blind=is_blind),
        experiment=msgspec.json.decode(experiment, type=_Experiment).id if experiment else None,
    )


def prompt_row(head: Head) -> PromptRow:
    """How a prompt is shown in a list."""
    return PromptRow(
        name=head.name,
        description=head.description,
        shared=head.is_shared,
        latest_version=head.versions,
        labels=sorted(head.labels),
        label_versions={name: head.labels[name].version for name in sorted(head.labels)},
        created_at=rfc3339(head.created_ms),
        updated_at=rfc3339(head.updated_ms),
    )


def is_in_folder(name: str, folder: str) -> bool:
    """Whether a prompt lies in a folder (`a/b`, or `a/b/`), or is the prompt of that name."""
    folder = folder.removesuffix("/")
    return name == folder or name.startswith(folder + "/")


def fits(head: Head, search: str | None, label: str | None) -> bool:
    """Whether a prompt has this text in its name or description, and this label."""
    if label is not None and head.version_of(label) is None:
        return False
    texts: Iterable[str] = (head.name, head.description or "")
    return search is None or any(search.casefold() in text.casefold() for text in texts)
