"""The processes of a stack: started so that a later start finds them, and stopped with whatever they left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

# The child writes its pid file itself, before it becomes the program: there is no moment at which it runs unseen.
# A pid and the time of its birth name one process, though pids come again.
LAUNCH = """
if [ -r /proc/$$/stat ]; then read -r stat </proc/$$/stat; rest=${stat##*) }; set -f; born=$(set -- $rest; echo "${20}")
else born=$(ps -o lstart= -p $$); fi
file=$1; shift
printf '%s %s\\n' "$$" "$born" >"$file.new" && mv "$file.new" "$file" || exit 71
exec "$@"
"""


def say(line: str) -> None:
    """A line for the person at the terminal; standard output is for `ready`."""
    with suppress(OSError):
        print(f"errand: {line}", file=sys.stderr, flush=True)


class Child:
    """One supervised process: its command, and the pid file by which a later start finds it."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], run_dir: Path, grace_s: float):
        self.name = name
        self.command = command
        self.environment = dict(environment)
        self.pid_file = run_dir / f"{name}.pid"
        self.grace_s = grace_s
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, output: IO[Any] | None) -> None:
        """Starts the process in a session of its own: Ctrl-C reaches us, and we stop it in order."""
        self.process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            LAUNCH,
            "errand",
            str(self.pid_file),
            *self.command,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output or sys.stderr,
            stderr=output or sys.stderr,
            start_new_session=True,
        )

    async def stop(self, *, hurry: asyncio.Event) -> None:
        """SIGTERM, then SIGKILL after the grace time or when told to hurry; and whatever it left in its group."""
        process = self.process
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            ended = asyncio.create_task(process.wait())
            hurried = asyncio.create_task(hurry.wait())
            await asyncio.wait([ended, hurried], timeout=self.grace_s, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if not ended.done():
                with suppress(ProcessLookupError):
                    process.kill()
                await ended
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self.pid_file.unlink(missing_ok=True)


def born(pid: int) -> str:
    """When a process was started: with the pid it names one process, though pids come again. Empty when gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    except OSError:
        return ""
    return subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()


def stop_leftovers(run_dir: Path) -> None:
    """Stops what an earlier stack, killed hard, has left running: by pid file, and only if it is that very process."""
    left = []
    for pid_file in sorted(run_dir.glob("*.pid")):
        name = pid_file.stem
        try:
            pid_text, _, born_at = pid_file.read_text().strip().partition(" ")
            pid = int(pid_text)
        except (ValueError, OSError):
            pid_file.unlink(missing_ok=True)
            continue
        if born_at and born(pid) == born_at:
            say(f"stopping the {name} that an earlier run left (pid {pid})")
            left.append((name == "redis", pid, born_at, pid_file))
        else:
            pid_file.unlink(missing_ok=True)
    # Redis last: workers hand their jobs back to it.
    for _, pid, born_at, pid_file in sorted(left, key=lambda entry: entry[0]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 12
        while alive(pid, born_at) and time.monotonic() < deadline:
            time.sleep(0.05)
        if alive(pid, born_at):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        pid_file.unlink(missing_ok=True)


def alive(pid: int, born_at: str) -> bool:
    """Whether this very process still runs (a zombie does not)."""
    if born(pid) != born_at:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()
    except OSError:
        return False
