"""The userspace runner: what it executes, what it refuses, and that neither crash nor restart does anything twice."""

import os
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_control_plane import LostReplyError, world

from animus.domain.state import RunState

COPY = """
    import json, pathlib
    text = pathlib.Path("inputs/letters/a.txt").read_text()
    before = pathlib.Path("inputs/before")
    pathlib.Path("outputs/made").write_text((before.read_text() if before.exists() else "") + text)
    pathlib.Path("metrics.json").write_text(json.dumps({"length": str(len(text))}))
"""
SHOW_ENVIRONMENT = """
    import os, pathlib
    pathlib.Path("outputs/made").write_text(repr(sorted(os.environ.items())))
"""
STUCK = """
    import os, pathlib, time
    pathlib.Path("../pid").write_text(str(os.getpid()))
    while True:
        time.sleep(1)
"""


def finish(runner: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and output of a runner that ends by itself."""
    output, _ = runner.communicate(timeout=60)
    return runner.returncode, output


def test_steps_run_in_order_with_checked_inputs_and_are_reported_by_digest(tmp_path: Path) -> None:
    """Each step gets what the one before wrote, and attempts, artifacts and metrics reach the control plane."""
    with world(tmp_path, {"one": COPY, "two": COPY}) as here:
        code, output = finish(here.start_runner())
        assert code == 0, output
        control = here.control
        assert control.state.run is RunState.SUCCEEDED
        assert [control.types(step) for step in ("one", "two")] == [[(1, "started"), (1, "succeeded")]] * 2
        assert [(metric.name, metric.value) for metric in control.metrics] == [("length", "5")] * 2
        made = {artifact.step: artifact.digest.removeprefix("sha256:") for artifact in control.artifacts}
        assert (tmp_path / "state" / "artifacts" / made["two"]).read_text() == "alphaalpha"


def test_a_step_gets_the_declared_environment_and_no_other(tmp_path: Path) -> None:
    """Nothing of the runner's own environment reaches a step."""
    with world(tmp_path, {"one": SHOW_ENVIRONMENT}) as here:
        assert finish(here.start_runner())[0] == 0
        made = here.control.artifacts[0].digest.removeprefix("sha256:")
        seen = (tmp_path / "state" / "artifacts" / made).read_text()
        assert seen in ("[('COLOUR', 'red')]", "[('COLOUR', 'red'), ('LC_CTYPE', 'C.UTF-8')]")  # Python adds the last


def test_a_secret_goes_to_the_step_and_into_no_report(tmp_path: Path) -> None:
    """Its variable has the file's text; what the step said last is reported without it."""
    secrets = tmp_path / "state" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "team").touch(mode=0o600)
    (secrets / "team").write_text("hunter2\n")
    raising = "import os\nraise ValueError('as ' + os.environ['PASSWORD'])"
    with world(tmp_path, {"one": raising}, secret_ref="file:team") as here:
        assert finish(here.start_runner())[0] == 0
        assert here.control.events[-1].message == "the step exited with 1: ValueError: as [PASSWORD]"
        assert not any(b"hunter2" in body for bodies in here.control.sent.values() for body in bodies)


@pytest.mark.parametrize(
    ("secret_ref", "kind", "said"),
    [
        ("file:team", "system", "the secret file:team is not at hand"),
        ("file:../token", "user", "file:../token is no file:<name>"),
        ("vault:team", "user", "vault:team is no file:<name>"),
    ],
)
def test_a_secret_that_is_not_to_be_had_fails_the_step(tmp_path: Path, secret_ref: str, kind: str, said: str) -> None:
    """The message names the reference; the step never runs."""
    with world(tmp_path, {"one": SHOW_ENVIRONMENT}, secret_ref=secret_ref) as here:
        assert finish(here.start_runner())[0] == 0
        end = here.control.events[-1]
        assert (end.error_kind, here.control.state.run) == (kind, RunState.FAILED)
        assert end.message.startswith(said)
        assert not list((tmp_path / "state").glob("**/output.txt"))


def test_a_runner_killed_at_any_report_ends_in_one_run_without_repeats(tmp_path: Path) -> None:
    """Every report is once lost before it is stored and once after; the restarted runner finishes the same run."""
    with world(tmp_path, {"one": COPY}) as here:
        control = here.control
        runner = here.start_runner()
        seen: Counter[str] = Counter()

        def kill(stored: bool) -> Callable[[str], None]:
            def at(request_id: str) -> None:
                if request_id.endswith("-2-started"):
                    return  # else no attempt would ever live
                point = f"{request_id}:{stored}"
                seen[point] += 1
                if seen[point] == 1:
                    runner.kill()
                    runner.wait()
                    raise LostReplyError

            return at

        control.before, control.after = kill(stored=False), kill(stored=True)
        kills = 0
        while (code := finish(runner)[0]) != 0:
            assert code == -signal.SIGKILL
            kills += 1
            assert kills < 20
            runner = here.start_runner()
        assert kills == 10  # 5 reports: started and ended of attempt 1, artifacts, metrics and ended of attempt 2
        assert control.state.run is RunState.SUCCEEDED
        assert control.types("one") == [(1, "started"), (1, "failed"), (2, "started"), (2, "succeeded")]
        assert len(control.artifacts) == len(control.metrics) == 1
        assert len(control.replies) == len({event.event_id for event in control.events}) + 2
        assert all(len(bodies) == 1 for bodies in control.sent.values())  # a repeat is the same, to the microsecond


def test_an_attempt_whose_end_was_written_is_not_run_again(tmp_path: Path) -> None:
    """A runner killed between a step's success and its report reports the success, and runs nothing."""
    with world(tmp_path, {"one": COPY}) as here:
        runner = here.start_runner()

        def kill(request_id: str) -> None:
            if request_id.endswith("artifacts") and runner.returncode is None:
                runner.kill()
                runner.wait()
                raise LostReplyError

        here.control.before = kill
        finish(runner)
        (tmp_path / "letters" / "a.txt").unlink()  # a second execution could not succeed
        assert finish(here.start_runner())[0] == 0
        assert here.control.types("one") == [(1, "started"), (1, "succeeded")]


def test_a_changed_input_is_a_system_failure_and_the_step_never_runs(tmp_path: Path) -> None:
    """One changed byte of a dataset is found before the step starts; the attempts end as FAILED/SYSTEM."""
    with world(tmp_path, {"one": COPY}) as here:
        (tmp_path / "letters" / "a.txt").write_text("alphA")
        assert finish(here.start_runner())[0] == 0
        assert here.control.state.run is RunState.FAILED
        ends = [event for event in here.control.events if event.type == "failed"]
        assert len(ends) == 3
        assert all(event.error_kind == "system" and "instead of sha256:" in event.message for event in ends)
        assert not list((tmp_path / "state").glob("**/output.txt"))


def test_a_step_that_exits_with_an_error_is_a_user_failure_with_its_last_line(tmp_path: Path) -> None:
    """The policy allows no retry of the user's own error, so the run fails after one attempt."""
    with world(tmp_path, {"one": "raise ValueError('no such tumour')"}) as here:
        assert finish(here.start_runner())[0] == 0
        end = here.control.events[-1]
        assert (end.error_kind, here.control.state.run) == ("user", RunState.FAILED)
        assert end.message == "the step exited with 1: ValueError: no such tumour"


def test_another_environment_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A runner whose environment is not the one that the run names reports nothing."""
    with world(tmp_path, {"one": COPY}, environment_digest="sha256:" + "0" * 64) as here:
        code, output = finish(here.start_runner())
        assert code == 1
        assert "this environment is sha256:" in output
        assert not here.control.sent


def wait_for_step(folder: Path, runner: "subprocess.Popen[str]") -> int:
    """A pidfd of a STUCK step that runs."""
    path = folder / "state" / "runs"
    deadline = time.monotonic() + 30
    while runner.poll() is None and time.monotonic() < deadline:
        for found in path.glob("*/one/1/pid"):
            if text := found.read_text():
                return os.pidfd_open(int(text))
    runner.kill()
    raise AssertionError(runner.communicate())


def gone(pidfd: int) -> bool:
    """Whether a process has ended, or does within 5 seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        return bool(poll.poll(5000))
    finally:
        os.close(pidfd)


def test_cancelling_the_run_stops_the_step_and_reports_it(tmp_path: Path) -> None:
    """The step's process is gone and the attempt is CANCELED."""
    with world(tmp_path, {"one": STUCK}) as here:
        runner = here.start_runner()
        step = wait_for_step(tmp_path, runner)
        here.control.cancel_requested = True
        assert finish(runner)[0] == 0
        assert gone(step)
        assert here.control.types("one") == [(1, "started"), (1, "canceled")]
        assert here.control.state.run is RunState.CANCELED


def test_sigterm_stops_the_step_and_reports_a_system_failure(tmp_path: Path) -> None:
    """A runner that is told to stop leaves no process and no attempt open."""
    with world(tmp_path, {"one": STUCK}) as here:
        runner = here.start_runner()
        step = wait_for_step(tmp_path, runner)
        runner.terminate()
        assert finish(runner)[0] == 128 + signal.SIGTERM
        assert gone(step)
        assert here.control.types("one") == [(1, "started"), (1, "failed")]


def test_a_step_does_not_outlive_a_killed_runner(tmp_path: Path) -> None:
    """The kernel ends the step when its runner is killed."""
    with world(tmp_path, {"one": STUCK}) as here:
        runner = here.start_runner()
        step = wait_for_step(tmp_path, runner)
        runner.kill()
        finish(runner)
        assert gone(step)


def test_a_step_that_runs_too_long_is_ended(tmp_path: Path) -> None:
    """The time limit ends the step's process; the failure is of the kind SYSTEM."""
    with world(tmp_path, {"one": STUCK}) as here:
        assert finish(here.start_runner("--step-timeout", "0.3"))[0] == 0
        assert {event.message for event in here.control.events if event.message} == {"the step ran longer than 0.3 s"}
