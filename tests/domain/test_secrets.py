"""What looks like a credential and what only nearly does; patterns that no input makes slow."""

import base64
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from animus.domain.secrets import _AWS_SECRET, _ESCAPE, _URL_BYTES, MASK, SHAPES, kind_of, mask, may_hold


def part(tree: object) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(tree, separators=(",", ":")).encode()).rstrip(b"=").decode()


sre: Any = importlib.import_module("re._parser")  # has no types

JWT = f"{part({'alg': 'RS256', 'typ': 'JWT'})}.{part({'sub': 'x'})}.{'s' * 43}"
KEY_ID = "AKIA" + "Q" * 16
AWS_SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzzKEY"
PEM = "-----BEGIN {}PRIVATE KEY-----\nMIIB\n-----END {}PRIVATE KEY-----"

# A credential of each shape, and what of it a mask leaves.
SAMPLES: list[tuple[str, str, str]] = [
    ("an Animus token", "animus_p_" + "A" * 43, MASK),
    ("an Animus token", "animus_team-a_" + "-_" * 21 + "z", MASK),
    ("a JSON Web Token", JWT, MASK),
    ("a JSON Web Token", f"{part({'alg': 'dir', 'enc': 'A256GCM'})}.aa.bb.cc.dd", MASK),
    ("a private key", PEM.format("", ""), f"{MASK}-----END PRIVATE KEY-----"),
    ("a private key", PEM.format("RSA ", "RSA "), f"{MASK}-----END RSA PRIVATE KEY-----"),
    ("a private key", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn", MASK),
    ("a private key", "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQ", MASK),
    ("a private key of a log or witness", f"PRIVATE+KEY+a.example/b+0123abcd+{'A' * 44}", MASK),
    ("a URL with a password", "postgresql://role:hunter2@db/animus", f"postgresql://role:{MASK}@db/animus"),
    ("a URL with a password", "redis://:p%40ss@cache:6379", f"redis://:{MASK}@cache:6379"),
    ("a URL with a password", "git+https://me:a:b@c@git.example/x", f"git+https://me:{MASK}@git.example/x"),
    ("a GitHub token", "ghp_" + "a1" * 18, MASK),
    ("a GitHub token", f"github_pat_{'a' * 22}_{'b' * 59}", MASK),
    ("a GitLab token", "glpat-" + "x" * 20, MASK),
    ("a Slack token", "xoxb-1234567890-1234567890-" + "a" * 24, MASK),
    ("a Slack token", "xoxp-1234567890-1234567890-1234567890-" + "a" * 32, MASK),
    ("a Hugging Face token", "hf_" + "aB" * 17, MASK),
    ("an AWS secret key", f"{KEY_ID}:{AWS_SECRET}", f"{KEY_ID}:{MASK}"),
]

NEAR = [
    "",
    "animus_p_" + "A" * 42,
    "animus_p_" + "A" * 44,
    "animus_P_" + "A" * 43,
    f"eyJ{'A' * 20}.{part({})}.x",  # no JSON in it
    f"{part({'typ': 'JWT'})}.{part({})}.sig",  # no algorithm
    f"{part({'alg': 'none', 'typ': 'JWT'})}.{part({'sub': 'x'})}.",  # no signature
    "-----BEGIN CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----",
    "a.example+0123abcd+" + "A" * 44,  # a log's public key
    "https://git.example:8443/a@b",
    "http://[::1]:8080/x@y",
    "s3://bucket/key:part@2",
    "https://token@git.example/x",
    "postgresql://role:***@db/animus",
    "docker://python:3.11@sha256:" + "a" * 64,
    "kafka://one:9092,two:9092",
    '{"a":"s3://bucket","b":"c:d@e"}',
    "['s3://bucket:1', 'b@c']",
    "postgresql://${USER}:${PASSWORD}@db",
    "user:password@host",
    "ghp_" + "a" * 35,
    "ghp_" + "a" * 37,
    "xghp_" + "a" * 36,
    "glpat-" + "x" * 19,
    "xoxb-1-2-" + "a" * 24,
    "hf_" + "a" * 33,
    "hf_" + "a1" * 17,
    KEY_ID,
    f"{KEY_ID} {'0a' * 20}",  # a commit
    AWS_SECRET,
    "sha256:" + "0" * 64,
    "password: hunter2",
]


@pytest.mark.parametrize(("kind", "sample", "left"), SAMPLES)
def test_each_shape_is_found_named_and_taken_out(kind: str, sample: str, left: str) -> None:
    """Alone, in a sentence, between the bytes of a message, and in JSON; what is left has no shape."""
    for text in (sample, f"use {sample} here", f"a={sample}\n"):
        assert kind_of(text) == kind
        assert may_hold(b"\x0aA" + text.encode() + b"\x12z")
        assert left in mask(text)
        assert kind_of(mask(text)) == ""
        assert mask(mask(text)) == mask(text)
    assert kind_of(json.dumps({"x": sample})) == kind
    assert {each for each, _, _ in SAMPLES} == set(SHAPES)


@pytest.mark.parametrize("text", NEAR)
def test_what_nearly_has_a_shape_is_let_through(text: str) -> None:
    """One character less or more, another structure, or a placeholder is no credential."""
    assert kind_of(text) == ""
    assert mask(f"a {text}\nb") == f"a {text}\nb"


@pytest.mark.parametrize(("kind", "sample", "left"), SAMPLES)
def test_the_escapes_of_json_hide_nothing(kind: str, sample: str, left: str) -> None:
    """Every character as a \\u escape, and solidi as \\/, are looked through, by the check of the bytes too."""
    hidden = "".join(f"\\u{ord(character):04x}" for character in sample)
    for text in (hidden, sample.replace("/", "\\/")):
        assert kind_of(f'{{"a":"{text}"}}') == kind
        assert may_hold(text.encode())
        assert mask(text) == left


@settings(max_examples=40)
@given(st.text(), st.sampled_from(SAMPLES), st.text(), st.text())
def test_the_bytes_of_a_message_clear_no_text_that_has_a_shape(
    before: str, sample: tuple[str, str, str], after: str, beside: str
) -> None:
    """Whatever stands around it: what is found in a text is hinted at by its bytes."""
    text = f"{before}{sample[1]}{after}"
    assert not kind_of(text) or may_hold(beside.encode() + text.encode() + beside.encode())


@settings(max_examples=40)
@given(st.text(), st.lists(st.sampled_from([*(sample for _, sample, _ in SAMPLES), *NEAR, " ", '"', "\\u0061"])))
def test_a_masked_text_has_no_credential_left(text: str, parts: list[str]) -> None:
    """Several together, or one inside another, are all taken out."""
    assert kind_of(mask(f"{text} ".join(parts))) == ""


def test_the_document_lists_each_shape() -> None:
    """The kinds that an error names, in the order in which they are looked for."""
    page = (Path(__file__).parents[2] / "docs/secrets.md").read_text()
    assert re.findall(r"^\| (an? .*?) \|", page, re.MULTILINE) == list(SHAPES)


def unbounded_inside_unbounded(pattern: "re.Pattern[Any]") -> bool:
    """Whether a pattern repeats without bound what is itself a repetition without bound."""

    def walk(node: Any, inside: bool) -> bool:
        if isinstance(node, sre.SubPattern | list | tuple):
            if len(node) == 2 and node[0] in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
                endless = node[1][1] is sre.MAXREPEAT
                return (inside and endless) or walk(node[1][2], inside or endless)
            return any(walk(each, inside) for each in node)
        return False

    return walk(sre.parse(pattern.pattern, pattern.flags), False)


PATTERNS = [*(pattern for _, pattern in SHAPES.values()), _AWS_SECRET, _ESCAPE, _URL_BYTES]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_repeats_a_repetition(pattern: "re.Pattern[Any]") -> None:
    """No input has more than a few ways to match it."""
    assert not unbounded_inside_unbounded(pattern)


@pytest.mark.parametrize("planted", ["(a+)+b", "(?:a*b?)*c", "(?:x(?:a++b)*)+"])
def test_a_pattern_that_repeats_a_repetition_is_found(planted: str) -> None:
    """The check sees it at any depth."""
    assert unbounded_inside_unbounded(re.compile(planted))


@pytest.mark.parametrize(
    "unit",
    ["a", "eyJ", "eyJ.", "eyJaaaaaaaaaaaaaaa.", "animus_", "animus_a_", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----",
     "://", "a://b:", "://a:b@", "AKIAQQQQQQQQQQQQQQQQ ", "xoxb-1234567890", "\\u0061", "PRIVATE+KEY+a"],
)  # fmt: skip
def test_a_megabyte_of_the_beginning_of_a_shape_is_read_to_its_end(unit: str) -> None:
    """Where a pattern took the square of the length, this would take hours."""
    text = unit * (1_000_000 // len(unit))
    may_hold(text.encode())
    assert kind_of(text + " animus_p_" + "A" * 43) != ""
