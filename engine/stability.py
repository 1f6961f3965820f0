"""How far every member is known to have come: the reports that stores write into their own logs, and the horizon.

Sans-I/O. A report is a system register, `report/` and the store id in 12 hexadecimal digits, whose value is a msgpack
map: `applied` is the vector that its writer held durably. It counts only for a store that has applied it *in the
stream of its writer*: then whatever of that writer's is still to come was written after it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgpack

from everwrite.clock import covers, physical_ms

__all__ = ["InStreamReport", "Stability", "decode_report", "encode_report", "report_name", "stable_horizon"]

INCARNATION_BITS = 16


class InStreamReport(NamedTuple):
    """A report, and the dot of the update that wrote it."""

    origin: int
    timestamp: int
    applied: Mapping[int, int]


@dataclass(frozen=True)
class Stability:
    """What is stable, and what keeps it from being more.

    `horizon`: version vector of the updates that every member holds. `silent`: store ids of members without a report
    that counts, or whose earlier incarnations may have left something that is still to come; with any of these, nothing
    is stable. `behind_ms`: of each other member whose report doesn't cover all that this store holds, how many
    milliseconds that report is older than the newest of it.
    """

    horizon: Mapping[int, int] = field(default_factory=dict)
    silent: tuple[int, ...] = ()
    behind_ms: Mapping[int, int] = field(default_factory=dict)


def report_name(store_id: int) -> bytes:
    """The name of a store's report among the system registers."""
    return b"report/%012x" % store_id


def encode_report(applied: Mapping[int, int]) -> bytes:
    """The value of a report."""
    packed: bytes = msgpack.packb({"applied": dict(sorted(applied.items()))})
    return packed


def decode_report(value: bytes) -> dict[int, int] | None:
    """The vector of a report; None when it isn't one, or of a later release."""
    try:
        held = msgpack.unpackb(value, strict_map_key=False)["applied"]
        vector = {int(origin): int(timestamp) for origin, timestamp in held.items()}
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.exceptions.UnpackException):
        return None
    return vector if all(0 <= each < 1 << 64 for dot in vector.items() for each in dot) else None


def stable_horizon(
    own: int, applied: Mapping[int, int], members: Collection[int], reports: Mapping[int, InStreamReport]
) -> Stability:
    """What all members hold, for the store with the origin `own` that durably holds `applied`.

    `members`: store ids; this store is one of them in any case. `reports`: the newest report of each that wrote one.
    """
    own_id = own >> INCARNATION_BITS
    counted = {own_id: InStreamReport(own, applied.get(own, 0), applied)}
    for member in set(members) - {own_id}:
        report = reports.get(member)
        if report is not None and report.origin >> INCARNATION_BITS == member and _in_stream(applied, report):
            counted[member] = report
    silent = {member for member in members if member not in counted}
    silent |= {member for member in counted if not _settled(member, counted, applied)}
    newest_ms = physical_ms(max(applied.values(), default=0))
    behind = {
        member: max(0, newest_ms - physical_ms(report.timestamp))
        for member, report in counted.items()
        if not covers(report.applied, applied)
    }
    if silent:
        return Stability({}, tuple(sorted(silent)), behind)
    vectors = [report.applied for report in counted.values()]
    horizon = {origin: min(vector.get(origin, 0) for vector in vectors) for origin in applied}
    return Stability({origin: stamp for origin, stamp in horizon.items() if stamp}, (), behind)


def _in_stream(applied: Mapping[int, int], report: InStreamReport) -> bool:
    """Whether everything that the writer had written before the report has been applied."""
    return applied.get(report.origin, 0) >= report.timestamp


def _settled(member: int, counted: Mapping[int, InStreamReport], applied: Mapping[int, int]) -> bool:
    """Whether nothing that concerns the past can still come from earlier incarnations of a member.

    An incarnation may have lost the end of its log, which others hold. Whoever has seen the next one gets no
    more of it than others that have: all of these must have said so, and this store must hold as much.
    """
    current = counted[member].origin
    vectors = [report.applied for report in counted.values()]
    earlier = {
        origin for vector in vectors for origin in vector if origin >> INCARNATION_BITS == member and origin < current
    }
    if not earlier:
        return True
    if any(other != member and not report.applied.get(current) for other, report in counted.items()):
        return False
    return all(applied.get(origin, 0) >= max(vector.get(origin, 0) for vector in vectors) for origin in earlier)
