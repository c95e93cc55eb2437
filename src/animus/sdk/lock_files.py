"""What the lock files of package managers say: their text to packages. Pure: nothing of the running machine gets in.

The formats: `uv.lock`, `poetry.lock`, `conda-lock.yml`, requirements with hashes, and what `pip freeze` prints. Each
package that a lock lists counts, of every group and extra, unless its marker excludes the target. Names are normalised
as PEP 503 says, versions stand as they are written. Whatever could mean two things raises Invalid, which names the file
and the line or the key.
"""

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from animus.domain import document
from animus.domain.environment import Package
from animus.domain.errors import Invalid, invalid
from animus.domain.names import COMMIT

MAX_LOCK_FILE_BYTES = 16 << 20
MAX_REQUIREMENT = 4_096  # characters: what reads requirements and markers is not linear

PYTHON_VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}(?:(?:a|b|rc)[0-9]{1,4})?\+?")

COMMIT_AT_END = re.compile(rf"#(?:{COMMIT.pattern})$")


class LockFormat(StrEnum):
    """A format of lock files."""

    UV = "uv.lock"
    POETRY = "poetry.lock"
    CONDA = "conda-lock.yml"
    REQUIREMENTS = "requirements.txt"
    FREEZE = "pip freeze"


NAMES = {
    "uv.lock": LockFormat.UV,
    "poetry.lock": LockFormat.POETRY,
    "conda-lock.yml": LockFormat.CONDA,
    "conda-lock.yaml": LockFormat.CONDA,
}


@dataclass(frozen=True, slots=True)
class Target:
    """What the packages are installed on: the three fields of an EnvironmentLock, all of them needed."""

    python_version: str  # such as 3.11.7
    platform_os: str  # as Python's platform.system() says it in lower case
    platform_architecture: str  # as Python's platform.machine() says it in lower case

    def __post_init__(self) -> None:
        if not PYTHON_VERSION.fullmatch(self.python_version):
            raise invalid("pythonVersion", f"is no version of Python such as 3.11.7: {self.python_version!r}")
        for value, field in ((self.platform_os, "platformOs"), (self.platform_architecture, "platformArchitecture")):
            if value != value.lower():
                raise invalid(field, f"is not in lower case: {value!r}")


def packages_of(name: str, data: bytes, target: Target) -> tuple[Package, ...]:
    """The packages of a lock file by its name and bytes, sorted by name; equal bytes give equal packages anywhere.

    Raises Invalid for an unknown format, bad UTF-8, more than 16 MiB, and all that the format's parser refuses.
    """
    if len(data) > MAX_LOCK_FILE_BYTES:
        raise invalid(name, f"is longer than {MAX_LOCK_FILE_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise invalid(f"{name} line {line}", "is not UTF-8") from None
    return PARSERS[format_of(name, text)](name, text, target)


def format_of(name: str, text: str) -> LockFormat:
    """The format of a lock file: by its name where the name is one format's own, else by content. Raises Invalid."""
    if name in NAMES:
        return NAMES[name]

    def has(pattern: str) -> bool:
        return re.search(pattern, text, re.MULTILINE) is not None

    if has(r"^\[\[package\]\]"):
        if has(r"^lock-version[ \t]*="):
            return LockFormat.POETRY
        if has(r"^requires-python[ \t]*="):
            return LockFormat.UV
    elif has(r"^package:") and has(r"^metadata:"):
        return LockFormat.CONDA
    elif has(r"^[^#\n]*[ \t]--hash[= \t]"):
        return LockFormat.REQUIREMENTS
    elif name.endswith(".txt") or has(r"^[A-Za-z0-9][\w.-]*==[^=]"):
        return LockFormat.FREEZE
    known = ", ".join(each.value for each in (LockFormat.UV, LockFormat.POETRY, LockFormat.CONDA))
    raise invalid(name, f"is of no known format: give {known}, requirements with hashes, or the output of pip freeze")


def parse_uv(name: str, text: str, target: Target) -> tuple[Package, ...]:
    """The packages of a `uv.lock`, of every platform that it is for.

    The checkout itself is left out, bound as it is by its commit: editable and virtual sources, and so the members of a
    workspace. Raises Invalid for a package in several versions, for a folder as source, whose content no lock
    binds, and where the target's Python is none that the file is for.
    """
    tree = _toml(name, text)
    if type(tree.get("version")) is not int or tree["version"] != 1:
        _refuse(f"{name} version", "is not 1, the version of uv.lock that is known here")
    _check_python(name, tree, target)
    found = _Found()
    members = _members(name, tree)
    for key, item in _items(name, tree, optional=True):
        source = item.get("source")
        if not isinstance(source, dict):
            _refuse(f"{key}.source", "is missing or no table")
        if "editable" in source or "virtual" in source:
            continue
        package = _name(f"{key}.name", item)
        if package in members:
            continue
        if "directory" in source:
            _refuse(f"{key}.source", f"of {package} is a folder, whose content the lock does not bind")
        if not source.keys() & {"registry", "git", "url", "path"}:
            _refuse(f"{key}.source", f"of {package} is of no known kind")
        if "git" in source and not COMMIT_AT_END.search(str(source["git"])):
            _refuse(f"{key}.source", f"of {package} names no commit")
        if source.keys() & {"url", "path"} and not _has_hash(item.get("sdist"), item.get("wheels")):
            _refuse(key, f"has no hash of {package}, which is of no registry")
        found.add(key, package, _text(f"{key}.version", item, "version"))
    return found.packages()


def parse_poetry(name: str, text: str, target: Target) -> tuple[Package, ...]:
    """The packages of a `poetry.lock` whose markers hold for the target; folders in development are left out.

    Raises Invalid for a package in several versions, a folder as source, and a marker that is not simple.
    """
    tree = _toml(name, text)
    metadata = tree.get("metadata")
    version = metadata.get("lock-version") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not re.fullmatch(r"[12]\.[0-9]+", version):
        _refuse(f"{name} metadata.lock-version", "is neither 1.x nor 2.x, the versions of poetry.lock known here")
    found = _Found()
    for key, item in _items(name, tree, optional=True):
        package = _name(f"{key}.name", item)
        source = item.get("source", {})
        if not isinstance(source, dict):
            _refuse(f"{key}.source", "is no table")
        if source.get("type") == "directory":
            if item.get("develop") is True:
                continue
            _refuse(f"{key}.source", f"of {package} is a folder, whose content the lock does not bind")
        if source.get("type") == "git" and not COMMIT.fullmatch(str(source.get("resolved_reference"))):
            _refuse(f"{key}.source.resolved_reference", f"of {package} is no commit")
        if source.get("type") in ("url", "file") and not _has_hash(item.get("files")):
            _refuse(f"{key}.files", f"has no hash of {package}, which is of no registry")
        if not _any_marker(f"{key}.markers", item.get("markers", ""), target):
            continue
        found.add(key, package, _text(f"{key}.version", item, "version"))
    return found.packages()


CONDA_PLATFORMS = {
    ("linux", "x86_64"): "linux-64",
    ("linux", "aarch64"): "linux-aarch64",
    ("linux", "ppc64le"): "linux-ppc64le",
    ("darwin", "x86_64"): "osx-64",
    ("darwin", "arm64"): "osx-arm64",
    ("windows", "amd64"): "win-64",
    ("windows", "arm64"): "win-arm64",
}


def parse_conda(name: str, text: str, target: Target) -> tuple[Package, ...]:
    """The packages of a `conda-lock.yml` for the target's platform, those of conda and of pip in one set.

    Conda's names need not be PEP 503: they are normalised in the same way, and what then begins or ends with `-` loses
    it, so that `_libgcc_mutex` is `libgcc-mutex`. What is listed once for each of its categories is one package. Raises
    Invalid where two packages come to one name, for a platform that the file lacks, and where its Python is another
    than the target's.
    """
    try:
        tree = document.parse_yaml(text.encode())
    except Invalid as error:
        raise invalid(name, error.violations[0].description) from None
    if not isinstance(tree, dict):
        _refuse(name, "holds no object")
    if type(tree.get("version")) is not int or tree["version"] != 1:
        _refuse(f"{name} version", "is not 1, the version of conda-lock.yml that is known here")
    metadata = tree.get("metadata")
    listed = metadata.get("platforms") if isinstance(metadata, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        _refuse(f"{name} metadata.platforms", "is missing or no list of texts")
    platform = CONDA_PLATFORMS.get((target.platform_os, target.platform_architecture), "")
    if platform not in listed:
        asked = f"{target.platform_os} {target.platform_architecture}"
        _refuse(f"{name} metadata.platforms", f"has none for {asked}; it has {', '.join(sorted(listed))}")
    found = _Found()
    seen: dict[tuple[str, str], dict[str, object]] = {}
    for key, item in _items(name, tree, optional=False):
        if _text(f"{key}.platform", item, "platform") != platform:
            continue
        manager = _text(f"{key}.manager", item, "manager")
        if manager not in ("conda", "pip"):
            _refuse(f"{key}.manager", f"is neither conda nor pip: {manager!r}")
        package = _name(f"{key}.name", item)
        without_category = {field: value for field, value in item.items() if field not in ("category", "optional")}
        if seen.get((manager, package)) == without_category:
            continue
        seen[manager, package] = without_category
        version = _text(f"{key}.version", item, "version")
        if (manager, package) == ("conda", "python") and version != target.python_version:
            _refuse(f"{key}.version", f"is Python {version}, and {target.python_version} was asked for")
        found.add(key, package.strip("-") if manager == "conda" else package, version)
    return found.packages()


# Options of a whole file: they say where packages are looked for, the hashes say which they are.
FILE_OPTIONS = frozenset(
    f"--{option}"
    for option in (
        *("index-url", "extra-index-url", "no-index", "find-links", "no-binary", "only-binary", "prefer-binary"),
        *("require-hashes", "pre", "trusted-host", "use-feature"),
    )
) | {"-i", "-f"}
HASH = re.compile(r"[ \t]--hash(?:=|[ \t]+)(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})(?=[ \t]|$)")


def parse_requirements(name: str, text: str, target: Target) -> tuple[Package, ...]:
    """The packages of requirements with hashes whose markers hold for the target.

    Raises Invalid, by line, for what is no `name==version` with hashes: includes, URLs, editable installs, ranges; for
    a marker that is not simple; and where two lines that hold for the target name one package.
    """
    found = _Found()
    for place, line in _lines(name, text):
        if not (requirement := _requirement(place, line, HASH.sub("", line))):
            continue
        if not HASH.search(line):
            _refuse(place, f"has no hash of {requirement.name}, though other lines have theirs")
        version = _pinned(place, requirement, "==")
        if requirement.marker is None or _marker(place, str(requirement.marker), target):
            found.add(place, _normalised(place, requirement.name), version)
    return found.packages()


def parse_freeze(name: str, text: str, target: Target) -> tuple[Package, ...]:
    """The packages that `pip freeze` printed; a target makes no difference.

    Raises Invalid, by line, for all but `name==version`: what is installed from a URL, a folder or editable has no
    version that says what it is.
    """
    found = _Found()
    for place, line in _lines(name, text):
        if not (requirement := _requirement(place, line, line)):
            continue
        if requirement.marker is not None or requirement.extras:
            _refuse(place, "has a marker or an extra, and no hash: give requirements with hashes")
        found.add(place, _normalised(place, requirement.name), _pinned(place, requirement, "==", "==="))
    if not found.versions:
        _refuse(name, "names no package")
    return found.packages()


PARSERS: dict[LockFormat, Callable[[str, str, Target], tuple[Package, ...]]] = {
    LockFormat.UV: parse_uv,
    LockFormat.POETRY: parse_poetry,
    LockFormat.CONDA: parse_conda,
    LockFormat.REQUIREMENTS: parse_requirements,
    LockFormat.FREEZE: parse_freeze,
}


class _Found:
    """Packages by name, with the place where each was found."""

    def __init__(self) -> None:
        self.versions: dict[str, tuple[str, str]] = {}

    def add(self, place: str, name: str, version: str) -> None:
        """Takes a package. Raises Invalid where the name was found before."""
        if name in self.versions:
            before, where = self.versions[name]
            _refuse(place, f"has {name} {version}, and {where} has {name} {before}: one environment has one of them")
        try:
            Package(name, version)
        except Invalid as error:
            raise invalid(place, f"{error.message}: {name!r} {version!r}") from None
        self.versions[name] = version, place

    def packages(self) -> tuple[Package, ...]:
        """What was found, sorted by name."""
        return tuple(Package(name, version) for name, (version, _) in sorted(self.versions.items()))


def _refuse(place: str, why: str) -> NoReturn:
    raise invalid(place, why)


# Tables and objects.


def _toml(name: str, text: str) -> dict[str, object]:
    """The tree of TOML; a key that stands twice is refused by the reader, with its line."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise invalid(name, "nests too deep") from None
    except ValueError as error:
        end = f"the end, line {text.count(chr(10)) + 1}"
        raise invalid(name, f"is no TOML: {str(error).replace('end of document', end)}") from None


def _items(name: str, tree: dict[str, object], *, optional: bool) -> Iterator[tuple[str, dict[str, object]]]:
    """The items of `package`, each with its place."""
    items = tree.get("package", [] if optional else None)
    if not isinstance(items, list):
        _refuse(f"{name} package", "is missing or no list")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            _refuse(f"{name} package[{index}]", "is no table")
        yield f"{name} package[{index}]", item


def _text(place: str, item: dict[str, object], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        _refuse(place, "is missing or no text; a version is quoted where it looks like a number")
    return value


def _name(place: str, item: dict[str, object]) -> str:
    return _normalised(place, _text(place, item, "name"))


def _normalised(place: str, name: str) -> str:
    if not name.isascii():
        _refuse(place, f"is no name of a package: {name!r}")
    return canonicalize_name(name)


def _has_hash(*listed: object) -> bool:
    """Whether some file that is listed has a hash."""
    files = [each for entry in listed for each in (entry if isinstance(entry, list) else [entry])]
    return any(isinstance(each, dict) and isinstance(each.get("hash"), str) for each in files)


def _members(name: str, tree: dict[str, object]) -> set[str]:
    """The members of a uv workspace."""
    manifest = tree.get("manifest", {})
    members = manifest.get("members", []) if isinstance(manifest, dict) else None
    if not isinstance(members, list) or not all(isinstance(each, str) for each in members):
        _refuse(f"{name} manifest.members", "is no list of texts")
    return {canonicalize_name(each) for each in members}


def _check_python(name: str, tree: dict[str, object], target: Target) -> None:
    """Refuses a Python that a uv.lock was not made for."""
    place = f"{name} requires-python"
    wanted = tree.get("requires-python", "")
    if not isinstance(wanted, str) or len(wanted) > MAX_REQUIREMENT:
        _refuse(place, f"is no text of at most {MAX_REQUIREMENT} characters")
    try:
        fits = SpecifierSet(wanted).contains(target.python_version.rstrip("+"), prereleases=True)
    except InvalidSpecifier:
        _refuse(place, f"is no set of versions: {wanted!r}")
    if not fits:
        _refuse(place, f"is {wanted!r}, and Python {target.python_version} was asked for")


# Lines.


COMMENT = re.compile(r"(?:^|[ \t])#")


def _lines(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The logical lines as pip reads them, each with its place: joined at a backslash, without comments and blanks."""
    first, parts = 0, list[str]()
    for number, each in enumerate(text.split("\n"), 1):
        line = each.rstrip("\r")
        first = first if parts else number
        # A comment ends a continuation: pip does not look for a backslash in it.
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            parts.append(line.removesuffix("\\"))
            continue
        joined = COMMENT.split("".join([*parts, line]), maxsplit=1)[0].strip()
        parts.clear()
        if joined:
            yield f"{name} line {first}", joined
    if joined := "".join(parts).strip():
        yield f"{name} line {first}", joined


def _requirement(place: str, line: str, bare: str) -> Requirement | None:
    """The requirement of a line without its hashes; None for an option of the whole file. Raises Invalid."""
    if line.startswith("-"):
        option = re.split(r"[= \t]", line, maxsplit=1)[0]
        if option in FILE_OPTIONS:
            return None
        if option in ("-e", "--editable"):
            _refuse(place, "is an editable install, which a commit binds and no version: leave it out")
        if option in ("-r", "--requirement", "-c", "--constraint"):
            _refuse(place, f"includes another file ({option}): give one file that has all")
        _refuse(place, f"has the option {option}, which is not known here")
    if len(bare) > MAX_REQUIREMENT:
        _refuse(place, f"is longer than {MAX_REQUIREMENT} characters without its hashes")
    if re.match(r"[^\s;@]*(?:/|\\|://)", bare):
        _refuse(place, "names a URL or a path: give name==version")
    try:
        requirement = Requirement(bare.strip())
    except RecursionError:
        raise invalid(place, "nests too deep") from None
    except InvalidRequirement as error:
        raise invalid(place, f"is no requirement: {str(error).splitlines()[0]}") from None
    if requirement.url is not None:
        _refuse(place, f"takes {requirement.name} from a URL: give name==version")
    return requirement


def _pinned(place: str, requirement: Requirement, *operators: str) -> str:
    """The one version that a requirement allows."""
    pins = list(requirement.specifier)
    if len(pins) != 1 or pins[0].operator not in operators or pins[0].version.endswith(".*"):
        _refuse(place, f"does not pin {requirement.name} to one version: give name==version")
    return pins[0].version


# Markers.

SYSTEMS = {
    "linux": ("posix", "linux", "Linux"),
    "darwin": ("posix", "darwin", "Darwin"),
    "windows": ("nt", "win32", "Windows"),
}
OPERATORS = {"and", "or", "in", "not"}


def _any_marker(place: str, markers: object, target: Target) -> bool:
    """Whether a package of a poetry.lock is for the target: a marker, or one for each group of dependencies."""
    texts = list(markers.values()) if isinstance(markers, dict) else [markers]
    if not all(isinstance(each, str) for each in texts):
        _refuse(place, "is neither a text nor a table of texts")
    # All are evaluated, so that a marker that is not simple is refused wherever it stands.
    return True in [not each or _marker(place, str(each), target) for each in texts]


def _marker(place: str, text: str, target: Target) -> bool:
    """Whether a marker (PEP 508) holds for the target, on CPython. Raises Invalid where the target does not say."""
    if len(text) > MAX_REQUIREMENT:
        _refuse(place, f"has a marker of more than {MAX_REQUIREMENT} characters")
    known = _variables(target)
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", " ", text)
    unknown = set(re.findall(r"[A-Za-z_][\w.]*", bare)) - known.keys() - OPERATORS
    if unknown:
        _refuse(place, f"has a marker on {', '.join(sorted(unknown))}, which the platform does not say: {text}")
    try:
        return Marker(text).evaluate(dict(known))
    except RecursionError:
        raise invalid(place, "nests too deep") from None
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName) as error:
        raise invalid(place, f"has no marker that can be evaluated: {str(error).splitlines()[0]}") from None


def _variables(target: Target) -> dict[str, str]:
    """All that a marker may ask for: each is given, since what is not given would be the running interpreter's."""
    known = {
        "python_version": ".".join(target.python_version.split(".")[:2]),
        "python_full_version": target.python_version,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    if target.platform_os in SYSTEMS:
        known |= dict(zip(("os_name", "sys_platform", "platform_system"), SYSTEMS[target.platform_os], strict=True))
        # Only Windows writes its machines in capitals: AMD64 and ARM64, but x86.
        capitals = target.platform_os == "windows" and target.platform_architecture in ("amd64", "arm64")
        machine = target.platform_architecture
        known["platform_machine"] = machine.upper() if capitals else machine
    return known
