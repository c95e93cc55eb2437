"""What users import: the digests and locks that a RunSpec binds, computed where the data and the code are."""

from animus.sdk.environment import environment_of, running_environment
from animus.sdk.hashing import dataset_version, file_digest, manifest

__all__ = ["dataset_version", "environment_of", "file_digest", "manifest", "running_environment"]
