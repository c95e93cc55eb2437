"""The page of roles is what the access table says."""

import pytest
from contract import RPCS
from golden.roles import PAGE, page

from animus.domain.access import METHODS, PUBLIC


def test_the_page_is_generated_from_the_table() -> None:
    """Byte by byte, with every method on it."""
    assert PAGE.read_text(encoding="utf-8") == page(), "run make docs-roles"
    assert all(f"| {rpc.name} " in page() for rpc in RPCS)


def test_a_change_of_the_table_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right, a scope or a method more, and the page that is committed is not what is generated."""
    before = page()
    monkeypatch.setitem(METHODS, "animus.v1.RunService/GetRun", METHODS["animus.v1.RunService/CreateRun"])
    changed = page()
    monkeypatch.setitem(METHODS, "grpc.test.Planted/Call", PUBLIC)
    assert len({before, changed, page()}) == 3
