"""Names and other small texts: their rules, each with one spelling, and full resource names.

Every `check_*` raises Invalid naming the field, and returns nothing. Patterns are linear: no input makes them slow.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TypeVar

from animus.domain.document import check_text
from animus.domain.errors import invalid

SYSTEM_PROJECT = "system"  # holds what belongs to the instance: its first token, denials without a project
INSTANCE_LOG = "instance"  # no project: stands where a project would for the log of the projects' checkpoints

RESOURCE_ID = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
RANDOM_ID = re.compile(r"[0-9a-f]{32}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
REPOSITORY = re.compile(r"[!-~]{1,500}")
IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._:/-]{0,254}@sha256:[0-9a-f]{64}")
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
LICENCE = re.compile(r"(?:[A-Za-z0-9.+:()-][A-Za-z0-9.+:() -]{0,198})?[A-Za-z0-9.+()-]")
REQUEST_ID = re.compile(r"[!-~]{1,128}")
LABEL_KEY = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}")
METRIC_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,254}")
PACKAGE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,98}[a-z0-9])?")
INTEGER = re.compile(r"0|-?[1-9][0-9]*")
DECIMAL = re.compile(r"(?:0|-?[1-9][0-9]*|-?(?:0|[1-9][0-9]*)\.[0-9]*[1-9])")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # Unicode's category Cc but tab and line feed
RESERVED = re.compile(r"[^A-Za-z0-9._~-]+")  # all that is not unreserved (RFC 3986 §2.3)
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


def check_pattern(pattern: re.Pattern[str], value: str, field: str, rule: str) -> None:
    """Refuses a value that does not match as a whole."""
    if not pattern.fullmatch(value):
        raise invalid(field, rule)


def check_resource_id(value: str, field: str) -> None:
    """A name that people choose: 1 to 63 characters of `[a-z0-9-]`."""
    check_pattern(
        RESOURCE_ID,
        value,
        field,
        "is no name: give 1 to 63 characters of a-z, 0-9 and '-', the first a letter, the last no '-'",
    )


def check_digest(value: str, field: str) -> None:
    """`sha256:` and 64 lower-case hexadecimal digits."""
    check_pattern(DIGEST, value, field, "is no digest: give 'sha256:' and 64 lower-case hexadecimal digits")


def check_image(value: str, field: str) -> None:
    """A container image by digest; a tag may move, so it is no binding."""
    check_pattern(
        IMAGE, value, field, "names no image by digest: give <reference>@sha256:<64 hexadecimal digits>, not a tag"
    )


def check_media_type(value: str, field: str) -> None:
    """An IANA media type in lower case, without parameters (RFC 6838 §4.2)."""
    check_pattern(MEDIA_TYPE, value, field, "is no media type such as text/csv")


def check_licence(value: str, field: str) -> None:
    """An SPDX license expression by its characters (SPDX 2.3, Annex D), or empty; identifiers are not looked up."""
    if value:
        check_pattern(
            LICENCE, value, field, "is no SPDX license expression of 1 to 200 characters such as CC-BY-4.0 OR MIT"
        )


def check_request_id(value: str, field: str) -> None:
    """1 to 128 printable ASCII characters without space."""
    check_pattern(
        REQUEST_ID,
        value,
        field,
        "is required: give 1 to 128 printable ASCII characters without space, the same for each retry of one change",
    )


def check_decimal(value: str, field: str, *, most: int) -> None:
    """A decimal in its one spelling: no exponent, `+`, leading or trailing zero, no `-0`."""
    if len(value) > most:
        raise invalid(field, f"is {len(value)} characters long; at most {most} are allowed")
    check_pattern(
        DECIMAL, value, field, "is no decimal in its one spelling: no exponent, '+', needless zeros, NaN or infinity"
    )


def check_time(value: str, field: str) -> None:
    """UTC with six fractional digits and `Z`, from the year 1 to 9999 (RFC 3339)."""
    check_pattern(TIME, value, field, "is no time of the form 2026-01-31T12:00:00.000000Z")
    try:
        exists = format_time(parse_time(value)) == value  # some versions of Python read 24:00 as the next day
    except (ValueError, OverflowError):
        exists = False
    if not exists:
        raise invalid(field, "is no time that exists")


def check_within(value: int, low: int, high: int, field: str) -> None:
    """A number between two bounds, both included."""
    if not low <= value <= high:
        raise invalid(field, f"is {value}; {low} to {high} is allowed")


def check_length(value: str, low: int, high: int, field: str) -> None:
    """Text of so many characters, without control characters other than tab and line feed."""
    check_text(value, field)
    if not low <= len(value) <= high:
        raise invalid(field, f"is {len(value)} characters long; {low} to {high} are allowed")
    if CONTROL.search(value):
        raise invalid(field, "holds a control character")


def check_count(items: tuple[object, ...], low: int, high: int, field: str) -> None:
    """A list of so many items."""
    if not low <= len(items) <= high:
        raise invalid(field, f"has {len(items)} items; {low} to {high} are allowed")


Item = TypeVar("Item")


def sorted_set(items: tuple[Item, ...], key: Callable[[Item], str], field: str, inner: str) -> tuple[Item, ...]:
    """The items sorted by a distinct key (by its code points); refuses a key that stands twice, naming its place."""
    seen: dict[str, int] = {}
    for index, item in enumerate(items):
        if key(item) in seen:
            where = f"{field}[{index}].{inner}" if inner else f"{field}[{index}]"
            raise invalid(where, f"repeats {str(key(item))!r} of {field}[{seen[key(item)]}]")
        seen[key(item)] = index
    return tuple(sorted(items, key=key))


def format_time(time: datetime) -> str:
    """A time in its one spelling. The time has a zone and whole microseconds, as PostgreSQL keeps them."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def parse_time(text: str) -> datetime:
    """The inverse of `format_time`."""
    return datetime.fromisoformat(text)


def project_name(project_id: str) -> str:
    """Full name of a project."""
    return f"projects/{project_id}"


def service_account_name(project_id: str, service_account_id: str) -> str:
    """Full name of a service account."""
    return f"projects/{project_id}/serviceAccounts/{service_account_id}"


def token_name(project_id: str, token_digest: str) -> str:
    """Full name of an API token's registration."""
    return f"projects/{project_id}/tokens/{token_digest}"


def run_token_name(project_id: str, run_id: str, token_digest: str) -> str:
    """Full name of the registration of a token of one run."""
    return f"{run_name(project_id, run_id)}/tokens/{token_digest}"


def token_revocation_name(token: str) -> str:
    """Full name of the end of a token, by the token's own."""
    return f"{token}/revocation"


def role_binding_name(project_id: str, member: str) -> str:
    """Full name of a role binding; the member is percent-encoded."""
    return f"projects/{project_id}/roleBindings/{percent_encoded(member)}"


def dataset_name(project_id: str, dataset_id: str) -> str:
    """Full name of a dataset."""
    return f"projects/{project_id}/datasets/{dataset_id}"


def dataset_version_name(project_id: str, dataset_id: str, content_digest: str) -> str:
    """Full name of a dataset version."""
    return f"projects/{project_id}/datasets/{dataset_id}/versions/{content_digest}"


def dataset_verification_name(project_id: str, dataset_id: str, content_digest: str, entry_id: str) -> str:
    """Full name of a verification of a copy of a dataset version, by the entry that recorded it."""
    return f"{dataset_version_name(project_id, dataset_id, content_digest)}/verifications/{entry_id}"


def environment_lock_name(project_id: str, digest: str) -> str:
    """Full name of an environment lock."""
    return f"projects/{project_id}/environmentLocks/{digest}"


def pipeline_spec_name(project_id: str, digest: str) -> str:
    """Full name of a pipeline spec."""
    return f"projects/{project_id}/pipelineSpecs/{digest}"


def run_name(project_id: str, run_id: str) -> str:
    """Full name of a run."""
    return f"projects/{project_id}/runs/{run_id}"


def plan_name(project_id: str, run_id: str) -> str:
    """Full name of a run's plan."""
    return f"{run_name(project_id, run_id)}/plan"


def comparison_name(project_id: str, run_id: str, digest: str) -> str:
    """Full name of a comparison of a run with another."""
    return f"{run_name(project_id, run_id)}/comparisons/{digest}"


def attempt_name(project_id: str, run_id: str, step: str, attempt: int) -> str:
    """Full name of a step attempt."""
    return f"{run_name(project_id, run_id)}/steps/{step}/attempts/{attempt}"


def run_artifact_name(project_id: str, run_id: str, step: str, attempt: int, name: str) -> str:
    """Full name of an output of an attempt."""
    return f"{attempt_name(project_id, run_id, step, attempt)}/artifacts/{name}"


def artifact_name(project_id: str, digest: str) -> str:
    """Full name of an artifact by its content, whichever runs wrote it: the lineage node."""
    return f"projects/{project_id}/artifacts/{digest}"


def commit_name(project_id: str, repository: str, sha: str) -> str:
    """Full name of a commit."""
    return f"projects/{project_id}/commits/{repository}@{sha}"


def external_run_name(project_id: str, run_id: str) -> str:
    """Full name of a run of another system, by the UUID that it has in OpenLineage."""
    return f"projects/{project_id}/externalRuns/{run_id}"


def external_dataset_name(project_id: str, namespace: str, name: str, version: str) -> str:
    """Full name of a dataset of another system by what it has in OpenLineage; version empty where none is known.

    Each of the three is percent-encoded, so that decoding gives it back.
    """
    at_version = f"@{percent_encoded(version)}" if version else ""
    return f"projects/{project_id}/externalDatasets/{percent_encoded(namespace)}/{percent_encoded(name)}{at_version}"


def percent_encoded(text: str, escaped: re.Pattern[str] = RESERVED) -> str:
    """Text with each byte of its UTF-8 that a pattern matches percent-encoded."""
    return escaped.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), text)


def quality_rule_name(project_id: str, digest: str) -> str:
    """Full name of a quality rule."""
    return f"projects/{project_id}/qualityRules/{digest}"


def quality_profile_name(project_id: str, digest: str) -> str:
    """Full name of a quality profile."""
    return f"projects/{project_id}/qualityProfiles/{digest}"


def quality_evaluation_name(project_id: str, digest: str) -> str:
    """Full name of a quality evaluation."""
    return f"projects/{project_id}/qualityEvaluations/{digest}"


def quality_gate_name(project_id: str, digest: str) -> str:
    """Full name of one state of a quality gate."""
    return f"projects/{project_id}/qualityGates/{digest}"


def admission_refusal_name(project_id: str, entry_id: str) -> str:
    """Full name of the refusal of a run, by the entry that recorded it."""
    return f"projects/{project_id}/admissionRefusals/{entry_id}"


def distinct(items: Iterable[Item]) -> tuple[Item, ...]:
    """The items without repeats, in the order of their first."""
    return tuple(dict.fromkeys(items))
