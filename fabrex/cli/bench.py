# SPDX-License-Identifier: Apache-2.0
"""`fabricctl bench`: what the model asks for beside what this machine gives.

Every operation is measured in several rounds, each of which goes through all operations, so that what the machine does
for a second does not fall on one of them. `floor_ns` is what the machine needs with timing on and nothing to wait for: the
same nodes and ways, without their delays. Below it the emulator cannot keep a promise and does not claim to.

Owns: rows, the table. Must not know: how an operation is timed (measure), figured (figures), drawn (card) or kept (receipt).
"""

from __future__ import annotations

import sys
from typing import Any

from ..fidelity import Disturbance
from . import machine, output
from .common import load_topology
from .figures import figures, title
from .histogram import Histogram
from .measure import DMA_OPS, OPS, POSTED, SIZED, Effort, idle, measure, open_place, requested_ns, sizes_of
from .output import document, emit, note, table, unknown, usage

# What the card shows: operations whose time the model says, without those that only batches are timed of.
CARD_OPS = ("load", "fetch_add", "read", "write", "dma_write", "dma_read", "put_signal", "fill", "strided", "pingpong")


def _check(arguments: Any) -> tuple[list[str], list[str]]:
    apis = [word.strip() for word in arguments.api.split(",") if word.strip()]
    for api in apis:
        if api not in ("c", "python"):
            raise unknown("api", api, ("c", "python"), output.USAGE)
    ops = [word for given in arguments.op or list(OPS) for word in given.split(",")]
    for op in ops:
        if op not in OPS:
            raise unknown("operation", op, OPS, output.USAGE)
    for size in arguments.size or ():
        most = max([SIZED[op] for op in ops if op in SIZED], default=65536)
        if not 1 <= size <= most:
            usage(f"--size {size}: sizes are 1 to {most} bytes")
    if arguments.card is not None:
        if arguments.timing == "off":
            usage("--card compares with what the model asks for, so timing must be on")
        if not arguments.op:
            ops = list(CARD_OPS)
    for path in (arguments.card, arguments.receipt):
        if path:
            output.writable(path)
    if arguments.card and not arguments.card.endswith((".svg", ".png")):
        usage(f"--card {arguments.card}: a picture's name ends in .svg or .png")
    return apis or ["c", "python"], ops


class Rows:
    """The rows of one fabric, measured round by round."""

    def __init__(self, topology: Any, shown: str, timing: bool, ordering: str, wanted: list[tuple[str, int]], room: int) -> None:
        self._place = open_place(topology, timing, ordering, shown, room)
        self._wanted = wanted
        self.rows: dict[tuple[str, str, int], dict[str, Any]] = {}
        self.facts = machine.facts(self._place.fabric)

    def close(self) -> None:
        """End the fabric."""
        self._place.fabric.close()

    def round(self, apis: list[str], effort: Effort) -> None:
        """Measure everything once more."""
        place = self._place
        for op, size in self._wanted:
            for api in apis:
                if op in DMA_OPS and size > place.room:
                    continue
                found = measure(place, op, api, size, effort)
                if found is None:
                    continue
                row = self.rows.setdefault(
                    (op, api, size),
                    {
                        "op": op,
                        "api": api,
                        "size": size,
                        "topology": place.topology,
                        "timing": "on" if place.fabric.timing else "off",
                        "ordering": place.fabric.ordering,
                        "requested_ps": round(requested_ns(place, op, size) * 1e3),
                        "count": 0,
                        "late": None,
                        "preempted": None,
                        "counted": 0,
                        "rounds": [],
                        "floor": None,
                    },
                )
                row["count"] += found.count
                row["rounds"].append(Histogram.of(found.values).to_json())
                if found.late is not None:
                    row["late"] = (row["late"] or 0) + found.late
                    row["preempted"] = (row["preempted"] or 0) + (found.preempted or 0)
                    row["counted"] += found.counted


def _rows_of(arguments: Any, apis: list[str], ops: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Measured rows, the machine, and the topologies by what they were called."""
    seconds = arguments.seconds or (0.03 if arguments.quick else 0.2)
    rounds = 3 if arguments.quick else 7
    effort = Effort(seconds / rounds, 5, 2_000 if arguments.quick else 15_000)
    brief = Effort(min(seconds, 0.1) / rounds, 3, 2_000)
    wanted = {"on": (True,), "off": (False,), "both": (False, True)}[arguments.timing]
    if arguments.card is not None:
        wanted = (True,)
    words = dict.fromkeys(arguments.topology or ["fabrex-pair"])
    topologies = {word: load_topology(word, dilation=arguments.dilation) for word in words}
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    measured = [(op, size) for op in ops for size in sizes_of(op, arguments.size)]
    if arguments.quick and not arguments.size:
        measured = [(op, size) for op, size in measured if size <= 1 << 20]
    room = max([size for op, size in measured if op in DMA_OPS], default=0)
    for word, topology in topologies.items():
        for timing in wanted:
            if not arguments.json and output.tty(sys.stderr):
                note(f"measuring {word}, timing {'on' if timing else 'off'}")
            ours = Rows(topology, word, timing, arguments.ordering, measured, room)
            floors: list[Rows] = []
            try:
                facts = ours.facts
                for delays in (False, True) if timing else ():
                    part = [(op, size) for op, size in measured if (op in POSTED) == delays]
                    floors.append(Rows(idle(topology, delays), word, True, arguments.ordering, part, room))
                for _ in range(rounds):
                    ours.round(apis, effort)
                    for floor in floors:
                        floor.round(apis, brief)
            finally:
                for place in (ours, *floors):
                    place.close()
            idly = {key: row["rounds"] for floor in floors for key, row in floor.rows.items()}
            for key, row in ours.rows.items():
                row["floor"] = idly.get(key)
                rows.append(row)
    return rows, facts, topologies


def shown(row: dict[str, Any], step_ns: float) -> dict[str, Any]:
    """A row for JSON: what was measured and its figures, without the samples."""
    kept = {word: row[word] for word in ("op", "api", "size", "topology", "timing", "ordering")}
    return {**kept, **figures(row, step_ns)}


def bench(arguments: Any) -> int:
    """`bench`: a table, the card, a receipt, or rows in JSON."""
    apis, ops = _check(arguments)
    with Disturbance() as disturbance:
        rows, facts, topologies = _rows_of(arguments, apis, ops)
    step = facts["clock_step_ns"]
    figured = [shown(row, step) for row in rows]
    if arguments.receipt:
        from . import receipt

        receipt.write(arguments.receipt, rows, facts, disturbance.facts(), topologies, arguments)
    if arguments.card:
        from . import card

        card.picture(figured, facts, disturbance.facts()).save(arguments.card)
    if arguments.json:
        document("bench", machine=facts, disturbance=disturbance.facts(), rows=figured)
        return output.OK
    if arguments.card is not None:
        from . import card

        emit(card.text(figured, facts, disturbance.facts()))
    else:
        _say(figured, facts, disturbance, arguments.ordering)
    for path, what in ((arguments.card, "the card"), (arguments.receipt, "the receipt")):
        if path:
            note(f"{what} is in {path}")
    return output.OK


def _say(rows: list[dict[str, Any]], facts: dict[str, Any], disturbance: Disturbance, ordering: str) -> None:
    emit(output.wrapped(machine.line(facts)))
    for word in dict.fromkeys(row["topology"] for row in rows):
        for state in ("off", "on"):
            chosen = [row for row in rows if row["topology"] == word and row["timing"] == state]
            if not chosen:
                continue
            emit("")
            how = "each operation timed" if state == "on" else "means of batches"
            emit(f"{word}, timing {state}, ordering {ordering} ({how})")
            emit(_table(chosen, state == "on"))
    emit("")
    emit(output.wrapped("requested: what the model asks for; floor: what this machine needs with timing on and nothing to wait "
                        "for; late: the share of operations that missed their time. pingpong is one way, between two processes; "
                        "gather and scatter are per element; dma_submit is the submission alone, dma_queue what each takes of "
                        "a full channel."))  # fmt: skip
    emit(f"during the run {disturbance.stolen_fraction:.2%} of the processors' time was stolen by the hypervisor")


def _table(rows: list[dict[str, Any]], timed: bool) -> str:
    cells = []
    for row in rows:
        line = [row["op"], row["api"], output.size(row["size"]) if row["size"] else "-"]
        if timed:
            line.append(output.nanoseconds(row["requested_ns"]))
        line += [output.nanoseconds(row[key]) for key in ("p50_ns", "p99_ns", "p999_ns")]
        if timed:
            line += [output.percent(row["late"]), output.nanoseconds(row["floor_ns"])]
        line.append(f"{row['per_s'] / 1e6:.2f} M/s" if row["per_s"] else output.rate(row["bytes_per_s"]))
        cells.append(line)
    asked, kept = (["REQUESTED"], ["LATE", "FLOOR"]) if timed else ([], [])
    header = ["OP", "API", "SIZE", *asked, "P50", "P99", "P99.9", *kept, "RATE"]
    return table(header, cells, right=header[2:])


__all__ = ["CARD_OPS", "bench", "shown", "title"]
