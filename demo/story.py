"""What the demo does, once the stack is up: one pipeline from its dataset to its record, through the gateway."""

import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from animus.domain import document
from animus.domain.dataset import Column, DatasetVersion
from animus.domain.pipeline import load_pipeline_spec
from animus.domain.run import Commit, DatasetBinding, Parameter, ParameterType, RunSpec
from animus.files import create_private
from animus.sdk import dataset_version, running_environment
from animus.v1 import dataset_pb2, environment_pb2, pipeline_pb2, run_pb2
from demo.changes import Changes, request_of
from demo.processes import ended, launch, stop, write_mark
from demo.quality import Quality
from demo.runner import CODE, REQUEST_PREFIX, write_new
from demo.stack import Stack, Tree
from demo.state import CHECKOUT, DemoError
from demo.telling import PROJECT, as_json, expect, say, short, word

DATASET = "breast-cancer-wisconsin"
REPOSITORY = "animus-demo"  # a name and no path, so that each clone has the same RunSpec
TOKEN_DAYS = 30
MAX_RUNNERS = 5

COPY = "sklearn/datasets/data/breast_cancer.csv"
SOURCE = f"pkg:pypi/scikit-learn#{COPY}"
ABOUT = (
    "Breast Cancer Wisconsin (Diagnostic): 569 tumours, 30 measurements each, benign or malignant. "
    "W. Wolberg, O. Mangasarian, N. Street, W. Street, UCI Machine Learning Repository, 1995, "
    "doi:10.24432/C5DW2B, licence CC BY 4.0. The copy is the one that the PyPI package scikit-learn "
    "(BSD-3-Clause) ships."
)
MEASURES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave points",
    "symmetry",
    "fractal dimension",
)
PARAMETERS = (
    Parameter("controls", ParameterType.INT, "99"),
    Parameter("inverse_regularisation", ParameterType.DECIMAL, "1"),
    Parameter("seed", ParameterType.INT, "7"),
    Parameter("test_fraction", ParameterType.DECIMAL, "0.25"),
)
RUNNER = "userspace-runner"
SCENARIO = {
    "name": "train-fails-once",
    "attemptSeconds": 10,
    "failures": [{"step": "train", "firstAttempt": 1, "lastAttempt": 1, "errorKind": "ERROR_KIND_SYSTEM"}],
}


class Story:
    """The demo's run, from its registrations to what is on record about it."""

    def __init__(self, stack: Stack, folder: Path, commit: str) -> None:
        self.stack = stack
        self.folder = folder
        self.commit = commit
        self.data = folder / "data" / DATASET
        self.token = folder / "runner.token"
        self.secret = folder / "secrets" / "source-password"
        self.changes = Changes(stack)
        self.run_id = ""

    def tell(self) -> None:
        """Does all of it. Raises DemoError when something is not as it should be."""
        say("==> create project")
        version, spec = self.register()
        quality = Quality(self.changes, version, self.data)
        quality.judge()
        quality.gate(quality.complete)
        self.make_secret()
        say("==> create run")
        self.create_run(spec)
        say("==> dry-run")
        self.plan(self.dry_run(spec))
        say("==> userspace execution (data plane surface)")
        self.execute(self.run_id)
        run = self.show_run()
        self.show_lineage(version)
        self.show_audit()
        self.show_log()
        if run["state"] == "RUN_STATE_SUCCEEDED":
            self.reproduce(spec)
            overridden = quality.show_gate(spec, self.run_id)
            say("==> evidence")
            self.show_evidence(self.run_id)
            say("==> evidence of the run that was let in against the gate")
            self.show_evidence(overridden)
        (self.folder / "run.json").unlink()  # the next demo makes a run of its own
        if run["state"] != "RUN_STATE_SUCCEEDED":
            raise DemoError(f"run {self.run_id} ended {word(run['state'], 'RUN_STATE_')}: see {self.folder}/runs")

    def register(self) -> tuple[DatasetVersion, RunSpec]:
        """Creates the project and registers all that the run binds. Returns the dataset's version and the RunSpec."""
        project = {"projectId": PROJECT, "displayName": "Demo", "description": "", "labels": []}
        self.changes.register_as("project", "/v1/projects", {"projectId": PROJECT, "project": project})
        base = f"/v1/projects/{PROJECT}"

        dataset = {"datasetId": DATASET, "description": ABOUT, "labels": []}
        self.changes.register_as("dataset", f"{base}/datasets", {"dataset": dataset})
        version = self.stage()
        self.changes.register_as(
            "version",
            f"{base}/datasets/{DATASET}/versions",
            {"datasetVersion": as_json(version, dataset_pb2.DatasetVersion())},
        )
        say(f"    dataset version   {version.content_digest}  {len(version.files)} files, {version.size_bytes} bytes")

        lock = running_environment(CHECKOUT / "requirements.lock")
        environment = document.digest(document.dump(lock))
        self.changes.register_as(
            "environment",
            f"{base}/environmentLocks",
            {"environmentLock": as_json(lock, environment_pb2.EnvironmentLock())},
        )
        say(f"    environment lock  {environment}  Python {lock.python_version}, {len(lock.packages)} packages")

        text = (CHECKOUT / "demo" / "pipeline.yaml").read_text()
        pipeline = load_pipeline_spec(text.replace("${ENVIRONMENT_LOCK_DIGEST}", environment).encode())
        registered = self.changes.register_as(
            "pipeline", f"{base}/pipelineSpecs", {"pipelineSpec": as_json(pipeline, pipeline_pb2.PipelineSpec())}
        )
        digest = document.digest(document.dump(pipeline))
        expect("the pipeline spec's digest", registered["record"]["digest"], digest)
        say(f"    pipeline spec     {digest}  {len(pipeline.spec.steps)} steps")

        self.register_token()
        return version, RunSpec(
            api_version="animus/v1",
            kind="Run",
            pipeline_spec_digest=digest,
            datasets=(DatasetBinding("tumours", DATASET, version.content_digest),),
            commit=Commit(REPOSITORY, self.commit),
            environment_lock_digest=environment,
            parameters=PARAMETERS,
        )

    def stage(self) -> DatasetVersion:
        """Writes the dataset of the package that ships it, with a line of names, and hashes what it wrote."""
        package = importlib.metadata.distribution("scikit-learn")
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(parents=True)
        features = [f"{kind} {measure}" for kind in ("mean", "error of", "worst") for measure in MEASURES]
        columns = [*(Column(name, "float64") for name in features), Column("benign", "int64")]
        # The first line of the package's copy says how many rows there are, not what is in them.
        _, *rows = Path(str(package.locate_file(COPY))).read_text().splitlines()
        names = ",".join(column.name for column in columns)
        (self.data / "tumours.csv").write_text("\n".join([names, *rows]) + "\n")
        return dataset_version(
            DATASET, self.data, "text/csv", columns, row_count=len(rows), source=SOURCE, licence="CC-BY-4.0"
        )

    def register_token(self) -> None:
        """Gives the runner an account and a token of its own; the control plane knows no more of it than its hash."""
        account = {"serviceAccountId": RUNNER, "displayName": "Runner", "description": "Executes the demo's steps."}
        self.changes.register_as("account", f"/v1/projects/{PROJECT}/serviceAccounts", {"serviceAccount": account})
        path = self.folder / "token.json"
        kept = json.loads(path.read_text()) if path.exists() and self.token.exists() else None
        now = datetime.now(UTC)
        if kept is None or datetime.fromisoformat(kept["expireTime"]) < now + timedelta(days=1):
            text = f"animus_{PROJECT}_{secrets.token_urlsafe(32)}"
            kept = {
                "tokenDigest": "sha256:" + hashlib.sha256(text.encode()).hexdigest(),
                "principal": RUNNER,
                "role": "ROLE_RUNTIME",
                "expireTime": (now + timedelta(days=TOKEN_DAYS)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
            self.token.unlink(missing_ok=True)
            with os.fdopen(os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
            write_new(path, json.dumps(kept))  # before it is sent: what was registered is never lost
        self.changes.register_as("token", f"/v1/projects/{PROJECT}/tokens", {"token": kept})

    def create_run(self, spec: RunSpec) -> None:
        """Creates the run, or goes on with the one that a killed demo left."""
        path = self.folder / "run.json"
        body = {"runSpec": as_json(spec, run_pb2.RunSpec()), "labels": [{"key": "made-by", "value": "demo"}]}
        kept = json.loads(path.read_text()) if path.exists() else None
        if kept is not None and not self.may_go_on(kept, body):
            path.unlink()
            kept = None
        if kept is None:
            kept = {"requestId": f"{REQUEST_PREFIX}run-{secrets.token_hex(16)}", "body": body}
            write_new(path, json.dumps(kept))  # before it is sent: a demo that is killed here goes on with this run
        else:
            say("    going on with the run that the last demo left")
        run, _ = self.changes.change_or_replay(f"/v1/projects/{PROJECT}/runs", kept["requestId"], body)
        self.run_id = run["runId"]
        digest = document.digest(document.dump(spec))
        expect("the RunSpec digest", run["runSpecDigest"], digest)
        admission = run["admission"]
        outcome = word(admission["outcome"], "ADMISSION_OUTCOME_")
        checks = len(admission["checks"]) + len(admission.get("gateChecks", []))
        say(f"    run {self.run_id}  {outcome} after {checks} checks, {len(admission.get('gateChecks', []))} of a gate")
        say(f"    RunSpec digest {digest}")
        again, replayed = self.changes.change_or_replay(f"/v1/projects/{PROJECT}/runs", kept["requestId"], body)
        expect("the run of the repeated request", again["runId"], self.run_id)
        expect("Animus-Replayed of the repeated request", replayed, True)
        say("    the same request again: the same run, Animus-Replayed: true")
        if run.get("equalRuns"):
            say(f"    runs with an equal RunSpec before: {len(run['equalRuns'])}")

    def may_go_on(self, kept: Tree, body: Tree) -> bool:
        """Whether a run that a killed demo left can be gone on with.

        One that has failed meanwhile cannot; one that is bound to other code or packages than those at hand is
        cancelled.
        """
        run = self.changes.change(f"/v1/projects/{PROJECT}/runs", kept["requestId"], kept["body"])
        self.run_id = run["runId"]
        path = f"/v1/projects/{PROJECT}/runs/{self.run_id}"
        state = word(self.stack.get(path)["state"], "RUN_STATE_")
        if state in ("failed", "canceled"):
            say(f"    run {self.run_id} of a demo before has {state}: this one makes another")
            return False
        if kept["body"] == body:
            return True
        if state != "succeeded":
            say(f"    run {self.run_id} of a demo before is bound to other code or packages: cancelled")
            reason = "The checkout or its environment has changed."
            self.changes.change(f"{path}:cancel", f"{REQUEST_PREFIX}cancel-{self.run_id}", {"reason": reason})
            self.execute(self.run_id)
        return False

    def dry_run(self, spec: RunSpec) -> str:
        """Asks what would happen if training failed once for the machine's sake. Returns the plan's digest."""
        body = {"runSpec": as_json(spec, run_pb2.RunSpec()), "scenarios": [SCENARIO]}
        report = self.stack.post(f"/v1/projects/{PROJECT}/runs:dryRun", body).body
        (scenario,) = report["scenarios"]
        say(
            f"    if training fails once (system): the run has {word(scenario['state'], 'RUN_STATE_')} "
            f"after {scenario['durationSeconds']} virtual seconds"
        )
        for each in scenario["attempts"]:
            state = word(each["state"], "ATTEMPT_STATE_")
            span = f"{int(each.get('startSeconds', 0)):>3} to {int(each['endSeconds']):>3} s"
            say(f"    {each['step']:<10} attempt {each['attempt']}  {span}  {state}")
        return str(report["planDigest"])

    def plan(self, foretold: str) -> None:
        """Plans the run; the plan is the one that the dry-run foretold."""
        request_id = f"{REQUEST_PREFIX}plan-{self.run_id}"
        plan = self.changes.change(f"/v1/projects/{PROJECT}/runs/{self.run_id}:plan", request_id, {})
        say(f"    plan: {' -> '.join(step['name'] for step in plan['steps'])}")
        expect("the plan digest", plan["record"]["digest"], foretold)
        say(f"    plan digest {foretold}")

    def make_secret(self) -> None:
        """Makes up the secret that the pipeline names, where the runner finds it; the control plane never gets it."""
        self.secret.parent.mkdir(mode=0o700, exist_ok=True)
        if not self.secret.exists():
            create_private(self.secret, secrets.token_urlsafe(24))

    def execute(self, run_id: str) -> None:
        """Has a runner execute a run's steps: a process of its own that speaks gRPC only."""
        for _ in range(MAX_RUNNERS):
            self.stack.check()
            command = [sys.executable, "-m", "demo.runner", "--address", self.stack.grpc, "--project", PROJECT]
            command += ["--token-file", str(self.token), "--run", run_id, "--state", str(self.folder)]
            command += ["--checkout", str(CHECKOUT), "--dataset", f"{DATASET}={self.data}"]
            runner = launch(command, environment=dict(os.environ), folder=CHECKOUT, output=None, death=signal.SIGTERM)
            try:
                write_mark(self.folder / "runner.pid", runner.pid)
                while not ended(runner, 0.2):
                    self.stack.check()
            finally:
                code = stop(runner, 10)
            if code == 0:
                return
            if code > 0:
                raise DemoError(f"the runner ended with {code}; what it said stands above")
            say(f"    the runner ended by {signal.Signals(-code).name}: starting it again")
        raise DemoError(f"the runner ended {MAX_RUNNERS} times")

    def show_run(self) -> Tree:
        """Shows what the control plane knows of the run: the state that follows from the events, attempts, outputs."""
        path = f"/v1/projects/{PROJECT}/runs/{self.run_id}"
        run = self.stack.get(path)
        say(f"==> derived state: {word(run['state'], 'RUN_STATE_')}")
        for step in run["steps"]:
            say(f"    {step['step']:<10} {word(step['state'], 'STEP_STATE_')}, {step.get('attempts', 0)} attempts")
        attempts = self.stack.list(f"{path}/attempts", "stepAttempts")
        say(f"==> attempts: {len(attempts)}")
        for each in sorted(attempts, key=lambda a: datetime.fromisoformat(a["startTime"])):
            seconds = datetime.fromisoformat(each["endTime"]) - datetime.fromisoformat(each["startTime"])
            state, kind = word(each["state"], "ATTEMPT_STATE_"), word(each.get("errorKind", ""), "ERROR_KIND_")
            failed = f" ({kind}): {each.get('message', '')}" if state == "failed" else ""
            say(f"    {each['step']:<10} {each['attempt']}  {seconds.total_seconds():6.2f} s  {state}{failed}")
        metrics = self.stack.list(f"{path}/metrics", "metrics")
        say(f"==> metrics: {len(metrics)}")
        for each in metrics:
            say(f"    {each['step']:<10} {each['name']:<24} {each['value']}")
        artifacts = self.stack.list(f"{path}/artifacts", "artifacts")
        say(f"==> artifacts: {len(artifacts)}")
        for each in artifacts:
            say(f"    {each['step']:<10} {each['name']:<12} {each['digest']}  {each['sizeBytes']} bytes")
        self.model = next((a["digest"] for a in artifacts if a["name"] == "model"), "")
        return run

    def show_lineage(self, version: DatasetVersion) -> None:
        """Follows the model back to the bytes that it was trained on."""
        if not self.model:
            return
        start = f"projects/{PROJECT}/artifacts/{self.model}"
        goal = f"projects/{PROJECT}/datasets/{DATASET}/versions/{version.content_digest}"
        query = f"node={quote(start, safe='')}&direction=LINEAGE_DIRECTION_UPSTREAM"
        lineage = self.stack.get(f"/v1/projects/{PROJECT}/lineage?{query}")
        say(f"==> lineage of the model: {len(lineage['nodes'])} nodes, {len(lineage['edges'])} edges")
        # Equal artifacts of other runs are one node, with each run's attempt behind it: this run's are followed.
        ours = f"projects/{PROJECT}/runs/{self.run_id}/"
        came_from: dict[str, Tree] = {}
        reached = [start]
        for node in reached:
            for edge in lineage["edges"]:
                after = edge["object"]
                other_run = after.startswith(f"projects/{PROJECT}/runs/") and not after.startswith(ours)
                if edge["subject"] == node and after not in came_from and not other_run:
                    came_from[after] = edge
                    reached.append(after)
        if goal not in came_from:
            raise DemoError("the lineage of the model does not reach the dataset version")
        chain = [goal]
        while chain[-1] != start:
            chain.append(came_from[chain[-1]]["subject"])
        say(f"    {short(start)}  the model")
        for name in reversed(chain[:-1]):
            relation = word(came_from[name]["relation"], "LINEAGE_RELATION_").replace("_", " ")
            say(f"    {relation} {short(name)}{'  the dataset version' if name == goal else ''}")

    def show_audit(self) -> None:
        """Shows the audit entries of this run's changes, and that there is exactly one for each."""
        entries = self.stack.list(f"/v1/projects/{PROJECT}/auditEntries", "auditEntries")
        reports = (self.folder / "runs" / self.run_id).glob("*/*/reports/*.json")
        changes = self.changes.requests | {json.loads(path.read_text())["requestId"] for path in reports}
        made = [e for e in entries if e["outcome"] in ("AUDIT_OUTCOME_ACCEPTED", "AUDIT_OUTCOME_UNCHANGED")]
        ours = [e for e in made if e["requestId"] in changes or self.run_id in e["requestId"]]
        say(f"==> audit: {len(entries)} entries in the log of the project")
        for entry in ours:
            say(
                f"    {entry['time'][11:19]}  {entry['principal']:<17} {entry['action']:<28} "
                f"{len(entry.get('records', []))} records  {short(entry['resource'])}"
            )
        say(f"    changes {len(changes)}, audit entries of them {len(ours)}")
        expect("the changes that the log has entries of", Counter(e["requestId"] for e in ours), Counter(changes))
        self.check_records({entry["entryId"]: entry for entry in entries})

    def show_log(self) -> None:
        """Verifies the project's log as an auditor would, and keeps its head for the next time."""
        say("==> audit log: every entry, tile and signed head")
        server = ("--address", self.stack.grpc, "--token-file", str(self.stack.data / "admin.token"))
        trust = ("--trust-server-key", "--known-heads", str(self.folder / "known-heads.json"))
        command = ["-m", "animus.cli", "audit", "verify", "--project", PROJECT, *server, *trust]
        done = run_python(command, dict(os.environ))
        if done.returncode != 0:
            raise DemoError(f"the log does not verify: {done.stderr.strip()}")
        for line in done.stdout.splitlines():
            say(f"    {line}")

    def reproduce(self, spec: RunSpec) -> None:
        """Runs the same RunSpec again, and one with another seed, and compares what each made with this run."""
        say("==> reproduction")
        base = f"/v1/projects/{PROJECT}/runs"
        replay = self.changes.change(f"{base}/{self.run_id}:replay", request_of("replay", self.run_id), {"labels": []})
        self.compare("replayed", replay["runId"], "REPRODUCED")
        other = replace(
            spec,
            parameters=tuple(replace(each, value="8") if each.name == "seed" else each for each in spec.parameters),
        )
        body = {"runSpec": as_json(other, run_pb2.RunSpec()), "labels": []}
        seeded = self.changes.change(base, request_of("seed", self.run_id), body)
        self.compare("with another seed", seeded["runId"], "DIVERGED")

    def compare(self, what: str, run_id: str, verdict: str) -> None:
        """Executes a run, and has it compared with this demo's."""
        base = f"/v1/projects/{PROJECT}/runs"
        self.changes.change(f"{base}/{run_id}:plan", f"{REQUEST_PREFIX}plan-{run_id}", {})
        self.execute(run_id)
        path, request_id = f"{base}/{self.run_id}:compare", f"{REQUEST_PREFIX}compare-{run_id}"
        found = self.changes.change(path, request_id, {"otherRunId": run_id})
        outputs = found["outputs"]
        equal = sum(each.get("equal", False) for each in outputs)
        step = f", first at step {found['firstStep']}" if found.get("firstStep") else ""
        said = word(found["verdict"], "COMPARISON_VERDICT_").upper()
        say(f"    {what}: {said}{step}; {equal} of {len(outputs)} outputs are equal")
        for each in found.get("differences", ()):
            say(f"    {each['path']}: {each['thisValue']} and {each['otherValue']}")
        expect(f"the verdict on the run {what}", said, verdict)

    def show_evidence(self, run_id: str) -> None:
        """Exports a run's evidence, and has it verified by the one file, which has nothing but Python and a key."""
        bundle, key = self.folder / f"evidence-{run_id}.zip", self.folder / "auditor.vkey"
        bundle.unlink(missing_ok=True)
        server = ("--address", self.stack.grpc, "--token-file", str(self.stack.data / "admin.token"))
        command = ["-m", "animus.cli", "evidence", "export", "--project", PROJECT, "--run", run_id]
        done = run_python([*command, *server, "--output", str(bundle)], dict(os.environ))
        if done.returncode != 0:
            raise DemoError(f"the evidence cannot be exported: {done.stderr.strip()}")
        # As for the log, the key is the server's own word here: an auditor gets it from a person.
        key.write_text("".join(f"{each['vkey']}\n" for each in self.stack.get(f"/v1/projects/{PROJECT}/log")["keys"]))
        verifier = ["-I", "-S", str(CHECKOUT / "src" / "animus_verify.py"), str(bundle), "--trust", str(key)]
        done = run_python([*verifier, "--accept", "signed"], {})
        for line in done.stdout.splitlines():
            say(f"    {line}")
        if done.returncode != 0:
            raise DemoError(f"the evidence does not verify: {done.stderr.strip() or done.returncode}")
        with zipfile.ZipFile(bundle) as files:
            held = b"\n".join(files.read(name) for name in files.namelist())
        expect("whether the evidence names the secret", b"file:source-password" in held, True)
        expect("whether the evidence holds the secret", self.secret.read_bytes() in held, False)
        say("    the secret that a step got is not in it, its reference file:source-password is")

    def check_records(self, entries: dict[str, Tree]) -> None:
        """Reads back every record that the project lists, and finds its digest in the audit entry that it names."""
        base = f"/v1/projects/{PROJECT}"
        found = [self.stack.get(base)]
        for path in ("datasets", "environmentLocks", "pipelineSpecs", "qualityRules", "qualityGates", "runs"):
            found += self.stack.list(f"{base}/{path}", path)
        for version in self.stack.list(f"{base}/datasets/{DATASET}/versions", "datasetVersions"):
            path = f"{base}/datasets/{DATASET}/versions/{version['contentDigest']}"
            found.append(version)
            for kind in ("qualityProfiles", "qualityEvaluations"):
                found += self.stack.list(f"{path}/{kind}", kind)
        for run in self.stack.list(f"{base}/runs", "runs"):
            path = f"{base}/runs/{run['runId']}"
            found += [self.stack.get(f"{path}/plan")] if run.get("planDigest") else []
            found += self.stack.list(f"{path}/artifacts", "artifacts") + self.stack.list(f"{path}/metrics", "metrics")
        for each in found:
            record = each["record"]
            cited = {r["digest"] for r in entries.get(record["auditEntryId"], {}).get("records", [])}
            if record["digest"] not in cited:
                raise DemoError(f"the audit entry of {record['name']} does not cite its digest")
        say(f"    {len(found)} records read back, each cited by digest in the audit entry that it names")


def run_python(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs Python in an environment of variables to its end."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def head_commit() -> str:
    """The commit that the checkout is at. Says so when the steps' files differ from it: what runs is the commit."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            raise DemoError("git is missing: install it; a run is bound to a commit") from None
        if done.returncode != 0:
            raise DemoError(f"git does not know the commit of {CHECKOUT}: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout

    sha = git("rev-parse", "--verify", "HEAD").strip()
    if git("status", "--porcelain", "--", CODE):
        say(f"    note: {CODE} has changes that are not committed; what runs is the code of the commit")
    return sha
