"""The previous release's source, from the clone's history: `tests/previous_release.txt` names commit and version."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from tests.conftest import ROOT

COMMIT, VERSION = (ROOT / "tests" / "previous_release.txt").read_text().split()


def unpack(into: Path) -> Path:
    """The tree of the previous release, below `into`. Fails, and never skips, where the history is not there: a check
    that a shallow clone turns off by itself is none."""
    made = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True, check=False)
    assert made.returncode == 0, (
        f"Release {VERSION} ({COMMIT[:12]}) is not in this clone's history: {made.stderr.decode().strip()}. "
        "Clone with history (git fetch --unshallow)."
    )
    tree = into / f"errand-{VERSION}"
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(tree, filter="data")
    return tree
