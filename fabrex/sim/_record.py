# SPDX-License-Identifier: Apache-2.0
"""Record what a real-time run asked of the fabric, and ask the same under the virtual clock.

What is recorded is when each operation began and when it was looked at again, not what it carried: modelled times do not
depend on values. While processes record, their operations reserve the links one after the other, in an order that is
recorded too; so doing the same again in that order makes the same reservations and gives the same times, to the picosecond.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import msgpack

from .._handle import NodeHandle, check, ffi, lib
from ..errors import InvalidArgument
from ..fabric import Fabric
from ..topology import Topology
from ._trace import RECORD

__all__ = ["Recorded", "Recording", "Replay", "record", "replay"]

_VERSION = 1
_ROOM = 1 << 22
_KINDS = ("load", "store", "read", "write", "fetch_add", "swap", "compare_swap", "flush")
_OP, _BEGIN, _STEP = 1, 6, 7


@dataclass
class Recorded:
    """One operation as the model timed it.

    Attributes:
        process: which of the merged recordings; number: of the operation in it.
        node, kind, gva, size: what was asked. attributes: bits 1 (ro) and 2 (ido); tc: traffic class, and path << 3.
        issued_ps, departs_ps, arrives_ps, completes_ps: modelled times.
        status: 0, or the core's error code.
    """

    process: int
    number: int
    node: str
    kind: str
    gva: int
    size: int
    attributes: int
    tc: int
    issued_ps: int
    departs_ps: int
    arrives_ps: int
    completes_ps: int
    status: int

    @property
    def times(self) -> tuple[int, int, int]:
        """departs_ps, arrives_ps, completes_ps."""
        return self.departs_ps, self.arrives_ps, self.completes_ps


@dataclass
class Recording:
    """What one or several processes asked of a fabric.

    Attributes:
        topology: as a dict. ordering, seed: of the fabric.
        operations: those that were complete, as modelled.
        events: (place in the common order, process, "begin" or "step", number, as of when, requester, target).
        incomplete: True if more happened than a recording holds, or what cannot be replayed (DMA, registers of an NTB).
        instance: of the fabric, so that only recordings of one are merged.
    """

    topology: dict[str, Any] = field(default_factory=dict)
    ordering: str = "posted"
    seed: int = 0
    operations: list[Recorded] = field(default_factory=list)
    events: list[tuple[int, int, int, int, int, int, int]] = field(default_factory=list)
    incomplete: bool = False
    instance: int = 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file."""
        whole = [
            _VERSION,
            self.topology,
            self.ordering,
            self.seed,
            self.incomplete,
            self.instance,
            [list(vars(operation).values()) for operation in self.operations],
            self.events,
        ]
        with open(path, "wb") as file:
            file.write(msgpack.packb(whole))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read one that `save` wrote.

        Raises:
            InvalidArgument: the file holds no recording.
        """
        with open(path, "rb") as file:
            data = file.read()
        try:
            whole = msgpack.unpackb(data, strict_map_key=False)
            version, topology, ordering, seed, incomplete, instance, operations, events = whole
            if version != _VERSION:
                raise ValueError(f"version {version}")
            done = [Recorded(*row) for row in operations]
            return cls(topology, ordering, seed, done, [tuple(row) for row in events], incomplete, instance)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise InvalidArgument(f"{os.fspath(path)} holds no recording: {error}") from None

    @classmethod
    def merge(cls, *recordings: Recording) -> Recording:
        """Return one recording of what several processes did on one fabric at the same time."""
        if not recordings or len({r.instance for r in recordings}) != 1:
            raise InvalidArgument("recordings of one fabric are merged, at least one")
        first = recordings[0]
        out = cls(first.topology, first.ordering, first.seed, instance=first.instance)
        base = 0
        for recording in recordings:
            out.incomplete |= recording.incomplete
            for operation in recording.operations:
                out.operations.append(Recorded(**{**vars(operation), "process": operation.process + base}))
            out.events += [(order, process + base, *rest) for order, process, *rest in recording.events]  # type: ignore[misc]
            base += 1 + max((event[1] for event in recording.events), default=0)
        out.events.sort()
        return out


class record:
    """Record this process's operations on a fabric: `with fabrex.sim.record(fabric) as recording: ...`.

    The Recording is filled when the block ends. Several processes record at the same time; `Recording.merge` puts theirs
    together. Operations of threads and of C code count too; DMA and registers of an NTB are not recorded.
    """

    def __init__(self, fabric: Fabric) -> None:
        if not fabric.timing:
            raise InvalidArgument("without injected time there are no times to record", hint="make the fabric with timing=True")
        if fabric._scheduler is not None:
            raise InvalidArgument("programs under the virtual clock have a trace already: the result's")
        self._fabric = fabric
        self._recording = Recording()

    def __enter__(self) -> Recording:
        pointer = self._fabric._live()
        check(lib.fbx_trace_start(pointer, _ROOM))
        check(lib.fbx_record(pointer, 1))
        return self._recording

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._fabric.closed:
            return
        pointer = self._fabric._live()
        check(lib.fbx_record(pointer, 0))
        check(lib.fbx_trace_stop(pointer))
        _fill(self._recording, self._fabric, pointer)


def _fill(recording: Recording, fabric: Fabric, pointer: Any) -> None:
    info = fabric.info()
    recording.topology, recording.ordering, recording.seed = fabric.topology.to_dict(), fabric.ordering, info["seed"]
    out = ffi.new("struct fbx_fabric_info *")
    check(lib.fbx_fabric_info(pointer, out))
    recording.instance = int(out.instance)
    digest, first = ffi.new("uint64_t[2]"), ffi.new("uint64_t *")
    count = int(lib.fbx_trace_count(pointer, digest))
    recording.incomplete = count > _ROOM
    room = min(count, _ROOM)
    records = ffi.new("struct fbx_trace_record[]", max(room, 1))
    copied = lib.fbx_trace_copy(pointer, first, records, room)
    names = list(fabric.topology.nodes)
    for row in RECORD.iter_unpack(ffi.buffer(records, copied * RECORD.size)):
        (at, number, gva, size, _, issued, departs, arrives, completes, sequence, passed, _, status, node, target, _,
         event, kind, tc, attr) = row  # fmt: skip
        if event in (_BEGIN, _STEP):
            recording.events.append((sequence, 0, event, number, at, passed, target))
        elif event == _OP and kind < len(_KINDS):
            recording.operations.append(
                Recorded(0, number, names[node], _KINDS[kind], gva, size, attr, tc, issued, departs, arrives, completes, status)
            )
        elif event == _OP:
            recording.incomplete = True
    recording.events.sort()


@dataclass
class Replay:
    """What the virtual clock made of a recording.

    Attributes:
        operations: the recorded ones. replayed: for each, the modelled times now.
        differences: those that differ, in words; empty if all are equal to the picosecond.
    """

    operations: list[Recorded]
    replayed: list[tuple[int, int, int]]
    differences: list[str]

    @property
    def exact(self) -> bool:
        """Whether all times are the same."""
        return not self.differences


def replay(recording: Recording) -> Replay:
    """Issue what was recorded, as of the same times and in the same order, under the virtual clock.

    Returns:
        A Replay: the modelled times then and now.
    Raises:
        InvalidArgument: the recording is empty.
    """
    if not recording.operations:
        raise InvalidArgument("nothing was recorded")
    fabric = Fabric._private(Topology.from_dict(recording.topology), recording.ordering, recording.seed, False)
    try:
        return _again(recording, fabric)
    finally:
        fabric.close()


def _again(recording: Recording, fabric: Fabric) -> Replay:
    pointer = fabric._handle.pointer
    known = {(operation.process, operation.number): operation for operation in recording.operations}
    scratch = ffi.new("char[]", max(operation.size for operation in recording.operations) + 64)
    # Requesters have the numbers that they had: ordering and chance go by them.
    whose: dict[int, str] = {}
    for _, process, _, number, _, requester, _ in recording.events:
        operation = known.get((process, number))
        if operation is not None:
            whose.setdefault(requester, operation.node)
    handles: list[NodeHandle] = []
    owned: set[str] = set()
    for requester in range(max(whose, default=0) + 1):
        node = whose.get(requester, next(iter(whose.values())))
        handles.append(NodeHandle(fabric._handle, node, 1 if node in owned or requester not in whose else 0))
        owned.update([node] if requester in whose else [])
    records: dict[tuple[int, int], Any] = {}
    for _, process, event, number, at_ps, requester, target in recording.events:
        name = (process, number)
        operation = known.get(name)
        if operation is None:
            continue  # it was under way when the recording ended
        handle = handles[requester]
        check(lib.fbx_virtual_set(pointer, at_ps))
        if event == _BEGIN:
            op = records[name] = ffi.new("struct fbx_op *")
            op.kind, op.gva, op.bytes = _KINDS.index(operation.kind), operation.gva, operation.size
            op.attr, op.tc, op.path = operation.attributes, operation.tc & 7, operation.tc >> 3
            if operation.kind in ("read", "write") or operation.size > 8:
                op.buffer = scratch
            if operation.kind == "flush":
                op.operand[0] = target
            lib.fbx_op_begin(handle.pointer, op)
        elif name in records:
            lib.fbx_op_advance(handle.pointer, records[name])
    replayed: list[tuple[int, int, int]] = []
    differences: list[str] = []
    for operation in recording.operations:
        op = records.get((operation.process, operation.number))
        now = (int(op.departs_ps), int(op.arrives_ps), int(op.completes_ps)) if op is not None else (0, 0, 0)
        replayed.append(now)
        if now != operation.times or (op is not None and int(op.issued_ps) != operation.issued_ps):
            differences.append(
                f"{operation.kind} {operation.number} of {operation.node} (process {operation.process}) issued at "
                f"{operation.issued_ps} ps: {operation.times} recorded, {now} replayed"
            )
    for handle in handles:
        handle.close()
    return Replay(recording.operations, replayed, differences)
