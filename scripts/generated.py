"""Files that are written from the code, and the check that they are what it says."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write_or_check(module: str, what: str | None, files: Mapping[Path, str]) -> int:
    """The command line of `python -m <module>`: writes the files, or with `--check` fails when one differs. `what` is
    its description. Returns its exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=what)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    check = parser.parse_args().check
    stale = []
    for path, text in files.items():
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                print(f"wrote {path.relative_to(ROOT)}")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run python -m {module}")
        return 1
    return 0
