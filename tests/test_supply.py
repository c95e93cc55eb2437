"""What comes with a release: the check for known weaknesses, and the list of a wheel's packages."""

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from supply.audit import CONTROL, files_of, judged, pinned
from supply.lock import LOCK, ROOT, read_lock
from supply.sbom import bill, direct, shipped

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = read_lock(LOCK.read_text())

# What pip-audit 2.10 answers: a weakness, none, and that it could not look.
KNOWN = {
    "name": "pyyaml",
    "version": "5.3",
    "vulns": [
        {
            "id": "PYSEC-2020-96",
            "fix_versions": ["5.3.1"],
            "aliases": ["CVE-2020-1747", "GHSA-6757-jp84-gxfx"],
            "description": "",
        }
    ],
}
SOUND = {"name": "alembic", "version": "1.18.0", "vulns": []}
WEAK = {"name": "alembic", "version": "1.18.0", "vulns": [{"id": "PYSEC-1", "fix_versions": [], "aliases": []}]}
SKIPPED = {"name": "alembic", "skip_reason": "Dependency not found on PyPI and could not be audited: alembic (1.18.0)"}
PINS = {("alembic", "1.18.0")}


@pytest.mark.parametrize(
    ("answers", "weak", "unchecked"),
    [
        ([KNOWN, SOUND], [], []),
        ([KNOWN, WEAK], ["alembic 1.18.0: PYSEC-1, fixed in no version"], []),
        ([KNOWN, SKIPPED], [], ["no answer on alembic 1.18.0"]),
        ([KNOWN], [], ["no answer on alembic 1.18.0"]),
        ([{**KNOWN, "vulns": []}, SOUND], [], ["the service does not know the weakness of pyyaml 5.3"]),
        ([{**KNOWN, "vulns": []}, WEAK], ["alembic 1.18.0: PYSEC-1, fixed in no version"], ["the service does not"]),
        ([SKIPPED], [], ["the service does not know the weakness of pyyaml 5.3", SKIPPED["skip_reason"]]),
        ([], [], ["the service does not know the weakness of pyyaml 5.3"]),
    ],
)
def test_silence_of_a_service_that_knows_nothing_is_no_answer(
    answers: list[dict[str, Any]], weak: list[str], unchecked: list[str]
) -> None:
    """Packages are sound only where the same service reports a weakness that is known; what was found counts anyway."""
    found, why = judged(answers, PINS)
    assert found == weak
    assert [text[: len(said)] for text, said in zip(why, unchecked, strict=True)] == unchecked


def test_every_version_of_every_lock_is_asked_for_once() -> None:
    """Versions for other platforms and Pythons too, and no file has a name twice."""
    pins = pinned()
    assert pins >= {(each.name, each.version) for each in PACKAGES}
    files = files_of({*pins, CONTROL})
    lines = [line for file in files for line in file.splitlines()]
    assert sorted(lines) == sorted(f"{name}=={version}" for name, version in {*pins, CONTROL})
    for file in files:
        names = re.findall(r"^(\S+)==", file, re.MULTILINE)
        assert len(names) == len(set(names))


@pytest.mark.parametrize("line", ["alembic>=1.18 \\\n    --hash=sha256:" + "0" * 64, "alembic==1.18.0"])
def test_a_package_that_is_not_pinned_is_found(line: str) -> None:
    """Without one version, or without hashes, a lock is none."""
    with pytest.raises(ValueError, match="alembic is not pinned"):
        read_lock(line + "\n")


def test_the_list_of_a_wheel_is_valid_and_the_same_each_time() -> None:
    """It is CycloneDX 1.6, names the wheel by its digest, and has nothing of the moment."""
    said = bill(b"wheel", PROJECT, PACKAGES)
    assert said == bill(b"wheel", PROJECT, PACKAGES) != bill(b"other", PROJECT, PACKAGES)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(said) is None
    assert validator.validate_str(said.replace('"library"', '"book"')) is not None
    assert '"timestamp"' not in said


def needed() -> set[str]:
    """The packages that are installed here because the project's base and extras need them, by their own metadata."""
    waiting = [(Requirement(each), "") for each in PROJECT["dependencies"]]
    waiting += [(Requirement(part), "") for extra in PROJECT["optional-dependencies"].values() for part in extra]
    found: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), wanted)
            if key not in found:
                found.add(key)
                waiting += [(Requirement(each), wanted) for each in requires(requirement.name) or ()]
    return {name for name, _ in found}


def test_the_list_has_every_package_that_is_shipped_and_no_other() -> None:
    """What the installed packages themselves say of their needs, with the lock's versions and hashes."""
    document = json.loads(bill(b"wheel", PROJECT, PACKAGES))
    listed = {(each["name"], each["version"]): each for each in document["components"]}
    names = {name for name, _ in listed}
    assert needed() <= names
    for name in names - needed():  # what is for another platform or Python only
        with pytest.raises(PackageNotFoundError):
            requires(name)
    locked = {(each.name, each.version): each for each in PACKAGES}
    for key, part in listed.items():
        (distribution,) = part["externalReferences"]
        assert {each["content"] for each in distribution["hashes"]} == set(locked[key].hashes)
        assert part["purl"] == f"pkg:pypi/{key[0]}@{key[1]}"
    assert not {"pytest", "hypothesis", "ruff", "mypy", "scikit-learn", "pip-audit"} & names
    assert len([part for part in listed.values() if part.get("licenses")]) > 50


def test_a_package_that_the_lock_lacks_is_found() -> None:
    """A new dependency without a new lock ends the build."""
    with pytest.raises(LookupError, match="new-package"):
        shipped(PACKAGES, direct(PROJECT) | {"new-package"})


def test_the_tests_that_security_md_names_are_there() -> None:
    """Each stands in the file that the text links to."""
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"((?:`test_\w+`(?:, )?)+) in \[\w+\]\((\S+?)\)", text)
    assert sum(tests.count("`test_") for tests, _ in named) == text.count("`test_") > 30
    for tests, path in named:
        source = (ROOT / path).read_text()
        assert [name for name in re.findall(r"test_\w+", tests) if f"def {name}(" not in source] == []
