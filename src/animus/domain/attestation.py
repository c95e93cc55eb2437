"""Statements that are signed: in-toto Statement v1, in a DSSE envelope (docs/evidence-format.md).

Statements are sorted compact JSON. Same input, same bytes.
"""

import hashlib
from collections.abc import Sequence

import orjson

from animus.domain import document
from animus.domain.errors import invalid
from animus.domain.evidence import RunEvidence, summarize
from animus.domain.names import (
    check_digest,
    commit_name,
    dataset_version_name,
    environment_lock_name,
    pipeline_spec_name,
)
from animus.domain.note import encode_base64
from animus.domain.quality import QualityVerdict
from animus.domain.run import AdmissionOutcome

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
EVIDENCE = "urn:animus:evidence:v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:animus:pipeline-run:v1"
BUILDER = "urn:animus:instance:"  # and the instance's name
TAG_FILES = ("bag-info.txt", "bagit.txt", "manifest-sha256.txt")  # that a bundle's Statement is over

Tree = dict[str, object]


def admission_statement(run: RunEvidence) -> bytes:
    """That the run's RunSpec was let in or refused, check by check, those of gates last, as a test result.

    A run that was let in has WARNED where a gate let it in by WARN, and where one that refuses was overridden.
    """
    admission = run.run.admission
    passed, warned, failed = list[str](), list[str](), list[str]()
    for check in admission.checks:
        (passed if check.outcome is AdmissionOutcome.ADMITTED else failed).append(f"{check.name} {check.subject}")
    for gate_check in admission.gate_checks:
        version = dataset_version_name(run.project_id, gate_check.dataset_id, gate_check.content_digest)
        found = warned if gate_check.verdict is QualityVerdict.WARN else passed
        if gate_check.outcome is AdmissionOutcome.REFUSED:
            found = failed
        found.append(f"quality-gate {version} {gate_check.rule_digest} {gate_check.evaluator}")
    result = "WARNED" if warned or failed else "PASSED"
    predicate: Tree = {
        "result": result if admission.outcome is AdmissionOutcome.ADMITTED else "FAILED",
        "configuration": [_resource("animus-admission", run.run_digest)],
        "passedTests": passed,
        "warnedTests": warned,
        "failedTests": failed,
    }
    return _statement([_resource(run.name, run.run.run_spec_digest)], TEST_RESULT, predicate)


def provenance_statement(run: RunEvidence) -> bytes | None:
    """How the outputs of the run came to be, as SLSA provenance; nothing while no attempt with an output succeeded."""
    outputs = summarize(run).outputs
    if not outputs:
        return None
    predicate: Tree = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "pipelineSpec": run.spec.pipeline_spec_digest,
                "parameters": [document.tree_of(each) for each in run.spec.parameters],
            },
            "internalParameters": {"executionPlan": run.plan_digest},
            "resolvedDependencies": _dependencies(run),
        },
        "runDetails": {
            "builder": {"id": BUILDER + run.instance_name},
            "metadata": {"invocationId": run.name, "startedOn": run.run.create_time},
            "byproducts": [_resource("run-spec", run.run.run_spec_digest)],
        },
    }
    subjects = [_resource(f"{each.step}/{each.name}", each.digest) for each in outputs]
    return _statement(subjects, PROVENANCE, predicate)


def evidence_statement(bag: str, digests: Sequence[tuple[str, str]]) -> bytes:
    """That a bag of this name has these tag files: the three of `TAG_FILES`, in that order, each with its digest."""
    if tuple(name for name, _ in digests) != TAG_FILES:
        raise invalid("digests", f"are not those of {', '.join(TAG_FILES)}, in this order")
    for name, digest in digests:
        check_digest(digest, f"digests[{name}]")
    return _statement([_resource(name, digest) for name, digest in digests], EVIDENCE, {"bag": bag})


def _dependencies(run: RunEvidence) -> list[Tree]:
    project, spec = run.project_id, run.spec
    commit = commit_name(project, spec.commit.repository, spec.commit.sha)
    return [
        _resource(pipeline_spec_name(project, spec.pipeline_spec_digest), spec.pipeline_spec_digest),
        _resource(environment_lock_name(project, spec.environment_lock_digest), spec.environment_lock_digest),
        {"name": commit, "digest": {"gitCommit": spec.commit.sha}},
        *(
            _resource(dataset_version_name(project, each.dataset_id, each.content_digest), each.content_digest)
            for each in run.versions
        ),
    ]


def _resource(name: str, digest: str) -> Tree:
    return {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}


def _statement(subjects: list[Tree], predicate_type: str, predicate: Tree) -> bytes:
    tree = {"_type": STATEMENT, "subject": subjects, "predicateType": predicate_type, "predicate": predicate}
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: what a signature in an envelope is of."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def envelope(payload: bytes, signatures: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The file of a statement with its signatures: of each the public key, 32 bytes, and the signature itself."""
    tree = {
        "payload": encode_base64(payload),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": hashlib.sha256(public_key).hexdigest(), "sig": encode_base64(signature)}
            for public_key, signature in signatures
        ],
    }
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS) + b"\n"
