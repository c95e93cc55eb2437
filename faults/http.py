"""Requests made from the OpenAPI description, to every operation: `python -m faults.http --examples 50`.

With an administrator's token each answer is what the description says, and none is a defect; without a token none but
the description and health is a success. Half of the requests are as described, half are not; most name what is there.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import schemathesis
from google.protobuf.json_format import MessageToDict
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from faults.command import Figures, run
from faults.corpus import EVENT, PROJECT, Corpus, Learned
from faults.fuzz import TRACE, Fuzzer
from faults.stack import Stack, Violation, open_stack

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SECONDS = 10.0
ENDLESS = "AuditService_TailAuditEntries"  # its answer goes on until the client leaves
ENDLESS_SECONDS = 0.3
PUBLIC = ("/openapi.json", "/healthz", "/readyz")


@dataclass(slots=True)
class Record:
    """What came of the requests."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)  # by operation
    refused: Counter[int] = field(default_factory=Counter)  # statuses without a token
    findings: dict[tuple[str, str], str] = field(default_factory=dict)  # the first of each operation and kind

    def note(self, operation: str, what: str, example: str) -> None:
        """Keeps a finding."""
        self.findings.setdefault((operation, what), example[:1_000])


def explore(base: str, token: str, corpus: Corpus, learned: Learned, examples: int, number: int) -> Record:
    """Sends so many requests to every operation, with the token and without."""
    known = {rpc.name: MessageToDict(message) for rpc, message in corpus}
    record = Record()
    document = requests.get(f"{base}/openapi.json", timeout=SECONDS).json()
    config = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False}})
    schema = schemathesis.openapi.from_dict(without_dots(document), config=config)
    for place, found in enumerate(schema.get_all_operations()):
        if not isinstance(found, Ok):
            raise Violation(f"the description of an operation is not taken: {found.err()}")
        operation = found.ok()
        name = str(operation.definition.raw["operationId"])
        request = known[name.split("_")[1]]
        path = {
            each.name: value for each in operation.path_parameters if (value := _known(each.name, request, learned))
        }
        query = {each.name: request[each.name] for each in operation.query if each.name in request}
        choices: list[dict[str, Any]] = [{}, {"path_parameters": path}, {"path_parameters": path, "query": query}]
        if operation.body:
            body = EVENT if name.startswith("LineageService_Record") else request  # the event stands there as it is
            choices[1:] = [
                {"path_parameters": path, "body": body},
                {"path_parameters": path, "query": query, "body": body},
            ]
        strategies = [
            operation.as_strategy(generation_mode=mode, **choice)
            for choice in choices
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        ]
        _explore(name, st.one_of(*strategies), base, token, examples, number + place, record)
    return record


def without_dots(document: dict[str, Any]) -> dict[str, Any]:
    """The same description with plain names of path parameters: schemathesis takes a dot for an attribute."""
    paths = {}
    for path, item in document["paths"].items():
        plain = re.sub(r"\{[^}]*\}", lambda found: found[0].replace(".", "_"), path)
        for operation in item.values():
            for parameter in operation["parameters"]:
                if parameter["in"] == "path":
                    parameter["name"] = parameter["name"].replace(".", "_")
        paths[plain] = item
    return {**document, "paths": paths}


def _explore(
    name: str, cases: st.SearchStrategy[Any], base: str, token: str, examples: int, number: int, record: Record
) -> None:
    statuses = record.statuses.setdefault(name, Counter())
    session = requests.Session()
    session.trust_env = False

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ask(case: Any) -> None:
        for headers in ({"Authorization": f"Bearer {token}"}, {}):
            try:
                response = case.call(
                    base_url=base,
                    session=session,
                    headers=headers,
                    timeout=ENDLESS_SECONDS if name == ENDLESS and headers else SECONDS,
                )
            except requests.Timeout:
                if name != ENDLESS or not headers:
                    record.note(name, "no answer in time", case.as_curl_command())
                continue
            except requests.ConnectionError as error:
                if name == ENDLESS and headers and "timed out" in str(error):
                    continue  # between two lines of its answer
                record.note(name, f"no answer: {type(error).__name__}", case.as_curl_command())
                continue
            _judge(name, case, response, record, with_token=bool(headers))
            (statuses if headers else record.refused)[response.status_code] += 1

    ask()


def _judge(name: str, case: Any, response: Any, record: Record, *, with_token: bool) -> None:
    text = response.content.decode("utf-8", "replace")
    if TRACE.search(text) and not response.headers.get("content-type", [""])[0].startswith("application/octet-stream"):
        record.note(name, "the program's own words", text)
    if not with_token:
        if response.status_code < 400 or response.status_code >= 500:
            record.note(name, f"{response.status_code} without a token", case.as_curl_command())
        return
    try:
        case.validate_response(response, checks=CHECKS)
    except FailureGroup as group:
        for failure in group.exceptions:
            record.note(
                name, str(getattr(failure, "title", failure)), f"{failure} {text[:300]} {case.as_curl_command()}"
            )
    except Failure as failure:
        record.note(name, failure.title, f"{failure} {text[:300]} {case.as_curl_command()}")


def _known(parameter: str, request: dict[str, Any], learned: Learned) -> Any:
    """What a request that was taken has for a parameter of a path, or else what the instance has."""
    name = parameter.rpartition("_")[2]
    return PROJECT if name == "projectId" else request.get(name) or next(iter(learned.get(name, [])), "")


def open_to_all(base: str) -> list[str]:
    """What is wrong with what needs no token."""
    found = []
    for path in PUBLIC:
        status = requests.get(f"{base}{path}", timeout=SECONDS).status_code
        if status not in (200, 404):
            found.append(f"GET {path} answers {status}")
    return found


async def fuzz_http(stack: Stack, examples: int, number: int) -> Figures:
    """Explores the gateway of the stack's first server."""
    server = stack.servers[0]
    base = json.loads((server.folder / "server.json").read_text())["http"]
    fuzzer = Fuzzer(server.address, stack.metadata)
    try:
        await fuzzer.prepare()
    finally:
        await fuzzer.close()
    token = stack.metadata[0][1].removeprefix("Bearer ")
    began = time.monotonic()
    record = await asyncio.to_thread(explore, base, token, fuzzer.corpus, fuzzer.learned, examples, number)
    seconds = time.monotonic() - began
    await stack.wait_up()
    for name, counts in sorted(record.statuses.items()):
        print(f"{name:50} {' '.join(f'{status}:{count}' for status, count in sorted(counts.items()))}", file=sys.stderr)
    total: Counter[int] = sum(record.statuses.values(), Counter())
    answers = sum(total.values()) + sum(record.refused.values())
    return {
        "operations": len(record.statuses),
        "answers": answers,
        "per_second": round(answers / seconds),
        "statuses": dict(sorted(total.items())),
        "statuses_without_token": dict(sorted(record.refused.items())),
        "violations": [
            *(f"{name}: {what}: {example}" for (name, what), example in record.findings.items()),
            *await asyncio.to_thread(open_to_all, base),
            *stack.problems(),
        ],
    }


def summary(figures: Figures) -> str:
    """One line."""
    return f"{figures['answers']:,} answers of {figures['operations']} operations: {figures['statuses']}"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="faults.http", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()

    async def work(folder: Path) -> Figures:
        settings = {"ANIMUS_GATEWAY": "true", "ANIMUS_GATEWAY_PORT": "0"}
        async with open_stack(folder, 1, settings) as stack:
            return await fuzz_http(stack, options.examples, options.seed)

    sys.exit(run("faults.http", work, summary, options.seed, 120 + 20 * options.examples))


if __name__ == "__main__":
    main()
