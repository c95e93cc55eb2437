"""What is made of one fixed run, and must be made of it for ever.

PYTHONPATH=src:tests python tests/golden/evidence.py   writes the files that `evidence/` lacks; changes none
"""

import sys
from pathlib import Path

from domain.runs import fixed_run

from animus.domain import attestation, document, openlineage, prov
from animus.domain.evidence import summarize
from animus.signing import SigningKey

FOLDER = Path(__file__).parent / "evidence"
KEYS = [SigningKey("animus.example/lab", bytes([number]) * 32) for number in (1, 2)]


def expected() -> dict[str, bytes]:
    """The files by name."""
    run, gated = fixed_run(), fixed_run(gated=True)
    provenance = attestation.provenance_statement(run)
    assert provenance is not None
    signed = attestation.pae(attestation.PAYLOAD_TYPE, provenance)
    return {
        "admission.json": attestation.admission_statement(run),
        "gated-admission.json": attestation.admission_statement(gated),
        "gated-prov.json": prov.document(gated),
        "gated-run.json": document.dump(gated.run),
        "openlineage.ndjson": b"".join(event + b"\n" for event in openlineage.events(run)),
        "prov.json": prov.document(run),
        "provenance.dsse.json": attestation.envelope(provenance, [(key.public_key, key.sign(signed)) for key in KEYS]),
        "provenance.json": provenance,
        "summary.json": document.dump(summarize(run)),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in expected().items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(content)
            sys.stdout.write(f"wrote evidence/{name}\n")
