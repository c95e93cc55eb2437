"""Accelerators: as a person names them, and as the driver's program lists them."""

import os
from pathlib import Path

import pytest
from domain.values import refusal

from animus.domain.environment import Accelerator
from animus.sdk import accelerators
from animus.sdk.accelerators import (
    ARGUMENTS,
    PROGRAM,
    DetectionFailed,
    detect_accelerators,
    parse_accelerator,
    parse_listing,
)


def program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a shell script the program of the driver, and the only folder of PATH the script's beside the system's."""
    folder.mkdir(exist_ok=True)
    path = folder / PROGRAM
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.defpath}")


def test_a_person_names_model_count_and_driver() -> None:
    """A model may hold colons, the other two may not."""
    assert parse_accelerator("nvidia-h100-80gb:8:550.54.15") == Accelerator("nvidia-h100-80gb", 8, "550.54.15")
    assert parse_accelerator("a:b:1:2") == Accelerator("a:b", 1, "2")


@pytest.mark.parametrize(
    "text", ["", "a", "a:1", "a:x:1", "a:0:1", "a:-1:1", "a:01:1", "a:1.5:1", ":1:1", "a:1:", "a:1025:1"]
)
def test_what_names_no_accelerator_is_refused(text: str) -> None:
    """The text at fault is told."""
    violation = refusal(parse_accelerator, text)
    assert violation.field == "accelerator"
    assert repr(text) in violation.description


def test_devices_of_one_model_are_counted() -> None:
    """One line is one device; models are spelled as the contract does, in any order of lines."""
    lines = ["NVIDIA H100 80GB HBM3, 550.54.15"] * 2 + ["Tesla T4, 550.54.15"]
    expected = (Accelerator("nvidia-h100-80gb-hbm3", 2, "550.54.15"), Accelerator("tesla-t4", 1, "550.54.15"))
    assert parse_listing("\n".join(lines) + "\n") == parse_listing("\r\n".join(lines[::-1])) == expected
    assert parse_listing("No devices were found\n") == parse_listing("") == ()


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("Tesla T4, 1.2\nTesla T4\n", 2, "names no device"),
        ("Tesla T4, [N/A]\n", 1, "names no device"),
        (", 1.2\n", 1, "names no device"),
        ("Tesla T4, 1.2\nTesla T4, 1.3\n", 2, "1.2 and 1.3"),
    ],
)
def test_a_listing_that_cannot_be_used_is_refused_by_line(text: str, line: int, said: str) -> None:
    """Nothing is guessed from half of a line."""
    violation = refusal(parse_listing, text)
    assert violation.field == f"{PROGRAM} line {line}"
    assert said in violation.description


def test_the_program_is_asked_with_fixed_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it prints for exactly these arguments is read."""
    asked = f'[ "$*" = "{" ".join(ARGUMENTS)}" ] || exit 9'
    program(tmp_path, f"{asked}\necho 'Tesla T4, 550.54.15'", monkeypatch)
    assert detect_accelerators() == (Accelerator("tesla-t4", 1, "550.54.15"),)


def test_without_the_program_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None says that nobody could be asked; no device is another answer."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_accelerators() is None
    program(tmp_path, "echo No devices were found; exit 6", monkeypatch)
    assert detect_accelerators() == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo no driver >&2; exit 9", "ended with 9: no driver"),
        ("exit 3", "ended with 3: it said nothing"),
        ("exec sleep 60", "did not end within 0 seconds"),
    ],
)
def test_a_program_that_fails_or_hangs_is_told(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error, and never taken for no accelerator."""
    program(tmp_path, text, monkeypatch)
    if "sleep" in text:
        monkeypatch.setattr(accelerators, "SECONDS", 0.2)
    with pytest.raises(DetectionFailed, match=said):
        detect_accelerators()


def test_a_program_that_cannot_be_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one for another machine."""
    program(tmp_path, "", monkeypatch)
    (tmp_path / PROGRAM).write_bytes(b"\x7fELF")
    with pytest.raises(DetectionFailed, match="cannot be run"):
        detect_accelerators()
