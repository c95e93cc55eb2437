"""How the demo says what it sees, and stops where that is not what it should be."""

from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from animus import codec
from demo.stack import Tree
from demo.state import DemoError

PROJECT = "demo"


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


def as_json(value: object, message: Message) -> Tree:
    """The proto JSON of a domain value."""
    return json_format.MessageToDict(codec.encode(value, message))


def short(name: str) -> str:
    """A resource name for people: without the project, digests by their first digits."""
    name = name.removeprefix(f"projects/{PROJECT}/")
    head, separator, tail = name.partition("sha256:")
    return f"{head}{separator}{tail[:12]}…" if separator else name


def word(enum: str, prefix: str) -> str:
    """An enum value for people."""
    return enum.removeprefix(prefix).lower()


def expect(what: str, found: Any, wanted: Any) -> None:
    """Raises DemoError unless two values are equal."""
    if found != wanted:
        raise DemoError(f"{what}: {found!r} instead of {wanted!r}")
