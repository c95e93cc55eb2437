"""The demo's steps: equal inputs give equal bytes, bad tables are refused, and the model is better than chance."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SHIPPED = importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/breast_cancer.csv")
ROWS = Path(str(SHIPPED)).read_text().splitlines()[1:]
TABLE = "\n".join([",".join([*(f"feature {number}" for number in range(30)), "benign"]), *ROWS]) + "\n"
STEPS = ("validate", "split", "train", "evaluate")


def run_step(folder: Path, step: str, hash_seed: str = "0") -> "subprocess.CompletedProcess[str]":
    """Runs a step where its inputs are; what it writes becomes an input of the next."""
    (folder / "outputs").mkdir(exist_ok=True)
    environment = {"PYTHONPATH": str(CHECKOUT), "PYTHONHASHSEED": hash_seed, "SOURCE_PASSWORD": "x"}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, "-s", "-m", f"demo.pipeline.{step}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    for output in (folder / "outputs").iterdir():
        shutil.copyfile(output, folder / "inputs" / output.name)
    return done


def workspace(folder: Path, table: str, **parameters: str) -> Path:
    """A folder with the dataset and the parameters."""
    (folder / "inputs" / "measurements").mkdir(parents=True)
    (folder / "inputs" / "measurements" / "tumours.csv").write_text(table)
    base = {"seed": "7", "test_fraction": "0.25", "controls": "19", "inverse_regularisation": "1"}
    (folder / "parameters.json").write_text(json.dumps(base | parameters))
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    """What the steps wrote, by name."""
    return {path.name: path.read_bytes() for path in (folder / "outputs").iterdir()}


def test_two_executions_write_the_same_bytes_and_beat_chance(tmp_path: Path) -> None:
    """Neither the order of the rows nor the hash seed changes a byte, and the metrics show that it learnt something."""
    header, *rows = TABLE.splitlines()
    one = workspace(tmp_path / "one", TABLE)
    other = workspace(tmp_path / "other", "\n".join([header, *reversed(rows)]) + "\n")
    for step in STEPS:
        for folder, hash_seed in ((one, "0"), (other, "1")):
            done = run_step(folder, step, hash_seed)
            assert done.returncode == 0, done.stderr
    assert outputs(one) == outputs(other)
    assert set(outputs(one)) == {"report", "train", "test", "model", "controls", "evaluation"}
    metrics = {name: float(value) for name, value in json.loads((one / "metrics.json").read_text()).items()}
    assert metrics["accuracy"] > metrics["control_accuracy_max"] > metrics["baseline_accuracy"]
    assert metrics["permutation_p"] == 1 / 20
    assert metrics["log_loss"] < metrics["baseline_log_loss"] / 3


def test_another_seed_is_another_split(tmp_path: Path) -> None:
    """The parameter reaches the step: what is held out depends on it, and nothing is in both parts."""
    one, other = (workspace(tmp_path / seed, TABLE, seed=seed) for seed in ("7", "8"))
    for folder in (one, other):
        assert run_step(folder, "split").returncode == 0
    assert outputs(one)["test"] != outputs(other)["test"]
    held_out, trained = (set(outputs(one)[name].splitlines()) for name in ("test", "train"))
    assert held_out | trained == set(TABLE.encode().splitlines()[1:])
    assert not held_out & trained


@pytest.mark.parametrize(
    ("mangle", "said"),
    [
        (lambda table: table.replace("17.99", "nan", 1), "line 2: a value that is no measurement"),
        (lambda table: table.replace("17.99,", "", 1), "line 2: 30 values instead of 31"),
        (lambda table: table.replace("0.1189,0", "0.1189,2", 1), "line 2: the class is '2'"),
        (lambda table: table + table.splitlines()[1] + "\n", "1 rows stand more than once"),
        (lambda table: "a,b\n" + table, "the last column is not 'benign'"),
    ],
)
def test_validation_refuses_a_table_that_is_not_as_it_should_be(tmp_path: Path, mangle: object, said: str) -> None:
    """Each kind of damage is named with its line, and no report is written."""
    assert callable(mangle)
    folder = workspace(tmp_path / "here", mangle(TABLE))
    done = run_step(folder, "validate")
    assert done.returncode == 1
    assert said in done.stderr
    assert not outputs(folder)


def test_numbers_have_one_spelling() -> None:
    """Nine significant digits, no exponent, no needless zero, no negative zero; what is no number is refused."""
    code = "from demo.pipeline.files import decimal; print(*map(decimal, eval(input())))"

    def spell(numbers: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, input=numbers, capture_output=True, text=True)

    spelled = spell("(0.1 + 0.2, -0.0, 1e-12, 1.5e12, 100, -2 / 3)").stdout.split()
    assert spelled == ["0.3", "0", "0.000000000001", "1500000000000", "100", "-0.666666667"]
    assert "ValueError: nan is no number" in spell("[float('nan')]").stderr
