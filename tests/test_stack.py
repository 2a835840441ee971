"""The scripts as a person runs them: real processes, signals, hard kills."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import redis_binary
from tests import files
from tests.conftest import chat

ROOT = Path(__file__).parent.parent
OURS = ("ERRAND_", "OPENAI_", "REDIS_", "PYTHON")
BARE = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}


class Started:
    """A running `python -m scripts.stack`."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")
        self.environment = {
            **BARE,
            "PYTHONPATH": str(ROOT),
            "ERRAND_DATA_DIR": str(data_dir),
            "ERRAND_LOG_FORMAT": "json",
            "PORT": "0",
            **environment,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.stack"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
                cwd=ROOT,
            )
        self.url = ""

    def ready(self) -> Started:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready http://"), self.log.read_text()[-2_000:]
        self.url = line.split()[1]
        return self

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(40)

    def errand(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, "ERRAND_URL": self.url}
        return subprocess.run(
            [sys.executable, "-m", "scripts.cli", *arguments],
            capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60,
        )  # fmt: skip

    def pids(self) -> dict[str, int]:
        return {path.stem: int(path.read_text().split()[0]) for path in (self.data_dir / "run").glob("*.pid")}

    def left(self) -> list[str]:
        """Processes that still belong to this data directory."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                belongs = (
                    str(self.data_dir).encode() in (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
                )
                belongs = belongs or str(self.data_dir) in str((path / "cwd").readlink())
                if belongs and b"\nState:\tZ" not in (path / "status").read_bytes():
                    found.append((path / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found


@pytest.fixture
def data_dir(short_dir: Path) -> Path:
    return short_dir / secrets.token_hex(4)


@pytest.fixture
def started(data_dir: Path) -> Iterator[Started]:
    stack = Started(data_dir).ready()
    yield stack
    if stack.process.poll() is None:
        stack.stop()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stack_runs_a_job_and_stops_without_a_trace(started: Started) -> None:
    assert (started.data_dir / "admin.key").stat().st_mode & 0o777 == 0o600
    done = started.errand("jobs", "submit", "--chat", "the secret word is xylophone", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "complete"
    key = (started.data_dir / "admin.key").read_text().strip()
    request = urllib.request.Request(f"{started.url}/api/jobs", data=b'{"xylophone', headers={
        "Authorization": f"Bearer {key}", "Content-Type": "application/json", "X-Request-Id": "r-1"})  # fmt: skip
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request)
    raw = socket.create_connection(("127.0.0.1", int(started.url.rpartition(":")[2])))
    raw.sendall(f"GET /api/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\x00\r\n\r\n".encode())
    answer = raw.recv(4_096).decode()
    assert "application/problem+json" in answer
    assert "X-Request-Id" in answer
    assert key not in answer
    assert started.stop() == 0
    assert started.left() == []
    assert [path.name for path in (started.data_dir / "run").iterdir()] == ["lock"]
    assert not (started.data_dir / "redis" / "redis.sock").exists()
    log = started.log.read_text()
    assert "xylophone" not in log
    assert key not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    mine = [line for line in lines if line.get("request_id") == "r-1"]
    assert [(line["event"], line["status"], line["route"]) for line in mine] == [("request.finished", 400, "/api/jobs")]
    settled = [line for line in lines if line["event"] == "attempt.settled"]
    assert [(line["outcome"], line["type"]) for line in settled] == [("complete", "chat")]


@pytest.mark.parametrize("name", ["redis", "api", "worker", "interactive", "model"])
def test_a_child_that_dies_is_started_again(started: Started, name: str) -> None:
    before = started.pids()[name]
    os.kill(before, signal.SIGKILL)
    until(lambda: name in started.pids() and started.pids()[name] != before and alive(started.pids()[name]))

    def works() -> bool:
        done = started.errand("jobs", "submit", "--chat", "hello", "--wait", "--json")
        return done.returncode == 0

    until(works, 40)


def test_what_a_hard_kill_left_is_found_and_no_accepted_job_is_lost(data_dir: Path) -> None:
    """Given jobs queued and running, when the supervisor, then everything, is killed hard, then the next start stops
    what is left, doubles nothing, and finishes every job."""
    made: list[str] = []
    for everything in (False, True):
        stack = Started(data_dir).ready()
        for _ in range(8):
            done = stack.errand("jobs", "submit", "--chat", " ".join(f"w{n}" for n in range(60)))
            made.append(done.stdout.strip())
        pids = stack.pids()
        stack.process.kill()
        stack.process.wait()
        if everything:
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
        else:
            assert all(alive(pid) for pid in pids.values())
    last = Started(data_dir).ready()
    assert not any(alive(pid) for pid in pids.values())
    assert len([line for line in last.left() if "redis-server" in line]) == 1
    for job_id in made:
        shown = last.errand("jobs", "show", job_id, "--wait", "40", "--json")
        assert json.loads(shown.stdout)["status"] == "complete"
    assert last.stop(signal.SIGINT) == 0
    assert last.left() == []


@pytest.mark.parametrize("after_s", [0.15, 0.4, 0.8, 1.3, 2.0])
def test_a_signal_at_any_moment_leaves_nothing(data_dir: Path, after_s: float) -> None:
    stack = Started(data_dir)
    time.sleep(after_s)
    code = stack.stop()
    assert code == 0 or (after_s < 0.5 and code == -signal.SIGTERM)  # before Python has read the program
    assert stack.left() == []
    assert list((data_dir / "run").glob("*.pid")) == []
    assert "Traceback" not in stack.log.read_text()


def refused(data_dir: Path, **environment: str) -> str:
    stack = Started(data_dir, **environment)
    assert stack.process.wait(40) == 2
    if "already running" not in stack.log.read_text():
        assert stack.left() == []
    lines = [line for line in stack.log.read_text().splitlines() if line.startswith("errand: ")]
    assert "Traceback" not in stack.log.read_text()
    return lines[-1]


def test_what_stops_the_start_is_one_line(data_dir: Path, started: Started, tmp_path: Path) -> None:
    port = started.url.rpartition(":")[2]
    assert f"port {port} on 127.0.0.1 is in use" in refused(tmp_path / "a", PORT=port)
    assert f"already running at {started.url}" in refused(data_dir)
    assert "ERRAND_LEASE_SECONDS='abc'" in refused(tmp_path / "b", ERRAND_LEASE_SECONDS="abc")
    assert "ERRAND_NONSENSE is not a setting" in refused(tmp_path / "c", ERRAND_NONSENSE="1")
    assert "REDIS_URL" in refused(tmp_path / "d", REDIS_URL="nonsense://x")
    assert "Redis cannot be used" in refused(tmp_path / "e", REDIS_URL="redis://nonsense.invalid:1/0")
    assert "admin key must have the form" in refused(tmp_path / "f", ERRAND_ADMIN_KEY="short")
    (tmp_path / "file").write_text("x")
    assert "cannot be used" in refused(tmp_path / "file")
    assert "HOST=nonsense.invalid" in refused(tmp_path / "g", HOST="nonsense.invalid")


def test_the_demo_analyses_a_file_and_leaves_nothing(data_dir: Path, tmp_path: Path) -> None:
    document = tmp_path / "letter.pdf"
    document.write_bytes(files.pdf())
    environment = {
        **BARE,
        "PYTHONPATH": str(ROOT),
        "ERRAND_DATA_DIR": str(data_dir),
        "http_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-m", "scripts.demo", "letter.pdf", "-q", "What price does the page name?"],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"POST /api/jobs → job_\w+ queued", done.stdout)
    assert "100%" in done.stdout
    assert "42 francs" in done.stdout
    assert "page 3" in done.stdout
    assert "not read: no text on this page" in done.stdout
    assert list((data_dir / "run").glob("*.pid")) == []


def test_two_demos_at_once_share_a_stack(data_dir: Path, tmp_path: Path) -> None:
    document = tmp_path / "a.txt"
    document.write_text("The crane costs 27 million. It lifts 104 tonnes.")
    environment = {**BARE, "PYTHONPATH": str(ROOT), "ERRAND_DATA_DIR": str(data_dir)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "scripts.demo", str(document)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert "Key points" in output
    assert list((data_dir / "run").glob("*.pid")) == []


@pytest.mark.parametrize(("name", "content"), [("missing.txt", None), ("empty.txt", b"")])
def test_the_demo_refuses_what_is_no_document(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "scripts.demo", str(tmp_path / name)],
        capture_output=True, text=True, env={**BARE, "PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert name in done.stderr


def test_the_command_line(started: Started, tmp_path: Path) -> None:
    document = tmp_path / "note.md"
    document.write_text("# Note\n\nThe mayor opened the bridge in 1904.\n")
    added = json.loads(started.errand("documents", "add", str(document), "--json").stdout)
    assert added["documentId"].startswith("doc_")
    analysed = started.errand("jobs", "submit", "--analyse", str(document), "-q", "Who opened the bridge?", "--wait")
    assert analysed.returncode == 0
    assert "The mayor opened the bridge in 1904." in analysed.stdout
    shown = started.errand("documents", "show", added["documentId"], "--text")
    assert "mayor" in shown.stdout
    assert added["documentId"] in started.errand("documents", "list").stdout
    assert started.errand("documents", "delete", added["documentId"]).returncode == 0
    tenant = started.errand("tenants", "create", "Acme", "--limits", '{"maxQueuedJobs": 5}').stdout.strip()
    assert tenant in started.errand("tenants", "list").stdout
    key = json.loads(started.errand("keys", "create", "--tenant", tenant, "--scopes", "jobs", "--json").stdout)
    assert key["keyId"] in started.errand("keys", "list", "--tenant", tenant).stdout
    assert started.errand("keys", "revoke", key["keyId"], "--tenant", tenant).returncode == 0
    later = started.errand("jobs", "submit", json.dumps(chat(delaySeconds=100)))
    job_id = later.stdout.strip()
    assert "scheduled" in started.errand("jobs", "list").stdout
    assert "cancelled" in started.errand("jobs", "cancel", job_id).stdout
    assert "queued" in started.errand("jobs", "retry", job_id).stdout
    tail = started.errand("jobs", "tail", job_id)
    assert tail.returncode == 0
    assert "[1 job.cancelled]" in tail.stdout
    assert started.errand("doctor").returncode == 0
    unknown = started.errand("jobs", "show", "job_nonsense")
    assert (unknown.returncode, "There is no job" in unknown.stderr) == (1, True)
    assert started.errand("jobs", "dance").returncode == 2
    assert started.errand("jobs", "submit", "{broken").returncode == 2
    nobody = started.errand("jobs", "list", "--url", "http://127.0.0.1:9")
    assert (nobody.returncode, "there is no Errand at" in nobody.stderr) == (2, True)


def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / name), *arguments],
        capture_output=True, text=True, env={**BARE, **environment}, timeout=120,
    )  # fmt: skip


def test_an_unsupported_python_is_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1"\nexit 1\n')
    old.chmod(0o755)
    named = run_script("start", PYTHON=str(old))
    assert (named.returncode, named.stderr.count("\n")) == (2, 1)
    assert "Python 3.9.1; Errand needs Python 3.11 or later" in named.stderr
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    found = run_script("demo", PATH=str(tmp_path))
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "found: Python 3.9.1" in found.stderr


def test_without_network_set_up_says_so_and_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    environment = {
        "PYTHON": sys.executable,
        "ERRAND_VENV": str(tmp_path / "venv"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_RETRIES": "0",
        "PIP_NO_CACHE_DIR": "1",
    }
    done = run_script("errand", "--help", **environment)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "errand: the packages cannot be fetched: no network to the package registry"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    refused = run_script("errand", "--help", **{**environment, "ERRAND_VENV": str(tmp_path / "mine")})
    assert refused.returncode == 2
    assert "is left alone" in refused.stderr
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_an_environment_that_was_interrupted_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    """Given an environment of ours with a Python but no pip, when set-up runs again, then pip is there."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "made-by-errand").touch()
    (venv / "bin" / "python").symlink_to(sys.executable)
    done = run_script(
        "errand", "--help", PYTHON=sys.executable, ERRAND_VENV=str(venv), PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="", PIP_CONFIG_FILE="/dev/null", PIP_RETRIES="0", PIP_NO_CACHE_DIR="1",
    )  # fmt: skip
    assert "No module named pip" not in done.stderr
    assert (venv / "bin" / "pip").exists()
    assert (venv / "made-by-errand").read_text() == "complete\n"


def test_without_redis_there_is_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text('#!/bin/sh\necho "Redis server v=6.0.16"\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_binary.find(tmp_path) is None
    from scripts import embedded_redis
    from shared.errors import ConfigurationError

    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"apt-get install redis-server"):
        embedded_redis.find_server()
