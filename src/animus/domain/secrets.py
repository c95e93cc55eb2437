"""Credentials by their shape: what no request may hold, and what is taken out of logs (docs/secrets.md).

A shape is exact: a fixed prefix and length, or a structure that is checked. What is secret without one, such as a
password by itself, is not found. Every pattern is linear: what repeats is bounded, or followed by what it cannot hold.
"""

import base64
import re
from collections.abc import Iterator

import orjson

MASK = "[redacted]"
MASKED_AT_MOST = 8  # times
PAIR_CHARACTERS = 200  # so close to its id an AWS secret key stands

_B64 = "[A-Za-z0-9_-]"
_USERINFO = r"[^\x00-\x20\x7f\s\"'`<>\\{}/?#\[\]"  # of RFC 3986 §3.2.1, and what people forget to encode; left open
_URL = rf"://{_USERINFO}:@]*+:(?!\*+@)(?P<secret>{_USERINFO}]+)@(?!sha(?:256|384|512):){_USERINFO}]"

# What each is called, of which texts one stands in any that has it, and what it looks like: the group `secret`, or all.
SHAPES: dict[str, tuple[tuple[str, ...], re.Pattern[str]]] = {
    "an Animus token": (
        ("animus_",),
        re.compile(rf"animus_[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?_{_B64}{{43}}(?!{_B64})"),
    ),
    "a JSON Web Token": (  # RFC 7519, RFC 7515 §7.1; its header is looked into
        ("eyJ",),
        re.compile(rf"(?<!{_B64})(?P<header>eyJ{_B64}{{12,}}+)(?=(?P<rest>\.{_B64}++\.{_B64}++(?:\.{_B64}++){{0,2}}))"),
    ),
    "a private key": (  # RFC 7468 §10 and 11, and the older labels
        ("PRIVATE KEY",),
        re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"),
    ),
    "a private key of a log or witness": (  # of golang.org/x/mod/sumdb/note
        ("PRIVATE+KEY+",),
        re.compile(r"PRIVATE\+KEY\+[^\s+]{1,500}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{44}"),
    ),
    "a URL with a password": (("://",), re.compile(_URL)),
    "a GitHub token": (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(
            r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})(?![A-Za-z0-9_])"
        ),
    ),
    "a GitLab token": (("glpat-",), re.compile(rf"(?<![A-Za-z0-9])glpat-{_B64}{{20}}(?!{_B64})")),
    "a Slack token": (
        ("xoxa-", "xoxb-", "xoxp-"),
        re.compile(r"(?<![A-Za-z0-9])xox[abp](?:-[0-9]{10,13}){2,3}-[A-Za-z0-9]{24,34}(?![A-Za-z0-9])"),
    ),
    "a Hugging Face token": (("hf_",), re.compile(r"(?<![A-Za-z0-9_])hf_[A-Za-z]{34}(?![A-Za-z0-9_])")),
    "an AWS secret key": (  # an id alone is no secret: the key that belongs to it is looked for behind it
        ("AKIA", "ASIA"),
        re.compile(r"(?<![A-Za-z0-9])A(?:KI|SI)A[A-Z2-7]{16}(?![A-Za-z0-9])"),
    ),
}
_AWS_SECRET = re.compile(r"(?<![A-Za-z0-9/+=])(?![0-9a-f]{40})[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])")
_ESCAPE = re.compile(r"\\(?:u00([0-7][0-9A-Fa-f])|/)")  # JSON's, of an ASCII character

# The same for the bytes of a whole message, in which each text stands in one piece between bytes of other meaning.
_HINTS = tuple(hint.encode() for hints, _ in SHAPES.values() for hint in hints if hint != "://")
_ESCAPED = (rb"\u00", rb"\/")
_URL_BYTES = re.compile(rb"://[^\x00-\x20\x7f\"'`<>\\{}/?#\[\]:@]*+:[^\x00-\x20\x7f\"'`<>\\{}/?#\[\]@]+@")


def may_hold(data: bytes) -> bool:
    """Whether it is worth looking into a message of these bytes: always true where a text in it has a shape."""
    return (
        any(hint in data for hint in _HINTS)
        or any(escape in data for escape in _ESCAPED)
        or (b"://" in data and _URL_BYTES.search(data) is not None)
    )


def kind_of(text: str) -> str:
    """What a text holds that looks like a credential, such as `a private key`; empty if nothing does.

    JSON's escapes of ASCII characters hide nothing.
    """
    for each in (text, _unescaped(text)):
        for _, _, kind in _found(each):
            return kind
        if "\\" not in text:
            break
    return ""


def mask(text: str) -> str:
    """The text without what looks like a credential. Where escapes hid one, all of them are undone.

    What is taken out may bring together what looks like one in turn: a text that goes on so is masked as a whole.
    """
    for _ in range(MASKED_AT_MOST):
        text = _masked(text)
        if "\\" in text and any(_found(plain := _unescaped(text))):
            text = _masked(plain)
        if not kind_of(text):
            return text
    return MASK


def _masked(text: str) -> str:
    parts, at = [], 0
    for start, end, _ in sorted(_found(text)):
        if start >= at:
            parts += [text[at:start], MASK]
        at = max(at, end)
    return "".join([*parts, text[at:]]) if parts else text


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else "/", text)


def _found(text: str) -> Iterator[tuple[int, int, str]]:
    """Where each credential begins and ends, and what it is."""
    for kind, (hints, pattern) in SHAPES.items():
        if not any(hint in text for hint in hints):
            continue
        for match in pattern.finditer(text):
            start, end = match.span("secret" if "secret" in pattern.groupindex else 0)
            if kind == "a JSON Web Token":
                if not _is_header(match["header"]):
                    continue
                end = match.end("rest")
            elif kind == "a private key":
                close = text.find("-----END", end)
                end = len(text) if close < 0 else close
            elif kind == "an AWS secret key":
                secret = _AWS_SECRET.search(text[end : end + PAIR_CHARACTERS])
                if secret is None:
                    continue
                start, end = end + secret.start(), end + secret.end()
            yield start, end, kind
            if end == len(text):  # nothing is left to look at: of a thousand keys without an end, the first is all
                break


def _is_header(part: str) -> bool:
    """Whether a part of a token decodes to a JSON object that names an algorithm."""
    try:
        header = orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        return False
    return isinstance(header, dict) and isinstance(header.get("alg"), str)
