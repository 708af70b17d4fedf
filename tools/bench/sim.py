# SPDX-License-Identifier: Apache-2.0
"""What the virtual clock costs on this machine: seeds and operations a second, of one core.

    python tools/bench/sim.py                 everything, half a minute or so
    python tools/bench/sim.py --only seeds    some rows
    python tools/bench/sim.py --quick --json

Rates are per second of processor time of this one thread, so that what else runs on the machine counts less; `wall` is beside
them. Medians over repetitions. It reports and never fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import fabrex  # noqa: E402
import fabrex.sim  # noqa: E402


def producer(node: Any) -> None:
    """Message passing: data, then a flag."""
    gva = node.fabric.gva
    node.store(gva("host1", 0), 1)
    node.store(gva("host1", 64), 1, ro=True)


def consumer(node: Any) -> int:
    """Message passing: wait for the flag, look at the data."""
    gva = node.fabric.gva
    node.wait_until(gva("host1", 64), "==", 1)
    value: int = node.load(gva("host1", 0))
    return value


def seeds(ordering: str, count: int) -> Callable[[], int]:
    """So many seeds of two-node message passing."""

    def measure() -> int:
        for seed in range(count):
            fabrex.sim.run("fabrex-pair", {"host0": producer, "host1": consumer}, ordering=ordering, seed=seed)
        return count

    return measure


def atomics(topology: str, nodes: list[str], ordering: str, each: int) -> Callable[[], int]:
    """Every node adds to a counter of the next: as many operations as are asked for, in one run."""

    def program(peer: str) -> Callable[[Any], None]:
        def run(node: Any) -> None:
            gva = node.fabric.gva(peer)
            for _ in range(each):
                node.fetch_add(gva, 1)

        return run

    def measure() -> int:
        result = fabrex.sim.run(
            topology, {name: program(nodes[(i + 1) % len(nodes)]) for i, name in enumerate(nodes)}, ordering=ordering, seed=1
        )
        assert result.trace.total >= each * len(nodes)
        return each * len(nodes)

    return measure


def rows(quick: bool) -> dict[str, tuple[str, str, float | None, Callable[[], int]]]:
    """Return name -> (what, unit, target, how)."""
    n = 10 if quick else 1
    rack = [name for name, node in fabrex.Topology.preset("supernode-32").nodes.items() if node.kind == "accelerator"]
    return {
        "seeds": ("two-node message passing, adversarial", "seeds/s", 2000, seeds("adversarial", 2000 // n)),
        "seeds-posted": ("two-node message passing, posted", "seeds/s", 2000, seeds("posted", 2000 // n)),
        "operations": (
            "two nodes, fetch_add, posted",
            "operations/s",
            200_000,
            atomics("fabrex-pair", ["host0", "host1"], "posted", 50_000 // n),
        ),
        "rack": (
            "32 nodes, 10^6 fetch_add in one run, posted",
            "operations/s",
            100_000,
            atomics("supernode-32", rack, "posted", 31_250 // n),
        ),
        "rack-adversarial": (
            "32 nodes, 10^6 fetch_add in one run, adversarial",
            "operations/s",
            None,
            atomics("supernode-32", rack, "adversarial", 31_250 // n),
        ),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="rows, with commas between them")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    table = rows(arguments.quick)
    wanted = arguments.only.split(",") if arguments.only else list(table)
    unknown = [name for name in wanted if name not in table]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(table)}")
    found = []
    for name in wanted:
        what, unit, target, measure = table[name]
        cpu, wall, amount = [], [], 0
        for _ in range(max(arguments.repeat, 1)):
            begin, begin_wall = time.process_time(), time.perf_counter()
            amount = measure()
            cpu.append(amount / (time.process_time() - begin))
            wall.append(amount / (time.perf_counter() - begin_wall))
        found.append({
            "row": name, "what": what, "unit": unit, "amount": amount, "median": statistics.median(cpu), "worst": min(cpu),
            "best": max(cpu), "wall_median": statistics.median(wall), "target": target,
        })  # fmt: skip
        if not arguments.json:
            row = found[-1]
            beside = f"target {target:,.0f}" if target else ""
            print(
                f"{name:<18} {row['median']:>10,.0f} {unit:<13} ({row['worst']:,.0f} to {row['best']:,.0f}; "
                f"wall {row['wall_median']:,.0f}) {beside:<16} {what}",
                flush=True,
            )
    if arguments.json:
        machine = {"machine": platform.machine(), "python": platform.python_version(), "system": platform.release()}
        print(json.dumps({"schema_version": 1, "machine": machine, "rows": found}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
