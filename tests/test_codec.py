"""Messages and values: inverse to each other, and everything that protobuf would hide is refused by its path."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import contract
import pytest
from domain.values import (
    DOCUMENTS,
    LAW,
    ONE,
    RUN_ID,
    SAMPLES,
    TIME,
    fill,
    value_classes,
)
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from animus import codec
from animus.codec import decode, decode_all, encode, refuse_unknown, request_bytes, request_tree
from animus.domain import document
from animus.domain.access import BreakGlass, ServiceAccountEnd, Token
from animus.domain.audit import AuditEntry, RecordManifest
from animus.domain.comparison import RunComparison
from animus.domain.dataset import Dataset, DatasetVerification, DatasetVersion, DatasetVersionUris, FileManifest
from animus.domain.document import MAX_VIOLATIONS, json_name
from animus.domain.dry_run import AssumedFailure, Scenario
from animus.domain.environment import EnvironmentLock
from animus.domain.errors import Invalid, Violation
from animus.domain.evidence import RunSummary
from animus.domain.external_lineage import ExternalEvent
from animus.domain.labels import Label
from animus.domain.lineage import LineageEdge
from animus.domain.pipeline import ErrorKind, PipelineSpec, RetryKind
from animus.domain.project import Project
from animus.domain.quality import QualityEvaluation, QualityProfile, QualityRule
from animus.domain.run import AdmissionRefusal, Artifact, Metric, Parameter, Run, RunSpec
from animus.domain.state import RunEvent, StepEvent, StepEventType
from animus.v1 import (
    access_pb2,
    pipeline_pb2,
    run_pb2,
    runtime_pb2,
    types_pb2,
)

# Kinds without a message that is read: what the server composes, or writes for itself.
COMPOSED = {
    AdmissionRefusal,
    BreakGlass,
    DatasetVerification,
    DatasetVersionUris,
    ExternalEvent,
    FileManifest,
    Run,
    RunComparison,
    RunEvent,
    RunSummary,
    ServiceAccountEnd,
}
# Each other kind of document with its message, which has its name.
MESSAGES: dict[type, type[Message]] = {
    kind: GetMessageClass(contract.MESSAGES[kind.__name__]) for kind in DOCUMENTS if kind not in COMPOSED
}
# What is beside the value in its message; no part of what was hashed.
BESIDE_THE_VALUE = {f"animus.v1.AuditEntry.{name}" for name in ("leaf_hash", "document", "index")}
BESIDE_THE_VALUE |= {"animus.v1.DatasetVersion.uris"}
BESIDE_THE_VALUE |= {"animus.v1.ServiceAccount.disabled", "animus.v1.RoleBinding.etag"}
BESIDE_THE_VALUE |= {f"animus.v1.Token.{name}" for name in ("last_use_time", "revoked")}
# Kinds that clients send and that have sets of which the sample is in no order.
SETS_SENT = [Dataset, DatasetVersion, EnvironmentLock, PipelineSpec, Project, QualityRule, RunSpec]
# Kinds that clients send; the server makes the others.
SENT = [Artifact, Dataset, DatasetVersion, EnvironmentLock, Metric, PipelineSpec, Project, RunSpec, StepEvent, Token]
SENT += [QualityProfile, QualityRule]

KINDS = sorted(MESSAGES, key=lambda kind: kind.__name__)
by_name: dict[str, Any] = {"ids": lambda value: getattr(value, "__name__", None)}


def test_every_kind_of_document_is_met() -> None:
    """Each kind has its message here, or is one that no caller sends or gets whole."""
    assert MESSAGES.keys() | COMPOSED == DOCUMENTS.keys() == {c for c in value_classes() if hasattr(c, "SCHEMA")}


def message_of(value: Any) -> Message:
    """The message of a value."""
    return encode(value, MESSAGES[type(value)]())


def faults(call: Callable[..., object], *args: object) -> list[str]:
    """The paths that a call refuses."""
    with pytest.raises(Invalid) as caught:
        call(*args)
    return [each.field for each in caught.value.violations]


# Inverse.


@pytest.mark.parametrize("kind", KINDS, **by_name)
def test_decode_is_the_inverse_of_encode(kind: Any) -> None:
    """A value comes back from its message, through the wire too, and the message is the one of its tree."""

    @LAW
    @given(DOCUMENTS[kind])
    def law(value: Any) -> None:
        message = message_of(value)
        assert decode(message, kind, "x") == value
        arrived = MESSAGES[kind].FromString(message.SerializeToString())
        refuse_unknown(arrived)
        assert decode(arrived, kind, "x") == value

    law()


@pytest.mark.parametrize("kind", SENT, **by_name)
def test_encode_is_the_inverse_of_decode(kind: Any) -> None:
    """A message that a client fills in field by field is the same after decode and encode."""
    tree: Any = document.tree_of(SAMPLES[kind])
    if kind in (Metric, StepEvent, Token):
        tree = {key: value for key, value in tree.items() if not key.endswith("Time")}
    message = MESSAGES[kind]()
    fill(message, tree)
    for field in ("occur_time", "expire_time"):
        if field in message.DESCRIPTOR.fields_by_name:
            getattr(message, field).CopyFrom(codec.timestamp(TIME))
    assert encode(decode(message, kind, "x"), MESSAGES[kind]()) == message


@pytest.mark.parametrize("kind", SETS_SENT, **by_name)
def test_the_order_of_sets_in_a_message_does_not_matter(kind: Any) -> None:
    """However repeated fields that are sets are ordered, one value is decoded."""
    value = SAMPLES[kind]
    sequences = {"command", "args", "columns"}

    def mixed(message: Message, rng: random.Random) -> None:
        for field, items in message.ListFields():
            if field.is_repeated and field.name not in sequences:
                kept = list(items)
                rng.shuffle(kept)
                message.ClearField(field.name)
                getattr(message, field.name).extend(kept)
            if field.message_type is not None:
                for each in getattr(message, field.name) if field.is_repeated else [items]:
                    mixed(each, rng)

    orders = set()
    for seed in range(10):
        message = message_of(value)
        mixed(message, random.Random(seed))
        orders.add(message.SerializeToString(deterministic=True))
        assert decode(message, kind, "x") == value
    assert len(orders) > 1


# What protobuf would hide.


def parts(message: Message, path: str = "") -> Iterator[tuple[Message, FieldDescriptor, str]]:
    """Each field that is set in a message and below it: the message that holds it, the field, and its path."""
    for field, value in message.ListFields():
        below = document.join(path, json_name(field.name))
        yield message, field, below
        if field.message_type is not None and field.message_type.full_name != "google.protobuf.Timestamp":
            for index, item in enumerate(value if field.is_repeated else [value]):
                yield from parts(item, f"{below}[{index}]" if field.is_repeated else below)


def places(kind: type, wanted: Callable[[FieldDescriptor], bool]) -> list[str]:
    """The paths of the fields of a full message that are wanted."""
    return [path for _, field, path in parts(message_of(SAMPLES[kind])) if wanted(field)]


def at(kind: type, path: str) -> tuple[Message, Message, FieldDescriptor]:
    """A full message, the message inside it that holds a path, and the field."""
    whole = message_of(SAMPLES[kind])
    return next((whole, holder, field) for holder, field, place in parts(whole) if place == path)


def singular(kind: type) -> list[str]:
    """The paths of what can be absent."""
    return places(kind, lambda field: not field.is_repeated)


@pytest.mark.parametrize("kind", KINDS, **by_name)
def test_the_samples_are_full(kind: Any) -> None:
    """Every field of every message below is set in the sample, so that the walks below miss none."""
    met = {field.full_name for _, field, _ in parts(message_of(SAMPLES[kind]))}
    waiting, declared = [MESSAGES[kind].DESCRIPTOR], set()
    while waiting:
        for field in waiting.pop().fields:
            if field.name == "record" or field.full_name in BESIDE_THE_VALUE:
                continue
            declared.add(field.full_name)
            if field.message_type is not None and field.message_type.full_name != "google.protobuf.Timestamp":
                waiting.append(field.message_type)
    assert met == declared


def unnoticed(kind: type, read: Callable[[Message], object]) -> list[str]:
    """The fields whose absence alone is not refused at their path."""
    found = []
    for path in singular(kind):
        whole, holder, field = at(kind, path)
        holder.ClearField(field.name)
        try:
            read(whole)
        except Invalid as error:
            if [each.field for each in error.violations] == [f"x.{path}"]:
                continue
        found.append(path)
    return found


@pytest.mark.parametrize("kind", KINDS, **by_name)
def test_each_absent_field_is_named(kind: Any) -> None:
    """One field at a time is taken out of a full message, at every depth: that path and no other is refused."""
    assert len(singular(kind)) >= 2
    assert unnoticed(kind, lambda message: decode(message, kind, "x")) == []


def test_a_decoder_that_fills_in_defaults_is_found() -> None:
    """Taking what protobuf gives for an absent text or number goes unnoticed where empty or 0 is a value."""

    def filled(message: Message) -> Message:
        for field in message.DESCRIPTOR.fields:
            if field.message_type is None and not field.is_repeated:
                setattr(message, field.name, getattr(message, field.name))
        for _, value in message.ListFields():
            for each in value if not isinstance(value, (Message, str, int, bytes)) else [value]:
                if isinstance(each, Message):
                    filled(each)
        return message

    assert unnoticed(LineageEdge, lambda message: decode(filled(message), LineageEdge, "x")) == ["subject", "object"]
    missed = unnoticed(PipelineSpec, lambda message: decode(filled(message), PipelineSpec, "x"))
    assert {"metadata.description", "spec.steps[0].resources.gpu"} <= set(missed)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not RecordManifest], **by_name)  # it is one list
def test_an_empty_message_names_every_field(kind: Any) -> None:
    """Each field that can be absent is named at once."""
    expected = [
        f"x.{json_name(field.name)}"
        for field in MESSAGES[kind].DESCRIPTOR.fields
        if not field.is_repeated and field.name != "record" and field.full_name not in BESIDE_THE_VALUE
    ]
    if kind is StepEvent:
        expected.remove("x.errorKind")  # unspecified is its value for all but failures
    if kind is QualityEvaluation:
        expected.remove("x.verdict")  # unspecified is its value where there is none, which the results contradict
    found = faults(lambda: decode(MESSAGES[kind](), kind, "x"))
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("kind", KINDS, **by_name)
@pytest.mark.parametrize("number", [0, 99, -1, 2**31 - 1])
def test_an_enum_without_meaning_is_named(kind: Any, number: int) -> None:
    """Unspecified, and a number that this version does not know, are refused at each enum, in lists too."""
    for path in places(kind, lambda field: field.enum_type is not None):
        whole, holder, field = at(kind, path)
        if field.is_repeated:
            getattr(holder, field.name)[0] = number
            expected = f"x.{path}[0]"
        else:
            setattr(holder, field.name, number)
            expected = f"x.{path}"
        assert faults(decode, whole, kind, "x") == [expected]


def test_enums_are_met() -> None:
    """The walk above meets single and repeated enums."""
    found = [path for kind in KINDS for path in places(kind, lambda field: field.enum_type is not None)]
    assert {"spec.steps[1].retryPolicy.retryOn", "spec.steps[0].retryPolicy.backoff.type", "role"} <= set(found)


def test_no_failure_is_unspecified_and_only_where_it_may_be() -> None:
    """NONE is the unspecified number in a message; a list of kinds to retry has no such member."""
    started = dataclasses.replace(SAMPLES[StepEvent], type=StepEventType.STARTED, error_kind=ErrorKind.NONE)
    assert message_of(started).error_kind == 0  # type: ignore[attr-defined]
    assert decode(message_of(started), StepEvent, "x") == started
    assert {kind.name for kind in RetryKind} == {kind.name for kind in ErrorKind} - {"NONE"}


UNKNOWN = [b"\xc0\x3e\x01", b"\xc2\x3e\x01a", b"\xc3\x3e\xc4\x3e", b"\xc5\x3e\0\0\0\0", b"\xc1\x3e" + bytes(8)]  # 1000


@pytest.mark.parametrize("kind", KINDS, **by_name)
@pytest.mark.parametrize("unknown", UNKNOWN, ids=["varint", "bytes", "group", "fixed32", "fixed64"])
def test_an_unknown_field_is_named_at_any_depth(kind: Any, unknown: bytes) -> None:
    """A field that this version lacks, of any wire type, is refused where it stands: in messages, lists and times."""
    refuse_unknown(message_of(SAMPLES[kind]))
    whole = message_of(SAMPLES[kind])
    whole.MergeFromString(unknown)
    assert faults(lambda: refuse_unknown(whole)) == [""]
    for path in places(kind, lambda field: field.message_type is not None):
        message, holder, field = at(kind, path)
        value = getattr(holder, field.name)
        (value[-1] if field.is_repeated else value).MergeFromString(unknown)
        expected = f"{path}[{len(value) - 1}]" if field.is_repeated else path
        assert faults(refuse_unknown, message) == [expected]


def test_an_unknown_field_of_an_otherwise_empty_message_is_named() -> None:
    """A message that holds nothing but what nobody knows is not taken for empty."""
    spec = pipeline_pb2.PipelineSpec()
    spec.metadata.MergeFromString(UNKNOWN[0])
    assert faults(lambda: refuse_unknown(spec)) == ["metadata"]


def test_what_only_the_server_says_is_named() -> None:
    """A field beside the value that is marked as output only is refused from outside, where it says something."""
    token: Any = message_of(SAMPLES[Token])
    token.last_use_time.SetInParent()
    token.revoked = True
    assert faults(decode, token, Token, "x") == ["x.lastUseTime", "x.revoked"]
    token.ClearField("last_use_time")
    token.revoked = False
    assert decode(token, Token, "x") == SAMPLES[Token]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "record" in MESSAGES[kind].DESCRIPTOR.fields_by_name])
def test_a_record_that_the_caller_set_is_named(kind: Any) -> None:
    """What the control plane records is refused from outside, even empty."""
    for record in (types_pb2.Record(), types_pb2.Record(name="projects/p"), types_pb2.Record(digest=ONE)):
        message: Any = message_of(SAMPLES[kind])
        message.record.CopyFrom(record)
        assert faults(decode, message, kind, "x") == ["x.record"]


# Times.

LOWEST, HIGHEST = -62_135_596_800, 253_402_300_799


@pytest.mark.parametrize("kind", [AuditEntry, Metric, StepEvent, Token])
@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [
        (0, 1), (0, 999), (0, 1_001), (0, 999_999_999), (-1, 500), (0, -1_000), (0, 1_000_000_000), (LOWEST - 1, 0),
        (HIGHEST + 1, 0), (2**63 - 1, 0), (-(2**63), 0), (0, -(2**31)), (0, 2**31 - 1),
    ],
)  # fmt: skip
def test_a_time_that_no_record_can_keep_is_named(kind: Any, seconds: int, nanos: int) -> None:
    """Finer than a microsecond, outside the years 1 to 9999, or with odd nanoseconds: refused, not rounded."""
    for path in places(kind, lambda field: field.message_type is not None and field.name.endswith("time")):
        whole, holder, field = at(kind, path)
        getattr(holder, field.name).CopyFrom(timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos))
        assert faults(decode, whole, kind, "x") == [f"x.{path}"]


@pytest.mark.parametrize(
    ("seconds", "nanos", "written"),
    [
        (0, 0, "1970-01-01T00:00:00.000000Z"),
        (-1, 999_999_000, "1969-12-31T23:59:59.999999Z"),
        (LOWEST, 0, "0001-01-01T00:00:00.000000Z"),
        (HIGHEST, 999_999_000, "9999-12-31T23:59:59.999999Z"),
        (951_782_400, 1_000, "2000-02-29T00:00:00.000001Z"),
    ],
)
def test_times_keep_their_microseconds(seconds: int, nanos: int, written: str) -> None:
    """The first and the last time, and those before 1970, are exact both ways."""
    message: Any = message_of(SAMPLES[Token])
    message.expire_time.CopyFrom(timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos))
    token = decode(message, Token, "x")
    assert token.expire_time == written
    assert codec.timestamp(written) == message.expire_time
    assert message_of(token) == message


@LAW
@given(st.integers(LOWEST * 10**6, HIGHEST * 10**6 + 999_999))
def test_every_microsecond_comes_back(micros: int) -> None:
    """A Timestamp of whole microseconds and its text are one time."""
    message = timestamp_pb2.Timestamp(seconds=micros // 10**6, nanos=micros % 10**6 * 1_000)
    token: Any = message_of(SAMPLES[Token])
    token.expire_time.CopyFrom(message)
    assert codec.timestamp(decode(token, Token, "x").expire_time) == message


# Lists of values.


def test_a_field_that_the_server_sets_is_given_and_not_taken() -> None:
    """What a caller leaves out is filled in; set by a caller, it is refused by its path."""
    evaluation: QualityEvaluation = SAMPLES[QualityEvaluation]
    message = message_of(evaluation)
    assert faults(lambda: decode(message, QualityEvaluation, "x", evaluate_time=TIME)) == ["x.evaluateTime"]
    message.ClearField("evaluate_time")
    assert decode(message, QualityEvaluation, "x", evaluate_time=TIME) == evaluation
    assert faults(lambda: decode(message, QualityEvaluation, "x")) == ["x.evaluateTime"]


def test_fields_that_the_request_says_once_are_given() -> None:
    """Reports lack the run's id: it is given, and the paths are those of the report."""
    report = runtime_pb2.ArtifactReport(step="a", attempt=1, name="m", digest=ONE, size_bytes=0, uri="")
    (artifact,) = decode_all([report], Artifact, "artifacts", run_id=RUN_ID)
    assert artifact == Artifact(RUN_ID, "a", 1, "m", ONE, 0, "")
    wrong = runtime_pb2.ArtifactReport(step="A", attempt=1, name="m", digest=ONE, size_bytes=0)
    assert faults(lambda: decode_all([report, wrong], Artifact, "artifacts", run_id=RUN_ID)) == ["artifacts[1].uri"]
    assert faults(lambda: decode_all([report], Artifact, "artifacts", run_id="x")) == ["artifacts[0].runId"]


def test_every_fault_of_a_batch_is_named() -> None:
    """Faults of all items come in one answer, up to the bound, and what is right does not hide what is wrong."""
    labels = [types_pb2.Label(key="A", value=""), types_pb2.Label(key="a", value=""), types_pb2.Label(key="b")]
    assert faults(lambda: decode_all(labels, Label, "labels")) == ["labels[0].key", "labels[2].value"]
    many = [types_pb2.Label() for _ in range(MAX_VIOLATIONS)]
    assert len(faults(lambda: decode_all(many, Label, "labels"))) == MAX_VIOLATIONS
    assert decode_all([], Label, "labels") == ()


def test_values_without_a_document_come_back_too() -> None:
    """What is sent and never stored follows the same rules."""
    made = Scenario("a", 0, (AssumedFailure("s", 1, 2, RetryKind.USER),))
    message = encode(made, run_pb2.Scenario())
    assert decode(message, Scenario, "x") == made
    message.failures[0].error_kind = 0  # type: ignore[assignment]
    message.failures[0].ClearField("last_attempt")
    assert faults(lambda: decode(message, Scenario, "x")) == ["x.failures[0].lastAttempt", "x.failures[0].errorKind"]


# No byte goes unnoticed.


@pytest.mark.parametrize("kind", SENT, **by_name)
def test_mangled_bytes_are_refused_or_mean_something_that_can_be_stored(kind: Any) -> None:
    """Each byte of a message changed, cut or doubled: it is no message, is Invalid, or is a value with a document.

    Nothing else is raised, and whatever is accepted is stored and read back as what it is.
    """
    wire = message_of(SAMPLES[kind]).SerializeToString(deterministic=True)
    rng = random.Random(5)
    mangled = {wire[:place] + bytes([byte]) + wire[place + 1 :] for place in range(len(wire)) for byte in (0, 0xFF)}
    mangled |= {wire[:place] + bytes([rng.randrange(256)]) + wire[place + 1 :] for place in range(len(wire))}
    mangled |= {wire[:place] for place in range(len(wire))} | {wire[:p] + wire[p - 1 :] for p in range(1, len(wire))}
    met = {"malformed": 0, "invalid": 0, "accepted": 0}
    for each in mangled - {wire}:
        try:
            message = MESSAGES[kind].FromString(each)
            refuse_unknown(message)
            value = decode(message, kind, "x")
        except DecodeError:
            met["malformed"] += 1
        except Invalid as error:
            met["invalid"] += 1
            assert all(found.description and isinstance(found.field, str) for found in error.violations)
        else:
            met["accepted"] += 1
            assert document.load(document.dump(value), kind) == value
            assert decode(message_of(value), kind, "x") == value
    assert all(met.values()), met


@LAW
@given(st.sampled_from(SENT), st.text(max_size=5), st.integers(0, 2**32))
def test_any_text_in_any_field_is_refused_or_stored(kind: Any, odd: str, seed: int) -> None:
    """A text field of a client's message takes any text that protobuf does: it is Invalid there, or has a document."""
    paths = places(kind, lambda field: field.type == field.TYPE_STRING and not field.is_repeated)
    path = random.Random(seed).choice(paths)
    whole, holder, field = at(kind, path)
    setattr(holder, field.name, odd)
    try:
        value = decode(whole, kind, "x")
    except Invalid as error:
        assert all(each.field.startswith("x.") for each in error.violations)
    else:
        assert document.load(document.dump(value), kind) == value


# Requests, by which a reused request_id is recognised.


def create(spec: RunSpec, **fields: Any) -> run_pb2.CreateRunRequest:
    """A request for a run."""
    return run_pb2.CreateRunRequest(project_id="p", run_spec=message_of(spec), **fields)  # type: ignore[arg-type]


def test_how_a_request_is_called_is_no_part_of_what_it_asks() -> None:
    """request_id and validate_only leave the bytes as they are; everything else changes them."""
    spec: RunSpec = SAMPLES[RunSpec]
    bytes_ = request_bytes(create(spec))
    assert request_bytes(create(spec, request_id="r", validate_only=True)) == bytes_
    assert b"requestId" not in bytes_
    labelled = create(spec)
    labelled.labels.add(key="a", value="")
    half = create(spec)
    half.labels.add(key="a")
    distinct = {
        request_bytes(each) for each in (create(spec), labelled, half, run_pb2.CreateRunRequest(project_id="p"))
    }
    assert len(distinct) == 4


@pytest.mark.parametrize("kind", SENT, **by_name)
def test_any_change_of_a_request_is_seen(kind: Any) -> None:
    """Each field of a full message that is taken out changes the bytes that requests are compared by."""
    seen = {request_bytes(message_of(SAMPLES[kind]))}
    for path in singular(kind):
        whole, holder, field = at(kind, path)
        holder.ClearField(field.name)
        seen.add(request_bytes(whole))
    assert len(seen) == 1 + len(singular(kind))


def test_times_of_a_request_are_compared_to_the_nanosecond() -> None:
    """Two times that round to one are two requests."""
    one = timestamp_pb2.Timestamp(seconds=1, nanos=1)
    other = timestamp_pb2.Timestamp(seconds=1, nanos=10)
    trees = [request_tree(access_pb2.CreateTokenRequest(token=access_pb2.Token(expire_time=t))) for t in (one, other)]
    assert trees[0] == {"token": {"expireTime": "1.000000001"}}
    assert trees[0] != trees[1]


def test_the_order_sent_is_part_of_a_request() -> None:
    """A retry sends the same bytes; another order is another body, though it means the same."""
    spec: RunSpec = SAMPLES[RunSpec]
    message = create(spec)
    backwards = create(spec)
    backwards.run_spec.ClearField("parameters")
    for parameter in spec.parameters[::-1]:
        encode(parameter, backwards.run_spec.parameters.add())
    assert request_bytes(message) != request_bytes(backwards)
    assert decode(backwards.run_spec, RunSpec, "x") == spec


def test_a_violation_reads_as_a_sentence() -> None:
    """Field first, then what is wrong with it."""
    with pytest.raises(Invalid, match=r"x\.name: is missing; every field is required \(and 2 more\)"):
        decode(run_pb2.Parameter(), Parameter, "x")
    assert Violation("a", "b") == Violation("a", "b")
