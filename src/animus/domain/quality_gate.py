"""Quality gates: which rules a dataset must have passed before a run may read it (docs/quality.md)."""

from dataclasses import dataclass
from typing import ClassVar

from animus.domain.names import check_count, check_digest, check_resource_id, check_time, sorted_set

MAX_REQUIREMENTS = 1_000


@dataclass(frozen=True, slots=True)
class QualityRequirement:
    """A rule that the dataset of a binding must have passed."""

    dataset_ref: str  # empty for any
    dataset_id: str  # empty for any
    rule_digest: str
    evaluator: str  # whose verdict counts

    def __post_init__(self) -> None:
        if self.dataset_ref:
            check_resource_id(self.dataset_ref, "datasetRef")
        if self.dataset_id:
            check_resource_id(self.dataset_id, "datasetId")
        check_digest(self.rule_digest, "ruleDigest")
        check_resource_id(self.evaluator, "evaluator")

    @property
    def key(self) -> tuple[str, ...]:
        """The order of requirements."""
        return (self.dataset_ref, self.dataset_id, self.rule_digest, self.evaluator)

    def asks_of(self, dataset_id: str) -> bool:
        """Whether it is asked of a binding to a dataset, as far as the dataset decides."""
        return self.dataset_id in ("", dataset_id)


@dataclass(frozen=True, slots=True)
class QualityGate:
    """What a project or a pipeline asks of the data that its runs read; the newest of a pipeline governs."""

    SCHEMA: ClassVar[str] = "animus.quality_gate/v1"

    pipeline: str  # name of the pipeline; empty for every run of the project
    requirements: tuple[QualityRequirement, ...]  # a set
    override_allowed: bool
    set_time: str  # the database's time of the transaction

    def __post_init__(self) -> None:
        if self.pipeline:
            check_resource_id(self.pipeline, "pipeline")
        check_count(self.requirements, 0, MAX_REQUIREMENTS, "requirements")
        # No part of the key holds a space, which is below all that they may hold.
        ordered = sorted_set(self.requirements, lambda each: " ".join(each.key), "requirements", "")
        object.__setattr__(self, "requirements", ordered)
        check_time(self.set_time, "setTime")
