# SPDX-License-Identifier: Apache-2.0
"""Changes of a fabric from all of its machines at once, while machines leave, are killed, stop and come back; then all hold the
same.

`make campaign-changes COUNT=100` runs that many rounds. In each, every machine (a process of its own) takes links down and up, sets
and resets their values, disables and enables its NTB and programs windows, and one of them may be killed, closed, or stopped for
up to three seconds in the middle; one that was given up meanwhile must know it, and joins anew. When all have answered, machines
with the same epoch must hold the same, by what their agents and by what their segments say. The status is that they did, and that
no change of the others failed; how long the longest of these took is told. `--seed` begins another sequence.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import fabrex  # noqa: E402

MACHINES = 4

PROGRAM = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tools/campaign"]
import changes
changes.serve(sys.argv[2], sys.argv[3], sys.argv[4])
"""


def topology() -> fabrex.Topology:
    """A host on each machine, around a switch on the first."""
    nodes: dict[str, Any] = {f"host{i}": {"kind": "host", "memory": {"dram": "16MiB"}, "machine": f"m{i}"} for i in range(MACHINES)}
    nodes["sw0"] = {"kind": "switch", "machine": "m0"}
    links = [{"endpoints": [f"host{i}:n", f"sw0:p{i}"], "pcie": {"gen": 4, "lanes": 16}} for i in range(MACHINES)]
    return fabrex.Topology("changes", nodes, links, timing=False)


def burst(fabric: fabrex.Fabric, node: fabrex.Node, numbers: random.Random, count: int) -> tuple[int, list[str], float]:
    """Make changes; returns how many, what failed, and how many seconds the longest took."""
    names, failed, made, longest = list(fabric.links), [], 0, 0.0
    for _ in range(count):
        began = time.monotonic()
        link = fabric.links[numbers.choice(names)]
        try:
            what = numbers.randrange(7)
            if what < 2:
                (link.down if what else link.up)()
            elif what == 2:
                link.set(delay=f"{numbers.randrange(1000)}ns", mps=numbers.choice([128, 256, 512]))
            elif what == 3:
                link.set(lanes=numbers.choice([1, 4, 8, 16]))
            elif what == 4:
                link.reset()
            elif what == 5:
                (node.ntb.link_disable if numbers.random() < 0.5 else node.ntb.link_enable)()
            else:
                peer = numbers.choice([name for name in fabric.topology.nodes if name not in (node.name, "sw0")])
                node.ntb.windows[numbers.randrange(8)].set_translation(peer, 4096 * numbers.randrange(64), 4096)
            made += 1
        except fabrex.FabricError as error:
            failed.append(f"{type(error).__name__}: {error}")
        longest = max(longest, time.monotonic() - began)
    return made, failed, longest


def holds(fabric: fabrex.Fabric) -> Any:
    """What a machine holds of the fabric as a whole: its agent's state, and its segment's."""
    state = fabric.agent.state()
    shown = [
        (i["name"], i["up"], i["changed"], i["delay_ps"], i["mps"], i["lanes"]) for i in (x.info() for x in fabric.links.values())
    ]
    up = [machine["state"] for machine in fabric.machines()]
    return json.loads(json.dumps([state, shown, up, [node["state"] for node in fabric.nodes()]]))


def serve(where: str, name: str, directory: str) -> None:
    """A machine's process: does what is asked on standard input."""
    with fabrex.Fabric.join(where, name, directory=directory, timeout=60) as fabric, fabric.attach(f"host{name[1:]}") as node:
        print(json.dumps("here"), flush=True)
        for line in sys.stdin:
            what, *given = json.loads(line)
            if what == "burst":
                said: Any = burst(fabric, node, random.Random(given[0]), given[1])
            else:
                said = holds(fabric) if what == "holds" else fabric.agent.cut_off
            print(json.dumps(said), flush=True)


class Machine:
    """One of the others."""

    def __init__(self, where: str, name: str, directory: Path) -> None:
        fabrex.Fabric.prune(str(directory))  # what a killed one left
        command = [sys.executable, "-c", PROGRAM, str(ROOT), where, name, str(directory)]
        self.name = name
        self.is_there = False
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *what: Any) -> None:
        """Let it do something."""
        assert self.process.stdin is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)

    def hear(self) -> Any:
        """What it says; None if it is gone."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def end(self, kill: bool) -> None:
        """Have it leave, or die."""
        assert self.process.stdin is not None and self.process.stdout is not None
        if kill:
            self.process.kill()
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def agreed(fabric: fabrex.Fabric, others: list[Machine]) -> Any:
    """Whether all hold the same before long; None, or what they hold."""
    deadline, found = time.monotonic() + 20, []
    while time.monotonic() < deadline:
        for machine in others:
            machine.ask("holds")
        found = [holds(fabric), *(machine.hear() for machine in others)]
        if all(one == found[0] for one in found):
            return None
        time.sleep(0.1)
    return found


def knows(fabric: fabrex.Fabric, machine: Machine) -> bool:
    """Whether a machine that was stopped is given up; it and the coordinator must come to say the same."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.5)
        machine.ask("cut")
        cut = bool(machine.hear())
        if cut != fabric.agent.is_member(machine.name):
            return cut
    raise AssertionError(f"{machine.name} and the coordinator do not come to know whether it was given up")


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="rounds")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    numbers, started = random.Random(given.seed), time.time()
    made, killed, closed, stopped, given_up, longest = 0, 0, 0, 0, 0, 0.0
    wrong: list[Any] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fabrex-campaign-", dir="/dev/shm") as scratch:
        places = [Path(scratch) / f"m{i}" for i in range(MACHINES)]
        for place in places:
            place.mkdir()
        with fabrex.Fabric.host(topology(), "changes", directory=str(places[0])) as fabric, fabric.attach("host0") as node:
            others: dict[int, Machine] = {}
            try:
                for turn in range(given.count):
                    for i in range(1, MACHINES):
                        if i not in others:
                            others[i] = Machine(fabric.agent.where, f"m{i}", places[i])
                            # Joining runs beside changes of those that are there.
                            made += burst(fabric, node, numbers, 3)[0]
                    for machine in others.values():
                        if not machine.is_there:
                            machine.is_there = machine.hear() == "here"
                            assert machine.is_there, f"{machine.name} did not join"
                    fabric.agent.wait_for(timeout=30)
                    victim = numbers.choice([0, 0, *range(1, MACHINES)])
                    for machine in others.values():
                        machine.ask("burst", numbers.getrandbits(32), 10)
                    still: Machine | None = None
                    if victim:
                        time.sleep(numbers.random() * 0.1)
                        fate = numbers.choice(["kill", "close", "stop"])
                        killed, closed, stopped = killed + (fate == "kill"), closed + (fate == "close"), stopped + (fate == "stop")
                        machine = others.pop(victim)
                        if fate == "stop":
                            still = machine
                            still.process.send_signal(signal.SIGSTOP)
                            seconds = numbers.choice([0.1, 0.5, 1.0, 1.5, 2.0, 3.0])
                            waker = threading.Timer(seconds, still.process.send_signal, [signal.SIGCONT])
                            waker.start()
                        else:
                            machine.end(fate == "kill")
                    count, faults, took = burst(fabric, node, numbers, 10)
                    for machine in others.values():
                        more, told, slowest = machine.hear()
                        count, faults, took = count + more, faults + told, max(took, slowest)
                    if still is not None:
                        waker.join()
                        more, told, _ = still.hear()
                        if knows(fabric, still):
                            given_up += 1
                            still.end(False)
                        else:
                            others[victim] = still
                            faults = faults + told
                        count += more
                    longest = max(longest, took)
                    made += count
                    failed += faults
                    found = agreed(fabric, list(others.values()))
                    if found is not None:
                        wrong.append({"round": turn, "held": found})
                        break
            finally:
                for machine in others.values():
                    machine.end(False)
        for place in places[1:]:
            fabrex.Fabric.prune(str(place))
    record = {
        "schema_version": 1,
        "campaign": "changes",
        "seed": given.seed,
        "rounds": given.count,
        "changes": made,
        "killed": killed,
        "closed": closed,
        "stopped": stopped,
        "given_up": given_up,
        "longest_seconds": round(longest, 2),
        "failed": failed[:20],
        "disagreed": wrong,
        "seconds": round(time.time() - started, 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    target = ROOT / "results"
    target.mkdir(exist_ok=True)
    (target / "changes.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    outcome = "DISAGREED" if wrong else "all agreed"
    print(
        f"{given.count} rounds, {made} changes, {killed} machines killed, {closed} closed, {stopped} stopped "
        f"({given_up} of them given up): {outcome}, {len(failed)} failed, the longest took {longest:.2f} s"
    )
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
