"""What the tests of the verifier share: the worlds that bundles are of, and one way to verify."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest

import animus_verify
from verify import bundles
from verify.bundles import Files, World

Verify = Callable[..., tuple[int, str]]


def verified(path: Path, *options: str) -> tuple[int, str]:
    """Exit code and text of the verifier; a defect of it is raised."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = animus_verify.main([str(path), "--trust", bundles.TRUST, "--debug", *options])
    return code, text.getvalue()


@pytest.fixture(scope="session")
def world() -> World:
    """A log with a run that succeeded."""
    return World()


@pytest.fixture
def verify(tmp_path: Path) -> Verify:
    """Verifies a bundle of files, or of the bytes of a ZIP."""

    def check(bundle: Files | bytes, *options: str) -> tuple[int, str]:
        path = tmp_path / "bundle.zip"
        path.write_bytes(bundle if isinstance(bundle, bytes) else bundles.zipped(bundle))
        return verified(path, *options)

    return check
