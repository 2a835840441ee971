"""The check of the dependencies: what it finds, and that it never calls it a pass when it could not look."""

from __future__ import annotations

from importlib.metadata import distribution
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import audit


def test_a_vulnerability_is_a_finding_and_a_skip_is_none() -> None:
    report = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]},
            {"name": "b", "version": "1", "vulns": []},
            {"name": "c", "skip_reason": "Dependency not found on PyPI"},
        ]
    }
    assert audit.judged(report) == (["a 1: PYSEC-1, mended in 2"], ["c"])


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, 0, "none known"),
        ({"dependencies": [{"name": "a", "skip_reason": "x"}]}, 0, "NOT AUDITED"),
        ("no network", 0, "NOT AUDITED: no network"),
        ({"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "V"}]}]}, 1, "a 1: V, mended in none yet"),
    ],
)
def test_the_exit_code_tells_findings_from_not_knowing(
    report: Any, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(audit, "vulnerabilities", lambda packages: report)
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout="", stderr=""))
    assert audit.main() == code
    shown = capsys.readouterr().out
    assert said in shown
    assert ("none known" in shown) == (said == "none known")


def test_licences_are_read_and_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"aiohttp": distribution("aiohttp")}
    assert audit.unfree(package) == []
    monkeypatch.setattr(audit, "licence_of", lambda _: "Proprietary")
    assert audit.unfree(package) == ["aiohttp: Proprietary"]


def test_what_a_requirement_needs_is_looked_at_too() -> None:
    installed = {audit.normal(name): distribution(name) for name in ("aiohttp", "yarl", "multidict", "pytest")}
    assert set(audit.closure(["aiohttp>=3"], installed)) == {"aiohttp", "yarl", "multidict"}
    assert audit.closure(["aiohttp; python_version < '3'"], installed) == {}
