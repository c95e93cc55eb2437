"""The smoke test's own checks: a good transcript passes, and each thing that may be wrong with one is seen."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.processes import Mark, mark_of, stop_marked
from demo.smoke import Checks, Transcript, check_alike, check_transcript, remaining

PORT = 8080
GOOD = """\
    state in here
==> starting demo stack
==> waiting for gateway http://localhost:8080/healthz
==> create project
==> quality
    tumours-complete  PASS
      rows                 pass   569
    classes-balanced  FAIL
      half-are-benign      fail   0.627  0.627 is above the maximum 0.55
==> create run
    run 0123456789abcdef0123456789abcdef  admitted after 3 checks
    RunSpec digest sha256:1111111111111111111111111111111111111111111111111111111111111111
    the same request again: the same run, Animus-Replayed: true
==> dry-run
    plan digest sha256:2222222222222222222222222222222222222222222222222222222222222222
==> userspace execution (data plane surface)
==> derived state: succeeded
==> metrics: 5
    evaluate   accuracy                 0.97
    evaluate   baseline_accuracy        0.62
    evaluate   control_accuracy_max     0.73
    evaluate   permutation_p            0.01
    evaluate   roc_auc                  0.98
==> artifacts: 1
    train      model        sha256:3333  1429 bytes
==> lineage of the model: 2 nodes, 1 edges
    artifacts/sha256:3333…  the model
    used datasets/d/versions/sha256:4444…  the dataset version
==> audit: 24 entries in the log of the project
    changes 24, audit entries of them 24
==> audit log: every entry, tile and signed head
    CONSISTENT animus.demo/demo/1 size 24 root 5555555555555555555555555555555555555555555555555555555555555555
==> reproduction
    replayed: REPRODUCED; 1 of 1 outputs are equal
    with another seed: DIVERGED, first at step train; 0 of 1 outputs are equal
    parameters.seed: 7 and 8
==> quality gate
    refused: the newest verdict of the rule is FAIL (classes-balanced: half-are-benign: 0.627 is above the maximum 0.55)
==> evidence
    SIGNED: here/evidence.zip
      checked    29 files are those of the manifests
    the secret that a step got is not in it, its reference file:source-password is
==> evidence of the run that was let in against the gate
    SIGNED: here/evidence.zip
      OVERRIDE   by admin: The demo shows an override.
==> demo complete
"""


def transcript(text: str, code: int = 0) -> Transcript:
    """A transcript of a text."""
    return Transcript(code, text.splitlines(), 1.0)


def test_a_good_transcript_passes_every_check() -> None:
    """Nothing is found where nothing is wrong, and another run of the same work is alike."""
    checks = Checks()
    check_transcript(checks, transcript(GOOD), PORT)
    check_alike(checks, transcript(GOOD), transcript(GOOD.replace("    run 0", "    run 1")))
    assert checks.failed == 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: text.replace("==> dry-run\n", ""),
        lambda text: text.replace("==> create run\n", "").replace("==> dry-run\n", "==> dry-run\n==> create run\n"),
        lambda text: text.replace("localhost:8080", "localhost:8081"),
        lambda text: text.replace("state: succeeded", "state: failed"),
        lambda text: text.replace("Animus-Replayed: true", "Animus-Replayed: false"),
        lambda text: text.replace("  0.97", "  0.80"),
        lambda text: text.replace("  0.73", "  0.98"),
        lambda text: text.replace("  0.01", "  0.02"),
        lambda text: text.replace("  0.98", "  0.50"),
        lambda text: text.replace("==> metrics: 5\n", ""),
        lambda text: text.replace("…  the dataset version", "…"),
        lambda text: text.replace("of them 24", "of them 23"),
        lambda text: text.replace("    changes 24, audit entries of them 24\n", ""),
        lambda text: text.replace("    CONSISTENT animus.demo/demo/1", "    INVALID animus.demo/demo/1"),
        lambda text: text.replace("replayed: REPRODUCED", "replayed: DIVERGED"),
        lambda text: text.replace("DIVERGED, first at step train", "DIVERGED"),
        lambda text: text.replace("    SIGNED: ", "    INVALID: "),
        lambda text: text.replace("a step got is not in it", "a step got is in it"),
        lambda text: text.replace("classes-balanced  FAIL", "classes-balanced  PASS"),
        lambda text: text.replace("    refused: ", "    admitted: "),
        lambda text: text.replace("(classes-balanced: half-are-benign: ", "("),
        lambda text: text.replace("      OVERRIDE   by admin: ", "      by admin: "),
    ],
)
def test_each_thing_that_may_be_wrong_with_a_transcript_is_seen(wrong: Callable[[str], str]) -> None:
    """The negative control of the checks of one demo."""
    checks = Checks()
    assert wrong(GOOD) != GOOD
    check_transcript(checks, transcript(wrong(GOOD)), PORT)
    assert checks.failed > 0


def test_a_demo_that_failed_is_seen() -> None:
    """All lines and another exit status than 0 are no success."""
    checks = Checks()
    check_transcript(checks, transcript(GOOD, code=1), PORT)
    assert checks.failed == 1


@pytest.mark.parametrize("part", ["sha256:1111", "sha256:2222", "sha256:3333", "0.97", "CONSISTENT", "run 0"])
def test_a_difference_between_two_demos_is_seen(part: str) -> None:
    """The negative control of the comparison: digests, metrics and artifacts must be equal, the runs must not."""
    checks = Checks()
    other = GOOD.replace("    run 0", "    run 1")
    check_alike(checks, transcript(GOOD), transcript(other.replace(part, part[:-1] + "9") if part != "run 0" else GOOD))
    assert checks.failed == 1


def test_a_process_that_is_left_is_found_by_the_folder_that_it_works_in(tmp_path: Path) -> None:
    """One that has the folder among its arguments is found while it lives, and a mark of it stops it and no other."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path)])
    mark = mark_of(sleeper.pid)
    assert mark is not None
    while remaining(tmp_path) != [sleeper.pid]:  # until the interpreter has replaced the fork
        assert sleeper.poll() is None
    assert not stop_marked(Mark(mark.boot, mark.pid, str(int(mark.start) + 1)), signal.SIGTERM, 1)
    assert sleeper.poll() is None
    assert stop_marked(mark, signal.SIGTERM, 10)
    sleeper.wait(timeout=10)
    assert remaining(tmp_path) == []
    assert mark_of(sleeper.pid) is None
