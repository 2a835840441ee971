"""YAML and JSON as people write them: read strictly, with the lines to which a fault is told."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import yaml

# What JSON has too; a plain date is a text, as whoever writes `note: 2026-01-31` means it.
_JSON_TYPES: Final = frozenset({"null", "bool", "int", "float", "str", "seq", "map"})
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


class BadSourceError(Exception):
    """It is no YAML or JSON, or says a thing twice; the message says what is wrong, and where."""


class _Loader(yaml.SafeLoader):
    """The safe loader without what JSON has not, and without what would be lost or read otherwise than it looks."""

    yaml_constructors = {  # noqa: RUF012  # PyYAML's own way: a class's table
        tag: made
        for tag, made in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _JSON_TYPES
    }
    yaml_implicit_resolvers = {  # noqa: RUF012  # likewise
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        # A few lines of aliases of aliases are a value larger than any memory.
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not read: write it out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # PyYAML's signature
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load(text: str, *, is_json: bool = False) -> Any:
    """What a text says, of the types that JSON has. Raises BadSourceError."""
    try:
        # The loader is a safe one, with less in it.
        found = json.loads(text, object_pairs_hook=_once) if is_json else yaml.load(text, Loader=_Loader)  # noqa: S506
        json.dumps(found, allow_nan=False)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise BadSourceError(f"{place}{error.problem or 'is no YAML'}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadSourceError(f"line {line}: U+{error.character:04X} may not stand in YAML as it is") from None
    except json.JSONDecodeError as error:
        raise BadSourceError(f"line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise BadSourceError("it is nested too deep") from None
    except (ValueError, TypeError) as error:
        raise BadSourceError(str(error)) from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is given twice")
        found[name] = value
    return found


def line_of(text: str, path: str) -> int | None:
    """The line, from 1, of what a JSON path like `$.messages[0].content` names in a text that `load` reads; of what
    holds it where it is not there. None for a JSON text that is laid out as no YAML is (by tabs)."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:
        return None
    line = node.start_mark.line if node is not None else 0
    for name, place in _STEP.findall(path):
        found = _below(node, name, place)
        if found is None:
            break
        line, node = found
    return int(line) + 1


def _below(node: Any, name: str, place: str) -> tuple[int, Any] | None:
    """The line and the node of a member or an item; None when there is none."""
    if isinstance(node, yaml.MappingNode) and name:
        return next(((key.start_mark.line, value) for key, value in node.value if key.value == name), None)
    if isinstance(node, yaml.SequenceNode) and place and int(place) < len(node.value):
        item = node.value[int(place)]
        return item.start_mark.line, item
    return None
