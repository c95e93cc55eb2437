"""The page of roles, as the access table says: `PYTHONPATH=src python tests/golden/roles.py` writes docs/roles.md."""

from itertools import groupby
from pathlib import Path

from animus.domain.access import METHODS, Role, Rule, Scope

PAGE = Path(__file__).parents[2] / "docs" / "roles.md"
HEAD = """# Roles

Who may call which method. This page is generated from the one table that the server goes by
([`domain/access.py`](../src/animus/domain/access.py)): `make docs-roles` writes it. `make role-matrix` calls every
method with every role, where it belongs and where it does not, and prints what came of it.

- A role holds in one project; **instance-admin** and **instance-auditor** are granted in the project `system` and hold
  in all.
- In a project where a caller has no role, every method answers `NOT_FOUND` `PROJECT_UNKNOWN`, as for a project that is
  not there. Where it has roles and none of those named here, the answer is `PERMISSION_DENIED` `ROLE_MISSING`. Both are
  in the audit log of the caller's own project.
- **run token**: whether a token of one run may call it. Where the request names a run, it has to be that run; another
  is `RUN_UNKNOWN`.
- ● may call it. Where it says **anyone**, any credential that is good will do, without a role too; where it says
  **anywhere**, a role in any project, and the answer is of what the caller sees; where it says **instance**, the role
  has to be one of the project `system`; elsewhere it has to be one in the project of the request.
"""
PUBLIC_HEAD = """
## Without a credential

Reflection is served only where `ANIMUS_REFLECTION` is on.

"""


def page() -> str:
    """docs/roles.md."""
    parts = [HEAD]
    ours = [(name, rule) for name, rule in METHODS.items() if rule.roles]
    for service, rows in groupby(ours, lambda row: row[0].partition("/")[0]):
        parts += [f"\n## {service.removeprefix('animus.v1.')}\n\n", _line("method", *map(_title, Role), "run token")]
        parts.append(_line("---", *[":-:"] * (len(Role) + 1)))
        parts += [_row(name.partition("/")[2], rule) for name, rule in rows]
    parts.append(PUBLIC_HEAD)
    parts += [f"- `{name}`\n" for name, rule in METHODS.items() if not rule.roles]
    return "".join(parts)


def _row(method: str, rule: Rule) -> str:
    where = "" if rule.scope is Scope.PROJECT else f" ({rule.scope})"
    return _line(f"{method}{where}", *(_mark(role in rule.roles) for role in Role), _mark(rule.run_token))


def _title(role: Role) -> str:
    return role.replace("_", "-")


def _mark(may: bool) -> str:
    return "●" if may else ""


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
