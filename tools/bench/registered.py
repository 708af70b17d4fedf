# SPDX-License-Identifier: Apache-2.0
"""Registered memory of another process: transfers beside the model, by each way to the bytes.

    python tools/bench/registered.py [--json] [--rounds 15]

First the floor: how fast this machine moves such memory when the link asks for no time worth naming. Then links slower than
that, where a transfer should take what the model says. Links faster than three quarters of the floor are measured and marked:
what they show is this machine and not the model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from typing import Any

import numpy as np

import fabrex

LINKS = {"gen1 x1": (1, 1), "gen1 x4": (1, 4), "gen2 x4": (2, 4), "gen3 x4": (3, 4), "gen4 x16": (4, 16)}
SIZES = (1 << 20, 4 << 20)
WAYS = {"kernel": False, "service": True}


def described(gen: int, lanes: int) -> fabrex.Topology:
    """Return two hosts with such a link between them."""
    host = {"kind": "host", "memory": {"dram": "64MiB"}, "dma": {"channels": 1}}
    link = {"endpoints": ["host0:ntb0", "host1:ntb0"], "pcie": {"gen": gen, "lanes": lanes}, "delay": "100ns"}
    return fabrex.Topology.from_dict({"fabrex": 1, "name": "pair", "nodes": {"host0": host, "host1": host}, "links": [link]})


def owner(fabric: fabrex.Fabric, service: bool) -> None:
    """Register memory and keep it until told that it is over."""
    with fabric.attach("host1") as node:
        memory = np.zeros(max(SIZES), dtype="u1")
        with node.register(memory, service=service) as region:
            fabric.put("gva", region.gva.to_bytes(8, "little"))
            fabric.get("over", timeout=600)


def measure(gen: int, lanes: int, way: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each direction and size."""
    rows = []
    with fabrex.Fabric.create(described(gen, lanes)) as fabric:
        child = multiprocessing.get_context("spawn").Process(target=owner, args=(fabric, WAYS[way]))
        child.start()
        try:
            gva = int.from_bytes(fabric.get("gva", timeout=60), "little")
            with fabric.attach("host0") as node:
                near = node.alloc(max(SIZES))
                for size in SIZES:
                    for op, dst, src in (("dma_write", gva, near.gva), ("dma_read", near.gva, gva)):
                        modelled = node.estimate(op, gva, size)["completes_ps"] / 1e3
                        taken = []
                        for i in range(rounds + 2):
                            start = time.perf_counter_ns()
                            node.dma.copy(dst, src, size).wait(60)
                            if i > 1:
                                taken.append(time.perf_counter_ns() - start)
                            node.flush("host1")
                        p50 = statistics.median(taken)
                        rows.append({
                            "op": op, "way": way, "link": f"gen{gen} x{lanes}", "size": size, "modelled_ns": modelled,
                            "p50_ns": p50, "ratio": p50 / modelled, "bytes_per_s": size / p50 * 1e9,
                        })  # fmt: skip
        finally:
            fabric.put("over", b"")
            child.join(30)
    return rows


def main() -> int:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for i, (gen, lanes) in enumerate(LINKS.values()):
        for way in WAYS:
            if sys.stderr.isatty():
                print(f"\r{i + 1} of {len(LINKS)} links, {way} ", end="", file=sys.stderr)
            rows += measure(gen, lanes, way, arguments.rounds)
    for row in rows:
        floor = next(r for r in reversed(rows) if (r["op"], r["way"], r["size"]) == (row["op"], row["way"], row["size"]))
        row["floor_bytes_per_s"] = floor["bytes_per_s"]
        row["below_floor"] = row["size"] / row["modelled_ns"] * 1e9 < 0.75 * floor["bytes_per_s"]
    if arguments.json:
        print(json.dumps({"schema_version": 1, "rows": rows}))
        return 0
    print(f"{'OP':10} {'WAY':8} {'LINK':9} {'SIZE':>8} {'MODELLED':>11} {'P50':>11} {'RATIO':>6}  {'FLOOR':>10}")
    for r in rows:
        mark = "" if r["below_floor"] else "  above the floor"
        modelled, measured, floor = r["modelled_ns"] / 1e3, r["p50_ns"] / 1e3, r["floor_bytes_per_s"] / 1e9
        print(
            f"{r['op']:10} {r['way']:8} {r['link']:9} {r['size'] >> 20:>4} MiB {modelled:>8.1f} us {measured:>8.1f} us"
            f" {r['ratio']:>6.3f}"
            f"  {floor:>5.2f} GB/s{mark}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
