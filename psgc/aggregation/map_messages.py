"""Records from rank 0: the map of an iteration, and the versions of its slices that count.

A MAP consists of records with these fields; `last` is 1 in the last record:

* one record for each contribution of a rank, and one for each rank that contributes nothing: worker = the rank,
  role (0: nothing), seconds = serial, chunk = RECEIVES or 0. In the first map of an iteration also start = the rate of
  the rank's link; every rank derives the slices from the rates;
* in later maps, then one record for each slice: chunk = SLICE, worker = the owner, start and seconds = the first entry
  of the slice and the entry after its last;
* or a single record with chunk = AS_BEFORE: the map equals the first map that was sent last. So while nothing changes,
  nothing travels that grows with the number of ranks.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np

from psgc.aggregation.map import Contributor, Map, in_order
from psgc.aggregation.slices import Slice, make_slices
from psgc.errors import ProtocolError
from psgc.messages import RECORD, Entry, Kind, RecordList, Records, record
from psgc.vectors import FIELD_BITS

RECEIVES, SLICE, AS_BEFORE = 1, 2, 4
ATTEMPTS, SERIALS = 1 << FIELD_BITS["attempt"], 1 << FIELD_BITS["serial"]


def to_records(new: Map, rates: Mapping[int, float], before: Map | None = None) -> Records:
    """The records of the map `new`, for any number of ranks.

    rates: of the links of all live ranks, owners or not; `make_slices` makes the slices of a first map from them, and
        later maps ignore them
    before: the first map that these ranks were sent last
    """
    if before and new == replace(before, iteration=new.iteration):
        return record(Kind.MAP, new.iteration, AS_BEFORE)
    roles = defaultdict(list)
    for rank, role, serial in new.contributors:
        roles[rank].append((role, serial))
    slices = new.slices if new.attempt else ()
    ranks = {*roles, *new.receivers, *(owner for owner, _, _ in slices), *(() if new.attempt else rates)}
    receivers = set(new.receivers)
    rows = [
        (RECEIVES if rank in receivers else 0, rank, role, 0.0 if new.attempt else rates[rank], float(serial))
        for rank in sorted(ranks)
        for role, serial in roles.get(rank, [(0, 0)])
    ]
    rows += [(SLICE, owner, 0, float(start), float(stop)) for owner, start, stop in slices]
    records = np.zeros(len(rows), RECORD)
    for name, values in zip(("chunk", "worker", "role", "start", "seconds"), zip(*rows, strict=True), strict=True):
        records[name] = values
    records["kind"], records["iteration"], records["attempt"] = Kind.MAP, new.iteration, new.attempt
    records["last"][-1] = 1
    return records


class MapReader:
    """Reads maps from the records of one sender.

    ranks: number of ranks in the run
    entries: of the coded vector
    parts, least, hosts: as for `make_slices`
    nodes: the nodes of the tree that contributors may have are below this number; 0: contributors have roles
    """

    def __init__(
        self,
        ranks: int,
        entries: int,
        parts: int,
        least: int,
        hosts: tuple[int, ...] = (),
        nodes: int = 0,
    ) -> None:
        self._ranks, self._entries, self._parts, self._least = ranks, entries, parts, least
        self._hosts, self._nodes = hosts, nodes
        self._list = RecordList()
        self._before: Map | None = None  # the newest first map

    def read(self, entry: Entry) -> Map | None:
        """The map whose last record `entry` is, else None. Raises ProtocolError when its records do not make a map."""
        if not (entries := self._list.read(entry)):
            return None
        try:
            new = self._put_together(entries)
        except ValueError as error:
            raise ProtocolError(f"a malformed map: {error}") from error
        if new.attempt == 0:
            self._before = new
        return new

    def _put_together(self, entries: Sequence[Entry]) -> Map:
        iteration, attempt = _the_only([(entry["iteration"], entry["attempt"]) for entry in entries])
        if iteration < 0 or not 0 <= attempt < ATTEMPTS:
            raise ValueError(f"attempt {attempt} of iteration {iteration}")
        if entries[0]["chunk"] == AS_BEFORE and len(entries) == 1:
            if attempt or not self._before:
                raise ValueError("the same as the map before, but there is none")
            return replace(self._before, iteration=iteration)
        slices = [entry for entry in entries if entry["chunk"] == SLICE]
        about_ranks = [entry for entry in entries if entry["chunk"] in (0, RECEIVES)]
        if len(slices) + len(about_ranks) < len(entries) or not about_ranks:
            raise ValueError("records that do not belong together")
        by_rank: dict[int, list[Entry]] = defaultdict(list)
        for entry in about_ranks:
            by_rank[_within("rank", entry["worker"], 0, self._ranks)].append(entry)
        contributors = [found for rank, entries in by_rank.items() for found in self._contributors(rank, entries)]
        contributors.sort(key=in_order)
        flags = {rank: _the_only([entry["chunk"] for entry in entries]) for rank, entries in by_rank.items()}
        receivers = sorted(rank for rank in flags if flags[rank] == RECEIVES)
        if not contributors or not receivers:
            raise ValueError(f"{len(contributors)} contributors, {len(receivers)} receivers")
        if attempt:
            made = self._slices(slices, by_rank)
        elif slices:
            raise ValueError("a first map, with slices")
        else:
            rates = {rank: _the_only([entry["start"] for entry in entries]) for rank, entries in by_rank.items()}
            if not all(isfinite(rate) and rate >= 0 for rate in rates.values()):
                raise ValueError(f"links with rates {min(rates.values())}..{max(rates.values())}")
            made = make_slices(self._entries, self._parts, rates, self._least, self._hosts)
        return Map(iteration, attempt, tuple(receivers), tuple(contributors), tuple(made), self._hosts, self._nodes > 0)

    def _contributors(self, rank: int, entries: Sequence[Entry]) -> list[Contributor]:
        if len(entries) == 1 and entries[0]["role"] == 0:
            return []
        found = [
            Contributor(
                rank,
                _within("role", entry["role"], 1, self._nodes or self._ranks),
                _within("serial", entry["seconds"], 0, SERIALS),
            )
            for entry in entries
        ]
        if len(set(found)) < len(found):
            raise ValueError(f"rank {rank} contributes twice in one role")
        return found

    def _slices(self, entries: Sequence[Entry], live: Iterable[int]) -> list[Slice]:
        slices = []
        end = 0
        for entry in entries:
            owner = entry["worker"]
            start = _within("entry", entry["start"], end, self._entries)
            end = _within("end", entry["seconds"], start + 1, self._entries + 1)
            if owner not in live:
                raise ValueError(f"rank {owner} owns a slice, but is not live")
            slices.append(Slice(owner, start, end))
        if not slices:
            raise ValueError("no slices")
        return slices


def _the_only(values: Sequence[Any]) -> Any:
    if any(value != values[0] for value in values):
        raise ValueError(f"{values[0]} and others at once")
    return values[0]


def _within(what: str, value: float, start: int, stop: int) -> int:
    if not (start <= value < stop and value == int(value)):
        raise ValueError(f"{what} {value}, expected {start}..{stop - 1}")
    return int(value)


def close_records(iteration: int, versions: Sequence[int]) -> list[Records]:
    """CLOSE: the version of each slice of the iteration's first map."""
    others = [(number, version) for number, version in enumerate(versions) if version] or [(-1, 0)]
    return [
        record(Kind.CLOSE, iteration, number, attempt=version, last=place == len(others))
        for place, (number, version) in enumerate(others, start=1)
    ]


class CloseReader:
    """Reads CLOSE records of one sender."""

    def __init__(self) -> None:
        self._list = RecordList()

    def read(self, entry: Entry) -> tuple[int, dict[int, int]] | None:
        """With the last record: the iteration, and the versions other than 0, by slice. Raises ProtocolError."""
        if not (entries := self._list.read(entry)):
            return None
        iteration, said = entry["iteration"], [(entry["chunk"], entry["attempt"]) for entry in entries]
        versions = dict(said) if said != [(-1, 0)] else {}
        of_slices = said == [(-1, 0)] or len(versions) == len(said)
        possible = all(number >= 0 and 0 < version < ATTEMPTS for number, version in versions.items())
        if not (of_slices and possible) or iteration < 0 or any(other["iteration"] != iteration for other in entries):
            raise ProtocolError(f"a malformed end of iteration {iteration}, with versions {said}")
        return iteration, versions
