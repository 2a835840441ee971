"""Secrets stay where they are: not in a process list, an error, a log, or what shows the settings."""

from __future__ import annotations

import secrets
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.redis import connect
from shared.settings import SECRETS, Settings, env_name
from tests.test_stack import BARE, ROOT, Started

CANARY = f"canary{secrets.token_hex(12)}"
BAD_URLS = [
    f"redis://api:{CANARY}/x@localhost:1/0",
    f"redis://:{CANARY}@localhost:notaport/0",
    f"http://api:{CANARY}@localhost/0",
    f"redis://api:{CANARY}@localhost:1/0",
    f"redis://api:{CANARY}@no.such.host.invalid:6379/0",
    f"rediss://api:{CANARY}@localhost:1/0?ssl_ca_certs=/nonexistent",
    f"redis://api:x@localhost:1/0?password={CANARY}&nonsense=1",
]


@pytest.fixture
def data_dir(short_dir: Path) -> Path:
    return short_dir / secrets.token_hex(4)


@pytest.fixture
def secretive(data_dir: Path) -> Iterator[Started]:
    """The whole stack with secrets that can be recognised."""
    admin = f"ek_01M81SGW152PHX78GHNCJWQHRS_{CANARY}{'a' * 43}"[: len("ek_01M81SGW152PHX78GHNCJWQHRS_") + 43]
    stack = Started(
        data_dir,
        ERRAND_ADMIN_KEY=admin,
        ERRAND_METRICS_TOKEN=CANARY,
        ERRAND_RERANK_API_KEY=CANARY,
        ERRAND_LOG_LEVEL="debug",
        ERRAND_KEY=admin,
    ).ready()
    yield stack
    if stack.process.poll() is None:
        stack.stop()


def command_lines() -> dict[str, str]:
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found[path.name] = (path / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc here")
def test_no_secret_is_in_a_process_list_or_a_log(secretive: Started) -> None:
    """Given a stack with recognisable secrets, while a command runs against it, then no process of this machine has one
    in its command line, and no log names one."""
    assert secretive.errand("chat", "Hello!").returncode == 0
    pids = {str(pid) for pid in (*secretive.pids().values(), secretive.process.pid)}
    lines = command_lines()
    assert pids <= set(lines), "the stack is there"
    assert [line for line in lines.values() if CANARY in line] == []
    mark = CANARY[:20]
    assert [line for line in lines.values() if mark in line] == []
    secretive.stop()
    logs = [secretive.log, *secretive.data_dir.rglob("*.log")]
    assert [str(path) for path in logs if mark in path.read_text(errors="replace")] == []


@pytest.mark.parametrize(
    ("url", "module"),
    [
        *((f"redis://api:{CANARY}/y@localhost:1/0", [*module]) for module in (["worker", "batch"], ["scripts.stack"])),
        *((url, ["api"]) for url in BAD_URLS),
    ],
)
def test_a_bad_redis_url_is_one_line_without_its_password(url: str, module: list[str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *module],
        env={**BARE, "REDIS_URL": url, "ERRAND_DATA_DIR": str(tmp_path), "PORT": "0"},
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2, said
    assert "REDIS_URL" in said or "Redis" in said
    assert "Traceback" not in said
    assert CANARY not in said


def test_connect_shows_nothing_of_a_bad_address() -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect(f"redis://api:{CANARY}/x@localhost:1/0")
    assert CANARY not in "".join(traceback.format_exception(refused.value))


def test_a_bad_secret_setting_is_named_but_not_shown() -> None:
    for name, text in (
        ("ERRAND_MCP_SERVERS", f'{{"a": {{"url": "{CANARY}"}}}}'),
        ("ERRAND_MCP_SERVERS", f'{{"a": "{CANARY}'),
        ("ERRAND_RERANK_URL", f"https://user:{CANARY}@rerank.example/"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            Settings.load({name: text})
        assert name in str(refused.value)
        assert CANARY not in str(refused.value)
    with pytest.raises(ConfigurationError, match="PORT='nine'"):
        Settings.load({"PORT": "nine"})


def test_every_setting_that_holds_a_secret_is_marked() -> None:
    """Given the names of all settings, then those that sound like a secret are marked as one."""
    endings = ("_key", "_token", "_secret", "_password", "_servers")
    suspicious = {name for name in Settings.__struct_fields__ if name.endswith(endings)}
    assert suspicious <= SECRETS
    assert set(Settings.__struct_fields__) >= SECRETS
    values = {env_name(name): CANARY for name in SECRETS if name not in ("mcp_servers", "rerank_url")}
    loaded = Settings.load(values)
    assert CANARY not in repr(loaded)
    assert CANARY not in f"{loaded}"
    assert CANARY not in str(loaded.__rich_repr__())
    assert "port=8080" in repr(loaded)
