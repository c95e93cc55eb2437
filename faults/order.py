"""A checker of one append-only list: is there an order of all appends and reads that explains what each has seen?

The approach is Elle's (Kingsbury and Alvaro, VLDB 2020): reads of a list show its order, from which follows who came
before whom; time that did not overlap says the same of all operations; a cycle is an anomaly. Appends are strictly
serializable. A read may be of an older state, since a log gets its indexes a moment after the change, but not of a
later one, and never of an older one than a read that had ended before it began.
"""

import graphlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Append:
    """A call that appends a value which no other call appends."""

    value: str
    began: float
    ended: float  # infinite where nobody knows whether it was done
    refused: bool  # it was said not to be done


@dataclass(frozen=True, slots=True)
class Read:
    """A call that has seen the first so many values of a list; several reads may share one."""

    values: Sequence[str]
    count: int
    began: float
    ended: float
    whole: bool  # it has seen all that there was; a stream has seen at least that


Operation = Append | Read


def anomalies(appends: Sequence[Append], reads: Sequence[Read]) -> list[str]:
    """What no order explains; empty for a sound history. `reads` hold the whole list at least once, after all else."""
    longest = max(reads, key=lambda read: read.count, default=Read((), 0, 0.0, 0.0, whole=True))
    order = list(longest.values[: longest.count])
    counts: dict[int, Read] = {}  # of each list, the read that has seen most of it
    for read in reads:
        if id(read.values) not in counts or counts[id(read.values)].count < read.count:
            counts[id(read.values)] = read
    found = [
        f"two reads disagree on the order of the first {read.count} values"
        for read in counts.values()
        if order[: read.count] != list(read.values[: read.count])
    ]
    by_value = {append.value: append for append in appends}
    for value, times in Counter(order).items():
        if times > 1:
            found.append(f"{value} is in the list {times} times")
        if value not in by_value:
            found.append(f"{value} is in the list and nobody appended it")
        elif by_value[value].refused:
            found.append(f"{value} is in the list and its append was refused")
    present = set(order)
    found += [
        f"{append.value} was acknowledged and is not in the list"
        for append in appends
        if append.ended < math.inf and not append.refused and append.value not in present
    ]
    return found or _cycles([by_value[value] for value in order], reads)


def _cycles(order: list[Append], reads: Sequence[Read]) -> list[str]:
    graph: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    operations: list[Operation] = [*order, *reads]
    for later in range(1, len(order)):
        graph.add(later, later - 1)
    for place, read in enumerate(reads, len(order)):
        if read.count:
            graph.add(place, read.count - 1)  # it has seen this append
        if read.whole and read.count < len(order):
            graph.add(read.count, place)  # and not this one
    times = set(_in_time(operations))
    for before, after in times:
        graph.add(after, before)
    try:
        graph.prepare()
    except graphlib.CycleError as error:
        return [
            f"{_named(operations[before])} had ended before {_named(operations[after])} began; the list says otherwise"
            for before, after in pairwise(error.args[1])
            if (before, after) in times
        ] or ["the reads contradict each other"]
    return []


def _in_time(operations: Sequence[Operation]) -> Iterator[tuple[int, int]]:
    """Pairs of operations of which the first had ended before the second began; not those that follow from others."""
    ends = [(each.ended, 1, place) for place, each in enumerate(operations) if each.ended < math.inf]
    begins = [(each.began, 0, place) for place, each in enumerate(operations)]
    frontier: dict[int, None] = {}  # ended, and before none that has ended
    before: dict[int, list[int]] = {}
    for _, is_end, place in sorted(begins + ends):
        if not is_end:
            fresh = isinstance(operations[place], Append)
            before[place] = [each for each in frontier if fresh or isinstance(operations[each], Read)]
            yield from ((each, place) for each in before[place])
        else:
            for each in before[place]:
                frontier.pop(each, None)
            frontier[place] = None


def _named(operation: Operation) -> str:
    return f"the append of {operation.value}" if isinstance(operation, Append) else f"a read of {operation.count}"
