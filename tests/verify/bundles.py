"""Evidence bundles as docs/evidence-format.md says, made in memory from the domain's own values and test keys."""

import base64
import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from domain.values import IMAGE, ONE, TIME, bare_step, graph_of

from animus.domain import document, merkle
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord, AuditRefusal, RecordManifest
from animus.domain.checkpoint import Checkpoint, TlogProof, dump_checkpoint, dump_proof
from animus.domain.dataset import DatasetVersion, File, FileManifest
from animus.domain.environment import EnvironmentLock, Image
from animus.domain.lineage import edge_of_artifact, edges_of_run, edges_of_start
from animus.domain.names import (
    commit_name,
    dataset_version_name,
    environment_lock_name,
    pipeline_spec_name,
    run_name,
)
from animus.domain.note import dump_key
from animus.domain.pipeline import Backoff, BackoffType, DatasetInput, ErrorKind, RetryKind, RetryPolicy, StepInputs
from animus.domain.plan import make_plan
from animus.domain.project import Project
from animus.domain.run import (
    NO_GATES,
    Artifact,
    Commit,
    DatasetBinding,
    Metric,
    Parameter,
    ParameterType,
    Run,
    RunSpec,
    admit,
)
from animus.domain.state import AttemptState, RunEvent, RunEventType, StepEvent, StepEventType, derive_state
from animus.signing import SigningKey, cosign, sign_note

PROJECT = "vision"
ORIGIN = f"animus.example/{PROJECT}/1"
SIGNER = SigningKey(ORIGIN, bytes(range(32)))
OUTSIDER = SigningKey(ORIGIN, bytes(range(1, 33)))
WITNESS = SigningKey("witness.example/w1", bytes(range(2, 34)))
TRUST = dump_key(SIGNER.key())
POLICY = f"witness w1 {dump_key(WITNESS.key(key_type=4))}\nquorum w1\n".encode()
RUN_ID, OTHER_RUN_ID = "0123456789abcdef" * 2, "f" * 32

STARTED, SUCCEEDED, FAILED, CANCELED = StepEventType
Files = dict[str, bytes]
Change = Callable[[str, bytes], bytes]


def compact(tree: object) -> bytes:
    """Sorted compact JSON."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def hex_of(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class LogBook:
    """A project's log: entries, and the records that they name."""

    def __init__(self, change: Change = lambda kind, data: data) -> None:
        self.change = change  # of a record before it is written
        self.entries: list[bytes] = []
        self.values: list[AuditEntry] = []
        self.records: list[list[tuple[str, bytes]]] = []  # kind and bytes, of each entry, a manifest before the rest

    def write(
        self,
        action: str,
        resource: str,
        records: Sequence[object] = (),
        *,
        refusals: Sequence[AuditRefusal] = (),
        manifest: bool = False,
        outcome: AuditOutcome | None = None,
    ) -> int:
        """Appends an entry; answers its index."""
        number = len(self.entries)
        written = [(kind_of(value), self.change(kind_of(value), document.dump(value))) for value in records]
        named = [AuditRecord(kind, document.digest(data)) for kind, data in written]
        if manifest:
            data = document.dump(RecordManifest(tuple(named)))
            written = [("record_manifest", data), *written]
            named = [AuditRecord("record_manifest", document.digest(data))]
        found = outcome or (
            AuditOutcome.ACCEPTED if named else AuditOutcome.REFUSED if refusals else AuditOutcome.UNCHANGED
        )
        entry = AuditEntry(
            PROJECT, f"{number:032x}", "ci", action, resource, "/animus.v1.Any/Call", f"r{number}", ONE, TIME, found,
            refusals[0].reason if found is AuditOutcome.REFUSED and refusals else "", tuple(named), tuple(refusals),
            ONE,
        )  # fmt: skip
        self.values.append(entry)
        self.entries.append(document.dump(entry))
        self.records.append(written)
        return number

    def tree(self, size: int) -> merkle.CompactRange:
        """The tree of the first entries."""
        return merkle.append(merkle.EMPTY_RANGE, map(merkle.leaf_hash, self.entries[:size]))

    def nodes(self) -> dict[merkle.Node, bytes]:
        """The hashes of all perfect nodes."""
        found: dict[merkle.Node, bytes] = {}
        row, level = [merkle.leaf_hash(each) for each in self.entries], 0
        while row:
            found |= {(level, at): each for at, each in enumerate(row)}
            row = [merkle.node_hash(row[at], row[at + 1]) for at in range(0, len(row) - 1, 2)]
            level += 1
        return found

    def note(self, size: int, signer: SigningKey = SIGNER) -> bytes:
        """A checkpoint, cosigned by the witness."""
        text = dump_checkpoint(Checkpoint(ORIGIN, size, merkle.root(self.tree(size)), ()))
        return sign_note(text, [signer]) + cosign(text, WITNESS, 1_700_000_000)


def kind_of(value: Any) -> str:
    """The kind of a record: the name of its table."""
    return str(value.SCHEMA).removeprefix("animus.").split("/")[0]


def sample_pipeline() -> Any:
    """Three steps, the first of which is tried again."""
    backoff = Backoff(BackoffType.EXPONENTIAL, 3, 100, "1.5")
    policy = RetryPolicy(3, (RetryKind.SYSTEM,), backoff)
    once = RetryPolicy(1, (), Backoff(BackoffType.FIXED, 0, 0, "1"))
    load = dataclasses.replace(
        bare_step("load", policy, outputs=2), inputs=StepInputs((DatasetInput("d", "data"),), ())
    )
    train = bare_step("train", once, inputs=[("load", "o0"), ("load", "o1")], outputs=1)
    train = dataclasses.replace(
        train, inputs=StepInputs((DatasetInput("d", "data"), DatasetInput("e", "extra")), train.inputs.artifacts)
    )
    return graph_of([load, train, bare_step("report", once)], [("report", "train")])


class World:
    """A log in which one run happens among other things."""

    def __init__(
        self, *, succeed: bool = True, plan_known: bool = False, change: Change = lambda kind, data: data
    ) -> None:
        self.book, self.name = LogBook(change), run_name(PROJECT, RUN_ID)
        self.plan_known = plan_known  # by the plan of another run of the same RunSpec
        self.pipeline = sample_pipeline()
        self.environment = EnvironmentLock((Image(IMAGE),), "3.12", "linux", "amd64", (), "", ())
        manifest = FileManifest((File("a", 1, ONE), File("b/c", 2, ONE)))
        content = document.digest(document.dump(manifest))
        self.versions = [
            DatasetVersion("data", content, 3, "text/csv", "s3://d", (), manifest.files),
            DatasetVersion("extra", "sha256:" + "e" * 64, 5, "text/csv", "", (), ()),
        ]
        pipeline_digest, environment_digest = (
            document.digest(document.dump(v)) for v in (self.pipeline, self.environment)
        )
        self.spec = RunSpec(
            "animus/v1", "Run", pipeline_digest,
            tuple(DatasetBinding(v.dataset_id, v.dataset_id, v.content_digest) for v in self.versions),
            Commit("https://git.example/x", "c" * 40), environment_digest,
            (Parameter("name", ParameterType.STRING, "größe"), Parameter("seed", ParameterType.INT, "7")),
        )  # fmt: skip
        self.spec_digest = document.digest(document.dump(self.spec))
        self.plan = make_plan(self.spec_digest, pipeline_digest, self.pipeline)
        self.run = self.run_of(RUN_ID, self.spec)
        self.events: list[StepEvent] = []
        self.artifacts: list[Artifact] = []
        self.sequence = 0
        self._before()
        self.first = self._create(RUN_ID, self.spec, self.run, known=False)
        self._happen(succeed)
        self.size = len(self.book.entries)
        self.book.write("project.create", "projects/later", (Project("later", "Later", "", ()),))

    def run_of(self, run_id: str, spec: RunSpec) -> Run:
        """A run that was let in."""
        pairs = frozenset((b.dataset_id, b.content_digest) for b in spec.datasets)
        decision = admit(
            PROJECT,
            spec,
            pipeline_registered=True,
            environment_registered=True,
            versions_registered=pairs,
            gates=NO_GATES,
            override_reason="",
        )
        return Run(run_id, document.digest(document.dump(spec)), TIME, (), decision, "")

    def _before(self) -> None:
        book = self.book
        book.write("project.create", f"projects/{PROJECT}", (Project(PROJECT, "Vision", "", ()),))
        book.write("pipeline_spec.register", "x", (self.pipeline,))
        book.write("", "", outcome=AuditOutcome.DENIED)
        book.write("environment_lock.register", "x", (self.environment,))
        book.write("dataset_version.register", "x", (self.versions[0],))
        book.write("dataset_version.register", "x", (self.versions[1],), manifest=True)

    def _create(self, run_id: str, spec: RunSpec, run: Run, *, known: bool) -> int:
        records = [*([] if known else [spec]), run, *edges_of_run(PROJECT, run_id, spec)]
        return self.book.write("run.create", run_name(PROJECT, run_id), records)

    def event(self, kind: RunEventType, **content: Any) -> RunEvent:
        """The next event of the run, with the state that follows."""
        self.sequence += 1
        state = derive_state(self.plan, self.events, cancel_requested=kind is RunEventType.CANCEL_REQUESTED).run
        parts: dict[str, Any] = {"plan_digest": "", "reason": "", "step_event": ()} | content
        return RunEvent(run_id=RUN_ID, sequence=self.sequence, type=kind, state=state, **parts)

    def report(self, *reports: tuple[Any, ...], refusals: Sequence[AuditRefusal] = ()) -> None:
        """A batch of events of attempts: step, attempt, type and kind of error."""
        records: list[object] = []
        steps = {step.name: step for step in self.pipeline.spec.steps}
        for step, attempt, kind, *error in reports:
            new = StepEvent(
                f"{step}{attempt}{kind}", step, attempt, kind, error[0] if error else ErrorKind.NONE, "m\n\u2028", TIME
            )
            if kind is STARTED:
                produced = {(a.step, a.name): a.digest for a in self.succeeded()}
                records += edges_of_start(PROJECT, RUN_ID, steps[step], attempt, self.spec, produced)
            self.events.append(new)
            records.append(self.event(RunEventType.STEP, step_event=(new,)))
        self.book.write("run.report_step_events", self.name, records, refusals=refusals)

    def state(self) -> Any:
        """What the events derive."""
        cancelled = any(b"cancel_requested" in data for written in self.book.records for _, data in written)
        return derive_state(self.plan, self.events, cancel_requested=cancelled)

    def succeeded(self) -> list[Artifact]:
        """The artifacts of attempts that succeeded."""
        attempts = self.state().attempts
        return [a for a in self.artifacts if attempts[a.step][a.attempt].state is AttemptState.SUCCEEDED]

    def register(self, *outputs: tuple[str, int, str, str]) -> None:
        """A batch of artifacts: step, attempt, name, digest."""
        made = [Artifact(RUN_ID, step, attempt, name, digest, 9, "s3://x") for step, attempt, name, digest in outputs]
        self.artifacts += made
        edges = dict.fromkeys(edge_of_artifact(PROJECT, each) for each in made)
        self.book.write("run.register_artifacts", self.name, [*made, *edges])

    def _happen(self, succeed: bool) -> None:
        planned = self.event(RunEventType.PLANNED, plan_digest=document.digest(document.dump(self.plan)))
        other = dataclasses.replace(self.spec, parameters=())
        self._create(OTHER_RUN_ID, other, self.run_of(OTHER_RUN_ID, other), known=False)
        if self.plan_known:
            self._create(OTHER_RUN_ID, self.spec, self.run_of(OTHER_RUN_ID, self.spec), known=True)
            self.book.write("run.plan", f"{run_name(PROJECT, OTHER_RUN_ID)}/plan", (self.plan,))
        self.book.write("run.plan", f"{self.name}/plan", (planned,) if self.plan_known else (self.plan, planned))
        self.report(("load", 1, STARTED))
        self.report(("load", 1, FAILED, ErrorKind.SYSTEM), ("load", 2, STARTED))
        refusals = (AuditRefusal(0, "ATTEMPT_ENDED"),)
        self.book.write("run.report_step_events", self.name, refusals=refusals)
        self.register(("load", 2, "o0", ONE), ("load", 2, "o1", ONE))
        points = [Metric(RUN_ID, "load", 2, "loss", at, f"0.{at + 1}", TIME) for at in range(4)]
        self.book.write("run.record_metrics", self.name, points[:1])
        self.book.write("run.record_metrics", self.name, points[1:], manifest=True)
        self.report(("load", 2, SUCCEEDED), ("train", 1, STARTED), refusals=(AuditRefusal(2, "STEP_NOT_READY"),))
        if not succeed:
            self.book.write("run.cancel", self.name, (self.event(RunEventType.CANCEL_REQUESTED, reason="enough"),))
            return
        self.register(("train", 1, "o0", "sha256:" + "a" * 64))
        self.book.write("run.record_metrics", self.name)
        self.report(("train", 1, SUCCEEDED))
        self.report(("report", 1, STARTED), ("report", 1, SUCCEEDED))

    # Bundles.

    def said(self, run_id: str, first: int, known: Sequence[int]) -> dict[str, Any]:
        """evidence.json as a tree."""
        return {
            "schema": "animus.evidence/v1", "projectId": PROJECT, "runId": run_id, "origin": ORIGIN, "epoch": 1,
            "firstIndex": first, "size": self.size, "knownSizes": list(known),
        }  # fmt: skip

    def log_files(self, said: dict[str, Any]) -> Files:
        """What both kinds of bundles have in data/."""
        first, nodes = said["firstIndex"], self.book.nodes()
        lines = b"".join(each + b"\n" for each in self.book.entries[first : self.size])
        files = {
            "data/evidence.json": compact(said),
            "data/log/checkpoint": self.book.note(self.size),
            "data/log/frontier": as_lines(self.book.tree(first).hashes),
            f"data/entries/{first:020d}.ndjson": lines,
        }
        for size in said["knownSizes"]:
            proof = merkle.prove_consistency(size, self.size, nodes)
            files[f"data/log/consistency/{size}"] = as_lines(proof)
        return files

    def log_bundle(self, first: int = 3, known: Sequence[int] = (2, 3, 9)) -> Files:
        """A log bundle."""
        said = self.said("", first, known)
        files = self.log_files(said)
        written = [data for index in range(first, self.size) for _, data in self.book.records[index]]
        files[f"data/records/{first:020d}.ndjson"] = b"".join(each + b"\n" for each in written)
        return bagged(files)

    def run_bundle(self, known: Sequence[int] = (3,)) -> Files:
        """The bundle of the run."""
        files = self.log_files(self.said(RUN_ID, self.first, known))
        for index in range(self.first, self.size):
            if f"{self.book.values[index].resource}/".startswith(f"{self.name}/"):
                for kind, data in self.book.records[index]:
                    name = f"data/records/{kind}.ndjson"
                    files[name] = files.get(name, b"") + data + b"\n"
        files |= self._bound_files() | self._statement_files()
        files["data/summary.json"] = compact(self.summary())
        files["data/renderings/openlineage.ndjson"] = b'{"eventType":"COMPLETE"}\n'
        files["data/renderings/prov.json"] = b'{"prefix":{}}'
        return bagged(files)

    def _bound_files(self) -> Files:
        bound: list[Any] = [self.spec, self.pipeline, self.environment, *self.versions, self.plan]
        files, nodes = {}, self.book.nodes()
        wanted = {document.dump(value) for value in bound}
        for index, written in enumerate(self.book.records[: self.size]):
            found = {data for _, data in written if data in wanted}
            if not found:
                continue
            for kind, data in written:
                if data in found or kind == "record_manifest":
                    files[f"data/bound/{kind}-{hex_of(data)}.json"] = data
            proof = merkle.prove_inclusion(index, self.size, nodes)
            files[f"data/proofs/{index:020d}.json"] = self.book.entries[index]
            text = dump_proof(TlogProof(index, proof, b"", self.book.note(self.size)))
            files[f"data/proofs/{index:020d}.tlog-proof"] = text
        return files

    def summary(self) -> dict[str, Any]:
        """The derived state."""
        state = self.state()
        steps = []
        for name, each in state.steps.items():
            attempts = [
                {
                    "attempt": a.attempt, "state": a.state, "errorKind": a.error_kind or "none", "message": a.message,
                    "startTime": a.start_time, "endTime": a.end_time,
                }
                for _, a in sorted(state.attempts[name].items())
            ]  # fmt: skip
            steps.append({"name": name, "state": each, "attempts": attempts})
        return {
            "schema": "animus.run_summary/v1", "runId": RUN_ID, "state": state.run,
            "planDigest": document.digest(document.dump(self.plan)), "steps": steps, "outputs": self.outputs(),
        }  # fmt: skip

    def outputs(self) -> list[dict[str, Any]]:
        """The artifacts of attempts that succeeded, as the summary has them."""
        ordered = sorted(self.succeeded(), key=lambda a: (a.step, a.name))
        return [{"step": a.step, "name": a.name, "attempt": a.attempt, "digest": a.digest} for a in ordered]

    def _statement_files(self) -> Files:
        hexed = self.spec_digest.removeprefix("sha256:")
        checks = [f"{check.name} {check.subject}" for check in self.run.admission.checks]
        run_digest = hex_of(document.dump(self.run))
        admission = {
            "result": "PASSED", "passedTests": checks, "warnedTests": [], "failedTests": [],
            "configuration": [{"name": "animus-admission", "digest": {"sha256": run_digest}}],
        }  # fmt: skip
        kind = "https://in-toto.io/attestation/test-result/v0.1"
        files = {"data/attestations/admission.dsse.json": statement(kind, [(self.name, hexed)], admission)}
        outputs = [(f"{o['step']}/{o['name']}", o["digest"].removeprefix("sha256:")) for o in self.outputs()]
        if outputs:
            provenance = statement("https://slsa.dev/provenance/v1", outputs, self._provenance(hexed))
            files["data/attestations/provenance.dsse.json"] = provenance
        return files

    def _provenance(self, spec_hex: str) -> dict[str, Any]:
        spec = self.spec

        def item(name: str, digest: str) -> dict[str, Any]:
            return {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}

        return {
            "buildDefinition": {
                "buildType": "urn:animus:pipeline-run:v1",
                "externalParameters": {
                    "pipelineSpec": spec.pipeline_spec_digest,
                    "parameters": [document.tree_of(each) for each in spec.parameters],
                },
                "internalParameters": {"executionPlan": document.digest(document.dump(self.plan))},
                "resolvedDependencies": [
                    item(pipeline_spec_name(PROJECT, spec.pipeline_spec_digest), spec.pipeline_spec_digest),
                    item(environment_lock_name(PROJECT, spec.environment_lock_digest), spec.environment_lock_digest),
                    {
                        "name": commit_name(PROJECT, spec.commit.repository, spec.commit.sha),
                        "digest": {"gitCommit": spec.commit.sha},
                    },
                    *(
                        item(dataset_version_name(PROJECT, b.dataset_id, b.content_digest), b.content_digest)
                        for b in spec.datasets
                    ),
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:animus:instance:animus.example"},
                "metadata": {"invocationId": self.name, "startedOn": TIME},
                "byproducts": [item("run-spec", spec_hex)],
            },
        }


def as_lines(hashes: Sequence[bytes]) -> bytes:
    """Hashes in base64, one a line."""
    return b"".join(base64.b64encode(each) + b"\n" for each in hashes)


def statement(kind: str, subject: Sequence[tuple[str, str]], predicate: Any, signer: SigningKey = SIGNER) -> bytes:
    """A signed in-toto statement."""
    payload = compact({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": kind, "predicate": predicate,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subject],
    })  # fmt: skip
    return envelope(payload, signer)


def envelope(payload: bytes, signer: SigningKey = SIGNER) -> bytes:
    """A DSSE envelope of an in-toto payload."""
    kind = "application/vnd.in-toto+json"
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    signature = {
        "keyid": hex_of(signer.public_key), "sig": base64.b64encode(signer.sign(message)).decode(),
    }  # fmt: skip
    tree = {"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": [signature]}
    return compact(tree) + b"\n"


def bag_name(said: dict[str, Any]) -> str:
    """The name of the bag of what evidence.json says."""
    what = f"run-{said['runId']}" if said["runId"] else f"log-{said['firstIndex']}"
    return f"animus-{said['projectId']}-{what}-{said['size']}"


def said_of(files: Files) -> dict[str, Any]:
    """evidence.json of a bundle, or that of a run where it cannot be read."""
    try:
        found: dict[str, Any] = json.loads(files["data/evidence.json"])
        assert {"projectId", "runId", "firstIndex", "size"} <= found.keys()
    except (KeyError, ValueError, AssertionError, AttributeError, RecursionError):
        found = {"projectId": PROJECT, "runId": RUN_ID, "firstIndex": 0, "size": 1}
    return found


def bagged(files: Files, signer: SigningKey = SIGNER, *, sign: bool = True) -> Files:
    """The files of a bag around those of data/, whose tag files are made anew. Without `sign` the statement stays."""
    data = {name: content for name, content in files.items() if name.startswith("data/")}
    said = said_of(data)
    name = run_name(said["projectId"], said["runId"]) if said["runId"] else f"projects/{said['projectId']}"
    bag = {
        "bagit.txt": b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
        "bag-info.txt": f"External-Description: Animus evidence\nExternal-Identifier: {name}\n".encode(),
        "manifest-sha256.txt": manifest(data),
    }
    if sign or "evidence.dsse.json" not in files:
        subject = [(each, hex_of(bag[each])) for each in ("bag-info.txt", "bagit.txt", "manifest-sha256.txt")]
        bag["evidence.dsse.json"] = statement("urn:animus:evidence:v1", subject, {"bag": bag_name(said)}, signer)
    else:
        bag["evidence.dsse.json"] = files["evidence.dsse.json"]
    bag["tagmanifest-sha256.txt"] = manifest(bag)
    return data | bag


def manifest(files: Files) -> bytes:
    """A BagIt manifest."""
    return "".join(f"{hex_of(files[name])}  {name}\n" for name in sorted(files)).encode()


def member(name: str) -> zipfile.ZipInfo:
    """A member of the ZIP as the format wants it."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o100644 << 16
    return info


def zipped(files: Files, folder: str = "") -> bytes:
    """The ZIP of a bundle."""
    folder = folder or bag_name(said_of(files))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in sorted(files):
            archive.writestr(member(f"{folder}/{name}"), files[name])
    return stream.getvalue()
