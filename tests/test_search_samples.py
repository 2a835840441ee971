"""The labelled queries over the project's own documentation: they say what the files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "scripts/samples/search"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_every_passage_stands_in_its_file() -> None:
    """Given the labelled queries, then each passage stands once in the file that it names, but for white space: one
    that was reworded there is reworded here, too."""
    texts: dict[str, str] = {}
    lost = []
    for row in rows("queries.jsonl"):
        assert row["relevant"], row["query"]
        for place in row["relevant"]:
            name, passage = place["filename"], place["text"]
            text = texts.setdefault(name, flat((ROOT / name).read_text()))
            assert passage == flat(passage)
            assert 40 <= len(passage) <= 200, passage
            assert place["grade"] in (1, 2)
            if text.count(passage) != 1:
                lost.append(f"{name}: {passage}")
    assert lost == []


@pytest.mark.parametrize(("name", "least"), [("queries.jsonl", 120), ("unanswerable.jsonl", 40)])
def test_queries_are_many_and_each_is_asked_once(name: str, least: int) -> None:
    """Given a set, then it has so many queries, no two alike."""
    asked = [flat(row["query"]).casefold() for row in rows(name)]
    assert len(asked) >= least
    assert len(set(asked)) == len(asked)


def test_the_documentation_is_covered() -> None:
    """Given the labelled queries, then some are answered by each of the first documents."""
    named = {place["filename"] for row in rows("queries.jsonl") for place in row["relevant"]}
    assert len(named) >= 30
    assert all((ROOT / name).is_file() for name in named)
