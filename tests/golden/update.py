"""Writes what is missing of the golden files; never overwrites. README.md here says when to use it.

python tests/golden/update.py          writes `digests` and `plan.json` where a folder lacks them
python tests/golden/update.py --show   prints the digests of every folder and writes nothing
"""

import sys
from pathlib import Path

from animus.domain import document
from animus.domain.pipeline import load_pipeline_spec
from animus.domain.plan import make_plan
from animus.domain.run import check_bindings, load_run_spec

HERE = Path(__file__).parent


class Differs(Exception):
    """A golden file has other bytes than those computed now."""


def folders() -> list[Path]:
    """Every case."""
    return sorted(path.parent for path in HERE.glob("*/pipeline.yaml"))


def expected(folder: Path) -> dict[str, bytes]:
    """The files that follow from a case's two specs, by name."""
    pipeline = load_pipeline_spec((folder / "pipeline.yaml").read_bytes())
    pipeline_digest = document.digest(document.dump(pipeline))
    run_spec = load_run_spec((folder / "run.yaml").read_bytes())
    check_bindings(run_spec, pipeline, [binding.dataset_ref for binding in run_spec.datasets])
    if run_spec.pipeline_spec_digest != pipeline_digest:
        raise Differs(f"{folder.name}/run.yaml names another pipeline spec than {pipeline_digest}")
    run_digest = document.digest(document.dump(run_spec))
    plan = document.dump(make_plan(run_digest, pipeline_digest, pipeline))
    digests = {"pipeline spec": pipeline_digest, "run spec": run_digest, "plan": document.digest(plan)}
    lines = "".join(f"{name}  {digest}\n" for name, digest in digests.items())
    return {"digests": lines.encode(), "plan.json": plan}


def write(folder: Path) -> list[str]:
    """Writes the files that a case lacks and names them. Raises Differs, writing nothing, where one has other bytes."""
    files = expected(folder)
    for name, content in files.items():
        if (folder / name).exists() and (folder / name).read_bytes() != content:
            raise Differs(f"{folder.name}/{name} has other bytes than those computed now; it was left as it is")
    missing = [name for name in files if not (folder / name).exists()]
    for name in missing:
        (folder / name).write_bytes(files[name])
    return missing


def shown() -> str:
    """The digests of every case."""
    return "".join(f"{folder.name}\n{expected(folder)['digests'].decode()}" for folder in folders())


if __name__ == "__main__":
    if sys.argv[1:] == ["--show"]:
        sys.stdout.write(shown())
    else:
        for case in folders():
            for written in write(case):
                sys.stdout.write(f"wrote {case.name}/{written}\n")
