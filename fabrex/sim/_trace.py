# SPDX-License-Identifier: Apache-2.0
"""The trace of a run: what happened, decoded when somebody looks."""

from __future__ import annotations

import linecache
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

RECORD = struct.Struct("<11QIhHHH4B")
"""One record of the core (struct fbx_trace_record); fabrex runs on little-endian machines only."""

_EVENTS = ("", "op", "visible", "dropped", "control", "note")
_KINDS = ("load", "store", "read", "write", "fetch_add", "swap", "compare_swap", "flush", "wait", "dma_read", "dma_write", "other")
_ENTRIES = ("skip", "write", "doorbell", "spad", "message", "msi")


@dataclass(frozen=True)
class Site:
    """A line of a program."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"

    @property
    def text(self) -> str:
        """The line itself, without its indentation."""
        return linecache.getline(self.file, self.line).strip()


@dataclass(frozen=True)
class TraceEvent:
    """One thing that happened.

    Attributes:
        number: position in the trace.
        at_ps: virtual time.
        event: "op" (an operation was complete for its issuer), "visible" (a posted write was delivered), "dropped", "control".
        id: the operation's number, from 1; a write's "visible" has that of the write. 0: a write that is part of another.
        kind: "load", "store"…; of "visible": "write", "doorbell", "spad", "message", "msi".
        node, target: who issued it, and whose memory it is about.
        where: the address in words, such as "host1:dram+0x40".
        value: the value of up to 8 bytes, a digest of more.
        attributes: "ro", "ido", "tc=…", "path=…".
        passed: number of the earlier write that this one passed, 0 for none; `rule` says by which rule.
        site: the program's line, or None.
    """

    number: int
    at_ps: int
    event: str
    id: int
    kind: str
    node: str
    target: str
    gva: int
    where: str
    size: int
    value: int
    issued_ps: int
    departs_ps: int
    arrives_ps: int
    completes_ps: int
    sequence: int
    attributes: tuple[str, ...]
    status: int
    passed: int
    rule: int
    site: Site | None

    def __str__(self) -> str:
        what = f"{self.kind} {self.id}" if self.id else self.kind
        extra = "".join(f" {word}" for word in self.attributes)
        value = f" = {self.value:#x}" if self.kind != "flush" else ""
        where = self.where if self.kind != "flush" else f"to {self.target}"
        tail = f"  ({self.site})" if self.site else ""
        passed = f"  passes write {self.passed} by {rule_name(self.rule)}" if self.passed else ""
        state = f" status {self.status}" if self.status else ""
        return f"{self.at_ps / 1000:12.3f} ns  {self.node:<10} {self.event:<8} {what} {where}{value}{extra}{state}{passed}{tail}"


def rule_name(rule: int) -> str:
    """Return the name of one of the core's ordering rules."""
    return RULES.get(rule, f"rule {rule}")


RULES: dict[int, str] = {
    1: "A2b (relaxed ordering)",
    2: "A2b (ID-based ordering)",
    3: "another traffic class",
    4: "another path",
    5: "write combining",
    6: "tearing",
    7: "a stale copy",
}
"""The core's number of a rule (enum fbx_rule) -> what it is called."""


class Trace(Sequence[TraceEvent]):
    """The events of a run in the order in which they happened. Decoded when first looked at.

    Attributes:
        total: events in all; `len()` is how many were kept.
        hash: digest of all events, 32 hexadecimal digits: the same for the same seed, whatever the machine.
    """

    def __init__(
        self,
        fetch: Callable[[], tuple[bytes, int]],
        count: int,
        digest: str,
        nodes: list[str],
        place: Callable[[int, str], str],
        sites: dict[int, Any],
    ) -> None:
        self.total = count
        self.hash = digest
        self._fetch: Callable[[], tuple[bytes, int]] | None = fetch
        self._raw = b""
        self._first = 0
        self._nodes = nodes
        self._place = place
        self._sites = sites
        self._events: list[TraceEvent] | None = None

    def keep(self) -> None:
        """Copy the records: whoever ran it is about to run something else."""
        if self._fetch is not None:
            self._raw, self._first = self._fetch()
            self._fetch = None

    @property
    def events(self) -> list[TraceEvent]:
        """All that were kept."""
        if self._events is None:
            self.keep()
            self._events = [self._decode(self._first + i, fields) for i, fields in enumerate(RECORD.iter_unpack(self._raw))]
        return self._events

    def _node(self, index: int) -> str:
        return self._nodes[index] if index < len(self._nodes) else f"node {index}"

    def _decode(self, number: int, fields: tuple[int, ...]) -> TraceEvent:
        (at, name, gva, size, digest, issued, departs, arrives, completes, sequence, passed, site, status, node, target, rule,
         event, kind, tc, attr) = fields  # fmt: skip
        attributes = tuple(
            word
            for word, yes in (("ro", attr & 1), ("ido", attr & 2), (f"tc={tc & 7}", tc & 7), (f"path={tc >> 3}", tc >> 3))
            if yes
        )
        if event == 1:
            called = _KINDS[kind] if kind < len(_KINDS) else f"kind {kind}"
        else:
            called = _ENTRIES[kind] if kind < len(_ENTRIES) else f"kind {kind}"
        register = (event in (2, 3) and kind > 1) or (event == 1 and called == "other")
        if register and event == 1:
            called = "register write"
        where = f"{called} of {self._node(target)}" if register else self._place(gva, self._node(node))
        return TraceEvent(
            number, at, _EVENTS[event] if event < len(_EVENTS) else f"event {event}", name, called, self._node(node),
            self._node(target), gva, where, size, digest, issued, departs, arrives, completes, sequence, attributes, status,
            passed, rule, self._site(site),
        )  # fmt: skip

    def _site(self, number: int) -> Site | None:
        code = self._sites.get(number >> 16)
        return Site(code.co_filename, number & 0xFFFF, code.co_name) if code is not None else None

    @overload
    def __getitem__(self, index: int) -> TraceEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[TraceEvent]: ...
    def __getitem__(self, index: int | slice) -> TraceEvent | list[TraceEvent]:
        return self.events[index]

    def __iter__(self) -> Iterator[TraceEvent]:
        return iter(self.events)

    def __len__(self) -> int:
        self.keep()
        return len(self._raw) // RECORD.size

    def __str__(self) -> str:
        return "\n".join(str(event) for event in self.events)

    def __repr__(self) -> str:
        return f"<Trace of {self.total} events, {self.hash}>"
