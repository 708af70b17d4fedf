# SPDX-License-Identifier: Apache-2.0
"""Changes of a fabric on several machines: how long it takes until all of them have made one.

    python tools/bench/control.py             a few seconds
    python tools/bench/control.py --count 1000 --json

Three machines, a process each, on loopback. A change of a link is asked for on the coordinator's machine and on another one; a
window is programmed by its own node, beside the same on a fabric of one machine. It reports and never fails.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import common  # noqa: E402

import fabrex  # noqa: E402

MEMBER = """
import sys
sys.path.insert(0, sys.argv[4])
import control, fabrex
with fabrex.Fabric.join(sys.argv[1], sys.argv[2], directory=sys.argv[3]) as fabric:
    print("here", flush=True)
    for line in sys.stdin:
        print(*control.links(fabric, int(line)), flush=True)
"""


def topology(apart: bool) -> fabrex.Topology:
    """Three hosts on a switch."""
    nodes: dict[str, Any] = {f"host{i}": {"kind": "host", "memory": {"dram": "32MiB"}} for i in range(3)}
    nodes["sw0"] = {"kind": "switch"}
    if apart:
        for i, name in enumerate(("host0", "host1", "host2")):
            nodes[name]["machine"] = f"m{i}"
        nodes["sw0"]["machine"] = "m0"
    links = [{"endpoints": [f"host{i}:n", f"sw0:p{i}"], "pcie": {"gen": 4, "lanes": 16}} for i in range(3)]
    return fabrex.Topology("control", nodes, links, timing=False)


def timed(call: Callable[[int], None], count: int) -> list[int]:
    """Return what each call took, in ns."""
    samples = []
    for i in range(count):
        begin = time.perf_counter_ns()
        call(i)
        samples.append(time.perf_counter_ns() - begin)
    return samples


def links(fabric: fabrex.Fabric, count: int) -> list[int]:
    """Set a link's delay again and again."""
    link = next(iter(fabric.links.values()))
    return timed(lambda i: link.set(delay=f"{i}ns"), count)


def windows(fabric: fabrex.Fabric, count: int) -> list[int]:
    """Program windows of a node of this machine."""
    with fabric.attach("host0") as node:
        table = node.ntb.windows
        return timed(lambda i: table[i % 8].set_translation("host1", 4096 * (i % 64), 4096), count)


def measure(count: int) -> dict[str, list[int]]:
    """Return name -> ns of each."""
    found: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="fabrex-bench-", dir="/dev/shm") as scratch:
        with fabrex.Fabric.create(topology(False), directory=scratch) as alone:
            found["window, one machine"] = windows(alone, count)
        with fabrex.Fabric.host(topology(True), directory=scratch) as fabric:
            members = []
            try:
                for name in ("m1", "m2"):
                    (Path(scratch) / name).mkdir()
                    command = [sys.executable, "-c", MEMBER, fabric.agent.where, name, f"{scratch}/{name}", str(HERE)]
                    members.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
                fabric.agent.wait_for(timeout=60)
                asker = members[0]
                assert asker.stdin is not None and asker.stdout is not None
                asker.stdout.readline()
                found["link, asked for on the coordinator's machine"] = links(fabric, count)
                print(count, file=asker.stdin, flush=True)
                found["link, asked for on another"] = [int(word) for word in asker.stdout.readline().split()]
                found["window, three machines"] = windows(fabric, count)
            finally:
                for member in members:
                    assert member.stdin is not None and member.stdout is not None
                    member.stdin.close()
                    member.wait()
                    member.stdout.close()
    return found


def main() -> int:
    """Measure and say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="changes of each kind")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [
        {
            "change": name,
            "count": len(samples),
            "p50_ns": statistics.median(samples),
            "p99_ns": common.percentile(sorted(samples), 0.99),
        }
        for name, samples in measure(arguments.count).items()
    ]
    if arguments.json:
        with fabrex.Fabric.create(topology(False)) as made:
            common.document("control", common.machine_facts(made), rows)
    else:
        shown = [(row["change"], str(row["count"]), common.ns(row["p50_ns"]), common.ns(row["p99_ns"])) for row in rows]
        print(common.table(("CHANGE", "COUNT", "MEDIAN", "P99"), shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
