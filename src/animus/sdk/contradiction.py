"""What is found when a log is not what it should be."""

from enum import StrEnum


class Finding(StrEnum):
    """What is wrong."""

    BAD_SIGNATURE = "BAD_SIGNATURE"  # what a trusted key should have signed, it has not
    DAMAGED = "DAMAGED"  # the server itself says so
    DIFFERENT_LEAF = "DIFFERENT_LEAF"  # the log has other bytes for an entry than were promised or shown
    FORKED = "FORKED"  # two heads of one log, neither of which extends the other
    HIDDEN = "HIDDEN"  # a leaf of the log that the server's list of entries lacks
    LOST_IN_RESTORE = "LOST_IN_RESTORE"  # an older database came back, and a new epoch goes on without what was signed
    MALFORMED = "MALFORMED"  # bytes that are not of their format
    MISSING = "MISSING"  # a file or a tile that the log has to have
    NOT_INCLUDED_IN_TIME = "NOT_INCLUDED_IN_TIME"  # promised, and not there when it had to be
    OUTSIDE = "OUTSIDE"  # an entry that the server shows, and that has no place in the log
    REPEATED = "REPEATED"  # one entry at two places
    SHRUNK = "SHRUNK"  # the log is smaller than a head that is known of it
    STRAY = "STRAY"  # a file that belongs to no log of this size
    UNKNOWN_LOG = "UNKNOWN_LOG"  # no trusted key is of a log of this name
    WRONG_ENTRY = "WRONG_ENTRY"  # an entry that is not the leaf at its place, or is no entry of this log
    WRONG_ROOT = "WRONG_ROOT"  # entries and tiles agree, and lead to another root than the signed one
    WRONG_TILE = "WRONG_TILE"  # a tile that is not that of the entries below it


class Contradiction(Exception):
    """The first thing that is wrong: what, where, and in which way. Its text is one line."""

    def __init__(self, finding: Finding, place: str, description: str) -> None:
        super().__init__(f"{finding}: {place} {' '.join(description.split())}")
        self.finding = finding
        self.place = place
        self.description = description
