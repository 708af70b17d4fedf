# SPDX-License-Identifier: Apache-2.0
"""Timing operations: one requester, memory of another node, one operation at a time.

With timing on every operation is timed by itself. With timing off an operation takes less time than a look at the clock costs,
so batches are timed, and the samples are the batches' means.

Owns: how an operation is timed, and what the model asks for it. Must not know: rows, tables, files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

from . import machine
from .output import usage

__all__ = [
    "BULK",
    "DMA_OPS",
    "OPS",
    "POSTED",
    "SIZED",
    "Effort",
    "Place",
    "Samples",
    "idle",
    "measure",
    "open_place",
    "requested_ns",
    "sizes_of",
]

KIB, MIB = 1 << 10, 1 << 20
_KIND = {"load": 0, "store": 1, "read": 2, "write": 3, "fetch_add": 4}
# What each counts as in fidelity(), where the names differ.
_COUNTED = {
    "gather": "load",
    "scatter": "store",
    "put_signal": "dma_write",
    "fill": "dma_write",
    "strided": "dma_write",
    "dma_submit": "dma_write",
    "dma_queue": "dma_write",
}
OPS: dict[str, tuple[int, ...]] = {
    "empty": (0,),
    "load": (8,),
    "store": (8,),
    "fetch_add": (8,),
    "write": (64, 4 * KIB, 64 * KIB),
    "read": (64, 4 * KIB),
    "gather": (8,),
    "scatter": (8,),
    "dma_write": (4 * KIB, 64 * KIB, MIB, 16 * MIB),
    "dma_read": (4 * KIB, 64 * KIB, MIB, 16 * MIB),
    "put_signal": (4 * KIB,),
    "fill": (64 * KIB,),
    "strided": (64 * KIB,),
    "dma_submit": (8,),
    "dma_queue": (8,),
    "pingpong": (8,),
}
"""What there is, and the sizes in bytes that are measured where none is asked for."""

BULK = ("read", "write", "dma_write", "dma_read", "put_signal", "fill", "strided")
DMA_OPS = ("dma_write", "dma_read", "put_signal", "fill", "strided", "dma_submit", "dma_queue")
SIZED = {"read": 64 * KIB, "write": 64 * KIB, "dma_write": 64 * MIB, "dma_read": 64 * MIB, "put_signal": 64 * MIB,
         "fill": 64 * MIB, "strided": 64 * MIB}  # fmt: skip
"""Operations that take a size, and up to which."""

POSTED = ("store", "scatter", "write", *(op for op in DMA_OPS if op != "dma_read"))
"""Operations that are complete before they have arrived."""

_ROW = KIB  # of `strided`: rows that are this long, at twice that distance
_GATHERED = 1024
_DEPTH = 64  # of dma_submit and dma_queue: what a channel holds


@dataclass
class Place:
    """A requester, and memory of another node for it."""

    fabric: Any
    node: Any
    target: str
    gva: int
    near: int  # of the requester's own, as much as `room`; equal to `gva` where it has none
    room: int
    topology: str

    @property
    def dilation(self) -> float:
        """Seconds of real time for one of the fabric's."""
        return float(self.fabric.topology.dilation)

    def fabric_time(self, samples: Samples) -> Samples:
        """Samples of real time as samples of the fabric's."""
        if self.dilation != 1:
            samples.values = [value / self.dilation for value in samples.values]
        return samples


@dataclass
class Effort:
    """How much to measure: seconds, batches where those are timed, and single operations at most."""

    seconds: float
    batches: int
    most: int


@dataclass
class Samples:
    """What one operation took, in ns.

    Attributes:
        count: operations that ran; more than there are values where batches were timed.
        late, preempted, counted: by the fabric's own account; None where it keeps none.
    """

    values: list[float] = field(default_factory=list)
    count: int = 0
    late: int | None = None
    preempted: int | None = None
    counted: int = 0


def sizes_of(op: str, asked: list[int] | None, room: int = 64 * MIB) -> list[int]:
    """The sizes to measure of an operation: those asked for that it can have, else its own."""
    if asked and op in SIZED:
        return [size for size in asked if size <= min(SIZED[op], room)]
    return [size for size in OPS[op] if size <= room]


def idle(topology: Any, delays: bool) -> Any:
    """The same nodes and ways with next to no time of their own: what still passes is the machine's.

    Latencies and set-up times go, links get the highest rate there is, packets keep their sizes.

    Args:
        delays: keep those of links and switches: what is posted is complete without them, but has to be kept on its way.
    """
    from ..topology import Topology

    document = topology.to_dict()
    for node in document["nodes"].values():
        if not delays:
            node.pop("delay", None)
        for key in ("pio", "dma"):
            kept = {word: value for word, value in node.pop(key, {}).items() if word in ("access_bytes", "wc", "channels")}
            if key == "dma":
                kept["tags"] = 1024
            if kept and node["kind"] in ("host", "accelerator"):
                node[key] = kept
        if "memory" in node:
            node["memory"] = {tier: facts["size"] if isinstance(facts, dict) else facts for tier, facts in node["memory"].items()}
    for link in document["links"]:
        link.pop("jitter", None)
        if not delays:
            link["delay"] = "0ns"
        if "pcie" in link:
            link["pcie"] = {key: value for key, value in link["pcie"].items() if key in ("mps", "mrrs", "rcb")}
            link["pcie"] |= {"gen": 6, "lanes": 32}
        else:
            link["ethernet"] |= {"rate": "100Tb/s"}
    return Topology.from_dict(document)


def open_place(topology: Any, timing: bool, ordering: str, shown: str, room: int) -> Place:
    """Make a fabric, with `room` bytes at either end where the tiers are that large.

    Raises:
        CommandError: no node of it could measure, or none is in reach.
    """
    from ..fabric import Fabric

    able = [node.name for node in topology.nodes.values() if node.kind in ("host", "accelerator")]
    if not able:
        usage(f"{shown} has no host and no accelerator that could measure")
    source = able[0]
    reach = [name for name in topology.reachable(source) if name != source and topology.nodes[name].memory]
    hosts = [name for name in reach if topology.nodes[name].kind == topology.nodes[source].kind]
    if not reach:
        usage(f"{source} of {shown} reaches no other memory")
    target = (hosts or reach)[-1]
    smallest = min(tier.size for end in (source, target) for tier in list(topology.nodes[end].memory.values())[:1])
    room = min(room, smallest // 4)
    fabric = Fabric.create(topology, timing=timing, ordering=ordering)
    try:
        node = fabric.attach(source)
        size = max(2 * room + 64, min(MIB, smallest // 2))  # strided takes twice its size, put_signal a line before
        far = node.alloc(size, on=target, name="bench-far")
        near = node.alloc(size, name="bench-near") if topology.nodes[source].memory else far
        for buffer in {far.gva: far, near.gva: near}.values():
            memory = node.view(buffer.gva, buffer.size)
            memory[:] = bytes(len(memory))
        return Place(fabric, node, target, far.gva, near.gva, room, shown)
    except BaseException:
        fabric.close()
        raise


def requested_ns(place: Place, op: str, size: int) -> float:
    """What the model asks for on the idle fabric; 0 where it asks for nothing."""
    if not place.fabric.timing or op in ("empty", "dma_submit", "dma_queue"):
        return 0.0
    node, kind = place.node, _COUNTED.get(op, op)
    if op == "pingpong":
        return float(node.estimate("store", place.gva, size)["arrives_ps"]) / 1e3
    asked = int(node.estimate(kind, place.gva, size)["completes_ps"])
    if op == "put_signal":
        asked += int(node.estimate("store", place.gva, 8)["completes_ps"])
    elif op == "fill":  # which reads nothing first
        asked -= next(iter(place.fabric.topology.nodes[node.name].memory.values())).latency_ps
    return asked / 1e3


def _counts(place: Place, op: str) -> tuple[int, int, int]:
    facts = place.fabric.fidelity().get(_COUNTED.get(op, op))
    return (facts["late"], facts["preempted"], facts["count"]) if facts else (0, 0, 0)


def measure(place: Place, op: str, api: str, size: int, effort: Effort) -> Samples | None:
    """Time one operation; None if this one cannot be had through this API or at this place."""
    if op in DMA_OPS and place.near == place.gva:
        return None
    if op == "pingpong":
        return place.fabric_time(_pingpong(place, effort)) if api == "python" else None
    if op == "empty" and api == "c":
        return None
    late, preempted, counted = _counts(place, op)
    if api == "c":  # by the fabric's clock
        found = _of_c(place, op, size, replace(effort, seconds=effort.seconds / place.dilation))
    else:
        found = place.fabric_time(_of_python(place, op, size, effort))
    after = _counts(place, op)
    if place.fabric.timing and after[2] > counted:
        found.late, found.preempted, found.counted = after[0] - late, after[1] - preempted, after[2] - counted
    return found


def _batches(batch: Callable[[int], float], effort: Effort, least: int = 1) -> Samples:
    """Means of batches, each long enough for the clock not to matter."""
    warm = max(batch(max(min(64, effort.most), least)), 1.0)
    count = max(int(effort.seconds * 1e9 / effort.batches / warm), least, 1)
    return Samples([batch(count) for _ in range(effort.batches)], count * effort.batches)


# -- inside C ---------------------------------------------------------------------------------------------------------


def _descriptor(place: Place, op: str, size: int) -> Any:
    from .._handle import ffi, lib

    d = ffi.new("struct fbx_dma *", {"dst": place.gva + 64, "src": place.near, "bytes": size})
    if op == "dma_read":
        d.dst, d.src = place.near, place.gva + 64
    elif op == "put_signal":
        d.flags, d.signal, d.signal_value = lib.FBX_DMA_SIGNAL, place.gva, 1
    elif op == "fill":
        d.flags, d.fill, d.fill_bytes = lib.FBX_DMA_FILL, 0x5A, 1
    elif op == "strided":
        row = min(size, _ROW)
        d.bytes, d.rows, d.dst_stride, d.src_stride = row, max(size // row, 1), 2 * row, 2 * row
    return d


def _of_c(place: Place, op: str, size: int, effort: Effort) -> Samples:
    from .._handle import check, ffi, lib

    node, pointer, total = place.node, place.node._pointer(), ffi.new("uint64_t *")
    timing = place.fabric.timing
    if op in ("gather", "scatter"):
        gvas = ffi.new("uint64_t[]", [place.gva + 64 * i for i in range(_GATHERED)])
        data, done = ffi.new("char[]", size * _GATHERED), ffi.new("uint64_t *")
        record = ffi.new("struct fbx_op *")
        call = lib.fbx_gather if op == "gather" else lib.fbx_scatter

        def gathered(count: int) -> float:
            rounds = max(count // _GATHERED, 1)
            begin = lib.fbx_fabric_now(place.fabric._live())
            for _ in range(rounds):
                done[0], record.kind = 0, lib.FBX_OTHER
                check(call(pointer, record, gvas, _GATHERED, size, data, done, (1 << 64) - 1), node)
            return float(lib.fbx_fabric_now(place.fabric._live()) - begin) / rounds / _GATHERED / 1e3

        return _batches(gathered, effort, least=_GATHERED)
    if op in DMA_OPS:
        d = _descriptor(place, op, size)
        depth = _DEPTH if op in ("dma_submit", "dma_queue") else 1

        def bench(count: int, samples: Any) -> float:
            check(lib.fbx_bench_dma(pointer, d, depth, count, samples, total), node)
            return float(total[0]) / count / 1e3
    else:
        gvas = ffi.new("uint64_t[]", [place.gva])

        def bench(count: int, samples: Any) -> float:
            check(lib.fbx_bench(pointer, _KIND[op], gvas, 1, size, count, samples, total), node)
            return float(total[0]) / count / 1e3

    if op == "dma_queue" or (not timing and op != "dma_submit"):
        return _batches(lambda count: bench(count, ffi.NULL), effort, least=4 * _DEPTH if depth_of(op) > 1 else 1)
    each = max(bench(min(20, effort.most), ffi.NULL), 1.0)
    count = int(min(max(effort.seconds * 1e9 / each, 3), effort.most))
    values: list[float] = []
    samples = ffi.new("uint64_t[]", count)
    part = max(count // 10, 1)  # so that Ctrl-C works
    for _ in range(0, count, part):
        bench(part, samples)
        values += [value / 1e3 for value in samples[0:part]]
    return Samples(values, len(values))


def depth_of(op: str) -> int:
    """How many of an operation are under way at once."""
    return _DEPTH if op in ("dma_submit", "dma_queue") else 1


# -- from Python ------------------------------------------------------------------------------------------------------


def _call(place: Place, op: str, size: int) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """A function, its arguments, and how many operations one call is."""
    node, gva = place.node, place.gva
    if op == "empty":
        return node.empty, (gva,), 1
    if op == "load":
        return node.load, (gva,), 1
    if op == "store":
        return node.store, (gva, 7), 1
    if op == "fetch_add":
        return node.fetch_add, (gva, 1), 1
    if op == "write":
        return node.write, (gva, bytes(size)), 1
    if op == "read":
        return node.readinto, (gva, bytearray(size)), 1
    dma, far, near = node.dma, gva + 64, place.near
    if op == "dma_write":
        return (lambda dst, src: dma.copy(dst, src, size).wait()), (far, near), 1
    if op == "dma_read":
        return (lambda dst, src: dma.copy(dst, src, size).wait()), (near, far), 1
    if op == "put_signal":
        return (lambda dst, src: dma.put_signal(dst, src, size, gva, 1).wait()), (far, near), 1
    if op == "fill":
        return (lambda dst, value: dma.fill(dst, value, size).wait()), (far, 0x5A), 1
    if op == "strided":
        row = min(size, _ROW)
        return (lambda dst, src: dma.copy_2d(dst, src, row, max(size // row, 1), 2 * row, 2 * row).wait()), (far, near), 1
    from array import array

    addresses = array("Q", [gva + 64 * i for i in range(_GATHERED)])
    return (node.gather if op == "gather" else node.scatter), (addresses, bytearray(size * _GATHERED)), _GATHERED


def _submissions(place: Place, size: int) -> Callable[[int], float]:
    """Submit as many as a channel holds, and wait for them outside of the time that counts."""
    copy, dst, src = place.node.dma.copy, place.gva + 64, place.near
    clock = time.perf_counter_ns

    def batch(count: int) -> float:
        spent, rounds = 0, max(count // _DEPTH, 1)
        for _ in range(rounds):
            begin = clock()
            under_way = [copy(dst, src, size) for _ in range(_DEPTH)]
            spent += clock() - begin
            for completion in under_way:
                completion.wait()
        return spent / rounds / _DEPTH

    return batch


def _queue(place: Place, size: int) -> Callable[[int], float]:
    """Keep a channel full; the time until all are complete."""
    from collections import deque

    copy, dst, src = place.node.dma.copy, place.gva + 64, place.near
    clock = time.perf_counter_ns

    def batch(count: int) -> float:
        under_way: deque[Any] = deque()
        begin = clock()
        for _ in repeat(None, count):
            if len(under_way) == _DEPTH:
                under_way.popleft().wait()
            under_way.append(copy(dst, src, size))
        for completion in under_way:
            completion.wait()
        return (clock() - begin) / count

    return batch


def _of_python(place: Place, op: str, size: int, effort: Effort) -> Samples:
    if op in ("dma_submit", "dma_queue"):
        return _batches((_submissions if op == "dma_submit" else _queue)(place, size), effort, least=_DEPTH)
    call, arguments, per_call = _call(place, op, size)
    clock = time.perf_counter_ns

    def batch(count: int) -> float:
        rounds = max(count // per_call, 1)
        if len(arguments) == 1:
            [first] = arguments
            begin = clock()
            for _ in repeat(None, rounds):
                call(first)
        else:
            first, second = arguments
            begin = clock()
            for _ in repeat(None, rounds):
                call(first, second)
        return (clock() - begin) / rounds / per_call

    if not place.fabric.timing or op == "empty" or per_call > 1:
        return _batches(batch, effort, least=per_call)
    nothing = min(-clock() + clock() for _ in range(200))
    each = max(batch(min(20, effort.most)), 1.0)
    count = int(min(max(effort.seconds * 1e9 / each, 3), effort.most))
    values: list[float] = []
    for _ in repeat(None, count):
        begin = clock()
        call(*arguments)
        values.append(float(max(clock() - begin - nothing, 0)))
    return Samples(values, count)


def _pingpong(place: Place, effort: Effort) -> Samples:
    """One way: half of the round trip of a store that a polling process answers with a store."""
    memory = place.node.view(place.gva, 64), place.node.view(place.near, 64)
    for view in memory:
        view[:8] = bytes(8)
    rounds = int(min(max(effort.seconds * 1e9 / 4000, 200), 20_000))
    times = machine.pingpong(place.fabric, place.node, place.target, place.near, place.gva, rounds)
    values = [value / 2 for value in times[rounds // 10 :]]
    return Samples(values, len(values))
