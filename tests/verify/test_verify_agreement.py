"""The verifier and the server, which share no code, agree: on published vectors and on whatever is made up."""

import base64
import json
import random
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from domain import trees, worlds
from domain.test_policy import GOOD as GOOD_POLICY
from domain.test_policy import NOT_POLICIES
from domain.test_quality_evaluation import case as quality_case
from domain.test_quality_evaluation import judge
from domain.values import DOCUMENTS, LAW, ONE, TIME, TWO, generated, pipeline
from hypothesis import given
from hypothesis import strategies as st

import animus_verify as verifier
from animus import signing
from animus.domain import checkpoint, document, merkle, note, policy
from animus.domain.errors import Invalid, Refused
from animus.domain.note import Key, dump_key
from animus.domain.pipeline import PipelineSpec
from animus.domain.plan import make_plan
from animus.domain.state import StepEvent, derive_state, judge_event
from verify import bundles

VECTORS = Path(__file__).parents[1] / "vectors"


def takes(call: Callable[..., Any], *args: Any) -> bool:
    """Whether an input is taken, by either."""
    try:
        call(*args)
    except (Invalid, verifier.Failure):
        return False
    return True


# Plans and state.


@LAW
@given(generated(pipeline))
def test_plans_are_the_same_bytes(made: PipelineSpec) -> None:
    """Both plan any pipeline alike."""
    tree = json.loads(document.dump(made))
    assert verifier.dump(verifier.make_plan(ONE, TWO, tree)) == document.dump(make_plan(ONE, TWO, made))


# Rules.


def judged_by_the_server(seed: int) -> list[tuple[str, ...]] | None:
    """Results and verdict of a made-up case; None where a profile lacks what a check needs."""
    rule, *profiles = quality_case(seed)
    try:
        evaluation = judge(rule, *profiles)
    except Refused:
        return None
    results = [(e.check, e.severity.value, e.outcome.value, e.observed) for e in evaluation.results]
    return [*results, (evaluation.verdict.value,)]


def judged_by_the_verifier(seed: int) -> list[tuple[str, ...]] | None:
    """The same, from the bytes of the documents."""
    rule, profile, *references = (json.loads(document.dump(each)) for each in quality_case(seed))
    try:
        results = verifier.evaluate(rule, profile, dict(zip((ONE, TWO), references, strict=True)), TIME)
    except ValueError:
        return None
    return [*results, (verifier.verdict_of(results),)]


@LAW
@given(st.integers(0, 2**32))
def test_rules_are_evaluated_alike(seed: int) -> None:
    """Each check, what it observes and the verdict, to the last digit; and what was not measured, both miss."""
    assert judged_by_the_verifier(seed) == judged_by_the_server(seed)


def test_other_arithmetic_is_another_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above is of some weight: with other digits after the point, or another least part, it does not hold."""
    for name, value in (("LEAST_PART", Decimal("0.001")), ("spell", lambda number: f"{number:.6f}")):
        with monkeypatch.context() as changed:
            changed.setattr(verifier, name, value)
            assert any(judged_by_the_verifier(seed) != judged_by_the_server(seed) for seed in range(300))


def offered(rng: random.Random, steps: str) -> StepEvent:
    """An event that may or may not follow."""
    kind, error = rng.choice(worlds.OUTCOMES)
    return worlds.event(rng.choice(steps), rng.randint(1, 3), kind, error, event_id=f"{rng.getrandbits(64):x}")


@LAW
@given(st.integers(0, 2**32).map(random.Random))
def test_events_are_judged_alike_and_lead_to_the_same_state(rng: random.Random) -> None:
    """Of random events both refuse the same, and derive the same states from those accepted; cancelled runs too."""
    plan = worlds.random_plan(rng, 5)
    accepted: list[StepEvent] = []
    cancel, state = False, verifier.State(json.loads(document.dump(plan))["steps"])
    for _ in range(80):
        event = offered(rng, "".join(step.name for step in plan.steps) + ("z" if rng.random() < 0.1 else ""))
        known = derive_state(plan, accepted, cancel_requested=cancel)
        if rng.random() < 0.02 and not known.run.final and not cancel:
            cancel = True
            state.cancel_requested = True
            state.update(state.planned)
        else:
            tree = document.tree_of(event)
            assert isinstance(tree, dict)
            refused = judge_event(event, known, ()) is not None
            assert bool(state.problem(tree)) == refused
            if not refused:
                accepted.append(event)
                state.apply(tree)
        known = derive_state(plan, accepted, cancel_requested=cancel)
        assert state.run == known.run
        assert state.steps == known.steps
        assert {
            (name, number): each["state"] for name, mine in state.attempts.items() for number, each in mine.items()
        } == {(name, number): each.state for name, mine in known.attempts.items() for number, each in mine.items()}


# JSON.


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__) for kind in DOCUMENTS])
def test_documents_are_spelled_alike(kind: type) -> None:
    """Each document of the server is one to the verifier, and is written again alike."""

    @LAW
    @given(DOCUMENTS[kind])
    def law(value: Any) -> None:
        data = document.dump(value)
        assert verifier.dump(verifier.parse_document(data, "x")) == data

    law()


NOT_DOCUMENTS = [
    b"",
    b"[]",
    b'{"schema":"animus.x/v1","a":1}',
    b'{"a":1,"a":1,"schema":"animus.x/v1"}',
    b'{"a":1.0,"schema":"animus.x/v1"}',
    b'{"a":1e2,"schema":"animus.x/v1"}',
    b'{"a":NaN,"schema":"animus.x/v1"}',
    b'{"a":null,"schema":"animus.x/v1"}',
    b'{"a":9007199254740992,"schema":"animus.x/v1"}',
    b'{"a":%s,"schema":"animus.x/v1"}' % (b"9" * 5_000),
    b'{"a":-0,"schema":"animus.x/v1"}',
    b'{"a": 1,"schema":"animus.x/v1"}',
    b'{"a":"\\u0041","schema":"animus.x/v1"}',
    b'{"a":"\\ud800","schema":"animus.x/v1"}',
    b'{"a":"\\u0000","schema":"animus.x/v1"}',
    b'{"a":"\xff","schema":"animus.x/v1"}',
    b'{"a":' + b"[" * 40 + b"]" * 40 + b',"schema":"animus.x/v1"}',
    b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"schema":"animus.x/v1"}',
    '{"schema":"animus.x/v1","é":1}'.encode(),
    b'{"schema":"animus.x/v1"}\n',
    b'\xef\xbb\xbf{"schema":"animus.x/v1"}',
]


@pytest.mark.parametrize("data", NOT_DOCUMENTS, ids=lambda data: repr(data[:40]))
def test_what_is_no_document_is_none_to_both(data: bytes) -> None:
    """Other spellings, and what is outside the profile."""
    assert not takes(document.parse, data)
    assert not takes(verifier.parse_document, data, "x")


def test_published_values_are_spelled_as_published() -> None:
    """The vectors of JCS inside the profile."""
    for name in ("unicode", "structures"):
        data = (VECTORS / "jcs" / "output" / f"{name}.json").read_bytes().rstrip(b"\n")
        assert verifier.parse(data, name) == json.loads(data)


def examples(page: str) -> list[Any]:
    """The examples of a page of C2SP."""
    return [each for each in trees.read("c2sp-specs/examples.json") if each["spec"] == page]


# Trees.


def published(kind: str) -> list[Any]:
    """The published claims of a kind."""
    return [
        json.loads(path.read_text()) for path in sorted((VECTORS / "transparency-dev-merkle" / kind).rglob("*.json"))
    ]


def test_published_proofs_come_out_as_published() -> None:
    """Each claim of transparency-dev, but those of equal or no sizes, for which a bundle has no proof."""
    inclusion = published("inclusion")
    for claim in inclusion:
        leaf, root = trees.unbase64([claim["leafHash"] or "", claim["root"] or ""])
        proof = trees.unbase64(claim["proof"])
        good = verifier.included_root(claim["leafIdx"], claim["treeSize"], leaf, proof) == root and len(leaf) == 32
        assert good == (not claim["wantErr"]), claim["desc"]
    counted = 0
    for claim in published("consistency"):
        if 0 < claim["size1"] < claim["size2"]:
            first, second = trees.unbase64([claim["root1"] or "", claim["root2"] or ""])
            proof = trees.unbase64(claim["proof"])
            good = verifier.consistent_roots(claim["size1"], claim["size2"], first, proof) == (first, second)
            assert good == (not claim["wantErr"]), claim["desc"]
            counted += 1
    assert (len(inclusion), counted > 50) == (98, True)


def test_trees_and_proofs_agree_in_every_small_size() -> None:
    """Roots, and proofs of both kinds, of all trees up to 33 leaves; a proof with any hash too much or less fails."""
    leaves = [verifier.leaf_hash(bytes([at])) for at in range(33)]
    tree, book = verifier.Tree(0, ()), bundles.LogBook()
    book.entries = [bytes([at]) for at in range(33)]
    nodes, roots = book.nodes(), [tree.root()]
    for leaf in leaves:
        tree.add(leaf)
        roots.append(tree.root())
        assert roots[-1] == merkle.root(book.tree(tree.size))
    for size in range(1, 34):
        for index in range(size):
            proof = merkle.prove_inclusion(index, size, nodes)
            assert verifier.included_root(index, size, leaves[index], proof) == roots[size]
            assert verifier.included_root(index, size, leaves[index], (*proof, leaves[0])) != roots[size]
            assert not proof or verifier.included_root(index, size, leaves[index], proof[:-1]) != roots[size]
        for first in range(1, size):
            proof = merkle.prove_consistency(first, size, nodes)
            wanted = (roots[first], roots[size])
            assert verifier.consistent_roots(first, size, roots[first], proof) == wanted
            assert verifier.consistent_roots(first, size, roots[first], (*proof, leaves[0])) != wanted
            assert verifier.consistent_roots(first, size, roots[first], proof[:-1]) != wanted


# Signatures.


def test_published_signatures_come_out_as_published() -> None:
    """All of Wycheproof's signatures of Ed25519, and as the server judges them."""
    count = 0
    for group in trees.read("wycheproof/ed25519_test.json")["testGroups"]:
        key = bytes.fromhex(group["publicKey"]["pk"])
        for test in group["tests"]:
            message, signature = bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"])
            good = verifier.is_signed(key, message, signature)
            assert good == signing.verify(key, message, signature) == (test["result"] == "valid"), test["tcId"]
            count += 1
    assert count == 151


def test_points_of_small_order_and_second_spellings_are_refused_by_both() -> None:
    """As keys, where a signature of R and S zero would be good for them in other implementations."""
    prime = 2**255 - 19
    ys = [*signing.SMALL_ORDER, *range(prime, 2**255), 1, 2, 3]
    keys = [(y | sign << 255).to_bytes(32, "little") for y in ys for sign in (0, 1)]
    good = bundles.SIGNER.sign(b"m")
    for key in keys:
        for signature in (key + bytes(32), good):
            assert verifier.is_signed(key, b"m", signature) == signing.verify(key, b"m", signature) is False


def open_both(data: bytes, keys: list[Key]) -> bool:
    """Whether the server takes a signed checkpoint, and so does the verifier."""
    texts = [verifier.load_key(dump_key(key), "x") for key in keys]
    server = takes(signing.verify_checkpoint, data, keys)
    assert takes(verifier.open_checkpoint, data, texts, "x") == server, data
    return server


def test_each_changed_byte_of_a_checkpoint_is_judged_alike() -> None:
    """Notes with any one byte changed, left out or repeated."""
    keys = [bundles.SIGNER.key(), bundles.WITNESS.key(key_type=4)]
    text = checkpoint.dump_checkpoint(checkpoint.Checkpoint(bundles.ORIGIN, 5, bytes(32), ()))
    data = signing.sign_note(text, [bundles.SIGNER]) + signing.cosign(text, bundles.WITNESS, 7)
    assert open_both(data, keys)
    for at in range(len(data)):
        for other in (b"", data[at : at + 1] * 2, bytes([data[at] ^ 1]), b"\n", b" ", b"\x80"):
            open_both(data[:at] + other + data[at + 1 :], keys)


def test_published_notes_and_keys_are_judged_alike() -> None:
    """The notes of C2SP, of the checksum database and of Rekor."""
    for text in trees.read("golang-sumdb-note/notes.json")["bad_vkeys"]:
        assert not takes(verifier.load_key, text, "x")
    for example in examples("signed-note.md"):
        data = example["note"].encode()
        assert verifier.parse_note(data, "x")[0] == note.load_note(data).text
    count = 0
    for path in sorted((VECTORS / "sigstore-conformance").glob("*.json")):
        case = json.loads(path.read_text())
        keys = [
            Key(log["baseUrl"].removeprefix("https://"), 1, base64.b64decode(log["publicKey"]["rawBytes"])[-32:])
            for log in case["tlogs"]
            if log["publicKey"]["keyDetails"] == "PKIX_ED25519"
        ]
        data = case["tlogEntry"]["inclusionProof"]["checkpoint"]["envelope"].encode()
        assert open_both(data, keys) == (not path.stem.endswith("_fail"))
        count += 1
    assert count == 12


def test_published_checkpoints_and_proofs_are_judged_alike() -> None:
    """The bodies of transparency-dev, whose roots are too short or malformed, and its texts of proofs."""
    for case in trees.read("transparency-dev-formats/checkpoint_parse.json"):
        assert takes(verifier.parse_checkpoint, case["body"], "x") == takes(checkpoint.load_checkpoint, case["body"])
    cases = trees.read("transparency-dev-formats/tlog_proof.json")
    for case in cases["marshal"]:
        taken = takes(verifier.parse_proof, case["text"].encode(), "x")
        assert taken == ("extra_base64" not in case)  # a bundle's proof has no extra data
    for case in cases["reject"]:
        text = case.get("text") or case["text_prefix"] + case["then_repeat"][0] * case["then_repeat"][1] + case["then"]
        if not takes(verifier.parse_proof, text.encode(), "x"):
            continue
        # Its length is judged where the proof is: no tree asks for so many hashes.
        assert verifier.included_root(0, 2**62, bytes(32), verifier.parse_proof(text.encode(), "x")[1]) is None


# Policies.


@pytest.mark.parametrize("name", NOT_POLICIES)
def test_what_is_nearly_a_policy_is_none_to_both(name: str) -> None:
    """The near misses of the server's tests."""
    assert takes(verifier.parse_policy, GOOD_POLICY.encode(), "x")
    text = NOT_POLICIES[name][0].encode()
    assert takes(verifier.parse_policy, text, "x") == takes(policy.load_policy, text) is False


def test_the_published_policy_counts_as_published() -> None:
    """The example of tlog-policy, for each set of witnesses that its page names."""
    (example,) = examples("tlog-policy.md")
    keys = iter([Key(f"w/{number}", 4, bytes([number]) * 32) for number in range(6)])
    text = re.sub(r"^log <vkey>", f"log {dump_key(Key('l', 1, bytes(32)))}", example["policy"])
    text = re.sub("<vkey>", lambda _: dump_key(next(keys)), text)
    found = verifier.parse_policy(text.encode(), "x")
    for names, met in [
        *((n, True) for n in example["satisfied_by"]),
        *((n, False) for n in example["not_satisfied_by"]),
    ]:
        signers = [found.witnesses[name.encode()] for name in names]
        assert found.agreed(signers) == met
