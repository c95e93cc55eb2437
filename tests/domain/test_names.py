"""Names and small texts: one spelling each, everything that only looks like it refused, and no slow pattern."""

import itertools
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from types import FrameType, ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import access, dataset, document, environment, labels, lineage, names, pipeline, run, state
from animus.domain.errors import Invalid, Violation
from animus.domain.run import check_random_id
from domain.values import LAW, ONE, refusal

Check = Callable[[str], None]


def accepts(check: Check, value: str) -> bool:
    """Whether a check lets a value pass; anything but Invalid is a defect."""
    try:
        check(value)
    except Invalid as error:
        assert error.violations[0].field == "f"
        return False
    return True


def of(check: Callable[[str, str], None]) -> Check:
    """A check of a value at the field `f`."""
    return lambda value: check(value, "f")


def matching(pattern: re.Pattern[str]) -> Check:
    """A check by a pattern."""
    return lambda value: names.check_pattern(pattern, value, "f", "is wrong")


# What each check accepts: the shortest, the longest and odd ones.
ACCEPTED: dict[str, tuple[Check, list[str]]] = {
    "resource id": (of(names.check_resource_id), ["a", "a0", "a-b", "a--b", "z" * 63]),
    "digest": (of(names.check_digest), [ONE, "sha256:" + "0123456789abcdef" * 4]),
    "image": (
        of(names.check_image),
        [f"a@{ONE}", f"registry.test:5000/A/b_c:1.0-x@{ONE}", f"0{'x' * 254}@{ONE}"],
    ),
    "media type": (of(names.check_media_type), ["text/csv", "a/b", f"{'a' * 127}/{'b' * 127}", "application/x.y+json"]),
    "request id": (of(names.check_request_id), ["!", "~" * 128, "a/b:c@d"]),
    "label key": (matching(names.LABEL_KEY), ["a", "0", "a.b/c_d-e", "k" * 63]),
    "variable": (matching(names.ENV_NAME), ["_", "A", "a1_", "_" * 255]),
    "parameter": (matching(names.PARAMETER_NAME), ["_", "A.b-c", "p" * 255]),
    "metric": (matching(names.METRIC_NAME), ["_", "a/b.c-d", "m" * 255]),
    "package": (matching(names.PACKAGE_NAME), ["a", "0", "zope-interface", "p" * 100]),
    "commit": (matching(names.COMMIT), ["0123456789" * 4, "abcdef01" * 8]),
    "repository": (matching(names.REPOSITORY), ["x", "https://git.test/a?b#c", "~" * 500]),
    "random id": (of(check_random_id), ["0" * 32, "0123456789abcdef" * 2]),
    "integer": (matching(names.INTEGER), ["0", "-1", "10", "9" * 1_000]),
    "decimal": (
        lambda value: names.check_decimal(value, "f", most=400),
        ["0", "-1", "0.5", "-0.05", "100", "9" * 400],
    ),
    "time": (
        of(names.check_time),
        ["0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z", "2024-02-29T12:00:00.000001Z"],
    ),
}
CASES = [(name, value) for name, (_, values) in ACCEPTED.items() for value in values]

LONGEST = ["resource id", "request id", "label key", "variable", "parameter", "metric", "package", "repository"]

REFUSED: dict[str, list[str]] = {
    "resource id": ["", "A", "0a", "-a", "a-", "a_b", "a.b", "a b", "a/b"],
    "digest": [
        "", "1" * 64, "sha256:", "sha256:" + "1" * 63, "sha256:" + "1" * 65, "sha256:" + "A" * 64, "sha256:" + "g" * 64,
        "SHA256:" + "1" * 64, "sha512:" + "1" * 64, "sha256-" + "1" * 64, "sha256:" + "1" * 128,
    ],
    "image": [
        "", "python", "python:3.11", "python@sha256:abc", "python@latest", f"@{ONE}", f"-a@{ONE}", f"a b@{ONE}", ONE,
        f"a@{ONE}@{ONE}", f"a{ONE}", f"A@{ONE}", f"a@{ONE}:tag", f"0{'x' * 255}@{ONE}",
    ],
    "media type": ["", "text", "text/", "/csv", "Text/csv", "text/csv; charset=utf-8", "text/*", "a/b/c", "-/x"],
    "request id": ["", " ", "a b", "a\tb", "é"],
    "label key": ["", "A", "-a", "a-", "/a", "a.", "a b", "_a"],
    "variable": ["", "1A", "A-B", "A.B", "A B", "A="],
    "parameter": ["", "1a", "-a", ".a", "a b", "a/b"],
    "metric": ["", "1a", "/a", "a b"],
    "package": ["", "A", "a_b", "a.b", "-a", "a-"],
    "commit": ["", "abc1234", "main", "v1.0", "c" * 39, "c" * 41, "c" * 63, "c" * 65, "C" * 40, "g" * 40, "HEAD"],
    "repository": ["", "a b", "é"],
    "random id": ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32],
    "integer": ["", "-", "01", "-0", "00", "+1", "1.0", "1e3", "1_000", "0x1", " 1", "-01", "--1"],
    "decimal": [
        "", "-", "1.0", "01", "-0", "-0.0", "0.0", "1e3", "1E3", ".5", "5.", "+1", "1,5", "NaN", "Infinity", "inf",
        "0.50", "00.5", "1_0", "9" * 401,
    ],
    "time": [
        "", "2026-01-31", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z", "2026-01-31T12:00:00.0000000Z",
        "2026-01-31T12:00:00.000000+00:00", "2026-01-31 12:00:00.000000Z", "2026-01-31t12:00:00.000000z",
        "2026-02-29T12:00:00.000000Z", "2026-13-01T12:00:00.000000Z", "2026-00-01T12:00:00.000000Z",
        "2026-01-32T12:00:00.000000Z", "2026-01-31T24:00:00.000000Z", "2026-01-31T23:60:00.000000Z",
        "2026-12-31T23:59:60.000000Z", "0000-01-01T00:00:00.000000Z", "9999-12-31T24:00:00.000000Z",
        "02026-01-31T12:00:00.000000Z", "20260131T120000.000000Z", "2026-W05-6T12:00:00.000000Z",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CASES)
def test_what_the_rule_says_is_accepted(name: str, value: str) -> None:
    """The shortest, the longest and the oddest valid value of each rule pass."""
    assert accepts(ACCEPTED[name][0], value)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_rule_excludes_is_refused_by_field(name: str) -> None:
    """Each listed near miss is Invalid at the field."""
    assert [value for value in REFUSED[name] if accepts(ACCEPTED[name][0], value)] == []


@pytest.mark.parametrize("name", LONGEST)
def test_one_character_more_than_the_longest_is_refused(name: str) -> None:
    """The bound on the length is exact, and holds for inputs of any length beyond it."""
    check, values = ACCEPTED[name]
    longest = max(values, key=len)
    for more in (1, 2, 255, 65_536):
        assert not accepts(check, longest + longest[-1] * more)


# What looks like something else, or like nothing, to a person.
INVISIBLE = ["\u200b", "\u200d", "\ufeff", "\u00ad", "\u2060", "\u202e", "\u2066", "\u200f", "\u0301", "\ufe0f"]
SPACES = ["\n", "\r", "\r\n", "\t", " ", "\x0b", "\x0c", "\x1c", "\x85", "\u00a0", "\u2028", "\u2029", "\u3000"]
BROKEN = ["\x00", "\x7f", "\x1b[31m", "\ud800", "\udfff", "\U0010ffff"]
# A confusable for each of some characters; several fold to ASCII under NFKC or when case is ignored.
CONFUSABLES = {
    "a": "аɑａ", "b": "Ьｂ", "c": "сⅽｃ", "e": "еｅ", "i": "іıⅰİ", "k": "\u212aｋ", "o": "оοｏ", "s": "ſѕｓ",
    "x": "хⅹｘ",
    "0": "٠０𝟎⁰", "1": "١１𝟏¹²", "2": "２²", "3": "３③", "-": "‐‑–−－", ".": "․。．", "/": "⁄∕／", ":": "：ː",
    "@": "＠", "_": "＿‿", "T": "Ｔ", "Z": "Ζ", "m": "ｍⅿ", "p": "р", "z": "ᴢ",
}  # fmt: skip


def adversarial(value: str) -> Iterator[str]:
    """Values that a person or a careless pattern takes for this one."""
    for odd in [*INVISIBLE, *SPACES, *BROKEN]:
        yield from (value + odd, odd + value, value[: len(value) // 2] + odd + value[len(value) // 2 :])
    for at, letter in enumerate(value[:80]):
        yield from (value[:at] + other + value[at + 1 :] for other in CONFUSABLES.get(letter, ""))
    yield "ａ" * 300
    yield "\u202e" * 300
    yield "😂" * 64


@pytest.mark.parametrize(("name", "value"), CASES)
def test_lookalikes_are_refused(name: str, value: str) -> None:
    """A line feed at the end, other scripts' letters and digits, marks and spaces that nobody sees, surrogates."""
    check = ACCEPTED[name][0]
    assert [repr(each) for each in adversarial(value) if accepts(check, each)] == []


def test_a_careless_check_lets_lookalikes_pass() -> None:
    """The list above finds `match` with `$`, Unicode's digits, and letters whose case is ignored."""

    def careless(pattern: str, flags: int = 0) -> Check:
        def check(value: str) -> None:
            if not re.match(pattern, value, flags):
                raise Invalid([Violation("f", "is wrong")])

        return check

    assert any(accepts(careless(r"[a-z]+$"), each) for each in adversarial("abc"))
    assert any(accepts(careless(r"\d+\Z"), each) for each in adversarial("10"))
    assert any(accepts(careless(r"[a-z]+\Z", re.IGNORECASE), each) for each in adversarial("kiosk"))


# One spelling: of all short texts, exactly those are accepted that their meaning is spelled as.


def spellings(alphabet: str, most: int) -> Iterator[str]:
    """Every text of up to so many characters."""
    for length in range(most + 1):
        yield from map("".join, itertools.product(alphabet, repeat=length))


def spelled_integer(text: str) -> str | None:
    """How the integer that a text means is spelled; None where it means none."""
    try:
        return str(int(text))
    except ValueError:
        return None


def spelled_decimal(text: str) -> str | None:
    """How the decimal that a text means is spelled; None where it means none."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    whole = format(number, "f")
    trimmed = whole.rstrip("0").rstrip(".") if "." in whole else whole
    return "0" if number == 0 else trimmed


@pytest.mark.parametrize(
    ("name", "spelled", "alphabet", "most"),
    [
        ("integer", spelled_integer, "019-+_ ٣", 4),
        ("decimal", spelled_decimal, "019-+.e", 5),
    ],
)
def test_a_number_has_one_spelling(name: str, spelled: Callable[[str], str | None], alphabet: str, most: int) -> None:
    """Of all short texts, a number is accepted exactly where writing what it means gives the text again."""
    check = ACCEPTED[name][0]
    counts = {True: 0, False: 0}
    for text in spellings(alphabet, most):
        accepted = accepts(check, text)
        assert accepted == (spelled(text) == text), text
        counts[accepted] += 1
    assert min(counts.values()) > 50


@LAW
@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59), timezones=st.just(UTC)))  # noqa: DTZ001
def test_times_come_back(time: datetime) -> None:
    """A time is written in a spelling that is accepted, and read back to the microsecond."""
    text = names.format_time(time)
    names.check_time(text, "f")
    assert len(text) == 27
    assert names.parse_time(text) == time


@LAW
@given(st.from_regex(names.TIME, fullmatch=True))
def test_an_accepted_time_has_one_spelling(text: str) -> None:
    """Whatever has the form of a time is refused or is how that time is written."""
    if accepts(of(names.check_time), text):
        assert names.format_time(names.parse_time(text)) == text


def test_times_sort_as_text() -> None:
    """The text order of times is their order."""
    times = ["0001-01-01T00:00:00.000000Z", "0999-12-31T23:59:59.999999Z", "1000-01-01T00:00:00.000000Z"]
    assert sorted(times, key=names.parse_time) == times


# Text, numbers, counts.


@pytest.mark.parametrize("odd", [*map(chr, {*range(32), *range(0x7F, 0xA0)} - {9, 10}), *BROKEN[-3:-1]])
def test_text_holds_no_control_character(odd: str) -> None:
    """Those of ASCII and of Latin-1, NUL and lone surrogates are refused wherever they stand."""
    for text in (odd, f"a{odd}", f"{odd}a", f"a{odd}b"):
        assert refusal(names.check_length, text, 0, 10, "f").field == "f"


@pytest.mark.parametrize("text", ["", "\t\n", "é", "\u202eabc", "😂" * 10, "\xa0", "\ufeff"])
def test_text_holds_any_other_character(text: str) -> None:
    """Tab, line feed and every script are text; the length is counted in code points."""
    names.check_length(text, 0, 10, "f")


def test_bounds_are_exact() -> None:
    """Each bound itself is inside, the next is not, and the answer says what is allowed."""
    names.check_length("abc", 3, 3, "f")
    names.check_within(3, 3, 3, "f")
    names.check_count((1, 2), 2, 2, "f")
    assert refusal(names.check_length, "ab", 3, 3, "f") == Violation("f", "is 2 characters long; 3 to 3 are allowed")
    assert refusal(names.check_length, "abcd", 3, 3, "f").description.startswith("is 4 characters")
    assert refusal(names.check_within, 2, 3, 3, "f") == Violation("f", "is 2; 3 to 3 is allowed")
    assert refusal(names.check_within, 4, 3, 3, "f").field == "f"
    assert refusal(names.check_count, (1,), 2, 2, "f") == Violation("f", "has 1 items; 2 to 2 are allowed")
    assert refusal(names.check_count, (1, 2, 3), 2, 2, "f").field == "f"


# Sets.


@LAW
@given(st.lists(st.sampled_from("abcdefgh"), max_size=8))
def test_a_set_is_sorted_or_its_first_repeat_is_named(items: list[str]) -> None:
    """The items come sorted by code point; a key that stands twice is named by the place of its second."""
    repeats = [index for index, item in enumerate(items) if item in items[:index]]
    if repeats:
        found = refusal(names.sorted_set, tuple(items), str, "items", "name")
        assert found.field == f"items[{repeats[0]}].name"
        assert found.description == f"repeats {items[repeats[0]]!r} of items[{items.index(items[repeats[0]])}]"
    else:
        assert names.sorted_set(tuple(items), str, "items", "name") == tuple(sorted(items))


def test_a_set_sorts_by_code_point() -> None:
    """No locale, no case folding, no natural numbers: the order that bytes in UTF-8 have."""
    items = ("b2", "b10", "B", "a-b", "ab", "é", "e", "\uffff", "😂")
    assert names.sorted_set(items, str, "f", "") == tuple(sorted(items, key=str.encode))


def test_distinct_keeps_the_first() -> None:
    """Repeats go, the order stays."""
    assert names.distinct(["b", "a", "b", "c", "a"]) == ("b", "a", "c")


def test_full_names_nest() -> None:
    """The full name of a thing starts with that of what holds it."""
    version = names.dataset_version_name("p", "d", ONE)
    assert version == f"projects/p/datasets/d/versions/{ONE}"
    assert version.startswith(names.dataset_name("p", "d") + "/")
    artifact = names.run_artifact_name("p", "r", "s", 2, "model")
    assert artifact == "projects/p/runs/r/steps/s/attempts/2/artifacts/model"
    assert artifact.startswith(names.attempt_name("p", "r", "s", 2) + "/")
    assert names.plan_name("p", "r") == "projects/p/runs/r/plan"
    token = names.run_token_name("p", "r", ONE)
    assert token == f"projects/p/runs/r/tokens/{ONE}"
    assert names.token_revocation_name(token) == f"{token}/revocation"
    assert names.role_binding_name("p", "group:corp:a/b %2F") == "projects/p/roleBindings/group%3Acorp%3Aa%2Fb%20%252F"
    for name in (
        names.token_name("p", ONE), names.environment_lock_name("p", ONE), names.pipeline_spec_name("p", ONE),
        names.artifact_name("p", ONE), names.commit_name("p", "x", "c" * 40), names.service_account_name("p", "ci"),
        names.role_binding_name("p", "oidc:corp:a"),
    ):  # fmt: skip
        assert name.startswith(names.project_name("p") + "/")


# No input makes a pattern slow.

MODULES: list[ModuleType] = [
    access, dataset, document, environment, labels, lineage, names, pipeline, run, state
]  # fmt: skip
PATTERNS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
}
UNITS = [
    "a", "0", "1", "9", "-", ".", "_", "/", "a-", "-a", "a.", "0.", ".0", "1.0", "10", "01", "a/", "a@", "@sha256:",
    "m",
    "Ki", "1Ki", "sha256:", "animus_a_", "T", ":", "~", "!", "A", "f", "é", " ", "\n", "1000m",
]  # fmt: skip
STARTS = ["", "-", "0.", "a/", "sha256:", "a@sha256:", "animus_", "animus_a_", "1."]
ENDS = ["", "!", "\n", "\x00", "-", "."]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError from what takes longer: a safety net, generous by orders of magnitude."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", PATTERNS)
def test_no_input_makes_a_pattern_slow(name: str) -> None:
    """Every pattern is done with 100 kB of whatever its parts repeat on, long before five seconds."""
    with at_most(5):
        for unit, start, end in itertools.product(UNITS, STARTS, ENDS):
            PATTERNS[name].fullmatch(start + unit * (100_000 // len(unit) // 8) + end)
        for unit in UNITS:
            PATTERNS[name].fullmatch(unit * (100_000 // len(unit)) + "!")


def test_a_slow_pattern_is_found() -> None:
    """The safety net above stops a pattern that tries every way to cut its input."""
    with pytest.raises(TimeoutError), at_most(0.2):
        re.compile(r"(?:a+)+b").fullmatch("a" * 100_000)


def test_all_patterns_are_met() -> None:
    """Each compiled pattern of the domain is among those tested."""
    assert len(PATTERNS) >= 20
    assert {"animus.domain.pipeline.MEMORY", "animus.domain.access.TOKEN", "animus.domain.names.DECIMAL"} <= set(
        PATTERNS
    )
