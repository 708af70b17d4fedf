# SPDX-License-Identifier: Apache-2.0
"""Links that are set while they run: what follows from it here and in other processes, under traffic, and what is refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Child, control_path, eventually, persistent, topology

import fabrex

pytest_plugins = ["helpers"]

Start = Callable[..., Child]
LINK = "host0:ntb0-sw0:p0"
OTHER = "host1:ntb0-sw0:p1"
GEN = "host0:ntb0-host1:ntb0"


def near(ps: int) -> object:
    """As an operation takes it: to the resolution of the links' calendars, each of four times."""
    return pytest.approx(ps, abs=200)


OPENS = """
    fabric = fabrex.Fabric.open("lab")
    node = fabric.attach("host1")
    gva = fabric.gva("host0")
    def took(make):
        operation = make()
        operation.wait()
        return operation.completes_ps - operation.issued_ps
    took(lambda: node.begin("load", gva))
    say("here")
    while True:
        what = hear()
        if what == "load":
            say(took(lambda: node.begin("load", gva)), node.estimate("load", gva)["completes_ps"])
        elif what == "info":
            say({name: [info["delay_ps"], info["gen"]] for name, info in ((n, l.info()) for n, l in fabric.links.items())})
        elif what == "set":
            fabric.links["host0:ntb0-sw0:p0"].set(delay="40us")
            say("set")
"""


def test_estimates_and_operations_of_other_processes_follow(place: Path, children: Start) -> None:
    with persistent(topology(3, latency="80ns")) as fabric:
        node = fabric.attach("host0")
        child = children(OPENS)
        child.expect("here")
        child.tell("load")
        took, estimate = child.hear()
        assert took == near(estimate) and estimate < 1_000_000
        fabric.links[LINK].set(delay="50us", gen=3, lanes=1)
        child.tell("load")
        took, slower = child.hear()
        assert took == near(slower)
        assert slower - estimate > 2 * 49_000_000
        # There and back on that link: 24 and 28 bytes at Gen3 x1 (about 0.93 GB/s) instead of at Gen4 x16.
        assert 45_000 < slower - estimate - 2 * (50_000_000 - 5_000) < 65_000
        child.tell("info")
        assert child.hear()[LINK] == [50_000_000, 3]
        assert node.estimate("load", fabric.gva("host1"))["completes_ps"] == slower
        fabric.links[LINK].reset()
        child.tell("load")
        assert child.hear() == [near(estimate), estimate]
        # And the other way round: what another process sets counts here.
        before = node.estimate("load", fabric.gva("host1"))["completes_ps"]
        child.tell("set")
        child.expect("set")
        operation = node.begin("load", fabric.gva("host1"))
        operation.wait()
        assert operation.completes_ps - operation.issued_ps == near(before + 2 * (40_000_000 - 5_000))
        assert fabric.links[LINK].info()["changed"] == {"delay_ps": 5_000}
        assert fabric.info()["links_changed"] == 1
        child.end()


def test_what_is_on_its_way_keeps_its_time(place: Path) -> None:
    with fabrex.Fabric.create(topology(2, delay="300ms"), "lab") as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        gva = fabric.gva("host1")
        h0.store(gva, 1)
        issued = fabric.now_ps
        fabric.links[GEN].set(delay="1us")
        operation = h0.begin("load", gva)  # pushes the store before it, so it cannot be faster
        assert operation.wait() == 1
        assert operation.arrives_ps >= issued + 299_000_000_000
        assert h1.load(gva) == 1
        again = h0.begin("load", gva)
        again.wait()
        assert again.completes_ps - again.issued_ps < 10_000_000


@pytest.mark.parametrize("kind", ["dma_write", "dma_read"])
def test_the_engine_takes_the_new_values(place: Path, kind: str) -> None:
    with fabrex.Fabric.create(topology(2), "lab") as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        near, far = h0.alloc(1 << 16), h1.alloc(1 << 16)
        dst, src = (far, near) if kind == "dma_write" else (near, far)

        def took() -> int:
            done = h0.dma.copy(dst=dst.gva, src=src.gva, size=1 << 16)
            done.wait()
            return int(done.completes_ps - done.issued_ps)

        took()
        fast = took()
        for settings in (
            {"gen": 1, "lanes": 1},
            {"gen": 2, "lanes": 4, "mps": 128, "mrrs": 128},
            {"gen": 3, "lanes": 8, "delay": "3us"},
        ):
            fabric.links[GEN].set(**settings)
            told = h0.estimate(kind, far.gva, 1 << 16)["completes_ps"]
            assert took() == pytest.approx(told, rel=0.02)
            assert told > 1.5 * fast
        fabric.links[GEN].reset()
        assert took() == pytest.approx(fast, rel=0.02)


def test_rates_of_the_wire_follow(place: Path) -> None:
    """A long write lasts as long as the link's arithmetic says, for each setting."""
    with fabrex.Fabric.create(topology(2), "lab") as fabric:
        h0 = fabric.attach("host0")
        fabric.attach("host1")
        for gen, lanes in ((1, 1), (3, 8), (5, 16), (2, 32)):
            fabric.links[GEN].set(gen=gen, lanes=lanes)
            estimate = h0.estimate("write", fabric.gva("host1"), 4096)
            wire = 4096 + 64 * 24
            assert estimate["wire_bytes"] == wire
            assert estimate["departs_ps"] == pytest.approx(wire * 8e12 / fabrex.pcie.Link(gen=gen, lanes=lanes).tlp_bps(), rel=1e-3)


def test_under_traffic_of_processes_and_after_kills(place: Path, children: Start) -> None:
    """Writers keep writing while links are set by several processes, some of which are killed: whole values, no lost write."""
    writer = """
        fabric = fabrex.Fabric.open("lab")
        node = fabric.attach(arguments[0])
        gva = fabric.gva("host0", arguments[1])
        say("here")
        count = 0
        end = time.monotonic() + arguments[2]
        while time.monotonic() < end:
            count += 1
            node.write(gva + 64, count.to_bytes(8, "little") * 64)
            node.store(gva, count)
            assert node.fetch_add(gva + 8, 1) == count - 1
        node.flush("host0", check=True)
        say(count)
    """
    setter = """
        fabric = fabrex.Fabric.open("lab")
        links = list(fabric.links.values())
        say("here")
        i = 0
        while True:
            i += 1
            links[i % len(links)].set(gen=1 + i % 5, lanes=(1, 4, 16)[i % 3], delay=f"{i % 2000}ns")
            if i % 5 == 0:
                links[i % len(links)].reset()
    """
    with persistent(topology(3)) as fabric:
        node = fabric.attach("host0")
        writers = [children(writer, name, 4096 * (i + 1), 2.0) for i, name in enumerate(("host1", "host2"))]
        for child in writers:
            child.expect("here")
        for _ in range(6):
            child = children(setter)
            child.expect("here")
            end = time.monotonic() + 0.1
            while time.monotonic() < end:
                for i in range(2):
                    flag = node.load(fabric.gva("host0", 4096 * (i + 1)))
                    data = node.read(fabric.gva("host0", 4096 * (i + 1) + 64), 512)
                    words = [int.from_bytes(data[k : k + 8], "little") for k in range(0, 512, 8)]
                    assert min(words) >= flag, "data older than its flag"
            child.kill()
        counts = [child.hear() for child in writers]
        for i, count in enumerate(counts):
            assert node.load(fabric.gva("host0", 4096 * (i + 1))) == count
            assert node.load(fabric.gva("host0", 4096 * (i + 1) + 8)) == count
        assert eventually(lambda: fabric.info()["processes"] == 1)
        for link in fabric.links.values():
            link.reset()
            assert link.info()["changed"] == {}
        assert fabric.info()["counters"]["corrupt_resets"] == 0


def test_a_stopped_process_makes_it_busy_and_it_is_set(place: Path, children: Start) -> None:
    with persistent(topology(3)) as fabric:
        child = children(OPENS)
        child.expect("here")
        os.kill(child.pid, signal.SIGSTOP)
        fabric.links[LINK].set(delay="3us")  # it is stopped between two operations: nothing to wait for
        assert fabric.links[LINK].info()["delay_ps"] == 3_000_000
        os.kill(child.pid, signal.SIGCONT)
        child.tell("load")
        took, estimate = child.hear()
        assert took == near(estimate) and estimate > 6_000_000
        child.end()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"delay": "5"}, "delay: '5' has no unit; allowed: ps, ns, us"),
        ({"delay": 5}, "has no unit"),
        ({"delay": "2s"}, "out of range|one second"),
        ({"delay": "fast"}, "delay"),
        ({"gen": 7}, "gen: 7 is not a PCIe generation; allowed: 1, 2, 3, 4, 5, 6"),
        ({"lanes": 3}, "lanes: 3 is not a lane count"),
        ({"mps": 100}, "mps: 100"),
        ({"rate": "10Gb/s"}, "is a PCIe link and has no 'rate'.*a value of ethernet links"),
        ({"dealy": "5ns"}, "did you mean 'delay'"),
        ({"delay": "5ns", "gen": 9}, "gen: 9"),
        ({"mps": 4096, "posted_credits_data": 8}, "do not hold one payload of 4096 bytes"),
        ({"delay": None}, "delay has no value"),
        ({}, "nothing is to be set"),
    ],
)
def test_bad_values_set_nothing(place: Path, values: dict[str, object], message: str) -> None:
    with fabrex.Fabric.create(topology(2), "lab") as fabric:
        with pytest.raises(fabrex.InvalidArgument, match=message):
            fabric.links[GEN].set(**values)
        assert fabric.links[GEN].info()["changed"] == {}


def test_ethernet_links_have_values_of_their_own(place: Path) -> None:
    described = fabrex.Topology.from_dict({
        "fabrex": 1, "name": "eth", "nodes": {n: {"kind": "host", "memory": {"dram": "1MiB"}} for n in ("a", "b")},
        "links": [{"endpoints": ["a:e", "b:e"], "ethernet": {"rate": "100Gb/s"}, "delay": "1us"}],
    })  # fmt: skip
    with fabrex.Fabric.create(described, "lab") as fabric:
        node, link = fabric.attach("a"), fabric.links["a:e-b:e"]
        before = node.estimate("write", fabric.gva("b"), 32768)["departs_ps"]
        link.set(rate="10Gb/s", mtu=9000)
        assert node.estimate("write", fabric.gva("b"), 32768)["departs_ps"] > 9 * before
        assert link.info()["rate_bps"] == 10**10 and link.info()["mtu"] == 9000
        with pytest.raises(fabrex.InvalidArgument, match="is an Ethernet link and has no 'gen'"):
            link.set(gen=4)
        link.reset()
        assert node.estimate("write", fabric.gva("b"), 32768)["departs_ps"] == before


def test_the_ntb_tells_speed_and_width_of_now(place: Path) -> None:
    with fabrex.Fabric.create(topology(2), "lab") as fabric:
        node = fabric.attach("host0")
        fabric.attach("host1")
        fabric.links[GEN].set(gen=2, lanes=4)
        state = node.ntb.link_state()
        assert (state.speed, state.width) == (2, 4)


def test_without_injected_time_it_is_kept_and_shown(place: Path) -> None:
    with fabrex.Fabric.create(topology(2), "lab", timing=False) as fabric:
        node = fabric.attach("host0")
        fabric.links[GEN].set(delay="9us")
        node.store(fabric.gva("host1"), 1)
        assert fabric.links[GEN].info()["delay_ps"] == 9_000_000
        assert node.estimate("load", fabric.gva("host1"))["completes_ps"] > 18_000_000


def test_scribbled_settings_are_as_described(place: Path) -> None:
    """Whatever stands in the snapshots is checked before it is a size or a shift; what cannot be is as the topology says."""
    import random
    import struct

    noise = random.Random(3)
    with persistent(topology(2)) as fabric:
        node, link, gva = fabric.attach("host0"), fabric.links[GEN], fabric.gva("host1")
        fabric.attach("host1")
        link.set(delay="777ns", gen=5)
        values = [link.info()[key] for key in ("delay_ps", "gen", "lanes", "mps", "mrrs", "rcb")]
        wanted = struct.pack("<6Q", *values)
        with control_path().open("r+b") as file:
            at, found = 0, -1
            while found < 0:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                place_ = os.pread(file.fileno(), end - at, at).find(wanted)
                found, at = (at + place_ if place_ >= 0 else -1), end
            for _ in range(200):
                key = noise.randrange(15)
                value = noise.choice((0, 1, 3, 7, 128, 4096, 1 << 20, 1 << 32, (1 << 40) + 1, (1 << 63) - 1, (1 << 64) - 1))
                before = os.pread(file.fileno(), 8, found + 8 * key)
                os.pwrite(file.fileno(), struct.pack("<Q", value), found + 8 * key)
                info = link.info()
                assert info["gen"] in range(1, 7) and info["delay_ps"] <= 10**12
                told = node.estimate("load", gva)["completes_ps"]
                if info["delay_ps"] < 10**6:
                    assert node.load(gva) == 0 and told > 0
                os.pwrite(file.fileno(), before, found + 8 * key)
        assert fabric.info()["counters"]["corrupt_resets"] > 0
        link.reset()
        assert link.info()["changed"] == {}
