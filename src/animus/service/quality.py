"""QualityService."""

import asyncio
from collections.abc import Mapping

from animus.domain.dataset import UNKNOWN, DatasetVersion
from animus.domain.document import load, seal
from animus.domain.errors import invalid
from animus.domain.lineage import edges_of_evaluation
from animus.domain.names import (
    check_digest,
    quality_evaluation_name,
    quality_profile_name,
    quality_rule_name,
)
from animus.domain.quality import EVALUATOR, QualityEvaluation, QualityProfile, QualityRule
from animus.domain.quality_evaluation import evaluate
from animus.service.calls import Caller, call_of, decode_field, new_record, register, resource
from animus.service.dataset import check_version, need_version
from animus.service.pages import Pages
from animus.store.records import unknown
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import quality_pb2 as pb


class QualityService:
    """Registers rules and profiles, and evaluates the one on the other."""

    def __init__(self, work: UnitOfWork, pages: Pages) -> None:
        self.work = work
        self.pages = pages

    async def RegisterQualityRule(self, request: pb.RegisterQualityRuleRequest, caller: Caller) -> Answer:
        """Registers a rule whose reference profiles are registered, or finds it registered."""
        rule = decode_field(request, "quality_rule", "qualityRule", QualityRule)
        registered = register(rule, "quality_rule.register", quality_rule_name, caller, pb.QualityRule)

        async def decide(view: View) -> Change:
            change = await registered(view)
            if change.records and rule.references():
                known = await view.known(QualityProfile, rule.references())
                for digest in rule.references():
                    if digest not in known:
                        raise unknown(QualityProfile, quality_profile_name(view.project_id, digest))
            return change

        return await self.work.change(call_of(caller, request), decide)

    async def GetQualityRule(self, request: pb.GetQualityRuleRequest, caller: Caller) -> pb.QualityRule:
        """Returns a rule."""
        check_digest(request.digest, "digest")
        name = quality_rule_name(request.project_id, request.digest)

        async def query(view: View) -> pb.QualityRule:
            return resource(await view.need(QualityRule, name, digest=request.digest), name, pb.QualityRule())

        return await self.work.read(request.project_id, query)

    async def ListQualityRules(
        self, request: pb.ListQualityRulesRequest, caller: Caller
    ) -> pb.ListQualityRulesResponse:
        """Lists rules by id and digest, without checks."""

        async def query(view: View) -> pb.ListQualityRulesResponse:
            reply = pb.ListQualityRulesResponse()
            page = await self.pages.read(view, QualityRule, ("rule_id", "digest"), request, caller.method)
            for stored in page.items:
                name = quality_rule_name(view.project_id, stored.digest)
                resource(stored, name, reply.quality_rules.add()).ClearField("checks")
            reply.next_page_token = page.next_token(lambda stored: (stored.value.rule_id, stored.digest))
            return reply

        return await self.work.read(request.project_id, query)

    async def RegisterQualityProfile(self, request: pb.RegisterQualityProfileRequest, caller: Caller) -> Answer:
        """Registers a profile of a version, or finds it registered."""
        profile = decode_field(request, "quality_profile", "qualityProfile", QualityProfile)
        registered = register(profile, "quality_profile.register", quality_profile_name, caller, pb.QualityProfile)

        async def decide(view: View) -> Change:
            change = await registered(view)
            if change.records:
                version = await need_version(view, profile)
                _check_against(profile, version.value)
            return change

        return await self.work.change(call_of(caller, request), decide)

    async def GetQualityProfile(self, request: pb.GetQualityProfileRequest, caller: Caller) -> pb.QualityProfile:
        """Returns a profile."""
        check_digest(request.digest, "digest")
        name = quality_profile_name(request.project_id, request.digest)

        async def query(view: View) -> pb.QualityProfile:
            return resource(await view.need(QualityProfile, name, digest=request.digest), name, pb.QualityProfile())

        return await self.work.read(request.project_id, query)

    async def ListQualityProfiles(
        self, request: pb.ListQualityProfilesRequest, caller: Caller
    ) -> pb.ListQualityProfilesResponse:
        """Lists the profiles of a version by digest, without columns and metrics."""
        check_version(request)

        async def query(view: View) -> pb.ListQualityProfilesResponse:
            await need_version(view, request)
            reply = pb.ListQualityProfilesResponse()
            page = await self.pages.read(
                view,
                QualityProfile,
                ("digest",),
                request,
                caller.method,
                dataset_id=request.dataset_id,
                content_digest=request.content_digest,
            )
            for stored in page.items:
                name = quality_profile_name(view.project_id, stored.digest)
                message = resource(stored, name, reply.quality_profiles.add())
                message.ClearField("columns")
                message.ClearField("metrics")
            reply.next_page_token = page.next_token(lambda stored: (stored.digest,))
            return reply

        return await self.work.read(request.project_id, query)

    async def EvaluateQuality(self, request: pb.EvaluateQualityRequest, caller: Caller) -> Answer:
        """Evaluates a rule on a profile, and records the verdict."""
        check_digest(request.rule_digest, "ruleDigest")
        check_digest(request.profile_digest, "profileDigest")

        async def decide(view: View) -> Change:
            rule, profile = await view.rule_and_profile(request.rule_digest, request.profile_digest)
            if rule is None:
                raise unknown(QualityRule, quality_rule_name(view.project_id, request.rule_digest))
            if profile is None:
                raise unknown(QualityProfile, quality_profile_name(view.project_id, request.profile_digest))
            references = rule.references()
            found = await view.documents(QualityProfile, "digest", references) if references else {}
            profiles = {**found, request.profile_digest: profile}
            # Profiles of megabytes take seconds, in which others are served.
            evaluation = await asyncio.to_thread(_evaluated, view.project_id, rule, request, profiles, view.time)
            return _recorded(view, caller, "quality_evaluation.evaluate", evaluation)

        return await self.work.change(call_of(caller, request), decide)

    async def RecordForeignEvaluation(self, request: pb.RecordForeignEvaluationRequest, caller: Caller) -> Answer:
        """Records the verdict of another tool."""

        async def decide(view: View) -> Change:
            path = "qualityEvaluation"
            evaluation = decode_field(request, "quality_evaluation", path, QualityEvaluation, evaluate_time=view.time)
            if evaluation.evaluator == EVALUATOR:
                raise invalid(f"{path}.evaluator", f"is {EVALUATOR!r}, whose verdicts come from EvaluateQuality alone")
            await need_version(view, evaluation)
            return _recorded(view, caller, "quality_evaluation.record_foreign", evaluation)

        return await self.work.change(call_of(caller, request), decide)

    async def GetQualityEvaluation(
        self, request: pb.GetQualityEvaluationRequest, caller: Caller
    ) -> pb.QualityEvaluation:
        """Returns an evaluation."""
        check_digest(request.digest, "digest")
        name = quality_evaluation_name(request.project_id, request.digest)

        async def query(view: View) -> pb.QualityEvaluation:
            found = await view.need(QualityEvaluation, name, digest=request.digest)
            return resource(found, name, pb.QualityEvaluation())

        return await self.work.read(request.project_id, query)

    async def ListQualityEvaluations(
        self, request: pb.ListQualityEvaluationsRequest, caller: Caller
    ) -> pb.ListQualityEvaluationsResponse:
        """Lists the evaluations of a version, the newest first, without results."""
        check_version(request)

        async def query(view: View) -> pb.ListQualityEvaluationsResponse:
            await need_version(view, request)
            reply = pb.ListQualityEvaluationsResponse()
            page = await self.pages.read(
                view,
                QualityEvaluation,
                ("-evaluate_time", "-digest"),
                request,
                caller.method,
                dataset_id=request.dataset_id,
                content_digest=request.content_digest,
            )
            for stored in page.items:
                name = quality_evaluation_name(view.project_id, stored.digest)
                resource(stored, name, reply.quality_evaluations.add()).ClearField("results")
            reply.next_page_token = page.next_token(lambda last: (last.value.evaluate_time, last.digest))
            return reply

        return await self.work.read(request.project_id, query)


def _evaluated(
    project_id: str, rule: QualityRule, request: pb.EvaluateQualityRequest, profiles: Mapping[str, bytes], time: str
) -> QualityEvaluation:
    """The verdict, of stored bytes by digest."""
    loaded = {digest: load(document, QualityProfile) for digest, document in profiles.items()}
    profile = loaded[request.profile_digest]
    return evaluate(project_id, rule, request.rule_digest, profile, request.profile_digest, loaded, time)


def _check_against(profile: QualityProfile, version: DatasetVersion) -> None:
    """Refuses a profile that counts other bytes or rows than its version has."""
    if profile.size_bytes != version.size_bytes:
        raise invalid(
            "qualityProfile.sizeBytes", f"is {profile.size_bytes}, and the version has {version.size_bytes} bytes"
        )
    if version.row_count not in (UNKNOWN, profile.row_count):
        raise invalid(
            "qualityProfile.rowCount", f"is {profile.row_count}, and the version has {version.row_count} rows"
        )


def _recorded(view: View, caller: Caller, action: str, evaluation: QualityEvaluation) -> Change:
    """The change that records a verdict, and what it is of."""
    sealed = seal(evaluation)
    name = quality_evaluation_name(view.project_id, sealed.digest)
    edges = edges_of_evaluation(view.project_id, sealed.digest, evaluation)
    reply = resource(new_record(view, caller, sealed), name, pb.QualityEvaluation())
    return Change(action, name, (sealed, *map(seal, edges)), (), reply)
