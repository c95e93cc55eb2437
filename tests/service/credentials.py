"""Credentials of every kind, good and bad, put on the record as no caller could: with expiries that are past."""

import json
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty

from animus.codec import sha256
from animus.domain.access import Role, RunToken, Token, TokenRevocation, principal_of
from animus.domain.document import seal
from animus.store.unit_of_work import Call, Change, UnitOfWork, View
from service.conftest import Server
from service.signers import Signer, issuer, jwks


def new_token(project_id: str) -> str:
    """The text of a token."""
    return f"animus_{project_id}_{secrets.token_urlsafe(32)}"


def digest(token: str) -> str:
    """What is registered of it."""
    return sha256(token.encode())


def after(hours: float) -> str:
    """A time from now, as documents have it."""
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def write(server: Server, project_id: str, *values: object) -> None:
    """Writes records in one change, with what services refuse among them."""
    log = server.running.log
    work = UnitOfWork(server.running.engine, lambda: secrets.token_hex(16), log.keyring.seal, log.check_sound)
    principal = principal_of("tester", Role.ADMIN, project_id)
    call = Call("animus.v1.AccessService/Test", project_id, principal, secrets.token_hex(8), False, b"{}")

    async def decide(view: View) -> Change:
        return Change("token.create", f"projects/{project_id}", tuple(map(seal, values)), (), Empty())

    await work.change(call, decide)


async def registered(server: Server, project_id: str, roles: Sequence[Role], hours: float = 1) -> dict[Role, str]:
    """A token of each role."""
    tokens = {role: new_token(project_id) for role in roles}
    await write(
        server,
        project_id,
        *(Token(digest(token), role.replace("_", "-"), role, after(hours)) for role, token in tokens.items()),
    )
    return tokens


async def revoked(server: Server, project_id: str, roles: Sequence[Role]) -> dict[Role, str]:
    """A token of each role that was revoked."""
    tokens = await registered(server, project_id, roles)
    await write(server, project_id, *(TokenRevocation(digest(token), "test") for token in tokens.values()))
    return tokens


async def of_run(server: Server, project_id: str, run_id: str, hours: float = 1) -> str:
    """A token of one run."""
    token = new_token(project_id)
    await write(server, project_id, RunToken(digest(token), run_id, "runtime", project_id, after(hours)))
    return token


SIGNER = Signer.new("matrix", "P-256")


def issuers_file(folder: Path) -> Path:
    """The file of an issuer whose tokens are signed by SIGNER."""
    keys, known = folder / "keys.json", folder / "issuers.json"
    keys.write_bytes(jwks(SIGNER))
    known.write_text(json.dumps([issuer(jwksFile=str(keys))]))
    return known


def jwt(subject: str, algorithm: str = "ES256", **changed: Any) -> str:
    """A JSON Web Token of that issuer that is good for five minutes, unless something is changed."""
    now = int(time.time())
    claims = {"iss": issuer()["issuer"], "aud": "animus", "sub": subject, "exp": now + 300, **changed}
    token = SIGNER.token("ES256", claims, alg=algorithm)
    return token if algorithm == "ES256" else token.rpartition(".")[0] + "."
