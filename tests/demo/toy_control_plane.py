"""The few RPCs that a runner calls, over lists in memory and the rules of the domain, and a repository of toy steps.

It is not the server: the whole demo runs against that (demo/smoke.py). Here a test decides what becomes of each call.
"""

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from animus import codec
from animus.domain import document
from animus.domain.pipeline import PipelineSpec, load_pipeline_spec
from animus.domain.plan import make_plan
from animus.domain.run import Commit, DatasetBinding, RunSpec
from animus.domain.state import DerivedState, StepEvent, derive_state, judge_event, judge_output
from animus.sdk import dataset_version, running_environment
from animus.v1 import pipeline_pb2, pipeline_pb2_grpc, run_pb2, run_pb2_grpc, runtime_pb2, runtime_pb2_grpc

CHECKOUT = Path(__file__).resolve().parents[2]
RUN_ID = "0123456789abcdef" * 2
TOKEN = "animus_demo_" + "t" * 43

Reply = TypeVar("Reply", bound=Message)


class LostReplyError(Exception):
    """The call gets no answer: what a client sees when a server dies."""


class ControlPlane(
    run_pb2_grpc.RunServiceServicer, pipeline_pb2_grpc.PipelineServiceServicer, runtime_pb2_grpc.RuntimeServiceServicer
):
    """One planned run. `before` and `after` are called around what each report stores, and may raise LostReplyError."""

    def __init__(self, spec: RunSpec, pipeline: PipelineSpec) -> None:
        self.spec = spec
        self.pipeline = pipeline
        self.plan = make_plan(document.digest(document.dump(spec)), spec.pipeline_spec_digest, pipeline)
        self.events: list[StepEvent] = []
        self.artifacts: list[runtime_pb2.ArtifactReport] = []
        self.metrics: list[runtime_pb2.MetricReport] = []
        self.cancel_requested = False
        self.sent: dict[str, set[bytes]] = {}  # by request_id: each body that came, stored or not
        self.replies: dict[str, Message] = {}
        self.before: Callable[[str], None] = lambda request_id: None
        self.after: Callable[[str], None] = lambda request_id: None
        self._mutex = threading.Lock()

    @property
    def state(self) -> DerivedState:
        """What follows from the events."""
        return derive_state(self.plan, self.events, cancel_requested=self.cancel_requested)

    def types(self, step: str) -> list[tuple[int, str]]:
        """The accepted events of a step: attempt and type, in the order in which they came."""
        return [(event.attempt, str(event.type)) for event in self.events if event.step == step]

    def GetRun(self, request: run_pb2.GetRunRequest, context: grpc.ServicerContext) -> run_pb2.Run:
        state = self.state
        run = run_pb2.Run(run_id=RUN_ID, state=run_pb2.RunState.Value(f"RUN_STATE_{state.run.name}"))
        codec.encode(self.spec, run.run_spec)
        for step in self.plan.steps:
            run.steps.add(
                step=step.name,
                state=run_pb2.StepState.Value(f"STEP_STATE_{state.steps[step.name].name}"),
                attempts=len(state.attempts[step.name]),
            )
        return run

    def GetPlan(self, request: run_pb2.GetPlanRequest, context: grpc.ServicerContext) -> run_pb2.ExecutionPlan:
        plan = run_pb2.ExecutionPlan()
        for step in self.plan.steps:
            plan.steps.add(name=step.name, retry_delays_seconds=step.retry_delays_seconds)
        return plan

    def GetPipelineSpec(
        self, request: pipeline_pb2.GetPipelineSpecRequest, context: grpc.ServicerContext
    ) -> pipeline_pb2.PipelineSpec:
        assert request.digest == self.spec.pipeline_spec_digest
        return codec.encode(self.pipeline, pipeline_pb2.PipelineSpec())

    def ListStepAttempts(
        self, request: run_pb2.ListStepAttemptsRequest, context: grpc.ServicerContext
    ) -> run_pb2.ListStepAttemptsResponse:
        response = run_pb2.ListStepAttemptsResponse()
        for attempts in self.state.attempts.values():
            for attempt in attempts.values():
                state = run_pb2.AttemptState.Value(f"ATTEMPT_STATE_{attempt.state.name}")
                response.step_attempts.add(step=attempt.step, attempt=attempt.attempt, state=state)
        return response

    def ListArtifacts(
        self, request: run_pb2.ListArtifactsRequest, context: grpc.ServicerContext
    ) -> run_pb2.ListArtifactsResponse:
        response = run_pb2.ListArtifactsResponse()
        for artifact in self.artifacts:
            response.artifacts.add(
                step=artifact.step, attempt=artifact.attempt, name=artifact.name, digest=artifact.digest
            )
        return response

    def ReportStepEvents(
        self, request: runtime_pb2.ReportStepEventsRequest, context: grpc.ServicerContext
    ) -> runtime_pb2.ReportStepEventsResponse:
        def write() -> runtime_pb2.ReportStepEventsResponse:
            response = runtime_pb2.ReportStepEventsResponse()
            for event in codec.decode_all(request.events, StepEvent, "events"):
                registered = {(a.step, a.attempt, a.name) for a in self.artifacts}
                declared = next(s for s in self.pipeline.spec.steps if s.name == event.step).outputs.artifacts
                missing = tuple(o.name for o in declared if (event.step, event.attempt, o.name) not in registered)
                refusal = judge_event(event, self.state, missing)
                if refusal is None:
                    self.events.append(event)
                response.results.add(
                    outcome=runtime_pb2.ITEM_OUTCOME_REFUSED if refusal else runtime_pb2.ITEM_OUTCOME_ACCEPTED,
                    reason=refusal.reason if refusal else "",
                )
            return response

        return self._change(request.request_id, request, write, context)

    def RegisterArtifacts(
        self, request: runtime_pb2.RegisterArtifactsRequest, context: grpc.ServicerContext
    ) -> runtime_pb2.RegisterArtifactsResponse:
        def write() -> runtime_pb2.RegisterArtifactsResponse:
            response = runtime_pb2.RegisterArtifactsResponse()
            for artifact in request.artifacts:
                assert judge_output(artifact.step, artifact.attempt, self.state) is None
                self.artifacts.append(artifact)
                response.results.add(outcome=runtime_pb2.ITEM_OUTCOME_ACCEPTED)
            return response

        return self._change(request.request_id, request, write, context)

    def RecordMetrics(
        self, request: runtime_pb2.RecordMetricsRequest, context: grpc.ServicerContext
    ) -> runtime_pb2.RecordMetricsResponse:
        def write() -> runtime_pb2.RecordMetricsResponse:
            response = runtime_pb2.RecordMetricsResponse()
            for metric in request.metrics:
                assert judge_output(metric.step, metric.attempt, self.state) is None
                self.metrics.append(metric)
                response.results.add(outcome=runtime_pb2.ITEM_OUTCOME_ACCEPTED)
            return response

        return self._change(request.request_id, request, write, context)

    def _change(
        self, request_id: str, request: Message, write: Callable[[], Reply], context: grpc.ServicerContext
    ) -> Reply:
        """Answers a request_id once and for ever."""
        assert dict(context.invocation_metadata())["authorization"] == f"Bearer {TOKEN}"
        self.sent.setdefault(request_id, set()).add(codec.request_bytes(request))
        try:
            self.before(request_id)
            with self._mutex:
                if request_id not in self.replies:
                    self.replies[request_id] = write()
                reply = self.replies[request_id]
            self.after(request_id)
        except LostReplyError:
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        assert reply.DESCRIPTOR is not None
        return reply  # type: ignore[return-value]  # of the type that `write` gave when the id was new


@dataclass(frozen=True, slots=True)
class World:
    """A control plane that listens, and what a runner needs beside it."""

    control: ControlPlane
    address: str
    folder: Path

    def start_runner(self, *more: str) -> "subprocess.Popen[str]":
        """Starts a runner on the run."""
        command = [sys.executable, "-m", "demo.runner", "--address", self.address, "--project", "demo"]
        command += ["--token-file", str(self.folder / "token"), "--run", RUN_ID, "--state", str(self.folder / "state")]
        command += ["--checkout", str(self.folder / "checkout"), "--dataset", f"letters={self.folder / 'letters'}"]
        return subprocess.Popen(
            [*command, *more], cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


@contextmanager
def world(
    folder: Path, steps: dict[str, str], *, environment_digest: str = "", secret_ref: str = ""
) -> Iterator[World]:
    """A planned run of toy steps: Python code by name, each reading `letters` and the output of the one before."""
    checkout = folder / "checkout"
    (checkout / "demo" / "pipeline").mkdir(parents=True)
    (checkout / "requirements.lock").write_text("")
    for name, code in steps.items():
        (checkout / "demo" / "pipeline" / f"{name}.py").write_text(textwrap.dedent(code))
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "steps"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    sha = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (folder / "letters").mkdir()
    (folder / "letters" / "a.txt").write_text("alpha")
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(TOKEN)
    letters = dataset_version("letters", folder / "letters", "text/plain", ())
    environment = environment_digest or document.digest(
        document.dump(running_environment(checkout / "requirements.lock"))
    )
    pipeline = load_pipeline_spec(pipeline_text(list(steps), environment, secret_ref))
    spec = RunSpec(
        api_version="animus/v1",
        kind="Run",
        pipeline_spec_digest=document.digest(document.dump(pipeline)),
        datasets=(DatasetBinding("letters", "letters", letters.content_digest),),
        commit=Commit("toys", sha),
        environment_lock_digest=environment,
        parameters=(),
    )
    control = ControlPlane(spec, pipeline)  # type: ignore[abstract]  # the runner calls no other method
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    run_pb2_grpc.add_RunServiceServicer_to_server(control, server)
    pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(control, server)
    runtime_pb2_grpc.add_RuntimeServiceServicer_to_server(control, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield World(control, f"127.0.0.1:{port}", folder)
    finally:
        server.stop(grace=None).wait()


def pipeline_text(names: list[str], environment: str, secret_ref: str = "") -> bytes:
    """A pipeline that runs the steps one after another; three attempts each, no wait between them."""
    steps = []
    secret = f', {{name: PASSWORD, value: "", secretRef: "{secret_ref}"}}' if secret_ref else ""
    for index, name in enumerate(names):
        before = f"[{{name: before, fromStep: {names[index - 1]}, artifact: made}}]" if index else "[]"
        steps.append(f"""
    - name: {name}
      image: userspace/python@{environment}
      command: [python, -I, code/demo/pipeline/{name}.py]
      args: []
      inputs: {{datasets: [{{name: letters, datasetRef: letters}}], artifacts: {before}}}
      outputs: {{artifacts: [{{name: made, type: text, mediaType: text/plain}}]}}
      env: [{{name: COLOUR, value: red, secretRef: ""}}{secret}]
      resources: {{cpu: "1", memory: 1Gi, gpu: 0}}
      retryPolicy:
        maxAttempts: 3
        retryOn: [system]
        backoff: {{type: fixed, initialSeconds: 0, maxSeconds: 0, multiplier: "1"}}""")
    return f"""
apiVersion: animus/v1
kind: Pipeline
metadata: {{name: toys, description: "", labels: []}}
spec:
  dependencies: []
  steps:{"".join(steps)}
""".encode()
