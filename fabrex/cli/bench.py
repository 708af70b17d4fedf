# SPDX-License-Identifier: Apache-2.0
"""`fabricctl bench`: what the model asks for beside what this machine gives.

With timing on, every operation is timed by itself. With timing off an operation takes less time than a look at the clock
costs, so batches are timed, and the percentiles are those of the batches' means. `floor_ns` is what the machine needs with
no modelled time in the way: below it the emulator cannot keep a promise and does not claim to.

Owns: measuring. Must not know: how rows are shown elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from . import machine, output
from .common import load_topology
from .machine import percentile
from .output import document, emit, note, table, unknown, usage

_KIND = {"load": 0, "store": 1, "read": 2, "write": 3, "fetch_add": 4}
_SIZES = {
    "empty": (0,),
    "load": (8,),
    "store": (8,),
    "fetch_add": (8,),
    "write": (64, 4096, 65536),
    "read": (64, 4096),
    "gather": (8,),
    "scatter": (8,),
    "pingpong": (8,),
}
_GATHERED = 1024
_BOTH = ("load", "store", "write", "read", "fetch_add", "gather", "scatter")


@dataclass
class _Place:
    """A requester, and memory of another node for it."""

    fabric: Any
    node: Any
    target: str
    gva: int
    near: int
    topology: str


@dataclass
class _Effort:
    """How much to measure."""

    seconds: float
    batches: int
    most: int


def _open(topology: Any, timing: bool, ordering: str, shown: str) -> _Place:
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
    fabric = Fabric.create(topology, timing=timing, ordering=ordering)
    try:
        node = fabric.attach(source)
        far = node.alloc(1 << 20, on=target, name="bench-far")
        near = node.alloc(1 << 16, name="bench-near") if topology.nodes[source].memory else far
        memory = node.view(far.gva, far.size)
        memory[:] = bytes(len(memory))
        return _Place(fabric, node, target, far.gva, near.gva, shown)
    except BaseException:
        fabric.close()
        raise


def _requested_ns(place: _Place, op: str, size: int) -> float:
    if not place.fabric.timing or op == "empty":
        return 0.0
    kind = {"gather": "load", "scatter": "store", "pingpong": "store"}.get(op, op)
    estimate = place.node.estimate(kind, place.gva, size)
    return float(estimate["arrives_ps" if op == "pingpong" else "completes_ps"]) / 1e3


def _late(place: _Place, op: str) -> tuple[int, int]:
    kind = {"gather": "load", "scatter": "store"}.get(op, op)
    facts = place.fabric.fidelity().get(kind)
    return (facts["late"], facts["count"]) if facts else (0, 0)


def _row(place: _Place, op: str, api: str, size: int, values: list[float], count: int, late: float | None) -> dict[str, Any]:
    values.sort()
    p50 = percentile(values, 0.5)
    return {
        "op": op,
        "api": api,
        "size": size,
        "topology": place.topology,
        "timing": "on" if place.fabric.timing else "off",
        "ordering": place.fabric.ordering,
        "requested_ns": round(_requested_ns(place, op, size), 3),
        "p50_ns": round(p50, 3),
        "p99_ns": round(percentile(values, 0.99), 3),
        "p999_ns": round(percentile(values, 0.999), 3),
        "late": late,
        "count": count,
        "samples": len(values),
        "floor_ns": None,
        "bytes_per_s": round(size / p50 * 1e9) if size and p50 > 0 else None,
    }


# -- inside C ---------------------------------------------------------------------------------------------------------


def _measure_c(place: _Place, op: str, size: int, effort: _Effort) -> dict[str, Any]:
    from .._handle import check, ffi, lib

    node, pointer, total = place.node, place.node._pointer(), ffi.new("uint64_t *")
    if op in ("gather", "scatter"):
        gvas = ffi.new("uint64_t[]", [place.gva + 64 * i for i in range(_GATHERED)])
        data, done = ffi.new("char[]", size * _GATHERED), ffi.new("uint64_t *")
        record = ffi.new("struct fbx_op *")
        call = lib.fbx_gather if op == "gather" else lib.fbx_scatter

        def batch(count: int) -> float:
            begin = lib.fbx_fabric_now(place.fabric._live())
            for _ in range(max(count // _GATHERED, 1)):
                done[0], record.kind = 0, lib.FBX_OTHER
                check(call(pointer, record, gvas, _GATHERED, size, data, done, (1 << 64) - 1), node)
            return float(lib.fbx_fabric_now(place.fabric._live()) - begin) / max(count // _GATHERED, 1) / _GATHERED / 1e3

        return _batches(place, op, "c", size, batch, effort, least=_GATHERED)
    gvas = ffi.new("uint64_t[]", [place.gva])

    def bench(count: int, samples: Any) -> float:
        check(lib.fbx_bench(pointer, _KIND[op], gvas, 1, size, count, samples, total), node)
        return float(total[0]) / count / 1e3

    if not place.fabric.timing:
        return _batches(place, op, "c", size, lambda count: bench(count, ffi.NULL), effort)
    each = max(bench(20, ffi.NULL), 1.0)
    count = int(min(max(effort.seconds * 1e9 / each, 50), effort.most))
    late, counted = _late(place, op)
    values: list[float] = []
    samples = ffi.new("uint64_t[]", count)
    part = max(count // 10, 1)  # so that Ctrl-C works
    for _ in range(0, count, part):
        bench(part, samples)
        values += [value / 1e3 for value in samples[0:part]]
    late_after, counted_after = _late(place, op)
    return _row(place, op, "c", size, values, len(values), _fraction(late_after - late, counted_after - counted))


def _fraction(late: int, count: int) -> float | None:
    return round(late / count, 6) if count else None


def _batches(
    place: _Place, op: str, api: str, size: int, batch: Callable[[int], float], effort: _Effort, least: int = 1
) -> dict[str, Any]:
    """Measure means of batches, long enough for the clock not to matter."""
    late, counted = _late(place, op)
    warm = max(batch(max(64, least)), 1.0)
    count = max(int(effort.seconds * 1e9 / effort.batches / warm), least, 16)
    values = [batch(count) for _ in range(effort.batches)]
    late_after, counted_after = _late(place, op)
    fraction = _fraction(late_after - late, counted_after - counted) if place.fabric.timing else None
    return _row(place, op, api, size, values, count * effort.batches, fraction)


# -- from Python ------------------------------------------------------------------------------------------------------


def _call(place: _Place, op: str, size: int) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """Return a function, its arguments, and how many operations one call is."""
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
    from array import array

    addresses = array("Q", [gva + 64 * i for i in range(_GATHERED)])
    return (node.gather if op == "gather" else node.scatter), (addresses, bytearray(size * _GATHERED)), _GATHERED


def _measure_python(place: _Place, op: str, size: int, effort: _Effort) -> dict[str, Any]:
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
        return _batches(place, op, "python", size, batch, effort, least=per_call)
    nothing = min(-clock() + clock() for _ in range(200))
    each = max(batch(20), 1.0)
    count = int(min(max(effort.seconds * 1e9 / each, 50), effort.most))
    values: list[float] = []
    late, counted = _late(place, op)
    for _ in repeat(None, count):
        begin = clock()
        call(*arguments)
        values.append(float(max(clock() - begin - nothing, 0)))
    late_after, counted_after = _late(place, op)
    return _row(place, op, "python", size, values, count, _fraction(late_after - late, counted_after - counted))


def _measure_pingpong(place: _Place, effort: _Effort) -> dict[str, Any]:
    """One way: half of the round trip of a store that a polling process answers with a store."""
    memory = place.node.view(place.gva, 64), place.node.view(place.near, 64)
    for view in memory:
        view[:8] = bytes(8)
    rounds = int(min(max(effort.seconds * 1e9 / 4000, 200), 20_000))
    times = machine.pingpong(place.fabric, place.node, place.target, place.near, place.gva, rounds)
    values = [value / 2 for value in times[rounds // 10 :]]
    row = _row(place, "pingpong", "python", 8, values, len(values), None)
    row["bytes_per_s"] = None
    return row


# -- the command ------------------------------------------------------------------------------------------------------


def _check(arguments: Any) -> tuple[list[str], list[str]]:
    apis = [word.strip() for word in arguments.api.split(",") if word.strip()]
    for api in apis:
        if api not in ("c", "python"):
            raise unknown("api", api, ("c", "python"), output.USAGE)
    ops = [word for given in arguments.op or list(_SIZES) for word in given.split(",")]
    for op in ops:
        if op not in _SIZES:
            raise unknown("operation", op, _SIZES, output.USAGE)
    for size in arguments.size or ():
        if not 1 <= size <= 65536:
            usage(f"--size {size}: sizes are 1 to 65536 bytes")
    return apis or ["c", "python"], ops


def measure(
    topology: Any,
    shown: str,
    timing: bool,
    ordering: str,
    apis: list[str],
    ops: list[str],
    sizes: list[int] | None,
    effort: _Effort,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and machine facts for one topology."""
    place = _open(topology, timing, ordering, shown)
    rows = []
    try:
        facts = machine.facts(place.fabric)
        for op in ops:
            for size in _SIZES[op]:
                for given in sizes if sizes and op in ("read", "write") else [size]:
                    if op == "pingpong":
                        if "python" in apis:
                            rows.append(_measure_pingpong(place, effort))
                        continue
                    if "c" in apis and op in _BOTH:
                        rows.append(_measure_c(place, op, given, effort))
                    if "python" in apis:
                        rows.append(_measure_python(place, op, given, effort))
                if sizes and op in ("read", "write"):
                    break
    finally:
        place.fabric.close()
    return rows, facts


def bench(arguments: Any) -> int:
    """`bench`: a table, or rows in JSON."""
    apis, ops = _check(arguments)
    seconds = arguments.seconds or (0.03 if arguments.quick else 0.2)
    effort = _Effort(seconds, 10 if arguments.quick else 30, 5_000 if arguments.quick else 100_000)
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    wanted = {"on": (True,), "off": (False,), "both": (False, True)}[arguments.timing]
    shown = {word: load_topology(word) for word in dict.fromkeys(arguments.topology or ["fabrex-pair"])}
    for word, topology in shown.items():
        floors: dict[tuple[str, str, int], float] = {}
        for timing in (False, True):
            if not timing and wanted == (True,):
                # Only for the floors, which timed rows are compared with.
                extra, facts = measure(topology, word, False, arguments.ordering, apis, ops, arguments.size,
                                       _Effort(min(seconds, 0.05), 5, 2000))  # fmt: skip
            elif timing not in wanted:
                continue
            else:
                if not arguments.json and output.tty(sys.stderr):
                    note(f"measuring {word}, timing {'on' if timing else 'off'}")
                extra, facts = measure(topology, word, timing, arguments.ordering, apis, ops, arguments.size, effort)
            if not timing:
                floors = {(row["op"], row["api"], row["size"]): row["p50_ns"] for row in extra}
            for row in extra if timing in wanted else ():
                if timing:
                    row["floor_ns"] = floors.get((row["op"], row["api"], row["size"]))
                rows.append(row)
    if arguments.json:
        document("bench", machine=facts, rows=rows)
        return output.OK
    emit(output.wrapped(machine.line(facts)))
    for word in shown:
        for timing in wanted:
            state = "on" if timing else "off"
            chosen = [row for row in rows if row["topology"] == word and row["timing"] == state]
            emit("")
            how = "each operation timed" if timing else "means of batches"
            emit(f"{word}, timing {state}, ordering {arguments.ordering} ({how})")
            emit(_table(chosen, timing))
    emit("")
    emit(output.wrapped("requested: what the model asks for; floor: what this machine needs without modelled time; late: the share "
                        "of operations that missed their time. pingpong is one way, between two processes; gather and scatter "
                        "are per element."))  # fmt: skip
    return output.OK


def _table(rows: list[dict[str, Any]], timed: bool) -> str:
    cells = []
    for row in rows:
        line = [row["op"], row["api"], output.size(row["size"]) if row["size"] else "-"]
        if timed:
            line.append(output.nanoseconds(row["requested_ns"]))
        line += [output.nanoseconds(row[key]) for key in ("p50_ns", "p99_ns", "p999_ns")]
        if timed:
            line += [output.percent(row["late"]), output.nanoseconds(row["floor_ns"])]
        bulk = row["op"] in ("read", "write") and row["bytes_per_s"]
        line.append(output.rate(row["bytes_per_s"]) if bulk else "-")
        cells.append(line)
    asked, kept = (["REQUESTED"], ["LATE", "FLOOR"]) if timed else ([], [])
    header = ["OP", "API", "SIZE", *asked, "P50", "P99", "P99.9", *kept, "RATE"]
    return table(header, cells, right=header[2:])
