# SPDX-License-Identifier: Apache-2.0
"""Private fabrics, made once and reset between runs: what a run costs is then its operations."""

from __future__ import annotations

import contextlib
import os
import selectors
import weakref
from types import CodeType
from typing import Any

from .._handle import Scheduler, check, ffi, lib
from ..errors import FabricError
from ..fabric import Fabric
from ..topology import Topology
from ._trace import RECORD, Trace

OURS = (__file__.rsplit("/sim/", 1)[0] + "/", os.path.join(os.path.dirname(os.__file__), "asyncio", ""), selectors.__file__)
"""Files whose lines are not the program's: this library's, and those of what runs `async` programs."""
ROOM = 1 << 20
"""Records of a trace that are kept."""
_MOST = 4
"""Fabrics that are kept for the next run."""


class Simulation:
    """One private fabric, its simulation in the core, and the scheduler that switches between its programs."""

    def __init__(self, topology: Topology, ordering: str, strict: bool) -> None:
        self.fabric = Fabric._private(topology, ordering, 0, strict)
        self.ordering = ordering
        self.named: Any = None  # keeps the object alive whose id is in the pool's key
        out = ffi.new("fbx_sim **")
        check(lib.fbx_sim_open(self.fabric._handle.pointer, out))
        # Freed before the fabric: it hangs on it.
        handle = self.fabric._handle
        self.pointer = ffi.gc(out[0], lambda pointer, _keep=handle: lib.fbx_sim_free(pointer))
        self.scheduler: Any = Scheduler()
        self.scheduler.bind(int(ffi.cast("uintptr_t", self.pointer)), self.pointer)
        self.fabric._scheduler = self.scheduler
        self.options = ffi.new("struct fbx_sim_options *")
        self.nodes = list(topology.nodes)
        self.sites: dict[int, int | None] = {}
        self.codes: dict[int, CodeType] = {}
        self._kept: list[CodeType] = []
        self._last: weakref.ref[Trace] | None = None
        self._ranges = [
            (info["gva"], info["bytes"], f"{node}:{info['tier']}")
            for node in self.nodes
            for info in self.fabric.node_info(node)["regions"]
        ]
        self._record = ffi.new("struct fbx_sim_task *")
        self._digest = ffi.new("uint64_t[2]")

    # -- before and after a run ---------------------------------------------------------------------------------------

    def reset(self, seed: int, step_ps: int, limit_ps: int, limit_events: int, stalls: bool) -> None:
        """Make it as new."""
        trace = self._last() if self._last is not None else None
        if trace is not None:
            trace.keep()
        self._last = None
        o = self.options
        o.step_ps, o.limit_ps, o.limit_events, o.stalls = step_ps, limit_ps, limit_events, int(stalls)
        check(lib.fbx_sim_reset(self.pointer, seed, o))
        check(lib.fbx_trace_start(self.fabric._handle.pointer, ROOM))

    def plan(self, fixed: list[tuple[int, int, int]] | None, *, log: bool) -> None:
        """Say what becomes of decisions: as the seed says, or these (kind, key, value) and no others."""
        pointer = self.fabric._handle.pointer
        flags = (lib.FBX_CHOICE_LOG if log else 0) | (lib.FBX_CHOICE_ONLY if fixed is not None else 0)
        table = ffi.new("struct fbx_choice[]", max(len(fixed or ()), 1))
        for to, (kind, key, value) in zip(table, fixed or (), strict=False):
            to.kind, to.key, to.value = kind, key, value
        check(lib.fbx_choice_plan(pointer, table, len(fixed or ()), flags))

    def decisions(self) -> list[tuple[int, int, int, int, int]]:
        """Return the decisions of the run that were not harmless: (kind, key, value, of how many, when)."""
        pointer = self.fabric._handle.pointer
        count = lib.fbx_choice_log(pointer, ffi.NULL, 0)
        out = ffi.new("struct fbx_choice[]", max(count, 1))
        lib.fbx_choice_log(pointer, out, count)
        return [(int(c.kind), int(c.key), int(c.value), int(c.n), int(c.at_ps)) for c in out[0:count]]

    def trace(self) -> Trace:
        """Return the trace of the run; its records are copied when somebody looks, or before the next run."""
        count = int(lib.fbx_trace_count(self.fabric._handle.pointer, self._digest))
        digest = f"{self._digest[0]:016x}{self._digest[1]:016x}"
        trace = Trace(self._copy, count, digest, self.nodes, self.where, self.codes)
        self._last = weakref.ref(trace)
        return trace

    def _copy(self) -> tuple[bytes, int]:
        pointer = self.fabric._handle.pointer
        room = min(int(lib.fbx_trace_count(pointer, self._digest)), ROOM)
        first = ffi.new("uint64_t *")
        out = ffi.new("struct fbx_trace_record[]", max(room, 1))
        assert ffi.sizeof("struct fbx_trace_record") == RECORD.size
        copied = lib.fbx_trace_copy(pointer, first, out, room)
        return bytes(ffi.buffer(out, copied * RECORD.size)), int(first[0])

    # -- words --------------------------------------------------------------------------------------------------------

    def where(self, gva: int, node: str) -> str:
        """Return an address in words: node:tier+offset."""
        for base, size, name in self._ranges:
            if base <= gva < base + size:
                return f"{name}+{gva - base:#x}"
        return f"{gva:#x} on the bus of {node}" if gva >> 63 else f"{gva:#x}"

    def site_of(self, code: CodeType) -> int | None:
        """Give a piece of code a number for the trace; None if it is this library's own."""
        number = None if code.co_filename.startswith(OURS) else len(self.codes) % 65535 + 1
        self._kept.append(code)  # its address stays its name
        self.sites[id(code)] = number
        if number is not None:
            self.codes[number] = code
        return number

    def look(self, task: int) -> Any:
        """Return what the core says about a program."""
        check(lib.fbx_sim_look(self.pointer, task, self._record))
        return self._record

    def close(self) -> None:
        """End the fabric."""
        self.fabric._scheduler = None
        self.fabric.close()


_free: dict[tuple[Any, str, bool], list[Simulation]] = {}
_order: list[Simulation] = []


def _key(topology: Any, ordering: str, strict: bool) -> tuple[Any, str, bool]:
    """Return what must be equal for a fabric to be used again: files and dicts may change meanwhile."""
    what: Any = topology
    if isinstance(topology, Topology):
        what = id(topology)
    elif isinstance(topology, str):
        with contextlib.suppress(OSError):
            found = os.stat(topology)
            what = (topology, found.st_mtime_ns, found.st_size, found.st_ino)
    else:
        what = repr(topology)
    return what, ordering, strict


def take(topology: Any, ordering: str | None, strict: bool) -> tuple[Simulation, tuple[Any, str, bool], Any]:
    """Return a simulation for a topology, used before or new, and the key to give it back with."""
    key = _key(topology, ordering or "", strict)
    waiting = _free.get(key)
    if waiting:
        return waiting.pop(), key, topology
    described = Topology.resolve(topology)
    return Simulation(described, ordering or described.ordering, strict), key, topology


def give_back(simulation: Simulation, key: tuple[Any, str, bool], topology: Any) -> None:
    """Keep a simulation for the next run; the oldest kept one goes if there are many."""
    simulation.named = topology
    _free.setdefault(key, []).append(simulation)
    count = sum(len(waiting) for waiting in _free.values())
    for other in list(_free):
        if count <= _MOST:
            break
        while _free[other] and count > _MOST and other != key:
            _free[other].pop(0).close()
            count -= 1
        if not _free[other]:
            del _free[other]


def discard(simulation: Simulation) -> None:
    """End a simulation that cannot be used again."""
    with contextlib.suppress(FabricError):
        simulation.close()
