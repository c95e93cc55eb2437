"""Policies: quorums counted in every small world, the published example, and every other text refused with its line."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import note, policy
from animus.domain.errors import Invalid
from animus.domain.note import COSIGNATURE, ED25519, Key
from animus.domain.policy import Group, Policy, PolicyLog, Witness
from domain import trees
from domain.values import LAW, refusal


def log_key(number: int) -> Key:
    """A log's key."""
    return Key(f"log.example/{number}", ED25519, number.to_bytes(32, "big"))


def witness_key(number: int) -> Key:
    """A witness's key."""
    return Key(f"witness.example/{number}", COSIGNATURE, number.to_bytes(32, "big"))


def log(number: int) -> str:
    """The text of a log's key."""
    return note.dump_key(log_key(number))


def witness(number: int) -> str:
    """The text of a witness's key."""
    return note.dump_key(witness_key(number))


W = [witness(number) for number in range(8)]


def load(text: str) -> Policy:
    """The policy of a text."""
    return policy.load_policy(text.encode())


# Counting.


def counts(found: Policy, names: Iterable[bytes]) -> bool:
    """Whether the quorum is met, by recursion from it, as tlog-policy says it."""
    signed = set(names)
    groups = {group.name: group for group in found.groups}

    def seen(name: bytes) -> bool:
        if name not in groups:
            return name in signed
        return sum(seen(member) for member in groups[name].members) >= groups[name].threshold

    return found.quorum == b"none" or seen(found.quorum)


def subsets(names: list[bytes]) -> Iterable[tuple[bytes, ...]]:
    """Every set of some names."""
    return itertools.chain.from_iterable(itertools.combinations(names, count) for count in range(len(names) + 1))


def policies_of(count: int) -> Iterable[Policy]:
    """Every policy with so many witnesses in one group or two, nested or not, each threshold, and each quorum."""
    names = [f"w{number}".encode() for number in range(count)]
    witnesses = tuple(Witness(name, witness_key(number), b"") for number, name in enumerate(names))
    for inner in subsets(names):
        rest = [name for name in names if name not in inner]
        for k in range(1, len(inner) + 1):
            small = Group(b"inner", k, inner)
            for members in subsets([*rest, b"inner"]):
                for threshold in range(1, len(members) + 1):
                    groups = (small, Group(b"outer", threshold, members))
                    for quorum in (b"none", b"inner", b"outer", names[0]):
                        yield Policy((), witnesses, groups, quorum)


def test_quorums_are_counted_as_the_standard_says() -> None:
    """In every policy of up to four witnesses and two groups, for every set that signed, and never for fewer only."""
    worlds = 0
    for count in (1, 2, 3, 4):
        for found in policies_of(count):
            met = {}
            names = [each.name for each in found.witnesses]
            for signed in subsets(names):
                met[frozenset(signed)] = policy.quorum_met(found, signed)
                assert met[frozenset(signed)] == counts(found, signed)
                worlds += 1
            for fewer, more in itertools.product(met, repeat=2):
                assert not (fewer < more and met[fewer] and not met[more])
    assert worlds > 20_000


def test_names_that_are_no_witness_count_nothing() -> None:
    """Neither a group's name, nor `none`, nor an unknown one stands for a signature; a name twice counts once."""
    found = load(f"witness a {W[0]}\nwitness b {W[1]}\ngroup g 2 a b\ngroup h any g\nquorum h\n")
    assert not policy.quorum_met(found, [b"g", b"h", b"none", b"c", b"a", b"a"])
    assert policy.quorum_met(found, [b"b", b"a"])
    assert policy.agreed(found, [b"a"]) == {b"a"}
    assert policy.agreed(found, [b"a", b"b"]) == {b"a", b"b", b"g", b"h"}


def test_witnesses_are_found_by_their_whole_keys() -> None:
    """A signer counts as a witness if name, type and public key are those of the policy."""
    found = load(f"log {log(1)}\nwitness a {W[0]}\nwitness b {W[1]}\nquorum a\n")
    key = witness_key(0)
    assert policy.witnesses_of(found, [key, log_key(1)]) == {b"a"}
    assert policy.witnesses_of(found, [witness_key(1), key]) == {b"a", b"b"}
    others = [Key("other", key.type, key.public_key), Key(key.name, ED25519, key.public_key), witness_key(2)]
    assert policy.witnesses_of(found, others) == frozenset()


# Reading.

NAME = st.binary(min_size=1, max_size=6).map(lambda data: bytes(c for c in data if c > 32 and c != 127) or b"\xff")
SPACE = st.sampled_from(["", " ", "\t", " \t "])


@LAW
@given(
    st.lists(NAME.filter(lambda name: name not in (b"none", b"\xf0_all")), min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_a_policy_is_read_whatever_its_spaces_and_comments(names: list[bytes], data: st.DataObject) -> None:
    """Names are any octets, words are parted by any spaces and tabs, and comments and empty lines say nothing."""
    expected = Policy(
        (PolicyLog(log_key(1), b""),),
        tuple(Witness(name, witness_key(number), b"https://\xe9") for number, name in enumerate(names)),
        (Group(b"\xf0_all", len(names), tuple(names)),),
        b"\xf0_all",
    )
    words = [[b"log", log(1).encode()]]
    words += [[b"witness", name, W[number].encode(), b"https://\xe9"] for number, name in enumerate(names)]
    words += [[b"group", b"\xf0_all", data.draw(st.sampled_from([b"all", str(len(names)).encode()])), *names]]
    words += [[b"quorum", b"\xf0_all"]]
    text = b""
    for line in words:
        if data.draw(st.booleans()):
            text += data.draw(SPACE).encode() + data.draw(st.sampled_from([b"\n", b"# log \xff\n", b"#\n"]))
        part = data.draw(SPACE.filter(bool)).encode()
        text += data.draw(SPACE).encode() + part.join(line) + data.draw(SPACE).encode() + b"\n"
    assert policy.load_policy(text) == expected


def test_names_are_octets() -> None:
    """K and the Kelvin sign are two names, and so are two spellings of one accented letter."""
    for one, other in (("K", "\u212a"), ("é", "e\u0301")):
        found = load(f"witness {one} {W[0]}\nwitness {other} {W[1]}\nquorum {other}\n")
        assert found.quorum == other.encode()
        assert not policy.quorum_met(found, [one.encode()])


START = f"log {log(1)}\nwitness a {W[0]}\nwitness b {W[1]}\nwitness c {W[2]}\n"
GOOD = START + "group g 2 a b\ngroup h all g c\nquorum h\n"

# name: text, and what the message holds
NOT_POLICIES = {
    "nothing": ("", "line feed"),
    "no quorum": (START, "has 0 quorum lines"),
    "two quorums": (GOOD + "quorum h\n", "has 2 quorum lines"),
    "two quorums of none": ("quorum none\nquorum none\n", "has 2 quorum lines"),
    "no line feed at the end": (GOOD[:-1], "line feed"),
    "an unknown word": (GOOD + "trust a\n", "line 8: is no line of a policy"),
    "a word in capitals": (GOOD.replace("quorum", "QUORUM"), "line 7: is no line"),
    "a log without a key": ("log\n" + GOOD, "line 1: is no line"),
    "a log with too much": (f"log {log(2)} https://a b\n" + GOOD, "line 1: is no line"),
    "a witness without a key": ("witness z\n" + GOOD, "line 1: is no"),
    "a witness with too much": (f"witness z {W[3]} a b\n" + GOOD, "line 1: is no line"),
    "a group without members": (START + "group g all\nquorum g\n", "line 5: asks 0 of the 0"),
    "a group without a threshold": (START + "group g\nquorum g\n", "line 5: is no line"),
    "a quorum of nothing": (START + "quorum\n", "line 5: is no line"),
    "a quorum of two": (START + "quorum a b\n", "line 5: is no line"),
    "a threshold of 0": (START + "group g 0 a\nquorum g\n", "line 5: asks '0'"),
    "a threshold too high": (START + "group g 3 a b\nquorum g\n", "line 5: asks 3 of the 2 members"),
    "a threshold with a zero": (START + "group g 01 a\nquorum g\n", "line 5: asks '01'"),
    "a threshold with a sign": (START + "group g +1 a\nquorum g\n", "line 5: asks '+1'"),
    "a negative threshold": (START + "group g -1 a\nquorum g\n", "line 5: asks '-1'"),
    "a huge threshold": (START + f"group g {'9' * 10_000} a\nquorum g\n", "line 5: asks '999"),
    "a threshold in capitals": (START + "group g ALL a\nquorum g\n", "line 5: asks 'ALL'"),
    "digits of another script": (START + "group g ١ a\nquorum g\n", "line 5: asks"),
    "a member that nothing defines": (START + "group g any z\nquorum g\n", "line 5: uses the name 'z'"),
    "a member that is defined later": (f"group g any a\nwitness a {W[0]}\nquorum g\n", "line 1: uses the name 'a'"),
    "a group in itself": (START + "group g any g\nquorum g\n", "line 5: uses the name 'g'"),
    "groups in each other": (START + "group g any h\ngroup h any g\nquorum g\n", "line 5: uses the name 'h'"),
    "none as a member": (START + "group g any none\nquorum g\n", "line 5: uses the name 'none'"),
    "a quorum that nothing defines": (START + "quorum z\n", "line 5: uses the name 'z'"),
    "a quorum that is defined later": (f"quorum a\nwitness a {W[0]}\n", "line 1: uses the name 'a'"),
    "a witness called none": (f"witness none {W[0]}\nquorum none\n", "line 1: defines the name 'none'"),
    "a group called none": (START + "group none any a\nquorum none\n", "line 5: defines the name 'none'"),
    "a name of two witnesses": (START + f"witness a {W[3]}\nquorum a\n", "defines the name 'a' twice"),
    "a name of a witness and a group": (START + "group a any b\nquorum a\n", "defines the name 'a' twice"),
    "a name of two groups": (START + "group g any a\ngroup g any b\nquorum g\n", "defines the name 'g' twice"),
    "a member twice in a group": (START + "group g 2 a a\nquorum g\n", "has 'a' as a member twice"),
    "a member of two groups": (GOOD.replace("all g c", "all g a"), "has 'a' as a member twice"),
    "a group in two groups": (START + "group g any a\ngroup h any g\ngroup i any g\nquorum i\n", "has 'g' as a member"),
    "a log twice": (f"log {log(1)}\n" + GOOD, "two logs with one public key"),
    "a witness twice": (START + f"witness z {W[0]}\nquorum z\n", "two witnesses with one public key"),
    "a log's key for a witness": (f"witness a {log(1)}\nquorum a\n", "line 1: has a witness's key of type 1"),
    "a witness's key for a log": (f"log {W[0]}\nquorum none\n", "line 1: has a log's key of type 4"),
    "a key with a wrong id": (START.replace("+", "+0", 1) + "quorum a\n", "line 1: "),
    "a carriage return": (GOOD.replace("\n", "\r\n"), "line 1: has a control character"),
    "a form feed": (GOOD.replace("group g", "group\fg"), "line 5: has a control character"),
    "a NUL in a comment": (GOOD + "# \x00\n", "line 8: has a control character"),
    "a DEL in a name": (GOOD.replace("h", "h\x7f"), "has a control character"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_POLICIES)
def test_what_is_nearly_a_policy_is_refused_with_its_line(name: str) -> None:
    """Each near miss is Invalid with the reason, and the message says where and what; what they are near is read."""
    assert load(GOOD).quorum == b"h"
    text, message = NOT_POLICIES[name]
    with pytest.raises(Invalid) as caught:
        load(text)
    assert caught.value.reason == "POLICY_INVALID"
    assert message in caught.value.message


@LAW
@given(st.data())
def test_no_change_of_a_policy_is_a_defect(data: st.DataObject) -> None:
    """A policy with bytes changed, more or less is read or refused with the reason, and its quorum is countable."""
    whole = GOOD.encode()
    for _ in range(20):
        at = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(at, min(len(whole), at + 4)))
        put = data.draw(st.binary(max_size=3) | st.sampled_from([b"\n", b" ", b"quorum none\n", b"#", b" a ", b"g"]))
        try:
            found = policy.load_policy(whole[:at] + put + whole[end:])
        except Invalid as error:
            assert error.reason == "POLICY_INVALID"
        else:
            names = [each.name for each in found.witnesses]
            assert policy.quorum_met(found, names) == counts(found, names)


def test_a_key_that_is_no_utf_8_is_refused() -> None:
    """Names and URLs may be any octets, keys may not."""
    found = refusal(policy.load_policy, b"log \xff\nquorum none\n")
    assert found.description == "line 1: has a key that is not UTF-8"


def test_one_key_under_two_names_is_one_key() -> None:
    """Two logs or two witnesses with one public key are refused whatever their names; a log may be a witness."""
    renamed = note.dump_key(Key("other.example", COSIGNATURE, witness_key(0).public_key))
    assert "one public key" in refusal(load, START + f"witness z {renamed}\nquorum z\n").description
    renamed = note.dump_key(Key("other.example", ED25519, log_key(1).public_key))
    assert "one public key" in refusal(load, START + f"log {renamed}\nquorum a\n").description
    both = note.dump_key(Key("both.example", COSIGNATURE, log_key(1).public_key))
    assert load(f"log {log(1)}\nwitness z {both}\nquorum z\n").quorum == b"z"


def test_a_policy_is_bounded_before_it_is_read() -> None:
    """256 logs, witnesses and groups in 1 MiB are read, in a chain too; one more of any is refused."""
    most = policy.MAX_ITEMS
    logs = "".join(f"log {log(number)}\n" for number in range(most))
    witnesses = "".join(f"witness w{number} {witness(number)}\n" for number in range(most))
    members = " ".join(f"w{number}" for number in range(1, most))
    chain = f"group g0 any w0\ngroup g1 all g0 {members}\n"
    chain += "".join(f"group g{number} any g{number - 1}\n" for number in range(2, most))
    end = f"quorum g{most - 1}\n"
    found = load(logs + witnesses + chain + end)
    assert (len(found.logs), len(found.witnesses), len(found.groups)) == (most, most, most)
    names = [each.name for each in found.witnesses]
    assert policy.quorum_met(found, names)
    assert not policy.quorum_met(found, names[1:])
    text = logs + witnesses + chain
    assert "257 logs" in refusal(load, text + f"log {log(most)}\n" + end).description
    assert "257 witnesses" in refusal(load, text + f"witness w {witness(most)}\n" + end).description
    assert "257 groups" in refusal(load, text + f"group g any g{most - 1}\nquorum g\n").description
    comment = "#" * (policy.MAX_POLICY_BYTES - len("\nquorum none\n")) + "\nquorum none\n"
    assert load(comment).quorum == b"none"
    assert "1048577 bytes" in refusal(load, "#" + comment).description


def test_a_value_that_no_text_has_does_not_exist() -> None:
    """The rules hold for values too: members before their groups, a quorum that is defined, names that are names."""
    a = Witness(b"a", witness_key(0), b"")
    g = Group(b"g", 1, (b"a",))
    assert Policy((), (a,), (g,), b"g")
    assert refusal(Policy, (), (a,), (Group(b"h", 1, (b"g",)), g), b"g")
    assert refusal(Policy, (), (), (g,), b"g")
    assert refusal(Policy, (), (a,), (), b"g")
    assert refusal(Policy, (), (a, a), (), b"none")
    for name in (b"", b" ", b"a b", b"none", b"a\n", b"\x7f", b"\x00"):
        assert refusal(Witness, name, witness_key(0), b"")
        assert refusal(Group, name, 1, (b"a",))


def test_order_means_nothing_where_it_decides_nothing() -> None:
    """Logs, witnesses and members in another order are the same policy."""
    lines = [f"log {log(1)}", f"log {log(2)}", f"witness a {W[0]}", f"witness b {W[1]}", f"witness c {W[2]}"]
    found = {
        load("\n".join([*order, f"group g 2 {' '.join(members)}", "quorum g", ""]))
        for order in itertools.permutations(lines)
        for members in itertools.permutations("abc")
    }
    assert len(found) == 1


# The published example.


@pytest.mark.parametrize("example", trees.examples("tlog-policy.md"))
def test_the_example_of_tlog_policy_counts_as_printed(example: dict[str, Any]) -> None:
    """With keys put in, the printed policy is met by the sets that its page names, and by no other kind of set."""
    numbers = itertools.count()
    text = re.sub(r"^log <vkey>", f"log {log(99)}", example["policy"])
    text = re.sub("<vkey>", lambda _: witness(next(numbers)), text)
    found = load(text)
    assert [each.name for each in found.witnesses] == [b"X1", b"X2", b"X3", b"Y1", b"Y2", b"Y3"]
    for names in example["satisfied_by"]:
        assert policy.quorum_met(found, [name.encode() for name in names])
    for names in example["not_satisfied_by"]:
        assert not policy.quorum_met(found, [name.encode() for name in names])
    for signed in subsets([each.name for each in found.witnesses]):
        xs = sum(name.startswith(b"X") for name in signed)
        assert policy.quorum_met(found, signed) == (xs >= 2 and xs < len(signed))
