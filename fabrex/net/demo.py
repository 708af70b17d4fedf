# SPDX-License-Identifier: Apache-2.0
"""The `squadrack` preset on several machines: its servers are spread over them, and each accelerator is a process.

Inside a server operations go through shared memory, as PCIe is modelled; between machines they go over TCP, as Ethernet is. One
accelerator measures operations on a neighbour of each kind, without modelled time and with it; then all of them send data to both
neighbours at once. The machines are network namespaces (lan.py). This module is also the program of an accelerator:
`python -m fabrex.net.demo BYTES ROUNDS`. `python -m fabrex.net.demo`, without these, is `fabricctl demo --machines 4`.

Modelled time can be stretched (`dilation`), so that what a network of this computer takes fits inside what the model asks for;
all times are told in fabric time, so that they compare with the model whatever the factor is.

Owns: what is demonstrated and what was measured. Must not know: how it is shown.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FabricNotFound
from .lan import Lan, Loopback, why_not

if TYPE_CHECKING:
    from ..node import Node
    from ..topology import Topology

__all__ = ["SERVERS", "Failed", "Measured", "Racked", "Unavailable", "placed", "run", "smallest"]

SERVERS = 4
"""Of the preset: no server is divided, so there are at most as many machines."""
MARGIN = 1.5
"""By how much modelled time is longer than the median of what operations take by themselves, where the factor is found here."""
MISSED = 0.02
TRIES = 3
_WORSE = Fraction(8, 5)
BLOCK = 64 << 10
TIERS = {"near": "PCIe in servers", "far": "Ethernet between"}
_SAID = re.compile(r"^\[card\d+\] (\{.*\})$", re.MULTILINE)


class Unavailable(RuntimeError):
    """This computer has no network namespaces, or they are not permitted; the text says which."""


class Failed(RuntimeError):
    """A machine's processes failed; the text is what they said."""


@dataclass
class Measured:
    """One operation on one tier.

    Attributes:
        tier: a key of TIERS.
        op, size: what was done.
        modelled_ps: what the model asks for.
        samples_ns: what it took, in fabric time; floor_ns: the same with no time injected.
        late: how many came after their modelled time; counted: of how many.
    """

    tier: str
    op: str
    size: int
    modelled_ps: int
    samples_ns: list[int]
    late: int
    counted: int
    floor_ns: list[int] = field(default_factory=list)


@dataclass
class Racked:
    """What came out.

    Attributes:
        measured: operations of each tier.
        sent, received: SHA-256 of every block: "tier from>to" -> digest.
        moved_bytes, moved_seconds: per tier, all accelerators at once.
        beds: what the machines were: "network namespaces" or "loopback".
        machines: name -> names of its accelerators.
        dilation: by how much modelled time was stretched.
        seconds: how long all of it took.
    """

    measured: list[Measured] = field(default_factory=list)
    sent: dict[str, str] = field(default_factory=dict)
    received: dict[str, str] = field(default_factory=dict)
    moved_bytes: dict[str, int] = field(default_factory=dict)
    moved_seconds: dict[str, float] = field(default_factory=dict)
    beds: str = ""
    machines: dict[str, list[str]] = field(default_factory=dict)
    dilation: str = "1"
    seconds: float = 0.0

    @property
    def same(self) -> bool:
        """Whether all blocks arrived as they were sent."""
        return bool(self.sent) and self.sent == self.received


def placed(machines: int = SERVERS, **settings: Any) -> Topology:
    """`squadrack` with its servers spread over so many machines; the switch between them is on the first."""
    from ..topology import Topology

    document = Topology.preset("squadrack").override(**settings).to_dict()
    document["machines"] = {f"m{i}": {"nodes": ["leaf0"] if i == 0 else []} for i in range(machines)}
    for i in range(SERVERS):
        mine = [f"host{i}", *(f"card{c}" for c in range(4 * i, 4 * i + 4)), f"pex{i}", f"nic{i}"]
        document["machines"][f"m{i * machines // SERVERS}"]["nodes"] += mine
    return Topology.from_dict(document, f"squadrack on {machines} machines")


def smallest(measured: list[Measured]) -> Fraction:
    """The smallest whole factor by which each operation's modelled time holds what it takes by itself (`samples_ns`)."""
    most = 1
    for row in measured:
        taken = sorted(row.samples_ns)[len(row.samples_ns) // 2]
        if row.modelled_ps:
            most = max(most, math.ceil(MARGIN * taken * 1000 / row.modelled_ps))
    return Fraction(most)


def _missed(measured: list[Measured]) -> int:
    """How many operations' medians are more than the model asks for, by more than is as asked for."""
    return sum(sorted(row.samples_ns)[len(row.samples_ns) // 2] * 1000 > (1 + MISSED) * row.modelled_ps for row in measured)


def run(
    *,
    machines: int = SERVERS,
    dilation: Fraction | str = Fraction(1),
    size: int = 4 << 20,
    rounds: int = 1000,
    loopback: bool = False,
    timeout: float = 120.0,
    progress: Callable[[str, float], None] = lambda what, done: None,
) -> Racked:
    """Run the whole demonstration.

    Args:
        machines: from 2 to SERVERS.
        dilation: by how much modelled time is stretched; "auto": by as little as lets it hold what operations take by themselves,
            measured first, and by more if medians still come after their modelled time and more helps.
        size: bytes that each accelerator sends to each of its two neighbours.
        rounds: operations of each kind that are measured.
        loopback: machines are directories that meet on loopback, which needs no privilege.
        timeout: seconds for each run.
    Raises:
        Unavailable: no namespaces here. Failed: a process failed.
    """
    if not loopback and (reason := why_not()):
        raise Unavailable(reason)
    begin = time.monotonic()
    topology = placed(machines)
    homes = {name: [node for node in m["nodes"] if node.startswith("card")] for name, m in topology.machines.items()}
    words = [str(size), str(rounds)]
    progress("16 accelerators, with no time injected", 0.0)
    floors = _measured_of(_on_machines(placed(machines, timing="off"), loopback, words, timeout))
    factor = smallest(floors) if isinstance(dilation, str) else dilation
    missed: int | None = None
    for left in reversed(range(TRIES if isinstance(dilation, str) else 1)):
        result = Racked(beds="loopback" if loopback else "network namespaces", machines=homes, dilation=str(factor))
        progress("16 accelerators, at modelled time" + (f" ×{factor}" if factor != 1 else ""), 0.0)
        said = _on_machines(placed(machines, timing="on", dilation=str(factor)), loopback, words, timeout)
        result.measured = _measured_of(said)
        stretch = float(factor)
        for row, floor in zip(result.measured, floors, strict=True):
            row.samples_ns = [round(ns / stretch) for ns in row.samples_ns]
            row.floor_ns = [round(ns / stretch) for ns in floor.samples_ns]
        for one in said:
            result.sent |= one["sent"]
            result.received |= one["received"]
            for tier, seconds in one["seconds"].items():
                result.moved_bytes[tier] = result.moved_bytes.get(tier, 0) + size
                result.moved_seconds[tier] = max(result.moved_seconds.get(tier, 0.0), seconds / stretch)
        before, missed = missed, _missed(result.measured)
        if not left or not missed or (before is not None and missed >= before):
            break  # what more time does not mend is no matter of time
        factor = Fraction(math.ceil(factor * _WORSE))
    result.seconds = time.monotonic() - begin
    return result


def _measured_of(said: list[dict[str, Any]]) -> list[Measured]:
    return [Measured(**row) for words in said for row in words.get("measured", ())]


def _on_machines(topology: Topology, loopback: bool, words: list[str], timeout: float) -> list[dict[str, Any]]:
    """Start the machines as anybody would, from the command line; returns what their accelerators say."""
    ctl = [sys.executable, "-m", "fabrex.cli"]
    command = ["--kind", "accelerator", "--wait", str(timeout), "--", sys.executable, "-m", "fabrex.net.demo", *words]
    with tempfile.TemporaryDirectory(prefix="fabrex-demo-", dir=_segments()) as scratch:
        count = len(topology.machines)
        bed = (Loopback if loopback else Lan)(count, Path(scratch))
        try:
            described = Path(scratch) / "rack.yaml"
            described.write_text(topology.to_yaml(), encoding="utf-8")
            token = ["--token-file", str(bed.token)]
            up = bed.start(0, *ctl, "up", str(described), "--machine", "m0", "--listen", bed.address(0), *token, *command)
            assert up.stdout is not None
            first = up.stdout.readline()  # NAME: machine m0 of N machines, at HOST:PORT
            if not first:
                raise Failed(up.communicate()[1])
            at = first.split()[-1]
            machines = [up]
            for i in range(1, count):
                machines.append(bed.start(i, *ctl, "join", at, "--machine", f"m{i}", *token, *command))
            return _listen(machines, timeout)
        finally:
            bed.close()


def _listen(machines: list[subprocess.Popen[str]], timeout: float) -> list[dict[str, Any]]:
    """What all of them print; read side by side, so that none waits for a full pipe."""
    out = [("", "")] * len(machines)

    def read(i: int) -> None:
        out[i] = machines[i].communicate()

    readers = [threading.Thread(target=read, args=(i,)) for i in range(len(machines))]
    deadline = time.monotonic() + timeout
    late = True
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # a start that is interrupted is none
    try:
        for reader in readers:
            reader.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for reader in readers:
            reader.join(max(deadline - time.monotonic(), 0.0))
        late = any(reader.is_alive() for reader in readers)
    finally:
        # Also when somebody interrupts: nobody else reads what they say.
        for machine, reader in zip(machines, readers, strict=True):
            if reader.is_alive():
                machine.kill()
            reader.join()
    if late or any(machine.returncode for machine in machines):
        raise Failed(f"{'not done in time; ' if late else ''}{''.join(stderr for _, stderr in out)[-2000:]}")
    return [json.loads(line) for stdout, _ in out for line in _SAID.findall(stdout)]


def _segments() -> str:
    from ..listing import default_directory

    return default_directory()


# -- an accelerator --------------------------------------------------------------------------------------------------


def _card(node: Node, size: int, rounds: int) -> None:
    """What each accelerator does; prints what came of it."""
    fabric, me, count = node.fabric, int(node.name.removeprefix("card")), node.size
    # Two servers on: on another machine, however few there are.
    neighbours = {"near": me ^ 1, "far": (me + count // 2) % count}
    inbox = node.alloc(2 * max(size, BLOCK), name=f"demo-inbox-{me}", tier="lpddr")
    node.barrier("demo-ready", timeout=90.0)
    theirs = {tier: fabric.buffer(f"demo-inbox-{card}", timeout=30.0).gva for tier, card in neighbours.items()}
    said: dict[str, Any] = {"sent": {}, "received": {}, "seconds": {}}
    if me == 0:
        said["measured"] = [row for tier in TIERS for row in _measure(node, tier, theirs[tier], rounds)]
        fabric.put("demo-measured", b"")
    else:
        # Who waits at a barrier looks often; what is measured is one at work, and all others quiet.
        while not _is_there(fabric, "demo-measured"):
            time.sleep(0.05)
    data = random.Random(node.name).randbytes(size)
    digest = hashlib.sha256(data).hexdigest()
    for slot, (tier, card) in enumerate(neighbours.items()):
        node.barrier(f"demo-{tier}", timeout=90.0)
        begin = time.monotonic()
        node.write(theirs[tier] + slot * max(size, BLOCK), data)
        node.flush(f"card{card}", check=True)
        said["seconds"][tier] = time.monotonic() - begin
        said["sent"][f"{tier} card{me}>card{card}"] = digest
    node.barrier("demo-arrived", timeout=90.0)
    for slot, (tier, card) in enumerate((("near", me ^ 1), ("far", (me - count // 2) % count))):
        came = node.read(inbox.gva + slot * max(size, BLOCK), size)
        said["received"][f"{tier} card{card}>card{me}"] = hashlib.sha256(came).hexdigest()
    print(json.dumps(said), flush=True)
    node.barrier("demo-end", timeout=90.0)


def _is_there(fabric: Any, key: str) -> bool:
    try:
        fabric.get(key, timeout=0)
    except (FabricNotFound, TimeoutError):
        return False
    return True


def _measure(node: Node, tier: str, gva: int, rounds: int) -> list[dict[str, Any]]:
    """Operations on one neighbour's memory, one after the other."""
    data, clock = bytes(BLOCK), time.perf_counter_ns
    mine = node.alloc(BLOCK, tier="lpddr")
    kinds: tuple[tuple[str, int, Callable[[], Any]], ...] = (
        ("load", 8, lambda: node.load(gva)),
        ("fetch_add", 8, lambda: node.fetch_add(gva, 1)),
        ("write", BLOCK, lambda: node.write(gva, data)),
        ("dma_read", BLOCK, lambda: node.dma.copy(dst=mine.gva, src=gva, size=BLOCK).wait(60)),
    )
    nothing = min(-clock() + clock() for _ in range(200))
    rows = []
    for op, size, call in kinds:
        call()
        node.flush()
        before = node.fabric.fidelity().get(op, {"count": 0, "late": 0})
        samples = []
        for _ in range(rounds if size == 8 else max(rounds // 10, 10)):
            begin = clock()
            call()
            samples.append(max(clock() - begin - nothing, 0))
            if op == "write":
                node.flush()
        after = node.fabric.fidelity().get(op, before)
        rows.append(
            {
                "tier": tier,
                "op": op,
                "size": size,
                "modelled_ps": node.estimate(op, gva, size)["completes_ps"],
                "samples_ns": samples,
                "late": after["late"] - before["late"],
                "counted": after["count"] - before["count"],
            }
        )
    return rows


def _main(words: list[str]) -> int:
    from .. import attach

    if not words:
        return subprocess.call([sys.executable, "-m", "fabrex.cli", "demo", "--machines", str(SERVERS)])
    node = attach()
    _card(node, int(words[0]), int(words[1]))
    node.fabric.close()
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
