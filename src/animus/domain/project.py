"""Projects: the tenants."""

from dataclasses import dataclass
from typing import ClassVar

from animus.domain.labels import Label, sorted_labels
from animus.domain.names import check_length, check_resource_id


@dataclass(frozen=True, slots=True)
class Project:
    """A tenant: the scope of names, records, roles and one audit log."""

    SCHEMA: ClassVar[str] = "animus.project/v1"

    project_id: str
    display_name: str  # 0 to 100 characters
    description: str  # 0 to 2,000 characters
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        check_resource_id(self.project_id, "projectId")
        check_length(self.display_name, 0, 100, "displayName")
        check_length(self.description, 0, 2_000, "description")
        object.__setattr__(self, "labels", sorted_labels(self.labels))
