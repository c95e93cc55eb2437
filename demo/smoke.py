"""`make demo-smoke`: runs the demo without a person and checks what it shows, a line for each check.

Without options the demo runs twice in one new folder. With --kill the server is killed (SIGKILL) while training runs,
then, in a second run, the demo itself; a third one has to finish that run.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from demo.processes import read_mark
from demo.stack import free_port
from demo.state import CHECKOUT

LIMIT_SECONDS = 300.0
MARGIN = 0.2  # of accuracy, over always answering the larger class
TRAINING = "train      attempt 1  started"


class Checks:
    """Counts what failed."""

    def __init__(self) -> None:
        self.failed = 0

    def check(self, what: str, holds: bool, seen: object = "") -> None:
        """Prints one line about one expectation."""
        self.failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'}  {what}{f': {seen}' if seen != '' else ''}", flush=True)


class Transcript:
    """What a demo printed."""

    def __init__(self, code: int, lines: list[str], seconds: float) -> None:
        self.code = code
        self.lines = lines
        self.seconds = seconds

    def first(self, pattern: str) -> str:
        """The first group of the first line that a pattern is found in, or nothing."""
        return next((match[1] for line in self.lines if (match := re.search(pattern, line))), "")

    def section(self, title: str) -> list[str]:
        """The lines under a heading."""
        starts = [index for index, line in enumerate(self.lines) if line.startswith(f"==> {title}")]
        if not starts:
            return []
        after = self.lines[starts[0] + 1 :]
        end = next((index for index, line in enumerate(after) if line.startswith("==> ")), len(after))
        return after[:end]

    def metrics(self) -> dict[str, str]:
        """The metrics that it showed, as they were spelled."""
        return {words[1]: words[2] for line in self.section("metrics") if len(words := line.split()) == 3}

    @property
    def run_id(self) -> str:
        """The run that it was about."""
        return self.first(r"^    run ([0-9a-f]{32})")


def run_demo(folder: Path, port: int, at: str = "", then: Callable[[int], None] = lambda pid: None) -> Transcript:
    """Runs the demo to its end; `then` is called with its process id when a line has the text `at`."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.demo", "--exit", "--state", str(folder)],
        cwd=CHECKOUT,
        env={**os.environ, "ANIMUS_GATEWAY_PORT": str(port)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    alarm = threading.Timer(LIMIT_SECONDS, process.kill)
    alarm.start()
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        print(f"      | {lines[-1]}", flush=True)
        if at and at in line:
            then(process.pid)
    process.wait()
    alarm.cancel()
    return Transcript(process.returncode, lines, time.monotonic() - began)


def expected_lines(port: int) -> list[str]:
    """The lines that a demo prints, in this order, among its own."""
    return [
        "==> starting demo stack",
        f"==> waiting for gateway http://localhost:{port}/healthz",
        "==> create project",
        "==> quality",
        "==> create run",
        "==> dry-run",
        "==> userspace execution (data plane surface)",
        "==> demo complete",
    ]


def in_order(lines: list[str], wanted: list[str]) -> bool:
    """Whether all wanted lines stand there, in their order, with others between them."""
    rest = iter(lines)
    return all(line in rest for line in wanted)


def check_transcript(checks: Checks, shown: Transcript, port: int) -> None:
    """Checks what one complete demo printed."""
    checks.check("the demo exits with 0", shown.code == 0, f"{shown.code} after {shown.seconds:.1f} s")
    checks.check("its lines are in order", in_order(shown.lines, expected_lines(port)))
    checks.check("the run succeeded", "==> derived state: succeeded" in shown.lines)
    checks.check("the repeated request was replayed", any("Animus-Replayed: true" in line for line in shown.lines))
    metrics = {name: float(value) for name, value in shown.metrics().items()}
    accuracy, baseline = metrics.get("accuracy", 0.0), metrics.get("baseline_accuracy", 1.0)
    checks.check("accuracy beats the larger class", accuracy > baseline + MARGIN, f"{accuracy} over {baseline}")
    checks.check(
        "accuracy beats every model of shuffled labels",
        accuracy > metrics.get("control_accuracy_max", 1.0) and metrics.get("permutation_p", 1.0) <= 0.01,
        f"best of them {metrics.get('control_accuracy_max')}, p = {metrics.get('permutation_p')}",
    )
    checks.check("ROC AUC is far from chance", metrics.get("roc_auc", 0.0) > 0.9, metrics.get("roc_auc"))
    lineage = shown.section("lineage")
    checks.check(
        "the lineage leads from the model to the dataset version",
        bool(lineage) and lineage[0].endswith("the model") and lineage[-1].endswith("the dataset version"),
        f"{len(lineage)} nodes",
    )
    changes, entries = shown.first(r"changes (\d+), audit"), shown.first(r"audit entries of them (\d+)")
    checks.check("changes = audit entries", bool(changes) and changes == entries, f"{changes} = {entries}")
    checks.check("the log verifies", bool(verdict(shown)), verdict(shown))
    again, other = (
        shown.first(r"replayed: (REPRODUCED); \d+"),
        shown.first(r"another seed: (DIVERGED, first at step \S+);"),
    )
    checks.check("the replay reproduces it", bool(again), again)
    checks.check("another seed diverges, and the step is named", bool(other), other)
    verdicts = [shown.first(rf"^    {rule} +([A-Z]+)$") for rule in ("tumours-complete", "classes-balanced")]
    checks.check("one rule passes and one fails", verdicts == ["PASS", "FAIL"], verdicts)
    refused = shown.first(r"^    refused: (.*half-are-benign.*)$")
    checks.check("the gate refuses a run and names the check", bool(refused), refused)
    against = shown.section("evidence of the run that was let in against the gate")
    overridden = next((line.strip() for line in against if re.match(r" +OVERRIDE .*The demo shows", line)), "")
    checks.check("the override is in the evidence", bool(overridden), overridden)
    named = shown.first(r"^    the secret that a step got is (not) in it, its reference file:source-password is$")
    checks.check("the evidence names the step's secret and does not hold it", bool(named), named)
    evidence = shown.first(r"^ +(SIGNED|CONSISTENT|WITNESSED): ")
    checks.check("the evidence verifies in an empty environment", bool(evidence), evidence)


def verdict(shown: Transcript) -> str:
    """What `animus audit verify` said of the log."""
    return shown.first(r"^ +(SIGNED|CONSISTENT) animus\.demo/demo/1 size \d+ root [0-9a-f]{64}$")


def check_alike(checks: Checks, one: Transcript, other: Transcript) -> None:
    """Checks that two demos computed the same, in runs of their own."""
    for name in ("RunSpec digest", "plan digest"):
        first, second = (each.first(rf"{name} (sha256:[0-9a-f]{{64}})") for each in (one, other))
        checks.check(f"the {name} is the same", bool(first) and first == second, first)
    checks.check("the metrics are the same", bool(one.metrics()) and one.metrics() == other.metrics())
    made = [[line.split()[:3] for line in each.section("artifacts")] for each in (one, other)]
    checks.check("the artifacts are the same", bool(made[0]) and made[0] == made[1], f"{len(made[0])} digests")
    checks.check("the runs are two", bool(one.run_id) and one.run_id != other.run_id)
    checks.check("the log goes on from what was verified", verdict(other) == "CONSISTENT", verdict(other))


def remaining(folder: Path) -> list[int]:
    """The processes that have the folder in their arguments or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            for part in ("cmdline", "environ"):
                try:
                    text = (entry / part).read_bytes()
                except (FileNotFoundError, ProcessLookupError, PermissionError):  # ended, or not ours to read
                    continue
                if os.fsencode(folder) in text:
                    found.append(int(entry.name))
    return sorted(set(found))


def gone(folder: Path, within: float) -> bool:
    """Whether no process of the folder is left, waiting up to so many seconds."""
    deadline = time.monotonic() + within
    while remaining(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def kill_server(folder: Path) -> Callable[[int], None]:
    """Kills the server of the folder, once."""

    def kill(pid: int) -> None:
        server = read_mark(folder / "server.pid")
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)

    return kill


def twice(checks: Checks, folder: Path) -> None:
    """Two demos, one after the other."""
    shown = []
    for _ in range(2):
        port = free_port()
        shown.append(run_demo(folder, port))
        check_transcript(checks, shown[-1], port)
        checks.check("no process is left", not remaining(folder), remaining(folder) or "")
    check_alike(checks, *shown)


def killed(checks: Checks, folder: Path) -> None:
    """A demo whose server is killed, then one that is killed itself, and one that goes on with its run."""
    port = free_port()
    survived = run_demo(folder, port, TRAINING, kill_server(folder))
    check_transcript(checks, survived, port)
    checks.check("the server was killed", bool(survived.first(r"(the server ended by SIGKILL)")))
    attempts = [line.split() for line in survived.section("attempts")]
    checks.check("every step took one attempt", [words[1] for words in attempts] == ["1"] * 4)

    broken = run_demo(folder, port, TRAINING, lambda pid: os.kill(pid, signal.SIGKILL))
    checks.check("the demo was killed", broken.code == -signal.SIGKILL, broken.code)
    checks.check("what it started ends with it", gone(folder, 60))
    resumed = run_demo(folder, port)
    check_transcript(checks, resumed, port)
    checks.check("the next demo finishes the same run", bool(broken.run_id) and broken.run_id == resumed.run_id)
    failed = [line.split() for line in resumed.section("attempts") if "failed" in line]
    checks.check("the lost attempt is on record", [words[:2] for words in failed] == [["train", "1"]], failed)
    check_alike(checks, survived, resumed)
    checks.check("no process is left", not remaining(folder), remaining(folder) or "")


def main() -> int:
    """Runs the command line. Exits with 0 when every check held."""
    parser = argparse.ArgumentParser(prog="demo-smoke", description="Runs the demo and checks what it shows.")
    parser.add_argument("--kill", action="store_true", help="kill the server, then the demo, in the middle")
    options = parser.parse_args()
    checks = Checks()
    folder = Path(tempfile.mkdtemp(prefix="animus-demo-smoke-"))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # PostgreSQL runs as another account then
    (killed if options.kill else twice)(checks, folder / "state")
    if checks.failed:
        print(f"{checks.failed} checks failed; what the demo left is in {folder}")
        return 1
    shutil.rmtree(folder)
    print("all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
