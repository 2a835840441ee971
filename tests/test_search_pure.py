"""Chunks, packs, segments, filters: what needs no server."""

from __future__ import annotations

import random
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.collections import Entry
from shared.filters import filter_problem, matches
from shared.stores.indexes import digests_of
from worker.documents.passages import terms
from worker.search.chunks import chunk_id, cut
from worker.search.pack import pack, unpack
from worker.search.quantised import from_bytes, to_bytes, unit
from worker.search.segment import build, merge
from worker.search.terms import query_terms

WORDS = "tide moon water ocean lease notice tenant loaf oven crust temperature bridge census dividend glucose".split()


def prose(paragraphs: int, seed: int = 1) -> str:
    draw = random.Random(seed)
    return "\n\n".join(
        " ".join(draw.choice(WORDS) + str(draw.randrange(50)) for _ in range(draw.randrange(15, 70))) + "."
        for _ in range(paragraphs)
    )


@given(st.text(max_size=4_000), st.integers(min_value=200, max_value=1_500))
def test_chunks_are_the_text_without_the_white_space_between(text: str, size: int) -> None:
    chunks = cut(text, size)
    assert all(0 <= chunk.start < chunk.end <= len(text) for chunk in chunks)
    assert all(chunk.end - chunk.start <= size for chunk in chunks)
    assert all(before.end <= after.start for before, after in pairwise(chunks))
    left = list(text)
    for chunk in chunks:
        left[chunk.start : chunk.end] = " " * (chunk.end - chunk.start)
    assert not "".join(left).strip()
    assert len({(chunk.digest, chunk.occurrence) for chunk in chunks}) == len(chunks)


def test_a_change_leaves_the_chunks_elsewhere_as_they_were() -> None:
    text = prose(200)
    before = {chunk.digest for chunk in cut(text, 1_200)}
    for changed in ("A new first paragraph.\n\n" + text, text.replace("\n\n", "\n\nInserted in the middle.\n\n", 1),
                    text[: len(text) // 2] + " Changed. " + text[len(text) // 2 :]):  # fmt: skip
        after = {chunk.digest for chunk in cut(changed, 1_200)}
        assert len(after - before) <= 0.1 * len(after), len(after - before)


def test_paragraphs_that_are_alike_in_length_find_their_cuts_again() -> None:
    """Counting alone would shift every cut behind the change."""
    paragraphs = [f"Paragraph {number:04} " + "of the same length as all others " * 9 for number in range(300)]
    before = {chunk.digest for chunk in cut("\n\n".join(paragraphs), 1_000)}
    after = {chunk.digest for chunk in cut("\n\n".join(["Paragraph new! " + "x" * 200, *paragraphs]), 1_000)}
    assert len(after - before) <= 0.1 * len(after), len(after - before)


@pytest.mark.parametrize("text", ["x" * 3_000_000, "lorem ipsum " * 250_000, "." * 3_000_000, "\n   a" * 600_000])
def test_cutting_takes_time_in_proportion(text: str) -> None:
    """A splitter that looks back and forth would take minutes here, and hold the worker up."""
    started = time.monotonic()
    chunks = cut(text, 1_200)
    assert time.monotonic() - started < 10
    assert sum(chunk.end - chunk.start for chunk in chunks) > len(text) / 6


def test_a_heading_goes_with_what_follows_it() -> None:
    text = "\n\n".join(f"# Part {number}\n\n{prose(3, number)}" for number in range(30))
    for chunk in cut(text, 1_200):
        assert not text[chunk.start : chunk.end].splitlines()[-1].startswith("#")


def test_the_id_of_a_chunk_is_that_of_its_text_in_its_document() -> None:
    text = f"Same words here.\n\n{prose(4)}\n\nSame words here."
    chunks = cut(text, 200)
    ids = [chunk_id("doc_A", chunk.digest, chunk.occurrence) for chunk in chunks]
    assert len(set(ids)) == len(ids)
    again = cut("Something before.\n\n" + text, 200)
    assert {chunk_id("doc_A", chunk.digest, chunk.occurrence) for chunk in again} >= set(ids[1:])
    assert chunk_id("doc_B", chunks[0].digest, 0) != ids[0]


def test_a_pack_keeps_offsets_and_words() -> None:
    text = prose(30)
    chunks = cut(text, 600)
    content = pack(text, chunks)
    found = unpack(content)
    assert len(found) == len(chunks)
    assert list(found.starts) == [chunk.start for chunk in chunks]
    assert digests_of(content) == [chunk.digest for chunk in chunks]
    (term,) = query_terms("tide7")
    at = list(found.terms).index(term)
    first = int(found.found_in[:at].sum())
    rows = list(found.rows[first : first + int(found.found_in[at])])
    assert rows == [row for row, chunk in enumerate(chunks) if "tide7" in terms(text[chunk.start : chunk.end])]
    assert len(unpack(pack("", []))) == 0


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_stored_vectors_are_within_a_hundredth(rows: int, dimensions: int, seed: int) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(rows, dimensions)))
    vectors[0] = 0
    back = from_bytes(to_bytes(vectors), dimensions)
    assert not back[0].any()
    assert np.all(np.sum(back[1:] * vectors[1:], axis=1) > 0.9999)


def entry(revision: int = 1) -> Entry:
    return Entry(revision=revision, chunks=1, text_blob="", title=None, metadata={})


def test_a_merged_segment_holds_what_is_alive() -> None:
    generator = np.random.default_rng(3)
    texts = [prose(6, seed) for seed in range(12)]
    made = []
    for seed in range(0, 12, 3):
        packs = [unpack(pack(text, cut(text, 400))) for text in texts[seed : seed + 3]]
        vectors = [unit(generator.normal(size=(len(one), 16))) for one in packs]
        named = [(f"doc_{seed + place}", entry(), one) for place, one in enumerate(packs)]
        made.append(build(named, vectors))
    made[1] = made[1].without([0, 2])
    merged = merge(made)
    assert [held.document_id for held in merged.held] == [f"doc_{n}" for n in range(12) if n not in (3, 5)]
    assert len(merged) == sum(int(segment.alive.sum()) for segment in made)
    assert merged.matrix is not None
    for held in merged.held:
        text = texts[int(held.document_id[4:])]
        for number in range(held.count):
            words = Counter(terms(text[held.places.starts[number] : held.places.ends[number]]))
            (word, count), *_ = words.most_common(1)
            rows, counts = merged.of_term(query_terms(word)[0])
            assert dict(zip(rows.tolist(), counts.tolist(), strict=True))[held.first + number] == count
    whole = [segment.matrix[segment.alive] for segment in made if segment.matrix is not None]
    assert np.array_equal(merged.matrix, np.concatenate(whole))


DOCUMENT = {"lang": "en", "year": "2021", "at": "2026-01-05T10:00:00Z"}


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"lang": "en"}, True),
        ({"lang": "de"}, False),
        ({"lang": ["de", "en"]}, True),
        ({"lang": {"ne": "de"}}, True),
        ({"missing": {"ne": "de"}}, True),
        ({"missing": "de"}, False),
        ({"missing": {"exists": False}}, True),
        ({"lang": {"exists": False}}, False),
        ({"year": 2021}, True),
        ({"year": {"gt": 999}}, True),
        ({"year": {"gte": "2021", "lt": "2022"}}, True),
        ({"year": {"lt": 2021}}, False),
        ({"at": {"gte": "2026-01-01"}}, True),
        ({"at": {"gte": "2026-02-01"}}, False),
        ({"lang": {"nin": ["de", "fr"]}}, True),
        ({"lang": {"in": ["de", "fr"]}}, False),
        ({"$or": [{"lang": "de"}, {"year": "2021"}]}, True),
        ({"$and": [{"lang": "en"}, {"year": "2020"}]}, False),
        ({"$not": {"lang": "en"}}, False),
    ],
)
def test_filters(wanted: Any, fits: bool) -> None:
    assert filter_problem(wanted) is None
    assert matches(wanted, DOCUMENT) is fits


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"$xor": []}, "there is no $xor"),
        ({"$and": {}}, "takes a list"),
        ({"lang": {}}, "no operator"),
        ({"lang": {"like": "e%"}}, "no operator 'like'"),
        ({"lang": {"in": "en"}}, "a list of texts"),
        ({"lang": {"exists": "yes"}}, "true or false"),
        ({"lang": None}, "must be a text"),
        ({"lang": []}, "a list of texts"),
        ({"$not": []}, "must be an object"),
        ({"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {}}}}}}}}}}, "deeper"),
        ({"$or": [{f"m{number}": "x"} for number in range(101)]}, "more than"),
    ],
)
def test_a_bad_filter_is_told_in_a_sentence(wanted: Any, words: str) -> None:
    assert words in str(filter_problem(wanted))
