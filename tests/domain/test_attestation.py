"""Statements and their envelopes, as other implementations read them."""

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from golden import evidence as golden
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2  # type: ignore[import-untyped]
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2  # type: ignore[import-untyped]
from in_toto_attestation.v1 import statement_pb2  # type: ignore[import-untyped]
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor  # type: ignore[import-untyped]
from in_toto_attestation.v1.statement import Statement  # type: ignore[import-untyped]
from securesystemslib import dsse
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, SSlibKey  # type: ignore[attr-defined]

from animus.domain.attestation import (
    PAYLOAD_TYPE,
    TAG_FILES,
    admission_statement,
    envelope,
    evidence_statement,
    pae,
    provenance_statement,
)
from animus.domain.evidence import RunEvidence, summarize
from animus.domain.run import AdmissionDecision, AdmissionOutcome
from animus.signing import SigningKey
from domain.runs import RUNS, fixed_run
from domain.values import LAW, ONE, TWO, refusal

VECTOR = json.loads((Path(__file__).parents[1] / "vectors/dsse/dsse_v1.json").read_text())
RUN = fixed_run()


def checked(payload: bytes) -> Any:
    """The tree of a statement that in-toto's own library takes; a field that it does not know is an error."""
    statement = Statement.copy_from_pb(json_format.Parse(payload, statement_pb2.Statement()))
    statement.validate()
    tree = json.loads(payload)
    assert json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == payload
    return tree


def predicate(payload: bytes, message: Any) -> Any:
    """The predicate of a statement as a message; a field that it does not have is an error."""
    return json_format.ParseDict(checked(payload)["predicate"], message)


def check_resource(tree: Any) -> None:
    """Refuses what in-toto's library takes for no resource."""
    ResourceDescriptor.copy_from_pb(tree).validate()
    assert tree.name
    assert tree.digest


def test_the_encoding_is_that_of_the_specification() -> None:
    """The published example has these bytes, and its signature is of them."""
    encoded = pae(VECTOR["payload_type"], VECTOR["serialized_body_utf8"].encode())
    assert encoded == VECTOR["pae_utf8"].encode()
    key = ec.EllipticCurvePublicNumbers(int(VECTOR["key"]["x"]), int(VECTOR["key"]["y"]), ec.SECP256R1()).public_key()
    raw = base64.b64decode(VECTOR["envelope"]["signatures"][0]["sig"])
    signature = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.verify(signature, encoded, ec.ECDSA(SHA256()))
    with pytest.raises(InvalidSignature):
        key.verify(signature, encoded + b"!", ec.ECDSA(SHA256()))


@given(st.text(max_size=20), st.binary(max_size=40))
def test_the_encoding_counts_bytes(payload_type: str, payload: bytes) -> None:
    """Type and payload can be told apart by their lengths, as another implementation encodes them."""
    assert pae(payload_type, payload) == dsse.Envelope(payload, payload_type, {}).pae()


def public(key: SigningKey) -> Key:
    """A public key as another library has it."""
    keyid = hashlib.sha256(key.public_key).hexdigest()
    return SSlibKey(keyid, "ed25519", "ed25519", {"public": key.public_key.hex()})


def test_another_library_verifies_an_envelope() -> None:
    """Each of its keys has signed it, in their order; a payload, a type or a key that is another is found."""
    payload = admission_statement(RUN)
    signatures = [(key.public_key, key.sign(pae(PAYLOAD_TYPE, payload))) for key in golden.KEYS]
    file = envelope(payload, signatures)
    tree = json.loads(file)
    assert json.dumps(tree, sort_keys=True, separators=(",", ":")).encode() + b"\n" == file
    assert tree.keys() == {"payload", "payloadType", "signatures"}
    keys = [public(key) for key in golden.KEYS]
    assert [each["keyid"] for each in tree["signatures"]] == [key.keyid for key in keys]
    found = dsse.Envelope.from_dict(json.loads(file))
    assert (found.payload, found.payload_type) == (payload, "application/vnd.in-toto+json")
    assert found.verify(keys, 2).keys() == {key.keyid for key in keys}
    found.payload += b" "
    with pytest.raises(VerificationError):
        found.verify(keys, 1)
    with pytest.raises(VerificationError):
        dsse.Envelope(payload, "text/plain", found.signatures).verify(keys, 1)
    stranger = dataclasses.replace(golden.KEYS[0], seed=bytes(32))
    with pytest.raises(VerificationError):
        dsse.Envelope(payload, PAYLOAD_TYPE, found.signatures).verify([public(stranger)], 1)


def test_an_admission_is_a_test_result() -> None:
    """in-toto's library reads it whole: what passed, of which run, by which record."""
    payload = admission_statement(RUN)
    result = predicate(payload, test_result_pb2.TestResult())
    assert result.result == "PASSED"
    assert [test.split()[0] for test in result.passed_tests] == [
        "dataset-version-registered",
        "environment-lock-registered",
        "pipeline-spec-registered",
    ]
    assert list(result.failed_tests) == []
    (configuration,) = result.configuration
    check_resource(configuration)
    assert (configuration.name, configuration.digest["sha256"]) == ("animus-admission", RUN.run_digest[7:])
    tree = checked(payload)
    assert tree["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert tree["subject"] == [{"name": RUN.name, "digest": {"sha256": RUN.run.run_spec_digest[7:]}}]


def test_a_refused_admission_has_failed() -> None:
    """The check that kept the run out is named, and the others have passed."""
    first, *others = RUN.run.admission.checks
    failed = dataclasses.replace(first, outcome=AdmissionOutcome.REFUSED)
    decision = AdmissionDecision(AdmissionOutcome.REFUSED, (failed, *others), (), (), "")
    run = dataclasses.replace(RUN, run=dataclasses.replace(RUN.run, admission=decision))
    result = predicate(admission_statement(run), test_result_pb2.TestResult())
    assert result.result == "FAILED"
    assert list(result.failed_tests) == [f"{first.name} {first.subject}"]
    assert list(result.passed_tests) == [f"{each.name} {each.subject}" for each in others]


def test_a_run_that_a_gate_warned_of_or_that_was_overridden_has_warned() -> None:
    """Checks of gates stand after the others: PASS, WARN, and what was overridden, in the list of each."""
    run = fixed_run(gated=True)
    result = predicate(admission_statement(run), test_result_pb2.TestResult())
    assert result.result == "WARNED"
    (binding,) = run.spec.datasets
    version = f"projects/cells/datasets/measurements/versions/{binding.content_digest}"
    by_verdict = {
        verdict: [
            f"quality-gate {version} {each.rule_digest} {each.evaluator}"
            for each in run.run.admission.gate_checks
            if each.verdict.value == verdict
        ]
        for verdict in ("pass", "warn", "fail", "")
    }
    assert [len(each) for each in by_verdict.values()] == [1, 1, 1, 1]
    assert list(result.passed_tests)[3:] == by_verdict["pass"]
    assert list(result.warned_tests) == by_verdict["warn"]
    assert sorted(result.failed_tests) == sorted(by_verdict["fail"] + by_verdict[""])
    check_resource(result.configuration[0])


@LAW
@given(RUNS)
def test_every_output_of_a_succeeded_attempt_is_a_subject(run: RunEvidence) -> None:
    """Provenance is of the outputs of the summary and nothing else, is whole SLSA, and exists where there are some."""
    payload = provenance_statement(run)
    outputs = summarize(run).outputs
    if payload is None:
        assert outputs == ()
        return
    assert provenance_statement(dataclasses.replace(run)) == payload
    tree = checked(payload)
    assert tree["predicateType"] == "https://slsa.dev/provenance/v1"
    assert tree["subject"] == [
        {"name": f"{each.step}/{each.name}", "digest": {"sha256": each.digest[7:]}} for each in outputs
    ]
    found = predicate(payload, provenance_pb2.Provenance())
    for resource in (*found.build_definition.resolved_dependencies, *found.run_details.byproducts):
        check_resource(resource)
    assert found.build_definition.build_type
    assert found.run_details.builder.id == f"urn:animus:instance:{run.instance_name}"
    assert len(found.build_definition.resolved_dependencies) == 3 + len(run.versions)
    assert checked(admission_statement(run))["subject"][0]["name"] == run.name


def test_dependencies_are_what_the_run_used() -> None:
    """In the order of the specification, each by its lineage node."""
    payload = provenance_statement(RUN)
    assert payload is not None
    found = checked(payload)["predicate"]["buildDefinition"]["resolvedDependencies"]
    used = {edge.object for edge in RUN.edges if edge.subject == RUN.name}
    assert {each["name"] for each in found} == used
    assert [each["name"].split("/")[2] for each in found] == [
        "pipelineSpecs",
        "environmentLocks",
        "commits",
        "datasets",
    ]
    assert [list(each["digest"]) for each in found] == [["sha256"], ["sha256"], ["gitCommit"], ["sha256"]]


def test_a_run_without_outputs_has_no_provenance() -> None:
    """Artifacts of attempts that failed are none."""
    failed = tuple(each for each in RUN.artifacts if (each.step, each.attempt) == ("fit", 1))
    assert len(failed) == 1
    assert provenance_statement(dataclasses.replace(RUN, artifacts=failed)) is None


def test_evidence_is_of_the_tag_files() -> None:
    """The subjects are the three, in their order."""
    digests = list(zip(TAG_FILES, (ONE, TWO, ONE), strict=True))
    tree = checked(evidence_statement("animus-p-log-0-7", digests))
    assert [(each["name"], f"sha256:{each['digest']['sha256']}") for each in tree["subject"]] == digests
    assert (tree["predicateType"], tree["predicate"]) == ("urn:animus:evidence:v1", {"bag": "animus-p-log-0-7"})
    assert refusal(evidence_statement, "bag", digests[::-1]).field == "digests"
    assert refusal(evidence_statement, "bag", digests[:2]).field == "digests"
    bare = [(name, digest[7:]) for name, digest in digests]
    assert refusal(evidence_statement, "bag", bare).field == "digests[bag-info.txt]"
