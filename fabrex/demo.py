# SPDX-License-Identifier: Apache-2.0
"""A fabric at work: a file is moved, messages go to and fro, hosts contend for a link; modelled beside measured.

Every node that takes part is a process of its own, started by `fabrex.launcher`. This module is also their program:
`python -m fabrex.demo ROLE ARGUMENTS...` is one of them.

Owns: what is demonstrated and the figures. Must not know: how they are shown, except in the picture.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .launcher import Launcher, Task

if TYPE_CHECKING:
    from .fabric import Fabric
    from .node import Node

__all__ = ["Demo", "Figure", "run"]

PRESET = "supernode-32"
# A x1 link to the memory box: what hosts contend for is then slow enough for two processors to keep up with.
NARROW = "mem0:ntb0-sw0:p4"
CHUNK = 1 << 20
SLOTS = 16
PIECE = 64 << 10
SENDER, RECEIVER = "gpu0", "gpu31"


@dataclass
class Figure:
    """One line of the result: what the model says beside what happened.

    Attributes:
        what: for people.
        unit: "ns" or "B/s".
        modelled, measured: medians, or rates.
        p99, p999: of the measured times; None for rates.
        late: share of the operations that missed their modelled time; None where it is not counted.
        behind: the machine was too slow: the rate, or that of all writers together, stayed 10 % below the model's.
    """

    what: str
    unit: str
    modelled: float
    measured: float
    p99: float | None = None
    p999: float | None = None
    late: float | None = None
    behind: bool = False


@dataclass
class Demo:
    """What came out.

    Attributes:
        figures: modelled beside measured.
        file_bytes, sha256_sent, sha256_received: the file.
        histogram: round-trip times: upper bound in ns -> count.
        picture: path of the SVG, or None.
        seconds: how long it took.
    """

    figures: list[Figure] = field(default_factory=list)
    file_bytes: int = 0
    sha256_sent: str = ""
    sha256_received: str = ""
    histogram: dict[int, int] = field(default_factory=dict)
    picture: str | None = None
    seconds: float = 0.0

    @property
    def same(self) -> bool:
        """Whether the file arrived as it was sent."""
        return bool(self.sha256_sent) and self.sha256_sent == self.sha256_received


class Failed(RuntimeError):
    """A process of the demonstration failed; its own output says why."""


Progress = Callable[[str, float], None]
"""Called with what is going on, and how much of it is done (0 to 1)."""


def run(
    *,
    size: int = 64 << 20,
    quick: bool = False,
    output_dir: str | os.PathLike[str] = ".",
    progress: Progress = lambda what, done: None,
) -> Demo:
    """Run the whole demonstration.

    Args:
        size: bytes of the file.
        quick: a few seconds only; figures scatter more.
        output_dir: where `fabrex-demo.svg` goes.
        progress: see `Progress`.
    Raises:
        Failed: a process failed.
    """
    from .fabric import Fabric
    from .topology import Topology

    begin = time.monotonic()
    demo = Demo(file_bytes=size)
    topology = Topology.preset(PRESET).override({f"links.{NARROW}.pcie.lanes": 1})
    with tempfile.TemporaryDirectory(prefix="fabrex-demo-") as scratch, Fabric.create(topology) as fabric:
        source = os.path.join(scratch, "file")
        progress("making a file", 0.0)
        make_file(source, size, lambda done: progress("making a file", done))
        _move_file(fabric, demo, source, progress)
        _ping_pong(fabric, demo, 1500 if quick else 8000, progress)
        _contend(fabric, demo, 0.4 if quick else 2.0, progress)
        picture = Path(output_dir) / "fabrex-demo.svg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_text(draw(fabric, demo), encoding="utf-8")
        demo.picture = str(picture)
    demo.seconds = time.monotonic() - begin
    return demo


def make_file(path: str, size: int, progress: Callable[[float], None]) -> None:
    """Write `size` bytes that are the same everywhere and repeat nowhere."""
    with open(path, "wb") as file:
        for start in range(0, size, CHUNK):
            file.write(hashlib.shake_128(b"fabrex %d" % start).digest(min(CHUNK, size - start)))
            progress((start + CHUNK) / size)


# -- phases -----------------------------------------------------------------------------------------------------------


def _launch(fabric: Fabric, tasks: list[tuple[str, list[str]]], progress: Callable[[], None]) -> None:
    root = os.path.dirname(os.path.abspath(next(iter(sys.modules["fabrex"].__path__))))
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    commands = [Task(node, [sys.executable, "-m", "fabrex.demo", *words]) for node, words in tasks]
    said: list[str] = []
    launcher = Launcher(fabric.name, fabric.directory, commands, timeout=120.0, extra_env={"PYTHONPATH": path}, say=said.append)
    with launcher:
        launcher.start()
        while launcher.poll(0.05):
            progress()
    if launcher.interrupted is not None:
        raise KeyboardInterrupt
    if launcher.exit_code:
        raise Failed(said[0] if said else "a process failed")


def _result(fabric: Fabric, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fabric.get(key))
    return found


def _number(fabric: Fabric, key: str) -> float:
    from .errors import FabricNotFound

    try:
        return float(fabric.get(key))
    except FabricNotFound:
        return 0.0


def _late(fabric: Fabric, op: str) -> tuple[int, int]:
    facts = fabric.fidelity().get(op, {"late": 0, "count": 0})
    return facts["late"], facts["count"]


def _share(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    count = after[1] - before[1]
    return (after[0] - before[0]) / count if count else None


def _move_file(fabric: Fabric, demo: Demo, source: str, progress: Progress) -> None:
    what = f"{SENDER} sends the file to {RECEIVER}"
    before = _late(fabric, "write")
    tasks = [(RECEIVER, ["receive", str(demo.file_bytes)]), (SENDER, ["send", source])]
    _launch(fabric, tasks, lambda: progress(what, _number(fabric, "demo-sent")))
    sent, received = _result(fabric, "demo-send"), _result(fabric, "demo-receive")
    demo.sha256_sent, demo.sha256_received = sent["sha256"], received["sha256"]
    late = _share(before, _late(fabric, "write"))
    modelled, measured = demo.file_bytes / sent["modelled_s"], demo.file_bytes / received["seconds"]
    what = f"file of {demo.file_bytes >> 20} MiB, {SENDER} to {RECEIVER}"
    demo.figures.append(Figure(what, "B/s", modelled, measured, late=late, behind=measured < 0.9 * modelled))


def _ping_pong(fabric: Fabric, demo: Demo, rounds: int, progress: Progress) -> None:
    near, far = "gpu1", "gpu9"
    before = {op: _late(fabric, op) for op in ("load", "fetch_add")}
    progress(f"{near} and {far} exchange messages", 0.0)
    _launch(fabric, [(far, ["pong", str(rounds), near]), (near, ["ping", str(rounds), far])],
            lambda: progress(f"{near} and {far} exchange messages", _number(fabric, "demo-pinged")))  # fmt: skip
    found = _result(fabric, "demo-ping")
    late_load = _share(before["load"], _late(fabric, "load"))
    names = (("round trip of a store and its answer", "pingpong", None), ("load of 8 bytes", "load", late_load),
             ("fetch and add", "fetch_add", _share(before["fetch_add"], _late(fabric, "fetch_add"))))  # fmt: skip
    for what, key, late in names:
        p50, p99, p999 = found[key]["percentiles"]
        # Polling loads of one's own memory have no modelled time: the loads' lateness is counted where they are made.
        late = found[key].get("late", late)
        demo.figures.append(Figure(f"{what}, {near} to {far}", "ns", found[key]["modelled_ns"], p50, p99, p999, late))
    demo.histogram = {int(bound): count for bound, count in found["histogram"].items()}


def _contend(fabric: Fabric, demo: Demo, seconds: float, progress: Progress) -> None:
    count = 2 if len(os.sched_getaffinity(0)) <= 2 else 4
    for writers in [1, count] if count > 1 else [1]:
        names = [f"host{i}" for i in range(writers)]
        what = f"{', '.join(names)} write to mem0 at once" if writers > 1 else "host0 writes to mem0 alone"
        progress(what, 0.0)
        before = _late(fabric, "write")
        began = time.monotonic()
        tasks = [(name, ["write", str(seconds), f"demo-{writers}"]) for name in names]
        _launch(fabric, tasks, lambda what=what, began=began: progress(what, min((time.monotonic() - began) / (seconds + 0.5), 1)))  # type: ignore[misc]
        late = _share(before, _late(fabric, "write"))
        found = {name: _result(fabric, f"demo-{writers}-{name}") for name in names}
        behind = sum(one["bps"] for one in found.values()) < 0.9 * found[names[0]]["alone_bps"]
        for name, one in found.items():
            label = f"{name} to mem0 over a x1 link" + (f", 1 of {writers} writers" if writers > 1 else ", alone")
            demo.figures.append(Figure(label, "B/s", one["alone_bps"] / writers, one["bps"], late=late, behind=behind))


# -- the processes -------------------------------------------------------------------------------------------------------


def _report(node: Node, key: str, **facts: Any) -> None:
    node.fabric.put(key, json.dumps(facts).encode())


def _receive(node: Node, size: int) -> None:
    fabric = node.fabric
    ring = node.alloc(CHUNK * SLOTS, name="demo-ring")
    flag = node.alloc(64, name="demo-flag")
    memory, out = ring.memory, bytearray(size)
    # Pages are made now, so that their making is not measured.
    memory[:] = bytes(len(memory))
    out[::4096] = b"\1" * len(out[::4096])
    ack = fabric.buffer("demo-ack", timeout=30.0)
    node.barrier("demo-file", timeout=30.0, size=2)
    begin = fabric.now_ps
    for i, start in enumerate(range(0, size, CHUNK)):
        node.wait_until(flag.gva, ">=", i + 1, 30.0)
        place = i % SLOTS * CHUNK
        length = min(CHUNK, size - start)
        out[start : start + length] = memory[place : place + length]
        node.store(ack.gva, i + 1)
    seconds = (fabric.now_ps - begin) / 1e12
    _report(node, "demo-receive", sha256=hashlib.sha256(out).hexdigest(), seconds=seconds)
    node.flush()


def _send(node: Node, path: str) -> None:
    fabric = node.fabric
    ack = node.alloc(64, name="demo-ack")
    ring, flag = fabric.buffer("demo-ring", timeout=30.0), fabric.buffer("demo-flag", timeout=30.0)
    with open(path, "rb") as file:
        data = file.read()
    digest = hashlib.sha256(data).hexdigest()
    view = memoryview(data)
    chunks = range(0, len(data), CHUNK)
    modelled = sum(node.estimate("write", ring.gva, min(CHUNK, len(data) - start))["departs_ps"] for start in chunks)
    node.barrier("demo-file", timeout=30.0, size=2)
    for i, start in enumerate(chunks):
        if i >= SLOTS:
            node.wait_until(ack.gva, ">=", i - SLOTS + 1, 30.0)
        node.write(ring.gva + i % SLOTS * CHUNK, view[start : start + CHUNK])
        node.store(flag.gva, i + 1)
        if i % 8 == 0:
            fabric.put("demo-sent", str((start + CHUNK) / len(data)).encode())
    _report(node, "demo-send", sha256=digest, modelled_s=modelled / 1e12)
    node.wait_until(ack.gva, ">=", len(chunks), 30.0)


def _word(node: Node, name: str) -> int:
    return node.alloc(64, name=name).gva


def _bind(node: Node, word: int, place: int) -> None:
    """Keep to one processor: left alone, the scheduler may put two processes that poll on the same one."""
    node.wait_until(word, "==", 0)  # how many processors there are is looked up once, before there seems to be one
    free = sorted(os.sched_getaffinity(0))
    if len(free) > 1:
        os.sched_setaffinity(0, {free[place - 2]})


def _pong(node: Node, rounds: int, peer: str) -> None:
    mine = _word(node, f"demo-word-{node.name}")
    theirs = node.fabric.buffer(f"demo-word-{peer}", timeout=30.0).gva
    _bind(node, mine, 0)
    node.barrier("demo-ping", timeout=30.0, size=2)
    wait, store = node.wait_until, node.store
    for i in range(1, rounds + 1):
        wait(mine, "==", i, 30.0)
        store(theirs, i)
    node.flush()
    node.barrier("demo-ping-end", timeout=60.0, size=2)


def _percentiles(values: list[int]) -> list[float]:
    values = sorted(values)
    return [float(values[min(int(len(values) * share), len(values) - 1)]) for share in (0.5, 0.99, 0.999)]


def _ping(node: Node, rounds: int, peer: str) -> None:
    fabric = node.fabric
    mine = _word(node, f"demo-word-{node.name}")
    theirs = fabric.buffer(f"demo-word-{peer}", timeout=30.0).gva
    _bind(node, mine, 1)
    node.barrier("demo-ping", timeout=30.0, size=2)
    wait, store, clock = node.wait_until, node.store, time.perf_counter_ns
    nothing = min(-clock() + clock() for _ in range(200))
    times = []
    for i in range(1, rounds + 1):
        begin = clock()
        store(theirs, i)
        wait(mine, "==", i, 30.0)
        times.append(clock() - begin - nothing)
        if i % 1000 == 0:
            fabric.put("demo-pinged", str(i / rounds).encode())
    times = times[rounds // 20 :]
    arrives = 2 * node.estimate("store", theirs, 8)["arrives_ps"] / 1e3
    result: dict[str, Any] = {"pingpong": {"modelled_ns": arrives, "percentiles": _percentiles(times)}}
    histogram: dict[int, int] = {}
    for value in times:
        bound = max(1 << max(value - 1, 1).bit_length(), 64)
        histogram[bound] = histogram.get(bound, 0) + 1
    for op in ("load", "fetch_add"):
        call = node.load if op == "load" else lambda gva: node.fetch_add(gva, 1)
        before = _late(fabric, op)
        values = []
        for _ in range(rounds):
            begin = clock()
            call(theirs)
            values.append(max(clock() - begin - nothing, 0))
        modelled = node.estimate(op, theirs, 8)["completes_ps"] / 1e3
        result[op] = {"modelled_ns": modelled, "percentiles": _percentiles(values), "late": _share(before, _late(fabric, op))}
    _report(node, "demo-ping", **result, histogram=histogram)
    node.barrier("demo-ping-end", timeout=60.0, size=2)


def _write(node: Node, seconds: float, key: str) -> None:
    fabric = node.fabric
    buffer = node.alloc(4 * PIECE, name=f"{key}-buffer-{node.name}", on="mem0")
    data = bytes(PIECE)
    node.write(buffer.gva, data)
    node.flush()
    # What a longer write takes longer is the narrowest link's doing, whatever else is on the way.
    alone = node.estimate("write", buffer.gva, 2 * PIECE)["arrives_ps"] - node.estimate("write", buffer.gva, PIECE)["arrives_ps"]
    node.barrier(key, timeout=30.0)
    begin, count = fabric.now_ps, 0
    until = begin + int(seconds * 1e12)
    while (now := fabric.now_ps) < until:
        node.write(buffer.gva + count % 4 * PIECE, data)
        count += 1
    _report(node, f"{key}-{node.name}", bps=count * PIECE / ((now - begin) / 1e12), alone_bps=PIECE / (alone / 1e12))
    node.barrier(key + "-end", timeout=30.0)


# -- the picture ---------------------------------------------------------------------------------------------------------


def quantity(value: float, unit: str) -> str:
    """A time or a rate for people."""
    steps = ((1e6, "ms"), (1e3, "µs"), (1.0, "ns")) if unit == "ns" else ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"))
    scale, name = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{value / scale:.3g} {name}" if value / scale < 1000 else f"{value / scale:.0f} {name}"


def lateness(figure: Figure) -> str:
    """Say whether the machine kept up: the share of late operations, or for a rate `late` or `kept`."""
    if figure.unit != "ns":
        return "late" if figure.behind else "kept"
    return "-" if figure.late is None else f"{100 * figure.late:.2g} %"


def draw(fabric: Fabric, demo: Demo) -> str:
    """Return the topology's drawing with the figures below it."""
    from .graph import to_svg

    svg = to_svg(fabric.topology)
    match = re.search(r'viewBox="0 0 (\S+) (\S+)" width="\S+" height="\S+"', svg)
    if not match:
        return svg
    width, height = max(float(match[1]), 900.0), float(match[2])
    lines = [f'<text class="title" x="28" y="{height + 24}">Modelled beside measured</text>']
    columns = ((28, "start"), (560, "end"), (680, "end"), (800, "end"), (890, "end"))

    def row(y: float, cells: tuple[str, ...], style: str) -> None:
        for (x, anchor), cell in zip(columns, cells, strict=True):
            lines.append(f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(cell)}</text>')

    y = height + 50
    row(y, ("", "modelled", "measured", "99 % below", "late"), "facts")
    for figure in demo.figures:
        y += 20
        late = lateness(figure)
        p99 = "" if figure.p99 is None else quantity(figure.p99, figure.unit)
        row(y, (figure.what, quantity(figure.modelled, figure.unit), quantity(figure.measured, figure.unit), p99, late), "figure")
    y += 28
    verdict = "the file arrived unchanged" if demo.same else "THE FILE WAS CHANGED ON ITS WAY"
    lines.append(f'<text class="facts" x="28" y="{y}">SHA-256 {demo.sha256_received}: {verdict}</text>')
    base = y + 40
    if demo.histogram:
        lines.append(f'<text class="facts" x="28" y="{base}">Round trips measured, by time (upper bound of each bar)</text>')
        bounds = sorted(demo.histogram)
        top = max(demo.histogram.values())
        for i, bound in enumerate(bounds):
            tall = max(90 * demo.histogram[bound] / top, 1)
            x = 28 + 74 * i
            lines.append(f'<rect x="{x}" y="{base + 120 - tall:.1f}" width="60" height="{tall:.1f}" rx="2" fill="#0072b2"/>')
            lines.append(f'<text class="facts" x="{x + 30}" y="{base + 136}" text-anchor="middle">{quantity(bound, "ns")}</text>')
            lines.append(
                f'<text class="facts" x="{x + 30}" y="{base + 114 - tall:.1f}" text-anchor="middle">{demo.histogram[bound]}</text>'
            )
        width = max(width, 28 + 74.0 * len(bounds) + 28)
        base += 160
    total = base + 10
    head = f'viewBox="0 0 {width:g} {total:g}" width="{width:g}" height="{total:g}"'
    svg = svg.replace(match[0], head, 1).replace("</style>", ".figure{font-size:12.5px}</style>", 1)
    return svg.replace("</svg>", "\n".join(lines) + "\n</svg>")


def _main(words: list[str]) -> int:
    from . import attach

    role, *rest = words
    node = attach()
    if role == "send":
        _send(node, rest[0])
    elif role == "receive":
        _receive(node, int(rest[0]))
    elif role == "ping":
        _ping(node, int(rest[0]), rest[1])
    elif role == "pong":
        _pong(node, int(rest[0]), rest[1])
    elif role == "write":
        _write(node, float(rest[0]), rest[1])
    else:
        raise SystemExit(f"{role!r} is no role; `fabricctl demo` starts these processes")
    node.fabric.close()
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
