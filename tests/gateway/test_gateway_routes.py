"""Which path is which RPC."""

from __future__ import annotations

import itertools
import re

import pytest
from animus_gateway.routes import Match, Route, Router, compile_routes, contract_files
from animus_gateway.status import Refusal
from gateway_harness import made_up_service
from google.api.annotations_pb2 import http
from google.api.http_pb2 import CustomHttpPattern, HttpRule

CONTRACT = Router(compile_routes(contract_files()))
DIGEST = "sha256:" + "0123456789abcdef" * 4


def matched(router: Router, method: str, path: str) -> tuple[str, dict[str, str]]:
    """The RPC's name and the fields that the path gives."""
    found = router.match(method, path)
    return found.route.rpc.name, fields_of(found)


def fields_of(match: Match) -> dict[str, str]:
    """The fields that a match gives, by JSON path."""
    return {path.json_name: value for path, value in zip(match.route.variables, match.values, strict=True)}


def refused(router: Router, method: str, path: str) -> Refusal:
    """The refusal of a path that must be refused."""
    with pytest.raises(Refusal) as caught:
        router.match(method, path)
    return caught.value


def router_of(**rules: HttpRule) -> Router:
    """A router over a made-up service with these rules."""
    return Router(compile_routes([made_up_service(rules)]))


def filled(route: Route) -> str:
    """A path of a route, each variable filled with its own name in capitals."""
    parts = [part if isinstance(part, str) else part.leaf.name.upper() for part in route.segments]
    return "/" + "/".join(parts) + (f":{route.verb}" if route.verb else "")


@pytest.mark.parametrize("route", compile_routes(contract_files()), ids=lambda route: route.rpc.full_name)
def test_every_http_rule_of_the_contract_leads_to_its_own_rpc(route: Route) -> None:
    """A path made from an RPC's template finds that RPC, with each variable's value in its field."""
    match = CONTRACT.match(route.http_method, filled(route))
    assert match.route.rpc is route.rpc
    assert match.values == tuple(path.leaf.name.upper() for path in route.variables)


def test_every_unary_rpc_of_the_contract_has_an_http_rule() -> None:
    """The routes are exactly the RPCs of the contract: none is missing, none has a path of another's."""
    rpcs = [rpc for file in contract_files() for service in file.services_by_name.values() for rpc in service.methods]
    assert len(rpcs) > 20
    assert [rpc.full_name for rpc in rpcs if not rpc.GetOptions().HasExtension(http)] == []
    assert {route.rpc.full_name for route in compile_routes(contract_files())} == {rpc.full_name for rpc in rpcs}


@pytest.mark.parametrize(
    ("method", "path", "rpc", "fields"),
    [
        ("GET", "/v1/projects", "ListProjects", {}),
        ("POST", "/v1/projects", "CreateProject", {}),
        ("GET", "/v1/projects/p", "GetProject", {"projectId": "p"}),
        ("POST", "/v1/projects/p/runs:dryRun", "DryRun", {"projectId": "p"}),
        ("POST", "/v1/projects/p/runs/r:plan", "PlanRun", {"projectId": "p", "runId": "r"}),
        ("POST", "/v1/projects/p/runs/r%3Ax:plan", "PlanRun", {"projectId": "p", "runId": "r:x"}),
        ("POST", "/v1/projects/p/runs/a:b:plan", "PlanRun", {"projectId": "p", "runId": "a:b"}),
        ("GET", "/v1/projects/p/runs/r%3Aplan", "GetRun", {"projectId": "p", "runId": "r:plan"}),
        ("GET", "/v1/projects/p/runs/r:unknown", "GetRun", {"projectId": "p", "runId": "r:unknown"}),
        ("GET", "/v1/projects/p/runs/r:", "GetRun", {"projectId": "p", "runId": "r:"}),
        ("GET", f"/v1/projects/p/environmentLocks/{DIGEST}", "GetEnvironmentLock", {"digest": DIGEST}),
        ("GET", f"/v1/projects/p/pipelineSpecs/{DIGEST}", "GetPipelineSpec", {"digest": DIGEST}),
        (
            "POST",
            "/v1/projects/p/datasets/d/versions",
            "RegisterDatasetVersion",
            {"projectId": "p", "datasetVersion.datasetId": "d"},
        ),
        ("GET", f"/v1/projects/p/datasets/d/versions/{DIGEST}", "GetDatasetVersion", {"contentDigest": DIGEST}),
        (
            "POST",
            f"/v1/projects/p/datasets/d/versions/{DIGEST}:setUris",
            "SetDatasetVersionUris",
            {"projectId": "p", "datasetId": "d", "contentDigest": DIGEST},
        ),
        (
            "POST",
            f"/v1/projects/p/datasets/d/versions/{DIGEST}:verify",
            "VerifyDatasetVersion",
            {"projectId": "p", "datasetId": "d", "contentDigest": DIGEST},
        ),
        (
            "GET",
            f"/v1/projects/p/datasets/d/versions/{DIGEST}/verifications",
            "ListDatasetVerifications",
            {"projectId": "p", "datasetId": "d", "contentDigest": DIGEST},
        ),
        ("POST", "/v1/projects/p/qualityEvaluations:evaluate", "EvaluateQuality", {"projectId": "p"}),
        ("POST", "/v1/projects/p/qualityEvaluations:recordForeign", "RecordForeignEvaluation", {"projectId": "p"}),
        ("GET", f"/v1/projects/p/qualityRules/{DIGEST}", "GetQualityRule", {"digest": DIGEST}),
        (
            "GET",
            f"/v1/projects/p/datasets/d/versions/{DIGEST}/qualityProfiles",
            "ListQualityProfiles",
            {"projectId": "p", "datasetId": "d", "contentDigest": DIGEST},
        ),
        (
            "GET",
            f"/v1/projects/p/datasets/d/versions/{DIGEST}/qualityEvaluations",
            "ListQualityEvaluations",
            {"projectId": "p", "datasetId": "d", "contentDigest": DIGEST},
        ),
    ],
)
def test_a_path_finds_its_rpc_and_fields(method: str, path: str, rpc: str, fields: dict[str, str]) -> None:
    """Variables take one segment; a known verb splits off; any other colon belongs to the variable."""
    name, found = matched(CONTRACT, method, path)
    assert name == rpc
    assert fields.items() <= found.items()


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("%2e%2e", ".."),
        ("..", ".."),
        ("a%252Fb", "a%2Fb"),
        ("a+b", "a+b"),
        ("a%20b", "a b"),
        ("a;b=c", "a;b=c"),
        ("%C3%A9", "é"),
        ("a%00b", "a\0b"),
        ("a%3Fb%23c", "a?b#c"),
        ("a%5Cb", "a\\b"),
    ],
)
def test_a_segment_is_decoded_once_and_after_splitting(sent: str, value: str) -> None:
    """An encoded slash, dot, percent sign or NUL is data of its variable, never structure."""
    assert matched(CONTRACT, "GET", f"/v1/projects/{sent}") == ("GetProject", {"projectId": value})


@pytest.mark.parametrize("path", ["/v1/projects/%", "/v1/projects/%4", "/v1/projects/%zz", "/v1/projects/%ff", "/%c3"])
def test_a_broken_escape_is_a_bad_request(path: str) -> None:
    """A percent escape that is broken, or not UTF-8, is refused and not repaired."""
    assert refused(CONTRACT, "GET", path).http_status == 400


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "*",
        "v1/projects",
        "/v1",
        "/v1/",
        "/V1/projects",
        "/v1/projects/",
        "/v1//projects",
        "//v1/projects",
        "/v1/projects//runs",
        "/v1/projects/p/runs/",
        "/v1/projects/p/runs/r/",
        "/v1/projects/p/runs/r/unknown",
        "/v1/projects:unknown",
        "/v1%2Fprojects",
        "/v1/projects%2Fp/runs",
        "/v1/projects/p/../../projects",
        "/v2/projects",
    ],
)
def test_a_path_of_no_rpc_is_not_found(path: str) -> None:
    """Empty segments, other spellings, encoded slashes and dot segments never lead to an RPC."""
    error = refused(CONTRACT, "GET", path)
    assert (error.http_status, error.status.code) == (404, 5)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/projects", "GET, POST"),
        ("HEAD", "/v1/projects/p", "GET"),
        ("OPTIONS", "/v1/projects/p/runs", "GET, POST"),
        ("GET", "/v1/projects/p/runs:dryRun", "POST"),
        ("GET", "/v1/projects/p/runs/r:plan", "POST"),
        ("PATCH", "/v1/projects/p/runs/r:cancel", "POST"),
        ("get", "/v1/projects", "GET, POST"),
    ],
)
def test_another_method_on_a_known_path_is_answered_with_allow(method: str, path: str, allow: str) -> None:
    """405 names every method that the path takes; a verb's path takes only the verb's."""
    error = refused(CONTRACT, method, path)
    assert (error.http_status, error.headers["Allow"]) == (405, allow)


def test_all_small_paths_match_as_the_rules_say() -> None:
    """Over every set of up to two templates of two segments and every small path, matching equals a second reading."""
    segments = ["a", "b", "{text}"]
    templates = [
        f"/{first}/{second}{verb}"
        for first, second, verb in itertools.product(segments, segments, ["", ":v"])
        if (first, second) != ("{text}", "{text}")
    ]
    parts = ["a", "b", "c", "", "%61", "a:v", "c:v", "c:w", ":v", "c:w:v"]
    paths = [f"/{first}/{second}" for first, second in itertools.product(parts, parts)]
    compared = 0
    for pair in itertools.combinations(templates, 2):
        router = router_of(**{f"Get{number}": HttpRule(get=template) for number, template in enumerate(pair)})
        for path in paths:
            try:
                found: str | None = matched(router, "GET", path)[0]
            except Refusal:
                found = None
            assert found == second_reading(pair, path), (pair, path)
            compared += 1
    assert compared == 120 * 100


def second_reading(templates: tuple[str, ...], path: str) -> str | None:
    """The method that a path finds, by regular expressions made from the templates."""
    path = path.replace("%61", "a")
    candidates = []
    for number, template in enumerate(templates):
        stem, _, verb = template.partition(":")
        pattern = stem.replace("{text}", "[^/]+") + (f":{verb}" if verb else "")
        if re.fullmatch(pattern, path):
            literals_first = [segment.startswith("{") for segment in stem.split("/")]
            candidates.append((not verb, literals_first, f"Get{number}"))
    return min(candidates)[2] if candidates else None


def test_a_literal_wins_over_a_variable_but_only_where_it_has_the_method() -> None:
    """Of two templates that take a path the one with the earlier literal answers, if it takes the method."""
    router = router_of(
        Any=HttpRule(get="/things/{text}"),
        Special=HttpRule(get="/things/special"),
        Drop=HttpRule(delete="/things/{text}"),
    )
    assert matched(router, "GET", "/things/special") == ("Special", {})
    assert matched(router, "GET", "/things/other") == ("Any", {"text": "other"})
    assert matched(router, "DELETE", "/things/special") == ("Drop", {"text": "special"})
    assert refused(router, "PUT", "/things/special").headers["Allow"] == "DELETE, GET"


def test_additional_bindings_are_routes_of_the_same_rpc() -> None:
    """Each binding has its own path, method, variables and body."""
    rule = HttpRule(get="/things/{text}")
    rule.additional_bindings.add(post="/parents/{other_text}/things/{text}:read", body="*")
    router = router_of(Read=rule)
    assert matched(router, "GET", "/things/t") == ("Read", {"text": "t"})
    assert matched(router, "POST", "/parents/o/things/t:read") == ("Read", {"otherText": "o", "text": "t"})
    assert refused(router, "POST", "/things/t").http_status == 405


@pytest.mark.parametrize(
    "rule",
    [
        HttpRule(get="things"),
        HttpRule(get="/things/"),
        HttpRule(get="/things//{text}"),
        HttpRule(get="/things/*"),
        HttpRule(get="/things/**"),
        HttpRule(get="/{text=things/*}"),
        HttpRule(get="/things/{text}x"),
        HttpRule(get="/things/{text}:"),
        HttpRule(get="/things/{text"),
        HttpRule(get="/things/{}"),
        HttpRule(get="/things/{unknown}"),
        HttpRule(get="/things/{child.unknown}"),
        HttpRule(get="/things/{text.child}"),
        HttpRule(get="/things/{child}"),
        HttpRule(get="/things/{words}"),
        HttpRule(get="/things/{children.text}"),
        HttpRule(get="/things/{text}/{text}"),
        HttpRule(get="/things", body="*"),
        HttpRule(post="/things", body="unknown"),
        HttpRule(post="/things", body="text"),
        HttpRule(post="/things", body="children"),
        HttpRule(post="/things", body="child.child"),
        HttpRule(post="/things/{child.text}", body="child"),
        HttpRule(get="/things", response_body="child"),
        HttpRule(custom=CustomHttpPattern(kind="HEAD", path="/things")),
        HttpRule(),
    ],
    ids=str,
)
def test_a_rule_that_cannot_be_served_is_refused_at_start_up(rule: HttpRule) -> None:
    """A template outside the grammar or a field that cannot be bound stops the gateway, with the RPC's name."""
    with pytest.raises(ValueError, match=r"MadeUpService\.Bad|has no field"):
        router_of(Bad=rule)


def test_two_rules_that_take_the_same_requests_are_refused_at_start_up() -> None:
    """Templates that differ only in the names of their variables are the same path."""
    with pytest.raises(ValueError, match="takes the same requests as"):
        router_of(One=HttpRule(get="/things/{text}"), Two=HttpRule(get="/things/{other_text}"))
