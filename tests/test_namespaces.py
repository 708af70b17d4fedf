# SPDX-License-Identifier: Apache-2.0
"""Machines as network namespaces: real TCP over veth, with delay, loss and partitions made by `tc netem` and routing; where the
kernel has no netem, over TUN devices and a switch of our own (wire.py), which delays, loses and reorders packets.

Needs root (or CAP_NET_ADMIN and CAP_SYS_ADMIN) and iproute2; skipped with the reason elsewhere.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from wire import Wire, why_no_wire

from fabrex.net.lan import Lan, why_not

pytest_plugins = ["helpers"]

YAML = """
fabrex: 1
name: two
timing: {timing}
nodes:
  host0: {{kind: host, memory: {{dram: 32MiB}}}}
  host1: {{kind: host, memory: {{dram: 32MiB}}}}
  sw0: {{kind: switch, delay: 105ns}}
links:
  - {{endpoints: [host0:ntb0, sw0:p0], pcie: {{gen: 4, lanes: 16}}, delay: 5ns}}
  - {{endpoints: [host1:ntb0, sw0:p1], pcie: {{gen: 4, lanes: 16}}, delay: 5ns}}
machines:
  m0: {{nodes: [host0, sw0]}}
  m1: {{nodes: [host1]}}
"""


Bed = TypeVar("Bed", bound=Lan)


def lasting(bed: Bed) -> Iterator[Bed]:
    """Give a test its machines, and see that nothing is left in their directories."""
    try:
        yield bed
    finally:
        bed.close()
        (bed.place / "two.yaml").unlink(missing_ok=True)
    for directory in bed.directories:
        os.rmdir(directory)


@pytest.fixture
def lan(request: pytest.FixtureRequest, place: Path) -> Iterator[Lan]:
    if reason := why_not("tc"):
        pytest.skip(reason)
    yield from lasting(Lan(getattr(request, "param", 2), place))


@pytest.fixture
def wire(place: Path) -> Iterator[Wire]:
    if reason := why_no_wire():
        pytest.skip(reason)
    yield from lasting(Wire(2, place, seed=3))


def both(lan: Lan, first: str, second: str, timing: str = "off", timeout: float = 90.0) -> tuple[str, str]:
    """Run one program as host0 on m0 and one as host1 on m1; returns what they print."""
    described = lan.place / "two.yaml"
    described.write_text(YAML.format(timing=timing))
    ctl = [sys.executable, "-m", "fabrex.cli"]
    codes = [textwrap.dedent(code) for code in (first, second)]
    up = lan.start(0, *ctl, "up", str(described), "--machine", "m0", "--listen", "10.77.0.1:4711", "--token-file", str(lan.token),
                   "--", sys.executable, "-c", codes[0])  # fmt: skip
    join = lan.start(1, *ctl, "join", "10.77.0.1:4711", "--machine", "m1", "--token-file", str(lan.token), "--", sys.executable,
                     "-c", codes[1])  # fmt: skip
    out = [process.communicate(timeout=timeout) for process in (up, join)]
    assert up.returncode == 0 and join.returncode == 0, out
    return out[0][0], out[1][0]


COUNT = """
    import time, fabrex
    node = fabrex.attach()
    gva = node.fabric.gva("host1", 64)
    node.barrier("start", timeout=60)
    end, done = time.monotonic() + {seconds}, 0
    while time.monotonic() < end:
        assert node.fetch_add(gva, 1) == done if node.name == "host0" else True
        done += 1
        node.store(gva + 64, done)
    node.flush()
    node.fabric.put("count." + node.name, str(done).encode())
    node.barrier("end", timeout=60)
    print("total", node.load(gva), "done", done, "last", node.load(gva + 64))
"""
REST = """
    import fabrex
    node = fabrex.attach()
    node.barrier("start", timeout=60)
    node.barrier("end", timeout=80)
    print("found", node.load(node.fabric.gva("host1", 64)))
"""


def numbers(text: str, word: str) -> int:
    words = text.split()
    return int(words[words.index(word) + 1])


@pytest.mark.parametrize("timing", ["off", "on"])
def test_programs_run_across_machines(lan: Lan, timing: str) -> None:
    first, second = both(lan, COUNT.format(seconds=1.0), REST, timing)
    done = numbers(first, "done")
    assert numbers(first, "total") == done == numbers(first, "last") == numbers(second, "found")


@pytest.mark.parametrize("timing", ["off", "on"])
def test_delay_and_loss_change_nothing_but_time(lan: Lan, timing: str) -> None:
    for i in range(2):
        if problem := lan.netem(i, "delay", "2ms", "1ms", "loss", "2%"):
            pytest.skip(f"tc netem is not there: {problem.strip()}")
    first, second = both(lan, COUNT.format(seconds=1.5), REST, timing)
    done = numbers(first, "done")
    assert done > 10
    assert numbers(first, "total") == done == numbers(first, "last") == numbers(second, "found")


@pytest.mark.parametrize("timing", ["off", "on"])
def test_packets_that_are_late_lost_and_out_of_order(wire: Wire, timing: str) -> None:
    for i in range(2):
        wire.shape(i, delay=0.002, jitter=0.001, loss=0.02)
    first, second = both(wire, COUNT.format(seconds=1.5), REST, timing)
    done = numbers(first, "done")
    assert done > 10 and wire.lost > 0 and wire.passed > 100
    assert numbers(first, "total") == done == numbers(first, "last") == numbers(second, "found")


def test_a_narrow_way_is_only_slow(lan: Lan) -> None:
    """2 Mbit/s in both directions, with a short queue that loses what it cannot hold."""
    for i in range(2):
        if problem := lan.narrow(i, "rate", "2mbit", "burst", "8kb", "limit", "12kb"):
            pytest.skip(f"tc tbf is not there: {problem.strip()}")
    first, second = both(lan, COUNT.format(seconds=1.5), REST)
    done = numbers(first, "done")
    assert done > 10
    assert numbers(first, "total") == done == numbers(first, "last") == numbers(second, "found")


def test_a_short_partition_is_survived_under_load(lan: Lan) -> None:
    """Unplugged for less than a machine takes to be lost: connections resume, and every atomic is counted once."""
    described = lan.place / "two.yaml"
    described.write_text(YAML.format(timing="off"))
    ctl = [sys.executable, "-m", "fabrex.cli"]
    up = lan.start(0, *ctl, "up", str(described), "--machine", "m0", "--listen", "10.77.0.1:4711", "--token-file", str(lan.token),
                   "--", sys.executable, "-c", "print('go', flush=True)\n" + textwrap.dedent(COUNT.format(seconds=5)))  # fmt: skip
    join = lan.start(1, *ctl, "join", "10.77.0.1:4711", "--machine", "m1", "--token-file", str(lan.token), "--", sys.executable,
                     "-c", textwrap.dedent(REST))  # fmt: skip
    assert up.stdout is not None
    while "go" not in (line := up.stdout.readline()):
        assert line
    time.sleep(1.0)
    for _ in range(3):
        lan.cut(True)
        time.sleep(0.4)
        lan.cut(False)
        time.sleep(0.6)
    out = [process.communicate(timeout=90) for process in (up, join)]
    assert up.returncode == 0 and join.returncode == 0, out
    done = numbers(out[0][0], "done")
    assert numbers(out[0][0], "total") == done == numbers(out[1][0], "found")


def test_a_lasting_partition_ends_operations(lan: Lan) -> None:
    """Unplugged for good: both sides see the other's nodes as lost, and nothing hangs. Nobody sends a reset."""
    program = """
        import time, fabrex
        node = fabrex.attach()
        other = "host1" if node.name == "host0" else "host0"
        gva = node.fabric.gva(other, 64)
        node.barrier("start", timeout=60)
        node.store(gva, 1)
        node.flush()
        print("go", flush=True)
        began = last = time.monotonic()
        try:
            while time.monotonic() < began + 30:
                node.load(gva)
                last = time.monotonic()
        except fabrex.PeerLost:
            print("lost after", int((time.monotonic() - last) * 1000), flush=True)
    """
    described = lan.place / "two.yaml"
    described.write_text(YAML.format(timing="off"))
    ctl = [sys.executable, "-m", "fabrex.cli"]
    code = textwrap.dedent(program)
    up = lan.start(0, *ctl, "up", str(described), "--machine", "m0", "--listen", "10.77.0.1:4711", "--token-file", str(lan.token),
                   "--", sys.executable, "-c", code)  # fmt: skip
    join = lan.start(1, *ctl, "join", "10.77.0.1:4711", "--machine", "m1", "--token-file", str(lan.token), "--", sys.executable,
                     "-c", code)  # fmt: skip
    for process in (up, join):
        assert process.stdout is not None
        while "go" not in (line := process.stdout.readline()):
            assert line
    lan.cut(True)
    for process in (up, join):
        out, _ = process.communicate(timeout=60)
        # Two seconds by the watchers' clocks; what a busy machine adds is bounded too.
        assert numbers(out, "after") < 6000, out
