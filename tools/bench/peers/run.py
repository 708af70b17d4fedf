# SPDX-License-Identifier: Apache-2.0
"""fabrex beside others on this machine, in one run: floors of the hardware, UCX, OpenSHMEM, MPI.

    python tools/bench/peers/run.py                       a table
    python tools/bench/peers/run.py --json --repeat 9     every sample
    python tools/bench/peers/run.py --only fabrex,ucx --plot peers.svg

The programs take turns: each repetition runs all of them once, and a ratio is the median of the repetitions' ratios. fabrex is
measured with timing off and immediate ordering, that is, without the time that it is there to add; one row is with timing on.
What is not installed is skipped with a line that says how to get it.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parents[3])]

import common  # noqa: E402
from common import Missing, Samples, note  # noqa: E402

BATCHES = 3  # of each operation in each repetition

Measured = list[tuple[str, int, float]]


def _floors() -> Measured:
    return common.said([common.build(common.PEERS / "floors.c", "floors"), str(BATCHES)])


def _ucx() -> Measured:
    try:
        program = common.build(common.PEERS / "ucx.c", "ucx", "-lucp", "-lucs")
    except Missing as error:
        hint = "apt-get install libucx-dev" if "ucp/api/ucp.h" in str(error) or "-lucp" in str(error) else str(error)
        raise Missing(hint) from None
    return common.said([program, str(BATCHES)])


def _root() -> list[str]:
    import os

    return ["--allow-run-as-root"] if os.geteuid() == 0 else []


def _shmem() -> Measured:
    if shutil.which("oshcc") is None or shutil.which("oshrun") is None:
        raise Missing("apt-get install libopenmpi-dev openmpi-bin")
    program = common.build(common.PEERS / "shmem.c", "shmem", compiler="oshcc")
    return common.said(["oshrun", *_root(), "--oversubscribe", "-np", "2", program, str(BATCHES)])


def _mpi() -> Measured:
    if shutil.which("mpirun") is None:
        raise Missing("apt-get install openmpi-bin")
    if importlib.util.find_spec("mpi4py") is None:
        raise Missing("pip install mpi4py")
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout
    flags = [*_root(), "--oversubscribe"] if "Open MPI" in version else []
    return common.said(["mpirun", *flags, "-np", "2", sys.executable, common.PEERS / "mpi_rma.py", str(BATCHES)])


# The other process: it owns the node whose memory is measured.
_OWNER = """
import sys
sys.path.insert(0, sys.argv[3])
import fabrex
with fabrex.Fabric.open(sys.argv[2], directory=sys.argv[1]) as fabric, fabric.attach("host1", role="owner") as node:
    buffer = node.alloc(96 << 20, name="far")
    buffer.memory[:8] = bytes(8)
    fabric.put("ready", b"")
    sys.stdin.readline()
"""


class _Fabrex:
    """A pair of nodes in two processes; one fabric without time, one with it."""

    def __init__(self) -> None:
        import fabrex

        self._ops = common.ops()
        self._open: list[Any] = []
        pair = fabrex.Topology.preset("fabrex-pair")
        try:
            self._plain = self._pair(pair, timing=False, ordering="immediate")
            self._timed = self._pair(pair, timing=True, ordering="posted")
        except BaseException:
            self.close()
            raise
        self.facts = common.machine_facts(self._plain)

    def _pair(self, topology: Any, **options: Any) -> Any:
        context = common.fabric(topology, **options)
        made = context.__enter__()
        self._open.append(context)
        owner = subprocess.Popen([sys.executable, "-c", _OWNER, made.directory, made.name, str(common.ROOT)], stdin=subprocess.PIPE)
        self._open.append(owner)
        made.get("ready", timeout=20.0)
        return made

    def close(self) -> None:
        """End the processes and the fabrics."""
        for thing in reversed(self._open):
            if isinstance(thing, subprocess.Popen):
                thing.communicate(b"\n", timeout=10)
            else:
                thing.__exit__(None, None, None)
        self._open = []

    def __call__(self) -> Measured:
        found = common.said(common.words(self._ops, "plain", self._plain, "host0", self._plain.buffer("far").gva, BATCHES))
        found += common.said(common.words(self._ops, "posted", self._timed, "host0", self._timed.buffer("far").gva, BATCHES))
        with self._plain.attach("host0", role="client") as node:
            gva = self._plain.buffer("far").gva
            buffer = node.alloc(4096)
            copy = node.dma.copy
            for name, call in {"python_load": node.load, "python_empty": node.empty}.items():
                values = [_python(call, gva, 20_000) for _ in range(SLICES)]
                found.append((name, 8, sorted(values)[SLICES // 2]))
            found.append(("python_dma_submit", 8, sorted(_submissions(copy, gva, buffer.gva) for _ in range(200))[100]))
            buffer.free()
        took: dict[int, dict[str, list[float]]] = {}
        for name, size, value in found:
            if name in ("write", "dma"):
                took.setdefault(size, {}).setdefault(name, []).append(value)
        for size, both in took.items():
            found.append(("better", size, min(statistics.median(values) for values in both.values())))
        return found


SLICES = 15
BULK = (4096, 65536, *(mib << 20 for mib in (1, 4, 8, 16, 64)))


def _submissions(copy: Callable[..., Any], dst: int, src: int) -> float:
    begin = time.perf_counter_ns()
    under_way = [copy(dst, src, 8) for _ in range(50)]
    took = (time.perf_counter_ns() - begin) / 50
    for completion in under_way:
        completion.wait()
    return took


def _python(call: Callable[[int], Any], gva: int, count: int) -> float:
    begin = time.perf_counter_ns()
    for _ in repeat(None, count):
        call(gva)
    return (time.perf_counter_ns() - begin) / count


# (row's name, bytes, fabrex's operation, the others' operations)
COMPARED = [
    ("8-byte load", 8, "load", ("chase_in_cache", "ucp_get", "shmem_long_g", "mpi_get")),
    ("8-byte store", 8, "store", ("ucp_put", "shmem_long_p", "mpi_put")),
    ("8-byte fetch_add", 8, "fetch_add", ("atomic_add", "ucp_fetch_add", "shmem_long_fadd", "mpi_fetch_add")),
    ("8-byte posted store, timing on", 8, "posted_store", ("ucp_put", "shmem_long_p", "mpi_put")),
    ("the same without end", 8, "posted_store_sustained", ("ucp_put", "shmem_long_p", "mpi_put")),
    ("gather of 4,096, each", 8, "gather", ("ucp_get", "shmem_long_g")),
    ("Python node.load", 8, "python_load", ("python_empty", "mpi_get")),
    *((f"write of {common.size(size)}", size, "write", ("memcpy", "memcpy_there")) for size in BULK),
    *((f"DMA of {common.size(size)}", size, "dma", ("memcpy", "memcpy_shared")) for size in BULK),
    *((f"the better, {common.size(size)}", size, "better", ("ucp_put", "shmem_putmem", "mpi_put")) for size in BULK),
    ("DMA, submission", 8, "dma_submit", ()),
    ("DMA, a descriptor of a full channel", 8, "dma_queue", ()),
    ("DMA, submission from Python", 8, "python_dma_submit", ()),
]
FLOORS = ("chase_in_cache", "chase_in_memory", "atomic_add", "counter", "cache_line", "futex_wake")
WORDS = {"chase_in_cache": "pointer in cache", "chase_in_memory": "pointer in memory", "atomic_add": "lock add",
         "counter": "clock counter", "cache_line": "cache line, core to core", "futex_wake": "futex wake",
         "memcpy_there": "memcpy to the same memory", "memcpy_shared": "memcpy, same memory both",
         "python_empty": "empty call"}  # fmt: skip


def _rows(samples: Samples) -> list[dict[str, Any]]:
    rows = []
    for title, size, ours, others in COMPARED:
        mine = samples.get(ours, size)
        row: dict[str, Any] = {"op": ours, "title": title, "size": size, "api": "python" if ours.startswith("python") else "c",
                               "timing": "on" if ours.startswith("posted") else "off",
                               "unit": "ns", "fabrex": common.summary(mine) if mine else None, "peers": {}}  # fmt: skip
        for name in others:
            theirs = samples.get(name, 4 if name in ("cache_line", "futex_wake") else size)
            if theirs:
                row["peers"][name] = {**common.summary(theirs), "ratio": round(common.ratio(mine, theirs), 4) if mine else None}
        if mine or row["peers"]:
            rows.append(row)
    for name in FLOORS:
        values = samples.get(name, 4 if name in ("cache_line", "futex_wake") else 8)
        if values:
            rows.append({"op": name, "title": WORDS[name], "size": 8, "api": "machine", "timing": "off", "unit": "ns",
                         "fabrex": None, "peers": {name: {**common.summary(values), "ratio": None}}})  # fmt: skip
    return rows


def _bulk(samples: Samples) -> dict[str, list[tuple[int, float, float, float]]]:
    """Bytes per second by size, with quartiles, of what copies in bulk."""
    names = {"write": "fabrex write", "dma": "fabrex DMA", "memcpy": "memcpy", "ucp_put": "UCX put",
             "shmem_putmem": "OpenSHMEM putmem", "mpi_put": "MPI Put (mpi4py)"}  # fmt: skip
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for name, words in names.items():
        for size in BULK:
            values = samples.get(name, size)
            if values:
                facts = [size / common.percentile(values, share) for share in (0.5, 0.75, 0.25)]
                found.setdefault(words, []).append((size, facts[0], facts[1], facts[2]))
    return found


def _table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        mine = row["fabrex"]
        if row["api"] == "machine":
            [peer] = row["peers"].values()
            cells.append([row["title"], "-", "-", "", common.ns(peer["median"]), f"{peer['spread']:.0%}", "-"])
            continue
        first = [row["title"], common.ns(mine["median"]) if mine else "-", f"{mine['spread']:.0%}" if mine else "-"]
        for name, peer in row["peers"].items():
            share = f"{peer['ratio']:.2f}" if peer["ratio"] is not None else "-"
            cells.append([*first, WORDS.get(name, name), common.ns(peer["median"]), f"{peer['spread']:.0%}", share])
            first = ["", "", ""]
        if not row["peers"]:
            cells.append([*first, "-", "-", "-", "-"])
    header = ["OPERATION", "FABREX", "SPREAD", "BESIDE", "TAKES", "SPREAD", "FABREX/IT"]
    for cell in cells:  # text columns to the left
        cell[3] = cell[3].ljust(max(len(other[3]) for other in cells))
    header[3] = header[3].ljust(max(len(cell[3]) for cell in cells)) if cells else header[3]
    return common.table(header, cells)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    names = ("fabrex", "floors", "ucx", "shmem", "mpi")
    parser = argparse.ArgumentParser(description="fabrex beside others on this machine")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(names)}")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions, interleaved (default %(default)s)")
    parser.add_argument(
        "--settle", type=float, default=0.0, metavar="S", help="wait up to S seconds for a quiet machine before each repetition"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the scalar operations to an SVG or PNG file, bulk to FILE-bulk")
    given = parser.parse_args(arguments)
    if given.repeat < 1:
        parser.error("--repeat is at least 1")
    wanted = common.chosen(given.only, names, parser.error)
    sources: dict[str, Callable[[], Measured]] = {"floors": _floors, "ucx": _ucx, "shmem": _shmem, "mpi": _mpi}
    common.SETTLE = given.settle
    samples, skipped, own, facts = Samples(), {}, None, {}
    try:
        if "fabrex" in wanted:
            try:
                own = sources["fabrex"] = _Fabrex()
                facts = own.facts
            except Missing as error:
                skipped["fabrex"] = str(error)
        with common.Watch() as watch:
            for _ in common.rounds(given.repeat):
                for name in wanted:
                    if name in skipped:
                        continue
                    try:
                        samples.add(sources[name]())
                    except Missing as error:
                        skipped[name] = str(error)
    finally:
        if own:
            own.close()
    rows = _rows(samples)
    if given.plot:
        shown = []
        for row in rows:
            if row["size"] == 8 and row["api"] != "machine":
                for name, entry in [(f"fabrex {row['op']}", row["fabrex"]), *row["peers"].items()]:
                    if entry and not any(name == other[0] for other in shown):
                        shown.append((name, entry["median"], entry["p25"], entry["p75"]))
        try:
            common.bars(given.plot, "8-byte operations between two processes", shown, "ns, median and quartiles")
            place = Path(given.plot)
            common.curves(str(place.with_name(f"{place.stem}-bulk{place.suffix}")), "Bulk between two processes", _bulk(samples))
        except Missing as error:
            note(str(error))
    if given.json:
        common.document("peers", facts, rows, skipped=skipped, repetitions=given.repeat, disturbance=watch.facts())
        return 0
    if facts:
        print(common.machine_line(facts))
    print(watch.line())
    print()
    print(_table(rows))
    for name, why in skipped.items():
        print(f"skipped {name}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
