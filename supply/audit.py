"""Whether packages of the locks have known weaknesses: `python -m supply.audit`, with options of pip-audit.

pip-audit asks a service by name and version. A service without any advisories answers of every package that it has
none, so a version whose weakness has been public for years is asked for too: where that is not reported, nothing was
checked. The exit code is 1 for a weakness and 0 otherwise: without a network nothing is known, and it says so.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from supply.lock import ROOT, read_lock

LOCKS = ("requirements.lock", "proto/requirements.lock", "uv.lock.txt")
CONTROL = ("pyyaml", "5.3")  # CVE-2020-1747: a document that is loaded can run code
SECONDS = 300

Pin = tuple[str, str]  # name and version


def pinned() -> set[Pin]:
    """Every version that a lock has, whatever platform and Python it is for."""
    return {(each.name, each.version) for name in LOCKS for each in read_lock((ROOT / name).read_text())}


def files_of(pins: Iterable[Pin]) -> list[str]:
    """Requirements of these versions, as the fewest files that have no name twice, which pip-audit refuses."""
    files: list[dict[str, str]] = []
    for name, version in sorted(pins):
        file = next((each for each in files if name not in each), None)
        if file is None:
            file = {}
            files.append(file)
        file[name] = version
    return ["".join(f"{name}=={version}\n" for name, version in file.items()) for file in files]


def ask(requirements: str, options: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """pip-audit's answer on some versions; or none, and what it said instead."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(requirements)
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(file), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)  # noqa: S603 - our own
        except subprocess.TimeoutExpired:
            return [], f"no answer within {SECONDS} s"
    try:
        return list(json.loads(done.stdout)["dependencies"]), ""
    except ValueError:
        return [], (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]


def judged(answers: Iterable[dict[str, Any]], pins: set[Pin]) -> tuple[list[str], list[str]]:
    """The weaknesses in answers on some versions and the control; and why some or all of it was not checked."""
    known = {(each["name"], each["version"]): each["vulns"] for each in answers if "vulns" in each}
    skipped = [each["skip_reason"] for each in answers if "skip_reason" in each]
    found = [
        f"{name} {version}: {weakness['id']}, fixed in {', '.join(weakness['fix_versions']) or 'no version'}"
        for name, version in sorted(known.keys() & pins)
        for weakness in known[name, version]
    ]
    if not known.get(CONTROL):
        name, version = CONTROL
        return found, [f"the service does not know the weakness of {name} {version}", *skipped]
    return found, [f"no answer on {name} {version}" for name, version in sorted(pins - known.keys())]


def main() -> None:
    """Runs the command line."""
    pins = pinned()
    answers: list[dict[str, Any]] = []
    unchecked: list[str] = []
    for requirements in files_of({*pins, CONTROL}):
        answer, silence = ask(requirements, sys.argv[1:])
        answers += answer
        unchecked += [silence] if silence else []
    found, why = judged(answers, pins)
    unchecked += why
    for weakness in found:
        print(f"audit: WEAK: {weakness}")
    if unchecked:
        print(f"audit: NOT CHECKED: {'; '.join(unchecked[:3])}{' …' if unchecked[3:] else ''}")
    elif not found:
        print(f"audit: {len(pins)} versions without a known weakness")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
