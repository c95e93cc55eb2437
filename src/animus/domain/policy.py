"""Policies: which logs and witnesses a reader trusts, and how many of whom have to agree (C2SP tlog-policy).

A file of lines, each ended by a line feed; its words are parted by spaces and tabs. What begins with `#` is a comment.

    log <key> [<URL>]
    witness <name> <key> [<URL>]
    group <name> all|any|<k> <name>...
    quorum <name>|none

A group is for instance an organisation: it has seen a checkpoint if k of its members have. Names are bytes with no
meaning; each is defined once, before it is used, and is a member of one group at most, so that nobody counts twice. A
witness has signed if it has seen. There is exactly one quorum.

Keys are of Ed25519: type 1 for a log and 4 for a witness. One public key is one log's at most, and one witness's,
whatever its name. There may be up to 256 logs, 256 witnesses and 256 groups, in 1 MiB.

All bad input raises Invalid with the reason POLICY_INVALID.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from animus.domain.errors import Invalid, Violation
from animus.domain.note import COSIGNATURE, ED25519, Key, load_key

MAX_POLICY_BYTES = 1 << 20
MAX_ITEMS = 256  # of each kind

NONE = b"none"  # for a quorum: nobody has to agree
NOT_ALLOWED = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
NAME = re.compile(rb"[^\x00-\x20\x7f]+")
THRESHOLD = re.compile(rb"[1-9][0-9]{0,3}")


def policy_invalid(description: str) -> Invalid:
    """An Invalid for what concerns a policy."""
    return Invalid([Violation("policy", description)], "POLICY_INVALID")


def shown(name: bytes) -> str:
    """A name in a message: no more than 100 characters, each printable."""
    return repr(name[:100].decode(errors="backslashreplace"))


def check_name(name: bytes) -> None:
    """Refuses what cannot be a name of a witness or a group."""
    if not NAME.fullmatch(name) or name == NONE:
        raise policy_invalid(f"defines the name {shown(name)}; a name has no space, and is not none")


@dataclass(frozen=True, slots=True)
class PolicyLog:
    """A log that is trusted to be the one that it says."""

    key: Key  # its name is the log's origin
    url: bytes  # empty where none is given

    def __post_init__(self) -> None:
        if self.key.type != ED25519:
            raise policy_invalid(f"has a log's key of type {self.key.type}; a log signs with type {ED25519}")


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness that is trusted to have seen what it signs."""

    name: bytes  # in the policy; the key has its own
    key: Key
    url: bytes  # empty where none is given

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.key.type != COSIGNATURE:
            raise policy_invalid(
                f"has a witness's key of type {self.key.type}; a witness signs with type {COSIGNATURE}"
            )


@dataclass(frozen=True, slots=True)
class Group:
    """Witnesses and groups that count as one."""

    name: bytes
    threshold: int  # members that have to agree, 1 to all
    members: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 1 <= self.threshold <= len(self.members):
            raise policy_invalid(
                f"asks {self.threshold} of the {len(self.members)} members of {shown(self.name)}; "
                "at least one is asked, and at most all"
            )
        object.__setattr__(self, "members", tuple(sorted(self.members)))


@dataclass(frozen=True, slots=True)
class Policy:
    """Whom a reader trusts."""

    logs: tuple[PolicyLog, ...]  # none where the reader knows the log otherwise
    witnesses: tuple[Witness, ...]
    groups: tuple[Group, ...]  # each after its members
    quorum: bytes  # name of a witness or a group, or `none`

    def __post_init__(self) -> None:
        for kind, items in (("logs", self.logs), ("witnesses", self.witnesses), ("groups", self.groups)):
            if len(items) > MAX_ITEMS:
                raise policy_invalid(f"has {len(items)} {kind}; at most {MAX_ITEMS} are allowed")
        if repeated(log.key.public_key for log in self.logs) is not None:
            raise policy_invalid("has two logs with one public key")
        if repeated(witness.key.public_key for witness in self.witnesses) is not None:
            raise policy_invalid("has two witnesses with one public key")
        names = [*(witness.name for witness in self.witnesses), *(group.name for group in self.groups)]
        if (name := repeated(names)) is not None:
            raise policy_invalid(f"defines the name {shown(name)} twice")
        defined = {witness.name for witness in self.witnesses}
        for group in self.groups:
            check_defined(group.members, defined)
            defined.add(group.name)
        if (name := repeated(member for group in self.groups for member in group.members)) is not None:
            raise policy_invalid(f"has {shown(name)} as a member twice, so that it would count twice")
        if self.quorum != NONE:
            check_defined([self.quorum], defined)
        object.__setattr__(self, "logs", tuple(sorted(self.logs, key=lambda log: (log.key.name, log.key.public_key))))
        object.__setattr__(self, "witnesses", tuple(sorted(self.witnesses, key=lambda witness: witness.name)))


def repeated(items: Iterable[bytes]) -> bytes | None:
    """The first item that stands a second time."""
    seen = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def check_defined(names: Iterable[bytes], defined: Collection[bytes]) -> None:
    """Refuses a name that nothing before it has."""
    for name in names:
        if name not in defined:
            raise policy_invalid(f"uses the name {shown(name)}, which nothing before it has")


def load_policy(data: bytes) -> Policy:
    """The policy of a file. The message has the number of the line at fault, where it is one line's."""
    if len(data) > MAX_POLICY_BYTES:
        raise policy_invalid(f"is {len(data)} bytes long; at most {MAX_POLICY_BYTES} are allowed")
    if not data.endswith(b"\n"):
        raise policy_invalid("does not end with a line feed; its last line may not be whole")
    lines: list[PolicyLog | Witness | Group | bytes] = []
    defined: set[bytes] = set()
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            item = load_line(line, defined)
        except Invalid as error:
            raise policy_invalid(f"line {number}: {error.violations[0].description}") from None
        if isinstance(item, (Witness, Group)):
            defined.add(item.name)
        if item is not None:
            lines.append(item)
    quorums = [item for item in lines if isinstance(item, bytes)]
    if len(quorums) != 1:
        raise policy_invalid(f"has {len(quorums)} quorum lines; it has to have one")
    return Policy(
        tuple(item for item in lines if isinstance(item, PolicyLog)),
        tuple(item for item in lines if isinstance(item, Witness)),
        tuple(item for item in lines if isinstance(item, Group)),
        quorums[0],
    )


def load_line(line: bytes, defined: Collection[bytes]) -> PolicyLog | Witness | Group | bytes | None:
    """What one line defines; the name alone for a quorum, and nothing for an empty line or a comment."""
    if NOT_ALLOWED.search(line):
        raise policy_invalid("has a control character other than tab and line feed")
    words = line.split()
    if not words or words[0].startswith(b"#"):
        return None
    match words:
        case [b"log", key, *url] if len(url) <= 1:
            return PolicyLog(load_vkey(key), b"".join(url))
        case [b"witness", name, key, *url] if len(url) <= 1:
            return Witness(name, load_vkey(key), b"".join(url))
        case [b"group", name, threshold, *members]:
            check_defined(members, defined)
            return Group(name, load_threshold(threshold, len(members)), tuple(members))
        case [b"quorum", name]:
            check_defined([name], {*defined, NONE})
            return name
    raise policy_invalid("is no line of a policy: log, witness, group or quorum, each with its own words")


def load_vkey(text: bytes) -> Key:
    """The key of a line."""
    try:
        return load_key(text.decode())
    except UnicodeDecodeError:
        raise policy_invalid("has a key that is not UTF-8") from None


def load_threshold(text: bytes, members: int) -> int:
    """How many members have to agree."""
    if text in (b"any", b"all"):
        return 1 if text == b"any" else members
    if not THRESHOLD.fullmatch(text):
        raise policy_invalid(f"asks {shown(text)} of its members; give all, any, or a number")
    return int(text)


def witnesses_of(policy: Policy, signers: Iterable[Key]) -> frozenset[bytes]:
    """The names of the policy's witnesses among the keys that signed something."""
    keys = frozenset(signers)
    return frozenset(witness.name for witness in policy.witnesses if witness.key in keys)


def agreed(policy: Policy, names: Iterable[bytes]) -> frozenset[bytes]:
    """The witnesses and groups that have seen what the witnesses of these names signed. Other names count nothing."""
    seen = {witness.name for witness in policy.witnesses} & set(names)
    for group in policy.groups:
        if len(seen.intersection(group.members)) >= group.threshold:
            seen.add(group.name)
    return frozenset(seen)


def quorum_met(policy: Policy, names: Iterable[bytes]) -> bool:
    """Whether the witnesses of these names are enough."""
    return policy.quorum == NONE or policy.quorum in agreed(policy, names)
