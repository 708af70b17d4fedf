# SPDX-License-Identifier: Apache-2.0
"""What has happened to a fabric, for those who look on.

Owns: `Event`, `Events`. Reading writes nothing into the fabric, so any number of processes may look on.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ._handle import FabricHandle, check, encoded, ffi, lib, text
from .errors import BY_CODE, ClosedHandle, InvalidArgument

__all__ = ["KINDS", "Event", "Events"]


def _kinds() -> dict[int, str]:
    found: dict[int, str] = {}
    number = 1
    while (name := lib.fbx_event_name(number)) != ffi.NULL:
        found[number] = text(name).lower()
        number += 1
    return found


_KINDS = _kinds()
KINDS: tuple[str, ...] = tuple(_KINDS.values())
"""All kinds of events."""

_ROLES = ("owner", "client")
_BATCH = 64
_SLICE_S = 1.0  # a look at whether an owner died, while nothing happens
_LINK_KEYS = {
    getattr(lib, name): name.removeprefix("FBX_LINK_").lower()
    for name in dir(lib)
    if name.startswith("FBX_LINK_") and name != "FBX_LINK_KEYS"
}
_CODES = {-getattr(lib, f"FBX_E_{name}"): kind.__name__ for name, kind in BY_CODE.items() if hasattr(lib, f"FBX_E_{name}")}


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        number: its place in the order of events, from 0.
        time_ps: fabric time.
        unix_ns: time of day.
        kind: one of `KINDS`.
        node, link: of what; None where it is of neither.
        details: what else is known; which keys there are depends on the kind (docs/reference/events.md).
        lost: how many events before it were overwritten before they were read here.
    """

    number: int
    time_ps: int
    unix_ns: int
    kind: str
    node: str | None = None
    link: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    lost: int = 0

    def __str__(self) -> str:
        what = self.link or self.node or "fabric"
        details = ", ".join(f"{key} {value}" for key, value in self.details.items())
        return f"{self.kind} {what}{': ' + details if details else ''}"


class Events:
    """An iterator over events; made by `Fabric.events`, or by `Events.observe` without taking part in the fabric.

    Attributes:
        next: number of the event that comes next.
        lost: events missed so far.
    """

    def __init__(
        self, handle: FabricHandle, since: int = 0, *, follow: bool = False, timeout: float | None = None, own: bool = False
    ) -> None:
        if not isinstance(since, int) or isinstance(since, bool) or not 0 <= since < 1 << 63:
            raise InvalidArgument(f"events are numbered from 0; {since!r} is no number of one")
        self._handle = handle
        self._own = own
        self._follow = follow
        self._timeout = timeout
        self._wait: Any = None
        self._cursor = ffi.new("uint64_t *", since)
        self._lost = ffi.new("uint64_t *")
        self._told = 0
        self._room = ffi.new("struct fbx_event[]", _BATCH)
        self._ready: deque[Event] = deque()
        self._names: dict[tuple[str, int], str] = {}
        first, following = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        check(lib.fbx_events_range(self._live(), first, following))
        # What was overwritten before anybody asked is not missed by whoever asks for all.
        self._cursor[0] = max(since, int(first[0])) if since == 0 else since
        self._end = int(following[0])

    @classmethod
    def observe(
        cls, name: str, since: int = 0, *, directory: str | None = None, follow: bool = False, timeout: float | None = None
    ) -> Events:
        """Look on at a fabric by name. It does not count as attached: `down` needs no `--force`.

        Raises:
            FabricNotFound, LayoutMismatch, CorruptSegment, FabricDenied.
        """
        place = directory or os.environ.get("FABREX_DIRECTORY") or "/dev/shm"
        handle = FabricHandle(lambda out: lib.fbx_fabric_observe(os.fsencode(place), encoded(name), out))
        return cls(handle, since, follow=follow, timeout=timeout, own=True)

    @property
    def next(self) -> int:
        """Number of the event that comes next."""
        return self._ready[0].number if self._ready else int(self._cursor[0])

    @property
    def lost(self) -> int:
        """Events missed so far: overwritten before they were read here."""
        return int(self._lost[0])

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Event:
        if not self._ready and not self._fill():
            raise StopIteration
        return self._ready.popleft()

    def _live(self) -> Any:
        return self._handle.live()

    def _fill(self) -> bool:
        if self._wait is not None:
            deadline, virtual = None, self._wait(None) + int(self._timeout * 1e12) if self._timeout is not None else (1 << 64) - 1
        else:
            deadline, virtual = None if self._timeout is None else time.monotonic() + self._timeout, 0
        while True:
            if not self._follow and self._cursor[0] >= self._end:
                return False
            count = check(lib.fbx_events_read(self._live(), self._cursor, self._room, _BATCH, self._lost))
            for record in self._room[0:count]:
                if not self._follow and record.number >= self._end:
                    break
                self._ready.append(self._event(record))
            if self._ready:
                return True
            if not self._follow:
                return False
            if self._wait is not None:  # under the virtual clock
                if not self._wait(virtual):
                    return False
                continue
            left = _SLICE_S if deadline is None else min(_SLICE_S, deadline - time.monotonic())
            if left <= 0:
                return False
            try:
                code = lib.fbx_events_wait(self._live(), self._cursor[0], int(left * 1e9))
                if code != lib.FBX_E_AGAIN:
                    check(code)
            except ClosedHandle:
                return False

    def _name(self, what: str, index: int) -> str | None:
        if index == 0xFFFFFFFF:
            return None
        if (what, index) not in self._names:
            out = ffi.new(f"struct fbx_{what}_info *")
            call = lib.fbx_node_info if what == "node" else lib.fbx_link_info
            self._names[what, index] = text(out.name) if call(self._live(), index, out) == 0 else f"{what} {index}"
        return self._names[what, index]

    def _event(self, e: Any) -> Event:
        kind = _KINDS.get(e.kind, f"kind_{e.kind}")
        a, b, link = int(e.a), int(e.b), e.link
        details: dict[str, Any] = {}
        match kind:
            case "fabric_up" | "fabric_down" | "node_lost":
                details = {"pid": a}
            case "node_attached" | "node_detached":
                details = {"pid": a, "role": _ROLES[b] if b < len(_ROLES) else str(b)}
            case "link_set":
                details = {_LINK_KEYS.get(a, f"key_{a}"): b}
            case "window_set":
                link = 0xFFFFFFFF
                details = {"window": int(e.other), "peer": self._name("node", e.link), "translation": f"0x{a:016x}", "bytes": b}
            case "window_cleared":
                details = {"window": int(e.other)}
            case "writes_dropped" | "aer":
                details = {"count": a, "total": b}
            case "dma_failed":
                details = {"error": _CODES.get(a, str(a)), "more": b}
        lost, self._told = self.lost - self._told, self.lost
        return Event(
            int(e.number), int(e.ps), int(e.unix_ns), kind, self._name("node", e.node), self._name("link", link), details, lost
        )

    def close(self) -> None:
        """Look no longer. Idempotent."""
        if self._own:
            self._handle.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
