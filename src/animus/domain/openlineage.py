"""A run as OpenLineage events (spec 2-0-2), for catalogues of data.

- The run and each of its attempts are runs of OpenLineage; an attempt has the run as its parent. Their ids are UUIDs of
  version 5 (RFC 9562 §5.5) of their full names.
- Namespaces are the log's origin; jobs are `<pipeline>` and `<pipeline>.<step>`.
- A dataset is called by its full name, with the content digest as its version; an artifact by its lineage node.
- Times of attempts are the runtime's claims. The run starts with its createTime, and ends with the last of its
  attempts, or when it was created if no attempt ended later.
"""

import hashlib
import re
from typing import cast

import orjson

from animus.domain.dataset import DatasetVersion
from animus.domain.evidence import RunEvidence, state_of, succeeded
from animus.domain.lineage import LineageRelation
from animus.domain.names import artifact_name, attempt_name, dataset_name, dataset_version_name, distinct
from animus.domain.run import Artifact
from animus.domain.state import Attempt, AttemptState, DerivedState, RunState, StepState

PRODUCER = "urn:animus"
EVENT_SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
FACET_SCHEMA = "https://openlineage.io/spec/facets/{version}/{name}.json#/$defs/{name}"
NAMESPACE = bytes.fromhex("3269211ce1ad57fdaf47102949888387")  # version 5 of urn:animus:openlineage, as a URL

RUN_ENDS = {RunState.SUCCEEDED: "COMPLETE", RunState.FAILED: "FAIL", RunState.CANCELED: "ABORT"}
ATTEMPT_ENDS = {AttemptState.SUCCEEDED: "COMPLETE", AttemptState.FAILED: "FAIL", AttemptState.CANCELED: "ABORT"}

# A URI with an authority (RFC 3986), addresses in brackets left out.
_ENCODED = "%[0-9A-Fa-f]{2}"
_NAME = r"A-Za-z0-9._~!$&'()*+,;=\-"
URI = re.compile(
    rf"[A-Za-z][A-Za-z0-9+.-]*://(?:(?:[{_NAME}:]|{_ENCODED})*@)?(?:[{_NAME}]|{_ENCODED})*(?::[0-9]*)?"
    rf"(?:/(?:[{_NAME}:@/]|{_ENCODED})*)?(?:\?(?:[{_NAME}:@/?]|{_ENCODED})*)?(?:#(?:[{_NAME}:@/?]|{_ENCODED})*)?"
)

Tree = dict[str, object]


def events(run: RunEvidence) -> tuple[bytes, ...]:
    """The events, each sorted compact JSON without a line feed.

    First the start of the run, then start and end of each attempt in plan order and by number, then the run's end. An
    attempt has a start if it was started, and an end, as the run has, once it ended.
    """
    return tuple(orjson.dumps(each, option=orjson.OPT_SORT_KEYS) for each in _Rendering(run).events())


def run_id(name: str) -> str:
    """The UUID of a run or an attempt by its full name."""
    data = bytearray(hashlib.sha1(NAMESPACE + name.encode(), usedforsecurity=False).digest()[:16])
    data[6] = data[6] & 0x0F | 0x50
    data[8] = data[8] & 0x3F | 0x80
    digits = data.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class _Rendering:
    """What several events of one run say."""

    def __init__(self, run: RunEvidence) -> None:
        self.run = run
        self.state = state_of(run)
        self.attempts = [each for numbers in self.state.attempts.values() for _, each in sorted(numbers.items())]
        self.versions = {
            dataset_version_name(run.project_id, each.dataset_id, each.content_digest): each for each in run.versions
        }
        self.used: dict[str, list[str]] = {}
        for edge in run.edges:
            if edge.relation is LineageRelation.USED:
                self.used.setdefault(edge.subject, []).append(edge.object)
        self.written: dict[tuple[str, int], list[Artifact]] = {}
        for artifact in run.artifacts:
            self.written.setdefault((artifact.step, artifact.attempt), []).append(artifact)

    def events(self) -> list[Tree]:
        """All of them, in order."""
        found = [self.of_run("START", self.run.run.create_time)]
        for attempt in self.attempts:
            if attempt.start_time:
                found.append(self.of_attempt("START", attempt.start_time, attempt))
            if attempt.state in ATTEMPT_ENDS:
                found.append(self.of_attempt(ATTEMPT_ENDS[attempt.state], attempt.end_time, attempt))
        if self.state.run in RUN_ENDS:
            ends = [attempt.end_time for attempt in self.attempts]
            found.append(self.of_run(RUN_ENDS[self.state.run], max([self.run.run.create_time, *ends])))
        return found

    def of_run(self, kind: str, time: str) -> Tree:
        """An event of the run."""
        facets: Tree = {}
        if kind == "FAIL":
            facets["errorMessage"] = self.error("\n".join(_failures(self.state)))
        job: Tree = self.source()
        if description := self.run.pipeline.metadata.description:
            job["documentation"] = _facet("DocumentationJobFacet", "1-1-0", description=description)
        return _event(
            kind,
            time,
            {"runId": run_id(self.run.name), "facets": facets},
            {**self.job(""), "facets": job},
            [self.dataset(name) for name in self.versions],
            self.artifacts([each for each in self.run.artifacts if kind != "START" and succeeded(self.state, each)]),
        )

    def of_attempt(self, kind: str, time: str, attempt: Attempt) -> Tree:
        """An event of an attempt."""
        name = attempt_name(self.run.project_id, self.run.run.run_id, attempt.step, attempt.attempt)
        parent: Tree = {"run": {"runId": run_id(self.run.name)}, "job": self.job("")}
        facets: Tree = {"parent": _facet("ParentRunFacet", "1-2-0", **parent)}
        if kind == "FAIL":
            facets["errorMessage"] = self.error(attempt.message)
        written = [] if kind == "START" else self.written.get((attempt.step, attempt.attempt), [])
        return _event(
            kind,
            time,
            {"runId": run_id(name), "facets": facets},
            {**self.job(f".{attempt.step}"), "facets": self.source()},
            [self.dataset(each) for each in self.used.get(name, [])],
            self.artifacts(written),
        )

    def job(self, suffix: str) -> Tree:
        """What a job is called."""
        return {"namespace": self.run.origin, "name": self.run.pipeline.metadata.name + suffix}

    def source(self) -> Tree:
        """Where the code of a job is, unless the repository is no URI."""
        commit = self.run.spec.commit
        if not URI.fullmatch(commit.repository):
            return {}
        facet = _facet(
            "SourceCodeLocationJobFacet",
            "1-1-0",
            type="git",
            url=commit.repository,
            repoUrl=commit.repository,
            version=commit.sha,
        )
        return {"sourceCodeLocation": facet}

    def error(self, message: str) -> Tree:
        """Why something failed. The facet wants a language: what the environment lock knows of one is Python."""
        language = "python" if self.run.environment.python_version else "unknown"
        return _facet("ErrorMessageRunFacet", "1-0-1", message=message, programmingLanguage=language)

    def dataset(self, node: str) -> Tree:
        """A lineage node as a dataset."""
        version = self.versions.get(node)
        if version is None:
            return {"namespace": self.run.origin, "name": node}
        name = dataset_name(self.run.project_id, version.dataset_id)
        return {"namespace": self.run.origin, "name": name, "facets": _version_facets(version)}

    def artifacts(self, artifacts: list[Artifact]) -> list[Tree]:
        """Artifacts as datasets, each content once."""
        return [
            self.dataset(name) for name in distinct(artifact_name(self.run.project_id, a.digest) for a in artifacts)
        ]


def _failures(state: DerivedState) -> list[str]:
    """Of each step that failed, what its last attempt said."""
    failed = [name for name, step_state in state.steps.items() if step_state is StepState.FAILED]
    return [f"{name}: {state.attempts[name][max(state.attempts[name])].message}" for name in failed]


def _version_facets(version: DatasetVersion) -> Tree:
    facets: Tree = {"version": _facet("DatasetVersionDatasetFacet", "1-0-1", datasetVersion=version.content_digest)}
    if version.columns:
        fields = [
            {"name": column.name, "type": column.type, "ordinal_position": place}
            for place, column in enumerate(version.columns, 1)
        ]
        facets["schema"] = _facet("SchemaDatasetFacet", "1-2-0", fields=fields)
    return facets


def _facet(facet: str, schema_version: str, **fields: object) -> Tree:
    return {"_producer": PRODUCER, "_schemaURL": FACET_SCHEMA.format(version=schema_version, name=facet), **fields}


def _event(kind: str, time: str, run: Tree, job: Tree, inputs: list[Tree], outputs: list[Tree]) -> Tree:
    event = {
        "eventTime": time,
        "eventType": kind,
        "producer": PRODUCER,
        "schemaURL": EVENT_SCHEMA,
        "run": run,
        "job": job,
        "inputs": inputs,
        "outputs": outputs,
    }
    return cast(Tree, event)
