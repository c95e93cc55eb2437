"""Labels: what people find things by. They decide nothing and are part of no RunSpec."""

from dataclasses import dataclass

from animus.domain.names import LABEL_KEY, check_count, check_length, check_pattern, sorted_set

MAX_LABELS = 64


@dataclass(frozen=True, slots=True)
class Label:
    """One label."""

    key: str
    value: str  # 0 to 255 characters

    def __post_init__(self) -> None:
        check_pattern(
            LABEL_KEY,
            self.key,
            "key",
            "is no label key: give 1 to 63 characters of a-z, 0-9, '.', '_', '/' and '-', "
            "the first and the last a letter or a digit",
        )
        check_length(self.value, 0, 255, "value")


def sorted_labels(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    """The labels by key; refuses more than 64 and a key that stands twice."""
    check_count(labels, 0, MAX_LABELS, "labels")
    return sorted_set(labels, lambda label: label.key, "labels", "key")
