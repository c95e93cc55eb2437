"""What the verifier finds when it evaluates a rule: each type of check against figures worked out by hand."""

import decimal
import random
from fractions import Fraction
from typing import Any

import pytest
from domain.values import TIME

import animus_verify as verifier
from animus.domain import document
from animus.domain.quality import QualityEvaluation, QualityProfile, QualityRule
from animus.domain.quality_gate import QualityGate
from verify.bundles import Quality, World, bytes_of, check, column, kind_of, profile

Tree = dict[str, Any]
OTHER = "sha256:" + "9" * 64  # digest of the profile that is compared with
LONG = "0." + "1" * 397  # more digits than the arithmetic has

COLUMNS = [
    column("empty", nulls=4),
    column("nan", measures={"not_finite_count": "4", "mean": "1"}),
    column(
        "x",
        nulls=1,
        measures={
            "distinct_count": "2", "not_finite_count": "1", "minimum": "-0.5", "maximum": "7", "mean": LONG,
            "standard_deviation": "0", "quantile 0.5": "3", "pattern_count a.*": "3",
        },
        bins=(["1", "2"], [0, 1, 1]),
    ),
    column("time", measures={"newest": "2026-01-02T03:04:05.678902Z", "oldest": "2025-01-01T00:00:00.000000Z"}),
    column("late", measures={"newest": "0001-01-01T00:00:00.000000Z"}),
    column("word", "utf8", values={"a": 1, "b": 1, "c": 2}),
    column("even", bins=(["0", "1"], [1, 2, 1])),
    column("thirds", "utf8", nulls=1, values={"a": 1, "b": 2}, bins=(["0"], [1, 2])),
    column("bare"),
    column("lone", "utf8", values={"a": 4}),
]  # fmt: skip
REFERENCES = [
    column("nan", bins=(["1"], [1, 1])),
    column("word", "utf8", values={"a": 1, "b": 2, "c": 1}),
    column("even", bins=(["0", "1"], [2, 1, 1])),
    column("thirds", "utf8", values={"b": 1, "z": 1}, bins=(["0"], [1, 1])),
    column("x", bins=(["1", "2.5"], [1, 1, 1])),
    column("bare", bins=(["1"], [1, 1])),
    column("lone", "utf8", values={"a": 1, "b": 1}),
]
SCHEMA = [{"name": each["name"], "type": each["type"]} for each in COLUMNS]


def judged(made: Tree, *, rows: int = 4, columns: list[Tree] | None = None) -> tuple[str, str]:
    """Outcome and observed of a check."""
    measured = profile(COLUMNS if columns is None else columns, rows=rows, metrics={"m/1": "-2.5"})
    references = {OTHER: profile(REFERENCES)}
    ((name, severity, outcome, observed),) = verifier.evaluate({"checks": [made]}, measured, references, TIME)
    assert (name, severity) == ("c", "error")
    return outcome, observed


def of(kind: str, where: str = "", **content: Any) -> Tree:
    """A check of a column that everything lies within, unless bounds are given."""
    return check("c", kind, column=where, **content)


REFERRED = {"referenceProfileDigest": OTHER}
PASSES = {
    "row count": (of("row_count", minimum="4", maximum="4"), "4"),
    "size": (of("size_bytes", minimum="3"), "3"),
    "metric": (of("metric", metric="m/1", maximum="-2.5"), "-2.5"),
    "equal schema": (of("schema_equal", columns=SCHEMA), ""),
    "compatible schema": (of("schema_compatible", columns=SCHEMA[5:3:-1]), ""),
    "nulls": (of("null_fraction", "x"), "0.25"),
    "nulls of a column without values": (of("null_fraction", "empty"), "1"),
    "no nulls": (of("null_fraction", "time"), "0"),
    "unique: 2 of 3": (of("unique_fraction", "x"), "0.666666666667"),
    "not finite: 1 of 3": (of("not_finite_fraction", "x"), "0.333333333333"),
    "not finite: not counted is none": (of("not_finite_fraction", "word"), "0"),
    "not finite: all": (of("not_finite_fraction", "nan"), "1"),
    "range": (of("range", "x", minimum="-0.5", maximum="7"), "-0.5..7"),
    "allowed: 1 and 2 of 4": (of("allowed_fraction", "word", values=["a", "c", "d"]), "0.75"),
    "allowed: none": (of("allowed_fraction", "word", values=["d"]), "0"),
    "pattern": (of("pattern_fraction", "x", pattern="a.*"), "1"),
    "quantile": (of("quantile", "x", probability="0.5", maximum="3"), "3"),
    "mean, exactly": (of("mean", "x", minimum=LONG, maximum=LONG), LONG),
    "deviation": (of("standard_deviation", "x", minimum="0"), "0"),
    "age of a time to come": (of("age_seconds", "time", maximum="-0.000001"), "-0.000001"),
    # 739617 days from the first day of year 1 to 2026-01-02, and 11045.678901 seconds: 63902908800 + 86400 + ...
    "age of all of our era": (of("age_seconds", "late"), "63902919845.678901"),
    # F is 1/4, 3/4; G is 2/4, 3/4.
    "ks": (of("ks", "even", minimum="0.25", maximum="0.25", **REFERRED), "0.25"),
    "ks: 1/3 and 1/2": (of("ks", "thirds", **REFERRED), "0.166666666667"),
    # (1/4 - 1/2) ln 1/2 + (1/2 - 1/4) ln 2 = ln 2 / 2, of values and of bins.
    "psi of values": (of("psi", "word", **REFERRED), "0.34657359028"),
    "psi of bins": (of("psi", "even", **REFERRED), "0.34657359028"),
    # 1/2 ln 2 + (0.0001 - 1/2) (ln 2 - 4 ln 10): no part is below 0.0001.
    "psi of a value that is gone": (of("psi", "lone", **REFERRED), "4.604318466669"),
    # (1/3 - 1/2) ln 2/3 + (2/3 - 1/2) ln 4/3 = ln 2 / 6: the bins go before the values.
    "psi of bins before values": (of("psi", "thirds", **REFERRED), "0.115524530093"),
}  # fmt: skip
NO_ANSWER = {
    "no column": of("mean", "none"),
    "no column, nulls": of("null_fraction", "none"),
    "no values": of("mean", "empty"),
    "no values to be unique": of("unique_fraction", "empty"),
    "no values to compare": of("psi", "empty", **REFERRED),
    "no finite values: range": of("range", "nan"),
    "no finite values: quantile": of("quantile", "nan", probability="0.5"),
    "no finite values: mean": of("mean", "nan"),
    "no finite values: deviation": of("standard_deviation", "nan"),
}
NOT_MEASURED = {
    "metric": of("metric", metric="m/2"),
    "distinct": of("unique_fraction", "bare"),
    "range": of("range", "bare"),
    "quantile of another probability": of("quantile", "x", probability="0.9"),
    "mean": of("mean", "bare"),
    "deviation": of("standard_deviation", "bare"),
    "newest": of("age_seconds", "x"),
    "values": of("allowed_fraction", "x", values=["a"]),
    "another pattern": of("pattern_fraction", "x", pattern="b"),
    "histogram of other edges": of("ks", "x", **REFERRED),
    "values of the reference": of("psi", "x", **REFERRED),
    "histogram": of("ks", "bare", **REFERRED),
    "column of the reference": of("psi", "time", **REFERRED),
    "type": of("median", "x"),
    "measure that is no type": of("minimum", "x"),
}


@pytest.mark.parametrize("name", PASSES)
def test_each_type_of_check_observes_what_was_worked_out(name: str) -> None:
    """Fractions, measured numbers, ages and distances, each in its one spelling."""
    made, observed = PASSES[name]
    assert judged(made) == ("pass", observed)


@pytest.mark.parametrize("name", [name for name, (made, observed) in PASSES.items() if observed])
def test_bounds_are_included_and_compared_exactly(name: str) -> None:
    """With a bound at what was observed it holds, and with one that is off by the least does not."""
    made, observed = PASSES[name]
    low, high = (observed.split("..") * 2)[:2]
    least = decimal.Decimal(10) ** -450
    with decimal.localcontext(decimal.Context(prec=1_000)):
        above, below = (f"{decimal.Decimal(low) + least:f}", f"{decimal.Decimal(high) - least:f}")
    assert judged(made | {"minimum": low, "maximum": high}) == ("pass", observed)
    assert judged(made | {"minimum": above, "maximum": ""}) == ("fail", observed)
    assert judged(made | {"minimum": "", "maximum": below}) == ("fail", observed)


@pytest.mark.parametrize("name", NO_ANSWER)
def test_what_has_no_answer_is_an_error(name: str) -> None:
    """A column that is not there, and one without values, or without a finite one."""
    assert judged(NO_ANSWER[name] | {"minimum": "0"}) == ("error", "")


def test_nothing_is_a_part_of_no_rows() -> None:
    """Without rows there is no part of nulls, and every column is without values."""
    for kind in ("null_fraction", "unique_fraction"):
        assert judged(of(kind, "bare"), rows=0) == ("error", "")
    assert judged(of("row_count", minimum="1"), rows=0) == ("fail", "0")


@pytest.mark.parametrize("name", NOT_MEASURED)
def test_what_was_not_measured_cannot_have_been_evaluated(name: str) -> None:
    """There can be no evaluation of it."""
    with pytest.raises(ValueError, match=r"does not measure|is no type"):
        judged(NOT_MEASURED[name])


def test_schemas_are_compared_by_name_and_type() -> None:
    """Another order, type or number of columns is not equal; a column that is missing is not compatible."""
    others: list[list[dict[str, str]]] = [SCHEMA[::-1], SCHEMA[1:], [SCHEMA[0] | {"type": "utf8"}, *SCHEMA[1:]]]
    for columns in others:
        assert judged(of("schema_equal", columns=columns)) == ("fail", "")
    for kind in ("schema_equal", "schema_compatible"):
        more = [*SCHEMA, {"name": "more", "type": "utf8"}]
        assert judged(of(kind, columns=more)) == ("fail", "")
        assert judged(of(kind, columns=[{"name": "x", "type": "int64"}])) == ("fail", "")


@pytest.mark.parametrize(
    ("part", "observed"),
    [
        (1, "0.000122070312"),  # 1/2^13 = 0.0001220703125: half goes to the even digit
        (3, "0.000366210938"),  # 3/2^13 = 0.0003662109375
        (8192, "1"),
    ],
)
def test_half_goes_to_the_even_digit(part: int, observed: str) -> None:
    """Rounding to 12 digits."""
    columns = [column("y", nulls=part)]
    assert judged(of("null_fraction", "y"), rows=8192, columns=columns) == ("pass", observed)


def test_the_spelling_of_a_computed_number_is_one() -> None:
    """No exponent, needless zero or minus."""
    for text, spelt in (
        ("1E+3", "1000"),
        ("-1E-13", "0"),
        ("0E-50", "0"),
        ("1E-12", "0.000000000001"),
        ("2.50", "2.5"),
    ):
        assert verifier.spell(decimal.Decimal(text)) == spelt


# Distances, by whole numbers of 10^-60.
ONE = 10**60


def ln(value: Fraction) -> int:
    """The natural logarithm: 2 artanh((x - 1) / (x + 1)), of x between 3/4 and 3/2, and so many times ln 2."""
    twos = 0
    while value > Fraction(3, 2):
        value, twos = value / 2, twos + 1
    while value < Fraction(3, 4):
        value, twos = value * 2, twos - 1

    def twice_artanh(x: Fraction) -> int:
        power, square = int(x * ONE), int(x * x * ONE)
        total, odd = 0, 1
        while power:
            total, odd = total + 2 * int(Fraction(power, odd)), odd + 2
            power = int(Fraction(power * square, ONE))  # towards zero
        return total

    return twice_artanh((value - 1) / (value + 1)) + twos * twice_artanh(Fraction(1, 3))


def spelt(value: int | Fraction) -> str:
    """A number of 10^-60 or a fraction, with 12 digits."""
    scaled = round(Fraction(value, ONE // 10**12) if isinstance(value, int) else value * 10**12)
    text = f"{scaled // 10**12}.{scaled % 10**12:012d}".rstrip("0").rstrip(".")
    return text or "0"


def test_the_logarithm_of_this_test_is_the_published_one() -> None:
    """ln 2 and ln 10, as OEIS A002162 and A002392 have them."""
    assert str(ln(Fraction(2)))[:40] == "6931471805599453094172321214581765680755"
    assert str(ln(Fraction(10)))[:40] == "2302585092994045684017991454684364207601"


@pytest.mark.parametrize("seed", range(20))
def test_distances_are_those_of_whole_numbers(seed: int) -> None:
    """PSI and KS of random counts, some of them zero and some huge, against the definition in exact numbers."""
    rng = random.Random(seed)
    count = rng.randint(2, 30)
    mine, theirs = (
        [rng.choice([0, 1, rng.randint(0, 100), rng.randint(0, 2**53 - 1)]) for _ in range(count - 1)] + [1]
        for _ in range(2)
    )
    pairs = [(Fraction(a, sum(mine)), Fraction(b, sum(theirs))) for a, b in zip(mine, theirs, strict=True)]
    least = Fraction(1, 10_000)
    psi = 0
    for one, two in pairs:
        p, q = max(one, least), max(two, least)
        psi += int((p - q) * ln(p / q))
    sums = [abs(Fraction(sum(mine[:at]), sum(mine)) - Fraction(sum(theirs[:at]), sum(theirs))) for at in range(count)]
    edges = [str(at) for at in range(count - 1)]
    binned, other = column("y", bins=(edges, mine)), column("y", bins=(edges, theirs))
    with decimal.localcontext(verifier.DECIMALS):
        assert verifier.distance("psi", binned, other) == spelt(psi)
        assert verifier.distance("ks", binned, other) == spelt(max(sums))
        assert [verifier.distance(kind, binned, binned) for kind in ("psi", "ks")] == ["0", "0"]
    values = [dict(zip("abcdefghijklmnopqrstuvwxyzABCDEF", counts, strict=False)) for counts in (mine, theirs)]
    named = [column("y", values={k: v for k, v in each.items() if v}) for each in values]
    with decimal.localcontext(verifier.DECIMALS):
        if all(mine[at] or theirs[at] for at in range(count)):
            assert verifier.distance("psi", *named) == spelt(psi)


def test_the_arithmetic_is_not_that_of_the_thread() -> None:
    """Whatever its decimal context says, and its traps."""
    with decimal.localcontext(decimal.Context(prec=2, rounding=decimal.ROUND_UP, traps=[decimal.Inexact])):
        for made, observed in PASSES.values():
            assert judged(made) == ("pass", observed)


@pytest.mark.parametrize("grave", ["", "pass", "fail", "error"])
@pytest.mark.parametrize("light", ["", "pass", "fail", "error"])
def test_a_verdict_is_the_worst_of_what_weighs(grave: str, light: str) -> None:
    """All combinations; what is no severity or outcome has none."""
    results = [("c", severity, each, "") for severity, each in (("error", grave), ("warn", light)) if each]
    warned = "warn" if light in ("fail", "error") else "pass"
    assert verifier.verdict_of(results) == (grave if grave in ("fail", "error") else warned)
    for bad in (("c", "grave", "pass", ""), ("c", "warn", "warn", "")):
        with pytest.raises(ValueError, match="no severity or outcome"):
            verifier.verdict_of([*results, bad])


def test_the_documents_of_these_tests_are_those_of_the_contract() -> None:
    """Each that a gated world rests on is one to the server, byte for byte."""
    kinds: dict[str, Any] = {
        "quality_rule": QualityRule,
        "quality_profile": QualityProfile,
        "quality_evaluation": QualityEvaluation,
        "quality_gate": QualityGate,
    }
    trees = World(quality=Quality("warn", foreign="fail", reason="r")).quality
    assert {kind_of(each) for each in trees} == kinds.keys()
    for tree in trees:
        assert document.dump(document.load(bytes_of(tree), kinds[kind_of(tree)])) == bytes_of(tree)
