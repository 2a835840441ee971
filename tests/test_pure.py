"""Decisions and formats that need no Redis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import ids
from shared.clock import parse_rfc3339, rfc3339
from shared.codec import decode_body
from shared.documents import normalise, page_of
from shared.errors import ConfigurationError, InternalError, RefusedError, UpstreamRateLimited, UpstreamRefused
from shared.schemas import BadSchemaError, compile_schema, violations
from shared.settings import Settings
from shared.specs import ChatJob, PublicJob
from worker.documents.chunk import split
from worker.documents.cite import Prover
from worker.model.discipline import backoff_s
from worker.outcome import Cancelled, Complete, Failed, HandedBack, RetryAfter, judge

SETTINGS = Settings()


@given(st.integers(min_value=0, max_value=2**48 - 1))
def test_an_id_carries_its_time(now_ms: int) -> None:
    made = ids.new_id("job", now_ms)
    assert ids.is_id("job", made)
    assert ids.id_time_ms(made) == now_ms
    assert not ids.is_id("doc", made)


def test_ids_sort_by_time() -> None:
    made = [ids.new_id("job", now_ms) for now_ms in (1, 31, 32, 1023, 1024, 1_700_000_000_000)]
    assert made == sorted(made)


def test_a_key_is_checked_without_being_stored() -> None:
    key_id, full = ids.new_api_key(1_700_000_000_000)
    parsed = ids.parse_api_key(full)
    assert parsed is not None
    assert parsed[0] == key_id
    stored = ids.hash_secret(parsed[1])
    assert parsed[1] not in stored
    assert ids.same_secret(parsed[1], stored)
    assert not ids.same_secret(parsed[1] + "x", stored)
    for wrong in ("", "ek_", full[3:], full.lower(), full + "!", "ek_" + "0" * 26 + "_short"):
        assert ids.parse_api_key(wrong) is None, wrong


def test_times_are_rfc3339_with_milliseconds() -> None:
    assert rfc3339(1_767_225_600_007) == "2026-01-01T00:00:00.007Z"
    assert parse_rfc3339("2026-01-01T01:00:00.007+01:00") == 1_767_225_600_007
    with pytest.raises(ValueError, match="zone"):
        parse_rfc3339("2026-01-01T00:00:00")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"type":"chat","input":{"messages":5}}', "$.input.messages"),
        (b'{"type":"chat","input":{"messages":[{"role":"user","content":"x"}],"x":1}}', "$.input.x"),
        (b'{"type":"chat","input":{"messages":[{"role":"user","content":"x"}]},"extra":1}', "$.extra"),
        (b'{"type":"chat"}', "$.input"),
        (b'{"type":"nonsense","input":{}}', "$.type"),
        (b'{"type":"ingest","input":{"documentId":"x"}}', "$.type"),
        (b'{"type":"chat","input":{"messages":[{"role":"wizard","content":"x"}]}}', "$.input.messages[0].role"),
        (b'{"type":"chat","input":{"messages":[{"role":"user","content":"x"}]},"priority":"urgent"}', "$.priority"),
        (b'{"type":"chat","input":{"messages":[{"role":"user","content":"x"}]},"maxAttempts":0}', "$.maxAttempts"),
        (b"[]", "$"),
        (b'{"type":"document-analysis","input":{"document":{},"tasks":[{"kind":"summary"}]}}', "$.input.document"),
    ],
)
def test_a_body_of_another_shape_is_refused_with_its_path(body: bytes, path: str) -> None:
    with pytest.raises(RefusedError) as caught:
        decode_body(body, PublicJob)
    assert caught.value.code == "invalid_request"
    assert caught.value.errors[0][0] == path


@pytest.mark.parametrize("body", [b"", b"  ", b"{", b"\xff\xfe", b'{"a":}', b"[" * 100_000])
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        decode_body(body, PublicJob)
    assert caught.value.code == "malformed_request"


def test_members_are_bounded() -> None:
    metadata = ",".join(f'"k{n}":"v"' for n in range(17))
    body = (
        b'{"type":"chat","input":{"messages":[{"role":"user","content":"x"}]},"metadata":{' + metadata.encode() + b"}}"
    )
    with pytest.raises(RefusedError) as caught:
        decode_body(body, PublicJob)
    assert caught.value.errors[0][0] == "$.metadata"
    job = decode_body(body.replace(b'"k16":"v"', b'"k15":"v"'), PublicJob)
    assert isinstance(job, ChatJob)


def test_the_outcome_is_a_table() -> None:
    def verdict(ending: str, error: object, attempt: int = 1, attempts: int = 3) -> object:
        return judge(ending, error, attempt=attempt, max_attempts=attempts, settings=SETTINGS, chance=0.5)  # type: ignore[arg-type]

    limited = UpstreamRateLimited("429", retry_after_s=7)
    assert verdict("done", None) == Complete()
    assert verdict("cancelled", None) == Cancelled()
    assert verdict("cancelled", limited) == Cancelled()
    assert verdict("shutdown", limited) == HandedBack()
    assert isinstance(verdict("done", limited), RetryAfter)
    assert isinstance(verdict("done", limited, attempt=3), Failed)
    assert isinstance(verdict("done", UpstreamRefused("no")), Failed)
    assert verdict("done", UpstreamRefused("no")) == Failed(
        {"code": "upstream_refused", "message": "no", "retryable": False}
    )


@given(st.integers(1, 60), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 100_000)))
def test_backoff_is_bounded_and_honours_the_models_wish(attempt: int, chance: float, wish: float | None) -> None:
    error = InternalError("x", retry_after_s=wish)
    wait = backoff_s(error, attempt, SETTINGS, chance)
    assert SETTINGS.retry_base_seconds / 2 <= wait
    assert wait <= max(SETTINGS.retry_max_seconds, min(wish or 0, 3_600) * 1.1)
    if wish is not None:
        assert wait >= min(wish, 3_600)


def test_a_bad_setting_stops_the_start_and_is_named() -> None:
    with pytest.raises(ConfigurationError, match="ERRAND_LEASE_SECONDS='soon'"):
        Settings.load({"ERRAND_LEASE_SECONDS": "soon"})
    with pytest.raises(ConfigurationError, match="PORT='70000'"):
        Settings.load({"PORT": "70000"})
    with pytest.raises(ConfigurationError, match="ERRAND_TYPO"):
        Settings.load({"ERRAND_TYPO": "1"})
    loaded = Settings.load(
        {"PORT": "9", "ERRAND_WORKER_SLOTS": "7", "ERRAND_ALLOW_VOLATILE": "1", "OPENAI_API_KEY": ""}
    )
    assert (loaded.port, loaded.worker_slots, loaded.allow_volatile) == (9, 7, True)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=5_000), st.integers(50, 500))
def test_parts_are_the_text(text: str, size: int) -> None:
    parts = split(text, size)
    assert "".join(part.text for part in parts) == text
    assert all(text[part.start : part.end] == part.text for part in parts)


@given(st.text(max_size=300))
def test_normalised_text_is_stable(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert "\r" not in once
    assert "\x00" not in once
    once.encode()


TEXT = "Profit rose by 4 %.\n\nThe “east quay” was\nclosed on 14 March — for repairs. Größe zählt. The end."


@pytest.mark.parametrize(
    ("quote", "stands"),
    [
        ("Profit rose by 4 %", "Profit rose by 4 %"),
        ('the "east quay" was closed', "The “east quay” was\nclosed"),
        ("closed on 14 march - for repairs", "closed on 14 March — for repairs"),
        ("GRÖSSE ZÄHLT", "Größe zählt"),
        ("“Profit rose by 4 %.”", "Profit rose by 4 %."),
        ("...was closed...", "was\nclosed"),
    ],
)
def test_a_quote_is_found_where_it_stands(quote: str, stands: str) -> None:
    found = Prover(TEXT, offset=1_000).prove(quote)
    assert found is not None
    assert found.quote == stands
    assert TEXT[found.start - 1_000 : found.end - 1_000] == stands


@pytest.mark.parametrize("quote", ["Profit fell", "", "   ", "…", "a", "The start of the end of", "%.\n"])
def test_a_quote_that_does_not_stand_there_is_dropped(quote: str) -> None:
    assert Prover(TEXT).prove(quote) is None


@given(st.text(max_size=200), st.text(max_size=60))
def test_a_citation_always_is_the_text_at_its_offsets(text: str, quote: str) -> None:
    text = normalise(text)
    found = Prover(text).prove(quote)
    if found is not None:
        assert text[found.start : found.end] == found.quote


def test_pages_are_found_by_offset() -> None:
    assert [page_of([0, 10, 10, 25], at) for at in (0, 9, 10, 24, 25, 99)] == [1, 1, 3, 3, 4, 4]
    assert page_of([], 5) is None


def test_schemas_are_checked_and_never_fetched() -> None:
    with pytest.raises(BadSchemaError):
        compile_schema({"type": "nonsense"})
    with pytest.raises(BadSchemaError):
        compile_schema({"$ref": "http://127.0.0.1:1/x.json"})
    validator = compile_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    assert violations(validator, {"a": 1}) == []
    assert violations(validator, {"a": "x"})[0].startswith("$.a: ")


def test_a_schemas_pattern_cannot_hang_us() -> None:
    validator = compile_schema({"type": "string", "pattern": "^(a+)+$"})
    assert violations(validator, "a" * 5_000 + "!")


def test_base62_secrets_have_their_bits() -> None:
    assert 62**ids.SECRET_LENGTH > 2**256
    assert len(set(ids.BASE62)) == 62
