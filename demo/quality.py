"""What the demo shows of quality: two rules on its dataset, their verdicts, and a gate that asks for them."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from animus.domain.dataset import DatasetVersion
from animus.domain.quality import QualityRule, load_rule
from animus.domain.run import RunSpec
from animus.sdk.hashing import Content
from animus.sdk.profile import profile
from animus.v1 import quality_pb2, run_pb2
from demo.changes import Changes, request_of
from demo.runner import REQUEST_PREFIX
from demo.stack import RefusedError
from demo.state import CHECKOUT, DemoError
from demo.telling import PROJECT, as_json, expect, say, short, word

BASE = f"/v1/projects/{PROJECT}"
PIPELINE = "breast-cancer-classifier"
REASON = "The demo shows an override: for this model the classes need not be balanced."


@dataclass(frozen=True, slots=True)
class Rule:
    """A registered rule."""

    rule_id: str
    digest: str


class Quality:
    """The dataset's quality, from its profile to a run that is let in against a gate."""

    def __init__(self, changes: Changes, version: DatasetVersion, data: Path) -> None:
        self.changes = changes
        self.version = version
        self.data = data
        self.complete: Rule
        self.balanced: Rule

    def judge(self) -> None:
        """Registers two rules and what the data measures, and has each evaluated: one passes, one fails."""
        say("==> quality")
        complete, balanced = (
            load_rule((CHECKOUT / "demo" / "rules" / name).read_bytes()) for name in ("complete.yaml", "balanced.yaml")
        )
        content = Content(self.version.content_digest, self.version.size_bytes, self.version.files)
        measured = profile(self.data, self.version.dataset_id, content, [complete, balanced], [], {})
        registered = self.changes.register_as(
            "profile",
            f"{BASE}/qualityProfiles",
            {"qualityProfile": as_json(measured, quality_pb2.QualityProfile())},
        )
        digest = registered["record"]["digest"]
        say(f"    profile           {digest}  {measured.row_count} rows, {len(measured.columns)} columns")
        self.complete = self.register(complete, digest, "pass")
        self.balanced = self.register(balanced, digest, "fail")

    def register(self, rule: QualityRule, profile_digest: str, wanted: str) -> Rule:
        """Registers a rule and has it evaluated."""
        body = {"qualityRule": as_json(rule, quality_pb2.QualityRule())}
        digest = self.changes.register_as("rule", f"{BASE}/qualityRules", body)["record"]["digest"]
        evaluation = self.changes.register_as(
            "evaluation",
            f"{BASE}/qualityEvaluations:evaluate",
            {"ruleDigest": digest, "profileDigest": profile_digest},
        )
        verdict = word(evaluation["verdict"], "QUALITY_VERDICT_")
        say(f"    {rule.rule_id:<17} {verdict.upper()}")
        for each in evaluation["results"]:
            outcome = word(each["outcome"], "QUALITY_OUTCOME_")
            say(f"      {each['check']:<20} {outcome:<6} {each.get('observed', '')}  {each.get('reason', '')}".rstrip())
        expect(f"the verdict of {rule.rule_id}", verdict, wanted)
        return Rule(rule.rule_id, digest)

    def gate(self, *rules: Rule) -> None:
        """From now on runs of the pipeline need these rules passed by the data that they read."""
        requirements = [
            {"datasetRef": "", "datasetId": self.version.dataset_id, "ruleDigest": rule.digest, "evaluator": "animus"}
            for rule in rules
        ]
        body = {"qualityGate": {"pipeline": PIPELINE, "requirements": requirements, "overrideAllowed": True}}
        self.changes.change(f"{BASE}/qualityGates", f"{REQUEST_PREFIX}gate-{secrets.token_hex(16)}", body)
        say(f"    gate of {PIPELINE}: {', '.join(rule.rule_id for rule in rules)}")

    def show_gate(self, spec: RunSpec, run_id: str) -> str:
        """A gate that the data does not meet refuses a run like this one, and an admin lets it in: its id."""
        say("==> quality gate")
        self.gate(self.complete, self.balanced)
        body = {"runSpec": as_json(spec, run_pb2.RunSpec()), "labels": []}
        try:
            self.changes.try_change(f"{BASE}/runs", request_of("refused", run_id), body)
        except RefusedError as error:
            (violation,) = error.preconditions()
            say(f"    refused: {violation['description']}")
            expect("what the gate refuses", self.balanced.digest in violation["description"], True)
        else:
            raise DemoError("the gate let a run in that reads data which failed a rule")
        run = self.changes.change(
            f"{BASE}/runs:overrideGates", request_of("override", run_id), {**body, "reason": REASON}
        )
        admission = run["admission"]
        say(f"    overridden: run {run['runId']}")
        say(f"      {admission['overrideReason']}")
        for check in admission["gateChecks"]:
            verdict, outcome = word(check["verdict"], "QUALITY_VERDICT_"), word(check["outcome"], "ADMISSION_OUTCOME_")
            say(f"      {short(check['ruleDigest'])}  {verdict}: {outcome}")
        self.gate(self.complete)  # the next runs are let in again
        return str(run["runId"])
