"""Lock files to packages: each format, what a target changes, and every refusal with its line or key."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from domain.values import LAW, refusal
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import document
from animus.domain.environment import EnvironmentLock, Package
from animus.domain.errors import Invalid, Violation
from animus.sdk.environment import LOCK_FILES, environment_of
from animus.sdk.files import Unreadable
from animus.sdk.lock_files import MAX_LOCK_FILE_BYTES, LockFormat, Target, format_of, packages_of

FILES = Path(__file__).parents[1] / "vectors" / "lock_files"
EXPECTED: dict[str, Any] = json.loads((FILES / "expected.json").read_text())
LINUX = Target("3.11.7", "linux", "x86_64")
MAC = Target("3.12.1", "darwin", "arm64")
WINDOWS = Target("3.11.7", "windows", "amd64")
FORMATS = {
    "conda-lock.yml": LockFormat.CONDA,
    "freeze.txt": LockFormat.FREEZE,
    "poetry.lock": LockFormat.POETRY,
    "requirements.txt": LockFormat.REQUIREMENTS,
    "uv.lock": LockFormat.UV,
}
HASH = f"--hash=sha256:{'a' * 64}"


def found(name: str, text: str, target: Target = LINUX) -> dict[str, str]:
    """The packages of a text, by name."""
    return {package.name: package.version for package in packages_of(name, text.encode(), target)}


def golden(name: str) -> str:
    """The text of a golden file."""
    return (FILES / name).read_text()


def lock_of(path: Path, target: Target = LINUX) -> EnvironmentLock:
    """The environment lock of a file for a target."""
    return environment_of(
        path,
        python_version=target.python_version,
        platform_os=target.platform_os,
        platform_architecture=target.platform_architecture,
    )


def refused(name: str, text: str, target: Target = LINUX) -> Violation:
    """What is wrong with a text."""
    return refusal(packages_of, name, text.encode(), target)


def test_every_format_has_a_golden_file() -> None:
    """The files are those that are expected, and each format is among them."""
    assert {path.name for path in FILES.iterdir()} - {"README.md", "expected.json"} == EXPECTED.keys() == FORMATS.keys()
    assert set(FORMATS.values()) == set(LockFormat)


@pytest.mark.parametrize("name", FORMATS)
def test_a_golden_file_has_the_packages_and_the_digest_that_were_written_down(name: str) -> None:
    """Packages, the file's own digest and the environment's digest never change."""
    lock = lock_of(FILES / name)
    assert {package.name: package.version for package in lock.packages} == EXPECTED[name]["packages"]
    assert lock.lock_file_digest == document.digest((FILES / name).read_bytes())
    assert document.seal(lock).digest == EXPECTED[name]["digest"]


def test_nothing_of_the_running_interpreter_gets_in() -> None:
    """Another process that believes it is on another system, in another place and language, finds the same digests."""
    script = f"""
import platform, sys
from pathlib import Path
from animus.domain import document
from animus.sdk import environment_of, lock_files
sys.platform = "win32"
platform.system, platform.machine = (lambda: "Windows"), (lambda: "ARM64")
platform.python_version = platform.release = platform.version = lambda: "9.9.9"
platform.python_implementation = lambda: "PyPy"
for name in {sorted(FORMATS)!r}:
    lock = environment_of(
        Path({str(FILES)!r}) / name, python_version="3.11.7", platform_os="linux", platform_architecture="x86_64"
    )
    print(document.seal(lock).digest)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=FILES, env={"LC_ALL": "C"}
    )
    assert done.stdout.split() == [EXPECTED[name]["digest"] for name in sorted(FORMATS)]


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_found_by_content_too(name: str) -> None:
    """Under a name that says nothing, the content says which format it is."""
    text = golden(name)
    assert format_of("dependencies", text) is format_of(name, text) is FORMATS[name]
    assert found("dependencies", text) == EXPECTED[name]["packages"]


@pytest.mark.parametrize("name", FORMATS)
def test_line_endings_make_no_difference_to_packages(name: str) -> None:
    """A file that was checked out with CRLF has the same packages, and another digest of its own."""
    assert found(name, golden(name).replace("\n", "\r\n")) == EXPECTED[name]["packages"]


def pieces(name: str) -> tuple[str, list[str], str]:
    """A golden file cut at its packages: what is before, the packages, what is after."""
    text = golden(name)
    if name in ("uv.lock", "poetry.lock"):
        head, *items = re.split(r"(?m)^(?=\[\[package\]\])", text)
        last, bracket, tail = items[-1].partition("[metadata]")
        return head, [*items[:-1], last.rstrip() + "\n\n"], bracket + tail
    if name == "conda-lock.yml":
        head, *items = re.split(r"(?m)^(?=- name: )", text)
        return head, items, ""
    head, *items = re.split(r"(?m)^(?=[A-Za-z])", text)
    return head, items, ""


@pytest.mark.parametrize("name", FORMATS)
def test_the_order_of_packages_makes_no_difference(name: str) -> None:
    """Shuffled, the packages are the same."""
    head, items, tail = pieces(name)
    assert len(items) >= 4

    @LAW
    @given(st.integers(0, 2**32).map(random.Random))
    def law(rng: random.Random) -> None:
        shuffled = rng.sample(items, len(items))
        assert found(name, head + "".join(shuffled) + tail) == EXPECTED[name]["packages"]

    law()


names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)
versions = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}(rc[1-9])?(\+cu12)?", fullmatch=True)


@LAW
@given(st.dictionaries(names, versions, min_size=1).filter(lambda d: len({_plain(n) for n in d}) == len(d)))
def test_the_formats_agree(packages: dict[str, str]) -> None:
    """The same packages are found in each format that can hold them."""
    uv = "version = 1\nrequires-python = '>=3.8'\n" + "".join(
        f'[[package]]\nname = "{name}"\nversion = "{version}"\nsource = {{ registry = "x" }}\n'
        for name, version in packages.items()
    )
    poetry = "".join(f'[[package]]\nname = "{n}"\nversion = "{v}"\n' for n, v in packages.items())
    conda = "version: 1\nmetadata: {platforms: [linux-64]}\npackage:\n" + "".join(
        f"- {{name: '{name}', version: '{version}', manager: pip, platform: linux-64}}\n"
        for name, version in packages.items()
    )
    texts = {
        "uv.lock": uv,
        "poetry.lock": poetry + '[metadata]\nlock-version = "2.1"\n',
        "conda-lock.yml": conda,
        "freeze.txt": "".join(f"{name}=={version}\n" for name, version in packages.items()),
        "requirements.txt": "".join(f"{name}=={version} {HASH}\n" for name, version in packages.items()),
    }
    expected = tuple(sorted((Package(_plain(n), v) for n, v in packages.items()), key=lambda package: package.name))
    assert {name: packages_of(name, text.encode(), LINUX) for name, text in texts.items()} == dict.fromkeys(
        texts, expected
    )


def _plain(name: str) -> str:
    """A name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


# What a target changes.


def test_markers_are_those_of_the_target() -> None:
    """Another Python, system or machine has other packages."""
    assert "colorama" in found("requirements.txt", golden("requirements.txt"), WINDOWS)
    assert "numpy" not in found("requirements.txt", golden("requirements.txt"), WINDOWS)
    assert found("poetry.lock", golden("poetry.lock"), MAC)["numpy"] == "2.1.3"
    assert "colorama" in found("poetry.lock", golden("poetry.lock"), WINDOWS)
    old = Target("3.10.1", "linux", "x86_64")
    assert found("requirements.txt", golden("requirements.txt"), old)["importlib-metadata"] == "8.5.0"


@pytest.mark.parametrize(
    ("marker", "holds"),
    [
        ("python_version < '3.9'", (False, False, False)),
        ("python_version in '3.11 3.13'", (True, False, True)),
        ("python_full_version >= '3.12.1'", (False, True, False)),
        ("os_name == 'nt'", (False, False, True)),
        ("sys_platform == 'linux'", (True, False, False)),
        ("platform_system == 'Darwin'", (False, True, False)),
        ("platform_machine == 'AMD64'", (False, False, True)),
        ("platform_machine == 'x86_64'", (True, False, False)),
        ("implementation_name == 'cpython' and platform_python_implementation != 'PyPy'", (True, True, True)),
        (
            "(sys_platform == 'win32' or sys_platform == 'darwin') and platform_machine not in 'x86_64'",
            (False, True, True),
        ),
    ],
)
def test_each_variable_of_a_marker_is_known(marker: str, holds: tuple[bool, ...]) -> None:
    """On Linux, macOS and Windows, in requirements and in a poetry.lock."""
    requirements = f"a==1 ; {marker} {HASH}\n"
    poetry = f'[[package]]\nname = "a"\nversion = "1"\nmarkers = "{marker}"\n[metadata]\nlock-version = "2.1"\n'
    for name, text in (("requirements.txt", requirements), ("poetry.lock", poetry)):
        assert tuple(bool(found(name, text, target)) for target in (LINUX, MAC, WINDOWS)) == holds


def test_a_poetry_marker_may_be_one_for_each_group() -> None:
    """A package is there where any group's marker holds; a folder in development is left out."""
    text = """[[package]]
name = "a"
version = "1"
markers = {main = "sys_platform == 'win32'", dev = "sys_platform == 'linux'"}
[[package]]
name = "b"
version = "1"
develop = true
source = {type = "directory", url = "b"}
[metadata]
lock-version = "2.1"
"""
    assert [found("poetry.lock", text, target) for target in (LINUX, MAC)] == [{"a": "1"}, {}]


def test_what_is_of_no_registry_is_taken_where_the_lock_binds_it() -> None:
    """A commit or a hash says which content it is."""
    commit, sha = "0" * 40, f'hash = "sha256:{"a" * 64}"'
    uv_sources = (
        f'{{ git = "https://x/a?rev=main#{commit}" }}',
        f'{{ url = "https://x/a.tar.gz" }}\nsdist = {{ {sha} }}',
        f'{{ path = "a.whl" }}\nwheels = [{{ filename = "a.whl", {sha} }}]',
    )
    for source in uv_sources:
        assert found("uv.lock", uv(f'name = "a"\nversion = "1"\nsource = {source}')) == {"a": "1"}
    poetry_sources = (
        f'{{ type = "git", url = "x", resolved_reference = "{commit}" }}',
        f'{{ type = "file", url = "a.whl" }}\nfiles = [{{ file = "a.whl", {sha} }}]',
        '{ type = "legacy", url = "https://x/simple", reference = "x" }',
    )
    for source in poetry_sources:
        assert found("poetry.lock", poetry(f'name = "a"\nversion = "1"\nsource = {source}')) == {"a": "1"}


def test_a_conda_package_of_several_categories_is_one() -> None:
    """Listed once for each category, it counts once; with another hash it is another package of that name."""
    entry = "{{name: a, platform: linux-64, manager: conda, version: '1', hash: {{md5: {}}}, category: {}}}"
    assert found("conda-lock.yml", conda(f"{entry.format('x', 'main')}\n- {entry.format('x', 'dev')}")) == {"a": "1"}
    other = refused("conda-lock.yml", conda(f"{entry.format('x', 'main')}\n- {entry.format('y', 'main')}"))
    assert other.field == "conda-lock.yml package[1]"


def test_conda_packages_are_those_of_the_platform() -> None:
    """Another platform of the same file has other versions."""
    target = Target("3.11.7", "darwin", "arm64")
    assert found("conda-lock.yml", golden("conda-lock.yml"), target) == {
        "numpy": "2.1.3",
        "python": "3.11.7",
        "tqdm": "4.67.0",
    }


# What is refused.


def uv(item: str, head: str = "version = 1\nrequires-python = '>=3.11'") -> str:
    """A uv.lock with one package."""
    return f"{head}\n[[package]]\n{item}\n"


def poetry(item: str, version: str = "2.1") -> str:
    """A poetry.lock with one package."""
    return f'[[package]]\n{item}\n[metadata]\nlock-version = "{version}"\n'


def conda(item: str, head: str = "version: 1\nmetadata: {platforms: [linux-64]}") -> str:
    """A conda-lock.yml with one package."""
    return f"{head}\npackage:\n- {item}\n"


REGISTRY = 'source = { registry = "x" }'
TWICE = f'name = "a"\nversion = "1"\n{REGISTRY}\n[[package]]\nname = "A"\nversion = "2"\n{REGISTRY}'


@pytest.mark.parametrize(
    ("name", "text", "place", "said"),
    [
        # uv.lock
        ("uv.lock", "a = [", "uv.lock", "line 1"),
        ("uv.lock", "version = 1\nversion = 1", "uv.lock", "line 2"),
        ("uv.lock", "a = " + "[" * 5_000, "uv.lock", "nests"),
        ("uv.lock", uv("", "version = 2"), "uv.lock version", "is not 1"),
        ("uv.lock", uv("", "version = true"), "uv.lock version", "is not 1"),
        ("uv.lock", "version = 1\npackage = 1", "uv.lock package", "no list"),
        ("uv.lock", "version = 1\npackage = [1]", "uv.lock package[0]", "no table"),
        ("uv.lock", uv("", "version = 1\nrequires-python = '>=3.12'"), "uv.lock requires-python", "3.11.7"),
        ("uv.lock", uv("", "version = 1\nrequires-python = 'new'"), "uv.lock requires-python", "no set"),
        ("uv.lock", uv("", "version = 1\nmanifest = {members = [1]}"), "uv.lock manifest.members", "no list"),
        ("uv.lock", uv('name = "a"\nversion = "1"'), "uv.lock package[0].source", "missing"),
        ("uv.lock", uv(f'version = "1"\n{REGISTRY}'), "uv.lock package[0].name", "missing"),
        ("uv.lock", uv(f'name = "a"\n{REGISTRY}'), "uv.lock package[0].version", "missing"),
        ("uv.lock", uv(f'name = "a"\nversion = 1.0\n{REGISTRY}'), "uv.lock package[0].version", "no text"),
        ("uv.lock", uv(f'name = "ä"\nversion = "1"\n{REGISTRY}'), "uv.lock package[0].name", "ä"),
        ("uv.lock", uv(f'name = "-"\nversion = "1"\n{REGISTRY}'), "uv.lock package[0]", "PEP 503"),
        ("uv.lock", uv(f'name = "a"\nversion = ""\n{REGISTRY}'), "uv.lock package[0]", "0 characters"),
        ("uv.lock", uv('name = "a"\nsource = { directory = "a" }'), "uv.lock package[0].source", "a is a folder"),
        ("uv.lock", uv('name = "a"\nsource = { moon = "a" }'), "uv.lock package[0].source", "no known kind"),
        ("uv.lock", uv('name = "a"\nsource = { git = "x?rev=v1" }'), "uv.lock package[0].source", "no commit"),
        ("uv.lock", uv('name = "a"\nsource = { url = "x" }'), "uv.lock package[0]", "no hash of a"),
        (
            "uv.lock",
            uv('name = "a"\nwheels = [{ url = "x" }]\nsource = { path = "x" }'),
            "uv.lock package[0]",
            "no hash",
        ),
        ("uv.lock", uv(TWICE), "uv.lock package[1]", "a 2, and uv.lock package[0] has a 1"),
        # poetry.lock
        ("poetry.lock", poetry("", "3.0"), "poetry.lock metadata.lock-version", "neither"),
        ("poetry.lock", "a = 1", "poetry.lock metadata.lock-version", "neither"),
        ("poetry.lock", poetry(TWICE), "poetry.lock package[1]", "has A 1".lower()),
        ("poetry.lock", poetry('name = "a"\nsource = 1'), "poetry.lock package[0].source", "no table"),
        (
            "poetry.lock",
            poetry('name = "a"\nversion = "1"\nsource = { type = "git", reference = "main" }'),
            *("poetry.lock package[0].source.resolved_reference", "of a is no commit"),
        ),
        (
            "poetry.lock",
            poetry('name = "a"\nversion = "1"\nfiles = []\nsource = { type = "url", url = "x" }'),
            *("poetry.lock package[0].files", "no hash of a"),
        ),
        (
            "poetry.lock",
            poetry('name = "a"\nversion = "1"\nsource = { type = "directory" }'),
            *("poetry.lock package[0].source", "folder"),
        ),
        (
            "poetry.lock",
            poetry('name = "a"\nversion = "1"\nmarkers = "extra == \'x\'"'),
            *("poetry.lock package[0].markers", "extra"),
        ),
        (
            "poetry.lock",
            poetry('name = "a"\nversion = "1"\nmarkers = { main = "", x = "platform_release == \'1\'" }'),
            *("poetry.lock package[0].markers", "platform_release"),
        ),
        ("poetry.lock", poetry('name = "a"\nversion = "1"\nmarkers = 1'), "poetry.lock package[0].markers", "neither"),
        # conda-lock.yml
        ("conda-lock.yml", "a: [", "conda-lock.yml", "line 2: is no YAML"),
        ("conda-lock.yml", "a: 1\na: 1", "conda-lock.yml", "line 2: has the key 'a' twice"),
        ("conda-lock.yml", "- 1", "conda-lock.yml", "no object"),
        ("conda-lock.yml", "version: 2", "conda-lock.yml version", "is not 1"),
        ("conda-lock.yml", "version: 1", "conda-lock.yml metadata.platforms", "missing"),
        (
            "conda-lock.yml",
            conda("{}", "version: 1\nmetadata: {platforms: [win-64, osx-64]}"),
            *("conda-lock.yml metadata.platforms", "none for linux x86_64; it has osx-64, win-64"),
        ),
        ("conda-lock.yml", "version: 1\nmetadata: {platforms: [linux-64]}", "conda-lock.yml package", "missing"),
        ("conda-lock.yml", conda("{name: a}"), "conda-lock.yml package[0].platform", "missing"),
        (
            "conda-lock.yml",
            conda("{name: a, platform: linux-64, manager: apt, version: '1'}"),
            *("conda-lock.yml package[0].manager", "apt"),
        ),
        (
            "conda-lock.yml",
            conda("{name: a, platform: linux-64, manager: pip, version: 1.10}"),
            *("conda-lock.yml package[0].version", "quoted"),
        ),
        (
            "conda-lock.yml",
            conda("{name: python, platform: linux-64, manager: conda, version: 3.11.8}"),
            *("conda-lock.yml package[0].version", "is Python 3.11.8, and 3.11.7"),
        ),
        (
            "conda-lock.yml",
            conda(
                "{name: _a, platform: linux-64, manager: conda, version: '1'}\n"
                "- {name: a, platform: linux-64, manager: pip, version: '1'}"
            ),
            *("conda-lock.yml package[1]", "conda-lock.yml package[0] has a 1"),
        ),
        # requirements
        ("requirements.txt", f"a==1 {HASH}\nb==1\n", "requirements.txt line 2", "no hash of b"),
        ("requirements.txt", f"a==1 {HASH}\na==1 {HASH}\n", "requirements.txt line 2", "line 1 has a 1"),
        ("requirements.txt", f"a==1 {HASH}\n-r b.txt\n", "requirements.txt line 2", "includes"),
        ("requirements.txt", f"a==1 {HASH}\n--constraint=b\n", "requirements.txt line 2", "includes"),
        ("requirements.txt", f"a==1 {HASH}\n\n-e .\n", "requirements.txt line 3", "editable"),
        ("requirements.txt", f"a==1 {HASH}\n--moon\n", "requirements.txt line 2", "option --moon"),
        ("requirements.txt", f"a==1 {HASH}\nhttps://x/y.whl {HASH}\n", "requirements.txt line 2", "URL"),
        ("requirements.txt", f"a==1 {HASH}\nb @ https://x/y.whl {HASH}\n", "requirements.txt line 2", "b from a URL"),
        ("requirements.txt", f"a==1 {HASH}\n./b {HASH}\n", "requirements.txt line 2", "path"),
        ("requirements.txt", f"# c\na==1 \\\n  {HASH}\n\nb>=1 \\\n  {HASH}\n", "requirements.txt line 5", "pin b"),
        ("requirements.txt", f"a==1.* {HASH}\n", "requirements.txt line 1", "pin a"),
        ("requirements.txt", f"a {HASH}\n", "requirements.txt line 1", "pin a"),
        ("requirements.txt", f"a==1,==2 {HASH}\n", "requirements.txt line 1", "pin a"),
        ("requirements.txt", "a==1 --hash=sha256:12\n", "requirements.txt line 1", "no requirement"),
        ("requirements.txt", f"a==1 --hash=md5:{'a' * 32}\n", "requirements.txt line 1", "no requirement"),
        ("requirements.txt", f"a==1 ; extra == 'x' {HASH}\n", "requirements.txt line 1", "extra"),
        ("requirements.txt", f"a==1 ; platform_version == '1' {HASH}\n", "requirements.txt line 1", "platform_version"),
        ("requirements.txt", f"a==1 ; python_version ~= 'x' {HASH}\n", "requirements.txt line 1", "Undefined"),
        # pip freeze
        ("freeze.txt", "a==1\n-e git+https://x@1#egg=b\n", "freeze.txt line 2", "editable"),
        ("freeze.txt", "a==1\nb @ file:///b\n", "freeze.txt line 2", "URL"),
        ("freeze.txt", "a==1\na==2\n", "freeze.txt line 2", "a 2, and freeze.txt line 1 has a 1"),
        ("freeze.txt", "a==1\nb==1 ; sys_platform == 'linux'\n", "freeze.txt line 2", "marker"),
        ("freeze.txt", "a==1\nb\n", "freeze.txt line 2", "pin b"),
        ("freeze.txt", "a==1\n<html>\n", "freeze.txt line 2", "no requirement"),
        ("freeze.txt", "# nothing\n", "freeze.txt", "no package"),
        # none of them
        ("Pipfile.lock", "{}", "Pipfile.lock", "no known format"),
        ("other.lock", "[[package]]\nname = 'a'\n", "other.lock", "no known format"),
        ("other.lock", "", "other.lock", "no known format"),
    ],
)
def test_what_could_mean_two_things_is_refused_by_line_or_key(name: str, text: str, place: str, said: str) -> None:
    """The place is the file with the line or the key, and the text says what is wrong there."""
    violation = refused(name, text)
    assert violation.field == place
    assert said in violation.description


def test_a_marker_is_refused_where_the_system_is_unknown() -> None:
    """What Python calls an unknown system is not guessed; markers on Python alone still hold."""
    other = Target("3.11.7", "haiku", "x86_64")
    assert refused("requirements.txt", f"a==1 ; sys_platform == 'haiku' {HASH}\n", other).field.endswith("line 1")
    assert found("requirements.txt", f"a==1 ; python_version > '3' {HASH}\n", other) == {"a": "1"}


@pytest.mark.parametrize("name", [*FORMATS, "other.lock"])
def test_bad_bytes_are_refused_by_line(name: str) -> None:
    """What is not UTF-8 has a line; what is longer than 16 MiB is not read."""
    assert refusal(packages_of, name, b"a==1\nb\xff==1\n", LINUX).field == f"{name} line 2"
    violation = refusal(packages_of, name, b"#" * (MAX_LOCK_FILE_BYTES + 1), LINUX)
    assert (violation.field, violation.description) == (name, "is longer than 16777216 bytes")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Target("3.11", "linux", "x86_64"), "pythonVersion"),
        (lambda: Target("", "linux", "x86_64"), "pythonVersion"),
        (lambda: Target("3.11.7", "Linux", "x86_64"), "platformOs"),
        (lambda: Target("3.11.7", "windows", "AMD64"), "platformArchitecture"),
    ],
)
def test_a_target_is_spelled_in_one_way(make: Callable[[], object], field: str) -> None:
    """Two spellings would be two digests of one environment."""
    assert refusal(make).field == field


@LAW
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_a_file_that_was_cut_or_changed_never_ends_in_a_defect(name: str, data: st.DataObject) -> None:
    """Whatever is cut out or put in, there are packages or there is an Invalid that names the file."""
    text = golden(name)
    at = data.draw(st.integers(0, len(text)))
    gap = data.draw(st.integers(0, 40))
    put = data.draw(st.text("[]{}=\"'\\\n\t#;@-:,. 1aé\x00\ud7ff", max_size=5))
    try:
        packages = found(name, text[:at] + put + text[at + gap :])
    except Invalid as error:
        assert error.violations[0].field.startswith(name)
    else:
        assert all(packages.values())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"a==1 {' ' * 2_000_000}x\n", 1),
        (f"a==1 {' ' * 2_000_000}#\n-\n", 2),
        (f"a==1 {' #' * 1_000_000}\nb\n", 2),
        ("a==1\n" + "-" * 2_000_000, 2),
        ("a" * 2_000_000, 1),
        ("a==1 --hash=" + " " * 2_000_000, 1),
        ("\\\n" * 500_000 + "b", 1),
        (f"a==1 ; {'(' * 4_000} {HASH}", 1),
        (f"a==1 ; {' or '.join(['os_name == 0'] * 50_000)} {HASH}", 1),
    ],
    ids=range(9),
)
def test_a_file_that_is_made_to_be_slow_is_refused_by_line(text: str, line: int) -> None:
    """Megabytes of one thing take no more than a moment, and end in the line at fault."""
    assert refused("x.txt", text).field == f"x.txt line {line}"


@pytest.mark.parametrize("marker", ["(" * 4_000, "a" * 5_000])
def test_a_marker_that_is_made_to_be_slow_is_refused(marker: str) -> None:
    """Nesting and length are bounded in a poetry.lock too."""
    item = f'name = "a"\nversion = "1"\nmarkers = "{marker}"'
    assert refused("poetry.lock", poetry(item)).field == "poetry.lock package[0].markers"


# Files.


def test_a_folder_has_one_lock_file(tmp_path: Path) -> None:
    """The one that is there is taken; with none or several, the names are told."""
    assert refusal(lock_of, tmp_path).description == f"has none of {', '.join(LOCK_FILES)}: name the lock file"
    (tmp_path / "uv.lock").write_text(golden("uv.lock"))
    assert lock_of(tmp_path) == lock_of(FILES / "uv.lock")
    (tmp_path / "requirements.txt").write_text(golden("requirements.txt"))
    assert refusal(lock_of, tmp_path).description == "has uv.lock, requirements.txt: name the lock file"


def test_animus_itself_is_left_out(tmp_path: Path) -> None:
    """As it is of the running environment, so that the two can be equal."""
    (tmp_path / "freeze.txt").write_text("animus_control==0.1.0\na==1\n")
    assert lock_of(tmp_path / "freeze.txt").packages == (Package("a", "1"),)


def test_a_file_that_is_missing_or_too_long_is_named(tmp_path: Path) -> None:
    """Nothing is read beyond 16 MiB."""
    with pytest.raises(Unreadable, match=r"uv\.lock: is missing"):
        lock_of(tmp_path / "uv.lock")
    with (tmp_path / "uv.lock").open("wb") as file:
        file.truncate(MAX_LOCK_FILE_BYTES + 1)
    with pytest.raises(Unreadable, match=r"uv\.lock: is longer than 16777216 bytes"):
        lock_of(tmp_path / "uv.lock")
