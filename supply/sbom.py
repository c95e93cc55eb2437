"""What a wheel brings with it, as CycloneDX 1.6: `python -m supply.sbom dist/*.whl` writes the list beside the wheel.

The packages are those of the lock that the base install and the extras need, on any platform. The same wheel and lock
give the same bytes: nothing in it is of the moment.
"""

import argparse
import hashlib
import tomllib
import uuid
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from supply.lock import LOCK, ROOT, Locked, read_lock

NAME = "animus-control"
MAX_NAME = 100  # characters of a licence's name; some packages have its whole text there


def direct(project: dict[str, object]) -> set[str]:
    """The packages that the base install and the extras name."""
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    base: list[str] = project["dependencies"]  # type: ignore[assignment]
    return {
        canonicalize_name(Requirement(each).name) for each in [*base, *(part for e in extras.values() for part in e)]
    }


def shipped(lock: Iterable[Locked], roots: set[str]) -> list[Locked]:
    """The packages of the lock that the roots need. Raises LookupError for a root that is not locked."""
    packages = list(lock)
    found = set(roots)
    if missing := roots - {each.name for each in packages}:
        raise LookupError(f"not in the lock: {', '.join(sorted(missing))}; run make lock")
    while new := {each.name for each in packages if each.name not in found and found & set(each.via)}:
        found |= new
    return [each for each in packages if each.name in found]


def licences(name: str) -> list[License]:
    """What a package says of its licence, where it is installed here."""
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return []
    stated = [
        *said.get_all("License-Expression", []),
        *(each.rpartition(" :: ")[2] for each in said.get_all("Classifier", []) if each.startswith("License ::")),
        *(each.strip() for each in said.get_all("License", [])),
    ]
    text = next((each for each in stated if each and len(each) <= MAX_NAME and "\n" not in each), "")
    return [LicenseFactory().make_from_string(text)] if text else []


def component(package: Locked) -> Component:
    """A package as a component. The hashes are those of its files, one of which is installed."""
    purl = PackageURL("pypi", name=package.name, version=package.version)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in package.hashes]
    return Component(
        name=package.name,
        version=package.version,
        bom_ref=str(purl),
        purl=purl,
        licenses=licences(package.name),
        properties=[Property(name="animus:marker", value=package.marker)] if package.marker else [],
        external_references=[
            ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(str(purl)), hashes=hashes)
        ],
    )


def bill(wheel: bytes, project: dict[str, object], lock: list[Locked]) -> str:
    """The list of a wheel."""
    version = str(project["version"])
    digest = hashlib.sha256(wheel).hexdigest()
    roots = direct(project)
    purl = PackageURL("pypi", name=NAME, version=version)
    own = Component(
        name=NAME,
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=str(purl),
        purl=purl,
        licenses=[LicenseFactory().make_from_string(str(project["license"]))],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )
    packages = {package: component(package) for package in shipped(lock, roots)}
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"{purl} {digest} {[*packages]}")
    bom = Bom(metadata=BomMetaData(component=own), components=packages.values(), serial_number=serial)
    bom.register_dependency(own, [part for package, part in packages.items() if package.name in roots])
    for package, part in packages.items():
        bom.register_dependency(part, [other for each, other in packages.items() if package.name in each.via])
    bom.metadata.timestamp = None  # type: ignore[assignment]
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="supply.sbom", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel: Path = parser.parse_args().wheel
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    path = wheel.with_name(f"{NAME}-{project['version']}.cdx.json")
    path.write_text(bill(wheel.read_bytes(), project, read_lock(LOCK.read_text())))
    print(f"sbom: {path}")


if __name__ == "__main__":
    main()
