"""What users import: the digests and locks that a RunSpec binds, computed where the data and the code are."""

from animus.sdk.environment import running_environment
from animus.sdk.hashing import dataset_version, file_digest, manifest

__all__ = ["dataset_version", "file_digest", "manifest", "running_environment"]
