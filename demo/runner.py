"""A userspace runner: executes the steps of one run on this machine and reports them over gRPC.

Rules:

- The control plane derives which step is next; the runner takes the first READY step in the order of the plan.
- Every report is written to a file before it is sent, and sent from that file ever after: a runner that is started
  again repeats the same requests with the same ids, times and digests, so nothing happens twice.
- An attempt whose end was written is reported as it ended. One that was started and has no end was lost with its
  runner: it is reported FAILED/SYSTEM, and the policy decides about another.
- A step gets its inputs only after their bytes were read back and have the digests that the RunSpec and the earlier
  attempts name; its code from the commit that the RunSpec names, not from the working tree; and exactly the environment
  variables that the pipeline declares.
- A variable with the secretRef `file:<name>` gets what the file of this name in the folder `secrets` holds. Its value
  goes to the step and nowhere else; what a step that failed said last is reported without it.

What lies in a run's folder:

    lock                            held by the runner that works on the run
    <step>/<attempt>/reports/       started, artifacts, metrics, ended: requests as JSON, each written once
    <step>/<attempt>/work/          where the step ran
    <step>/<attempt>/output.txt     what it printed
"""

import argparse
import fcntl
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from animus.domain import document
from animus.domain.errors import Invalid
from animus.domain.names import METRIC_NAME, RESOURCE_ID, check_decimal
from animus.sdk import file_digest, manifest, running_environment
from animus.v1 import pipeline_pb2, pipeline_pb2_grpc, run_pb2, run_pb2_grpc, runtime_pb2, runtime_pb2_grpc, types_pb2
from demo.processes import end_group, ended, launch

CODE = "demo/pipeline"  # the part of the repository that the steps need
REQUEST_PREFIX = "demo-"
CALL_SECONDS = 10.0  # for one try of a call
PATIENCE_SECONDS = 120.0  # for all tries of a call: a control plane that restarts is waited for
FAREWELL_SECONDS = 3.0  # for all tries once the runner was told to stop
LOOK_SECONDS = 1.0  # between looks at whether the run is being cancelled
AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
FINAL = (run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELED)

M = TypeVar("M", bound=Message)
Request = TypeVar("Request", bound=Message, contravariant=True)
Response = TypeVar("Response", bound=Message, covariant=True)


class Method(Protocol[Request, Response]):
    """A method of a stub."""

    def __call__(self, request: Request, timeout: float, metadata: tuple[tuple[str, str], ...]) -> Response:
        """Sends the request and waits for the response."""


class RunnerError(RuntimeError):
    """The runner cannot go on with the run; the text is one line that says why."""


class StepError(RuntimeError):
    """An attempt failed, and of which kind."""

    def __init__(self, kind: types_pb2.ErrorKind.ValueType, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class RunCanceledError(RuntimeError):
    """The run is being cancelled: the attempt was stopped."""


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


def now() -> Timestamp:
    """This machine's time in whole microseconds: a claim, nothing is decided by it."""
    time_ = Timestamp()
    time_.FromDatetime(datetime.now(UTC))
    return time_


def write_new(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all, whenever the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


class Stop:
    """Remembers that a signal asked the runner to stop, and when."""

    def __init__(self) -> None:
        self.asked: float | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or time.monotonic()


class ControlPlane:
    """The calls that a runner makes. Each is repeated as it is while the control plane may yet answer."""

    def __init__(self, address: str, token: str, stop: Stop) -> None:
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        channel = grpc.insecure_channel(address, options=options)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._stop = stop
        self.runs = run_pb2_grpc.RunServiceStub(channel)
        self.pipelines = pipeline_pb2_grpc.PipelineServiceStub(channel)
        self.runtime = runtime_pb2_grpc.RuntimeServiceStub(channel)

    def call(self, method: Method[Request, Response], request: Request) -> Response:
        """Calls until there is an answer, for at most PATIENCE_SECONDS. Raises grpc.RpcError for what is an answer."""
        began = time.monotonic()
        for tries in itertools.count():
            try:
                return self.call_once(method, request, CALL_SECONDS)
            except grpc.RpcError as error:
                patience_ends = began + PATIENCE_SECONDS
                if self._stop.asked is not None:
                    patience_ends = min(patience_ends, max(began, self._stop.asked) + FAREWELL_SECONDS)
                if error.code() not in AGAIN or time.monotonic() > patience_ends:
                    raise
            time.sleep(min(2.0, 0.1 * 2**tries))
        raise AssertionError("itertools.count() ended")

    def call_once(self, method: Method[Request, Response], request: Request, seconds: float) -> Response:
        """Calls once."""
        return method(request, timeout=seconds, metadata=self._metadata)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a step, and the folder where its reports are kept."""

    run_id: str
    step: str
    number: int
    folder: Path

    def id_of(self, kind: str) -> str:
        """The request id of a report, and the event id of an event: the same whoever derives it."""
        return f"{REQUEST_PREFIX}{self.run_id}-{self.step}-{self.number}-{kind}"

    def kept(self, kind: str, empty: M) -> M | None:
        """The report of this kind as it was written, or None."""
        path = self.folder / "reports" / f"{kind}.json"
        return json_format.Parse(path.read_text(), empty) if path.exists() else None

    def keep(self, kind: str, report: Message) -> None:
        """Writes a report; from now on it is sent as it is, whatever happens."""
        write_new(self.folder / "reports" / f"{kind}.json", json_format.MessageToJson(report))


class Runner:
    """Works on one run until it has ended."""

    def __init__(self, options: argparse.Namespace, token: str, stop: Stop) -> None:
        self.project: str = options.project
        self.run_id: str = options.run
        self.folder: Path = options.state / "runs" / options.run
        self.store: Path = options.state / "artifacts"
        self.secrets: Path = options.state / "secrets"
        self.checkout: Path = options.checkout
        self.sources: dict[str, Path] = dict(options.dataset)
        self.step_seconds: float = options.step_timeout
        self.stop = stop
        self.control = ControlPlane(options.address, token, stop)
        self.code: dict[str, bytes] = {}
        self.steps: dict[str, pipeline_pb2.Step] = {}
        self.delays: dict[str, Sequence[int]] = {}

    def work(self) -> run_pb2.Run:
        """Executes what is ready until the run has ended, and returns it. Raises RunnerError when it cannot go on."""
        run = self.get_run()
        if run.state not in FINAL and run.state != run_pb2.RUN_STATE_CANCELING:
            self.get_ready(run)
        while run.state not in FINAL and self.stop.asked is None:
            running = [a for a in self.attempts() if a.state == run_pb2.ATTEMPT_STATE_RUNNING]
            ready = [s for s in run.steps if s.state == run_pb2.STEP_STATE_READY]
            if running:
                for found in running:  # none of this process: one attempt at a time, and it has ended
                    self.settle(self.attempt(found.step, found.attempt), run.state)
            elif ready:
                self.execute(run, ready[0].step, ready[0].attempts + 1)
            else:
                raise RunnerError(f"no step of run {self.run_id} is ready, and the run has not ended")
            run = self.get_run()
        return run

    def get_ready(self, run: run_pb2.Run) -> None:
        """Reads what the steps are, and makes sure that they would run in the environment that the run names."""
        spec = self.control.call(
            self.control.pipelines.GetPipelineSpec,
            pipeline_pb2.GetPipelineSpecRequest(project_id=self.project, digest=run.run_spec.pipeline_spec_digest),
        )
        plan = self.control.call(
            self.control.runs.GetPlan, run_pb2.GetPlanRequest(project_id=self.project, run_id=self.run_id)
        )
        self.steps = {step.name: step for step in spec.spec.steps}
        self.delays = {step.name: step.retry_delays_seconds for step in plan.steps}
        environment = document.digest(document.dump(running_environment(self.checkout / "requirements.lock")))
        images = {step.image for step in spec.spec.steps} | {f"@{run.run_spec.environment_lock_digest}"}
        for image in sorted(images):
            if not image.endswith(f"@{environment}"):
                raise RunnerError(f"the run is bound to {image}, and this environment is {environment}")
        self.code = code_of_commit(self.checkout, run.run_spec.commit.sha)

    def execute(self, run: run_pb2.Run, step: str, number: int) -> None:
        """Makes one attempt of a step, after the wait that the plan sets before it."""
        if number > 1 and not self.pause(self.delays[step][number - 2]):
            return
        attempt = self.attempt(step, number)
        # Written before: its runner was lost before it knew that the report was stored, so the step never ran.
        if attempt.kept("started", runtime_pb2.ReportStepEventsRequest()) is None:
            attempt.keep("started", self.event(attempt, "started", runtime_pb2.STEP_EVENT_TYPE_STARTED))
        if not self.send_events(attempt, "started"):
            return
        say(f"    {step:<10} attempt {number}  started")
        try:
            workspace = self.prepare(run, attempt)
            self.run_step(attempt, workspace)
            self.keep_outputs(attempt, workspace)
        except StepError as error:
            self.keep_end(attempt, runtime_pb2.STEP_EVENT_TYPE_FAILED, error.kind, str(error))
        except RunCanceledError:
            self.keep_end(attempt, runtime_pb2.STEP_EVENT_TYPE_CANCELED)
        self.settle(attempt, run.state)

    def settle(self, attempt: Attempt, state: run_pb2.RunState.ValueType) -> None:
        """Reports how an attempt ended; one of which no end is known was lost with the runner that ran it."""
        end = attempt.kept("ended", runtime_pb2.ReportStepEventsRequest())
        if end is None and state == run_pb2.RUN_STATE_CANCELING:
            end = self.keep_end(attempt, runtime_pb2.STEP_EVENT_TYPE_CANCELED)
        elif end is None:
            lost = "the runner was lost while the attempt ran"
            end = self.keep_end(attempt, runtime_pb2.STEP_EVENT_TYPE_FAILED, types_pb2.ERROR_KIND_SYSTEM, lost)
        artifacts = attempt.kept("artifacts", runtime_pb2.RegisterArtifactsRequest())
        if artifacts is not None:
            self.judge(attempt, self.control.call(self.control.runtime.RegisterArtifacts, artifacts).results)
        metrics = attempt.kept("metrics", runtime_pb2.RecordMetricsRequest())
        if metrics is not None:
            self.judge(attempt, self.control.call(self.control.runtime.RecordMetrics, metrics).results)
        self.send_events(attempt, "ended")
        event = end.events[0]
        name = runtime_pb2.StepEventType.Name(event.type).removeprefix("STEP_EVENT_TYPE_").lower()
        say(f"    {attempt.step:<10} attempt {attempt.number}  {name}{': ' if event.message else ''}{event.message}")

    def prepare(self, run: run_pb2.Run, attempt: Attempt) -> Path:
        """Makes the folder in which the step runs, with inputs whose bytes were checked. Raises StepError."""
        workspace = attempt.folder / "work"
        shutil.rmtree(workspace, ignore_errors=True)
        (workspace / "outputs").mkdir(parents=True)
        for name, data in self.code.items():
            path = workspace / "code" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        parameters = {parameter.name: parameter.value for parameter in run.run_spec.parameters}
        (workspace / "parameters.json").write_text(json.dumps(parameters))
        bindings = {binding.dataset_ref: binding for binding in run.run_spec.datasets}
        produced = self.produced()
        step = self.steps[attempt.step]
        for dataset in step.inputs.datasets:
            binding = bindings[dataset.dataset_ref]
            self.bring(
                self.sources.get(binding.dataset_id),
                workspace / "inputs" / dataset.name,
                binding.content_digest,
                lambda folder: document.digest(document.dump(manifest(folder))),
            )
        for artifact in step.inputs.artifacts:
            digest = produced[artifact.from_step, artifact.artifact]
            self.bring(self.stored(digest), workspace / "inputs" / artifact.name, digest, file_digest)
        return workspace

    def bring(self, source: Path | None, target: Path, digest: str, digest_of: Callable[[Path], str]) -> None:
        """Copies an input, and checks the copy: what was checked is what the step reads. Raises StepError."""
        target.parent.mkdir(exist_ok=True)
        try:
            if source is None:
                raise FileNotFoundError("the runner was given no folder for this dataset")
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
            found = digest_of(target)
        except (OSError, Invalid) as error:
            raise StepError(types_pb2.ERROR_KIND_SYSTEM, f"input {target.name} is not at hand: {error}") from error
        if found != digest:
            raise StepError(types_pb2.ERROR_KIND_SYSTEM, f"input {target.name} is {found} instead of {digest}")

    def run_step(self, attempt: Attempt, workspace: Path) -> None:
        """Runs the step. Raises StepError unless it exits with 0, RunCanceledError when it is not to go on."""
        step = self.steps[attempt.step]
        command = [*step.command, *step.args]
        if command[:1] != ["python"]:
            raise StepError(types_pb2.ERROR_KIND_USER, "the image userspace/python has one program: python")
        secrets = {variable.name: self.secret(variable.secret_ref) for variable in step.env if variable.secret_ref}
        process = launch(
            [sys.executable, *command[1:]],
            environment={variable.name: variable.value for variable in step.env} | secrets,
            folder=workspace,
            output=attempt.folder / "output.txt",
            death=signal.SIGKILL,
        )
        try:
            self.watch(process)
        finally:
            code = end_group(process)
        if code < 0:
            name = signal.Signals(-code).name
            raise StepError(types_pb2.ERROR_KIND_SYSTEM, f"the step was ended by {name}")
        if code > 0:
            lines = (attempt.folder / "output.txt").read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "it printed nothing"
            for name, value in secrets.items():
                last = last.replace(value, f"[{name}]")
            raise StepError(types_pb2.ERROR_KIND_USER, f"the step exited with {code}: {last[:1000]}")

    def secret(self, reference: str) -> str:
        """The value that a secretRef names. Raises StepError."""
        store, _, name = reference.partition(":")
        if store != "file" or not RESOURCE_ID.fullmatch(name):
            raise StepError(
                types_pb2.ERROR_KIND_USER, f"{reference} is no file:<name>: this runner knows no other store"
            )
        try:
            return read_token(self.secrets / name)
        except (OSError, RunnerError) as error:
            raise StepError(types_pb2.ERROR_KIND_SYSTEM, f"the secret {reference} is not at hand: {error}") from error

    def watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Waits for a step's end. Raises StepError or RunCanceledError when it has to be ended."""
        deadline = time.monotonic() + self.step_seconds
        look = time.monotonic() + LOOK_SECONDS
        while not ended(process, 0.1):
            if self.stop.asked is not None:
                raise StepError(types_pb2.ERROR_KIND_SYSTEM, "the runner was told to stop")
            if time.monotonic() > deadline:
                raise StepError(types_pb2.ERROR_KIND_SYSTEM, f"the step ran longer than {self.step_seconds:g} s")
            if time.monotonic() > look:
                look = time.monotonic() + LOOK_SECONDS
                if self.canceling():
                    raise RunCanceledError

    def canceling(self) -> bool:
        """Whether the run is being cancelled, as far as is known: a step goes on while the control plane is away."""
        try:
            request = run_pb2.GetRunRequest(project_id=self.project, run_id=self.run_id)
            state = self.control.call_once(self.control.runs.GetRun, request, LOOK_SECONDS).state
        except grpc.RpcError as error:
            if error.code() not in AGAIN:
                raise
            return False
        return state == run_pb2.RUN_STATE_CANCELING

    def keep_outputs(self, attempt: Attempt, workspace: Path) -> None:
        """Stores what the step wrote by digest, and writes the reports of its success. Raises StepError."""
        artifacts = runtime_pb2.RegisterArtifactsRequest(
            project_id=self.project, run_id=self.run_id, request_id=attempt.id_of("artifacts")
        )
        for output in self.steps[attempt.step].outputs.artifacts:
            path = workspace / "outputs" / output.name
            try:
                digest = file_digest(path)
            except (FileNotFoundError, Invalid) as error:
                raise StepError(types_pb2.ERROR_KIND_USER, f"output {output.name} was not written: {error}") from error
            self.put(path, digest)
            artifacts.artifacts.add(
                step=attempt.step,
                attempt=attempt.number,
                name=output.name,
                digest=digest,
                size_bytes=path.stat().st_size,
                uri=f"demo:artifacts/{digest}",
            )
        metrics = runtime_pb2.RecordMetricsRequest(
            project_id=self.project, run_id=self.run_id, request_id=attempt.id_of("metrics")
        )
        measured = now()
        for name, value in read_metrics(workspace / "metrics.json"):
            metrics.metrics.add(
                step=attempt.step, attempt=attempt.number, name=name, index=0, value=value, occur_time=measured
            )
        if artifacts.artifacts:
            attempt.keep("artifacts", artifacts)
        if metrics.metrics:
            attempt.keep("metrics", metrics)
        self.keep_end(attempt, runtime_pb2.STEP_EVENT_TYPE_SUCCEEDED)  # from here on the attempt has succeeded

    def keep_end(
        self,
        attempt: Attempt,
        kind: runtime_pb2.StepEventType.ValueType,
        error_kind: types_pb2.ErrorKind.ValueType = types_pb2.ERROR_KIND_UNSPECIFIED,
        message: str = "",
    ) -> runtime_pb2.ReportStepEventsRequest:
        """Writes how an attempt ended; what is written stands."""
        end = self.event(attempt, "ended", kind, error_kind, message)
        attempt.keep("ended", end)
        return end

    def event(
        self,
        attempt: Attempt,
        kind: str,
        type_: runtime_pb2.StepEventType.ValueType,
        error_kind: types_pb2.ErrorKind.ValueType = types_pb2.ERROR_KIND_UNSPECIFIED,
        message: str = "",
    ) -> runtime_pb2.ReportStepEventsRequest:
        """The report of one event, which happens now."""
        return runtime_pb2.ReportStepEventsRequest(
            project_id=self.project,
            request_id=attempt.id_of(kind),
            run_id=self.run_id,
            events=[
                runtime_pb2.StepEvent(
                    event_id=attempt.id_of(kind),
                    step=attempt.step,
                    attempt=attempt.number,
                    type=type_,
                    error_kind=error_kind,
                    message="".join(c if c.isprintable() or c in "\t\n" else "?" for c in message[:4000]),
                    occur_time=now(),
                )
            ],
        )

    def send_events(self, attempt: Attempt, kind: str) -> bool:
        """Sends a report of events as it was written. False if the control plane does not let it stand."""
        report = attempt.kept(kind, runtime_pb2.ReportStepEventsRequest())
        assert report is not None
        return self.judge(attempt, self.control.call(self.control.runtime.ReportStepEvents, report).results)

    def judge(self, attempt: Attempt, results: Iterable[runtime_pb2.ItemResult]) -> bool:
        """Whether all items stand. What ended or was cancelled meanwhile is no error; any other refusal is."""
        refused = [r for r in results if r.outcome == runtime_pb2.ITEM_OUTCOME_REFUSED]
        for result in refused:
            say(f"    {attempt.step:<10} attempt {attempt.number}  refused: {result.reason}: {result.message}")
            if result.reason not in ("ATTEMPT_ENDED", "RUN_CANCELING", "RUN_ENDED"):
                raise RunnerError(f"{attempt.step} attempt {attempt.number}: {result.reason}: {result.message}")
        return not refused

    def get_run(self) -> run_pb2.Run:
        """The run with its derived state."""
        return self.control.call(
            self.control.runs.GetRun, run_pb2.GetRunRequest(project_id=self.project, run_id=self.run_id)
        )

    def attempts(self) -> list[run_pb2.StepAttempt]:
        """The attempts of the run as the control plane knows them."""
        found: list[run_pb2.StepAttempt] = []
        request = run_pb2.ListStepAttemptsRequest(project_id=self.project, run_id=self.run_id)
        while True:
            page = self.control.call(self.control.runs.ListStepAttempts, request)
            found += page.step_attempts
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    def produced(self) -> dict[tuple[str, str], str]:
        """The digest of each artifact of an attempt that succeeded, by step and name."""
        good = {(a.step, a.attempt) for a in self.attempts() if a.state == run_pb2.ATTEMPT_STATE_SUCCEEDED}
        found: dict[tuple[str, str], str] = {}
        request = run_pb2.ListArtifactsRequest(project_id=self.project, run_id=self.run_id)
        while True:
            page = self.control.call(self.control.runs.ListArtifacts, request)
            found.update({(a.step, a.name): a.digest for a in page.artifacts if (a.step, a.attempt) in good})
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    def attempt(self, step: str, number: int) -> Attempt:
        """An attempt of a step."""
        return Attempt(self.run_id, step, number, self.folder / step / str(number))

    def pause(self, seconds: int) -> bool:
        """Waits. False if the runner was told to stop meanwhile."""
        until = time.monotonic() + seconds
        while self.stop.asked is None and time.monotonic() < until:
            time.sleep(0.1)
        return self.stop.asked is None

    def stored(self, digest: str) -> Path:
        """Where the bytes of a digest are kept."""
        return self.store / digest.removeprefix("sha256:")

    def put(self, path: Path, digest: str) -> None:
        """Keeps the bytes of an output under their digest."""
        target = self.stored(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        shutil.copyfile(path, part)
        part.rename(target)


def read_metrics(path: Path) -> list[tuple[str, str]]:
    """The metrics that a step wrote, none where it wrote none. Raises StepError for what is no metric."""
    if not path.exists():
        return []
    try:
        tree = json.loads(path.read_bytes())
        for name, value in tree.items():
            if not METRIC_NAME.fullmatch(name) or not isinstance(value, str):
                raise StepError(types_pb2.ERROR_KIND_USER, f"metrics.json: {name!r} has no decimal as text")
            check_decimal(value, name, most=400)
    except (ValueError, AttributeError, Invalid) as error:
        raise StepError(types_pb2.ERROR_KIND_USER, f"metrics.json: {error}") from error
    return sorted(tree.items())


def code_of_commit(checkout: Path, sha: str) -> dict[str, bytes]:
    """The files of the steps at a commit, by path. Raises RunnerError when the checkout does not have it."""
    command = ["git", "-C", str(checkout), "archive", "--format=tar", sha, CODE]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    except FileNotFoundError as error:
        raise RunnerError("git is missing: install it, the steps' code is read from the commit") from error
    if done.returncode != 0:
        raise RunnerError(f"git has no {CODE} at {sha}: {done.stderr.decode(errors='replace').strip()}")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                files[member.name] = file.read()
    return files


def dataset_folder(text: str) -> tuple[str, Path]:
    """An argument of the form <dataset id>=<folder>."""
    name, separator, folder = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError("give <dataset id>=<folder>")
    return name, Path(folder)


def read_token(path: Path) -> str:
    """The token or secret of a file that only its owner can read. Raises RunnerError otherwise."""
    if path.stat().st_mode & 0o077:
        raise RunnerError(f"others can read {path}: chmod 600 it")
    return path.read_text().strip()


def main() -> int:
    """Runs the command line. Exits with 0 when the run has ended, 1 when the runner cannot go on, 143 when stopped."""
    parser = argparse.ArgumentParser(prog="demo.runner", description="Executes the steps of one run on this machine.")
    parser.add_argument("--address", required=True, help="host:port of the gRPC services")
    parser.add_argument("--token-file", required=True, type=Path, help="holds an API token of the role runtime; 0600")
    parser.add_argument("--project", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--state", required=True, type=Path, help="folder for workspaces, reports and artifacts")
    parser.add_argument("--checkout", required=True, type=Path, help="git checkout that has the run's commit")
    parser.add_argument("--dataset", action="append", default=[], type=dataset_folder, metavar="ID=FOLDER")
    parser.add_argument("--step-timeout", type=float, default=600.0, metavar="SECONDS")
    options = parser.parse_args()
    options.state = options.state.resolve()
    stop = Stop()
    try:
        runner = Runner(options, read_token(options.token_file), stop)
        runner.folder.mkdir(parents=True, exist_ok=True)
        with (runner.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunnerError(f"another runner works on run {runner.run_id}") from None
            run = runner.work()
    except grpc.RpcError as error:
        print(f"runner: the control plane answers {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except (RunnerError, OSError) as error:
        print(f"runner: {error}", file=sys.stderr)
        return 1
    if run.state not in FINAL:
        return 128 + signal.SIGTERM
    say(f"    run        {run_pb2.RunState.Name(run.state).removeprefix('RUN_STATE_').lower()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
