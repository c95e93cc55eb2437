"""The accelerators of an environment: as a person names them, and as the NVIDIA driver lists them."""

import re
import shutil
import subprocess
from collections import Counter

from animus.domain.environment import Accelerator
from animus.domain.errors import Invalid, invalid

PROGRAM = "nvidia-smi"
ARGUMENTS = ("--query-gpu=name,driver_version", "--format=csv,noheader")
SECONDS = 20.0
NO_DEVICES = "No devices were found"


class DetectionFailed(Exception):
    """nvidia-smi is there and says nothing that can be used; the text is one line."""


def parse_accelerator(text: str) -> Accelerator:
    """The accelerator of `MODEL:COUNT:DRIVER`. Raises Invalid."""
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not re.fullmatch(r"[1-9][0-9]{0,3}", parts[1]):
        raise invalid("accelerator", f"is no MODEL:COUNT:DRIVER such as nvidia-h100-80gb:8:550.54.15: {text!r}")
    try:
        return Accelerator(parts[0], int(parts[1]), parts[2])
    except Invalid as error:
        raise invalid("accelerator", f"{error.message}: {text!r}") from None


def parse_listing(text: str) -> tuple[Accelerator, ...]:
    """The accelerators that nvidia-smi listed, one device a line, by model: `NVIDIA H100 80GB` is `nvidia-h100-80gb`.

    Raises Invalid with the line, also where devices of one model have two drivers.
    """
    counts = Counter[str]()
    drivers: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.strip() == NO_DEVICES:
            continue
        name, comma, driver = (part.strip() for part in line.rpartition(","))
        model = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        if not comma or not model or not re.fullmatch(r"[0-9]+(?:\.[0-9]+)*", driver):
            raise invalid(f"{PROGRAM} line {number}", f"names no device and driver: {line!r}")
        if drivers.setdefault(model, driver) != driver:
            raise invalid(f"{PROGRAM} line {number}", f"has {model} with the drivers {drivers[model]} and {driver}")
        counts[model] += 1
    return tuple(Accelerator(model, counts[model], drivers[model]) for model in sorted(counts))


def detect_accelerators() -> tuple[Accelerator, ...] | None:
    """The accelerators of this machine; None where the driver's program is not there.

    Takes at most 20 seconds. Raises DetectionFailed where the program fails or hangs, and Invalid as `parse_listing`.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments, and the program that the user's PATH names
            (program, *ARGUMENTS), capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise DetectionFailed(f"{PROGRAM} did not end within {SECONDS:.0f} seconds") from None
    except OSError as error:
        raise DetectionFailed(f"{PROGRAM} cannot be run: {error.strerror}") from None
    told = done.stdout.decode(errors="replace")
    if done.returncode and told.strip() != NO_DEVICES:
        said = " ".join((told + " " + done.stderr.decode(errors="replace")).split())
        raise DetectionFailed(f"{PROGRAM} ended with {done.returncode}: {said or 'it said nothing'}")
    return parse_listing(told)
