"""Global transaction ids: which transactions a place in the log has behind it, on any server.

MySQL names a transaction by the server it began on and a number, and a place by the set of all that
went before. MariaDB numbers the transactions of each domain, and a place is the last of each.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Self
from uuid import UUID

_INTERVAL = re.compile(r"([1-9]\d{0,18})(?:-([1-9]\d{0,18}))?")
_DOMAIN = re.compile(r"(\d{1,10})-(\d{1,10})-(\d{1,20})")
_MAX_NUMBER = (1 << 63) - 1


class GtidSet:
    """MySQL's: for each server, intervals from the first number to the one behind the last."""

    def __init__(self) -> None:
        self._intervals: dict[UUID, list[tuple[int, int]]] = {}

    @classmethod
    def parse(cls, text: str) -> Self:
        """From MySQL's text, uuid:1-5:7,uuid:1. Raises ValueError."""
        made = cls()
        for part in text.replace("\n", "").split(","):
            if not part.strip():
                continue
            server, *intervals = part.strip().split(":")
            for interval in intervals:
                found = _INTERVAL.fullmatch(interval.strip())
                if not found:
                    raise ValueError(f"{interval!r} in a GTID set is no interval")
                first = int(found[1])
                made.add(UUID(server), first, int(found[2] or first) + 1)
        return made

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From the form in events and commands. Raises ValueError and struct.error."""
        made = cls()
        (servers,) = struct.unpack_from("<Q", body)
        at = 8
        for _ in range(servers):
            server = UUID(bytes=body[at : at + 16])
            (intervals,) = struct.unpack_from("<Q", body, at + 16)
            at += 24
            for _ in range(intervals):
                made.add(server, *struct.unpack_from("<QQ", body, at))
                at += 16
        return made

    def encode(self) -> bytes:
        parts = [struct.pack("<Q", len(self._intervals))]
        for server, intervals in sorted(self._intervals.items()):
            parts += [server.bytes, struct.pack("<Q", len(intervals))]
            parts += [struct.pack("<QQ", *interval) for interval in intervals]
        return b"".join(parts)

    def add(self, server: UUID, first: int, behind: int) -> None:
        """Add the transactions first to behind - 1 of a server."""
        if not 0 < first < behind <= _MAX_NUMBER:
            raise ValueError(f"{first} to {behind} is no interval of transactions")
        intervals = self._intervals.setdefault(server, [])
        if intervals and intervals[-1][0] <= first <= intervals[-1][1]:
            intervals[-1] = intervals[-1][0], max(behind, intervals[-1][1])
            return
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*intervals, (first, behind)]):
            if merged and low <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(high, merged[-1][1])
            else:
                merged.append((low, high))
        intervals[:] = merged

    def add_all(self, ids: Sequence[bytes]) -> None:
        """Add transactions, each given as 16 bytes of server and 8 of number."""
        last, first, behind = b"", 0, 0
        for server, number in struct.iter_unpack("<16sQ", b"".join(ids)):
            if number != behind or server != last:
                if last:
                    self.add(UUID(bytes=last), first, behind)
                last, first = server, number
            behind = number + 1
        if last:
            self.add(UUID(bytes=last), first, behind)

    def missing_from(self, other: GtidSet) -> GtidSet:
        """What is here and not in the other."""
        missing = GtidSet()
        for server, intervals in self._intervals.items():
            theirs = other._intervals.get(server, [])
            for first, behind in intervals:
                for low, high in theirs:
                    if first < low:
                        missing._add_if_any(server, first, min(low, behind))
                    first = max(first, high)
                missing._add_if_any(server, first, behind)
        return missing

    def meets(self, other: GtidSet) -> bool:
        """Whether a transaction is in both."""
        return str(self.missing_from(other)) != str(self)

    def _add_if_any(self, server: UUID, first: int, behind: int) -> None:
        if first < behind:
            self.add(server, first, behind)

    def __bool__(self) -> bool:
        return bool(self._intervals)

    def __str__(self) -> str:
        return ",".join(
            ":".join([str(server), *(_interval(low, high) for low, high in intervals)])
            for server, intervals in sorted(self._intervals.items())
        )


def _interval(first: int, behind: int) -> str:
    return str(first) if behind == first + 1 else f"{first}-{behind - 1}"


class GtidPosition:
    """MariaDB's: for each domain, the server and number of the last transaction."""

    def __init__(self) -> None:
        self.last: dict[int, tuple[int, int]] = {}

    @classmethod
    def parse(cls, text: str) -> Self:
        """From MariaDB's text, 0-1-42,1-1-7. Raises ValueError."""
        made = cls()
        for domain, server, number in parse_state(text):
            made.last[domain] = server, number
        return made

    def add_all(self, ids: Sequence[bytes]) -> None:
        """Add transactions, each given as 4 bytes of server, 8 of number and 4 of domain."""
        for server, number, domain in struct.iter_unpack("<IQI", b"".join(ids)):
            self.last[domain] = server, number

    def __bool__(self) -> bool:
        return bool(self.last)

    def __str__(self) -> str:
        return ",".join(
            f"{domain}-{server}-{number}" for domain, (server, number) in sorted(self.last.items())
        )


def parse_state(text: str) -> list[tuple[int, int, int]]:
    """Domain, server and number of each id in a list of MariaDB's. Raises ValueError."""
    ids: list[tuple[int, int, int]] = []
    for part in text.split(","):
        if not part.strip():
            continue
        found = _DOMAIN.fullmatch(part.strip())
        if not found:
            raise ValueError(f"{part!r} is no GTID")
        ids.append((int(found[1]), int(found[2]), int(found[3])))
    return ids
