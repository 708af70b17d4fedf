# SPDX-License-Identifier: Apache-2.0
"""Sources of posted writes that exit or die, and groups of processes of which one dies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Child, eventually, persistent, topology

import fabrex

pytest_plugins = ["helpers"]

Start = Callable[..., Child]


@pytest.mark.parametrize("how", ["close", "exit", "_exit"])
def test_what_has_departed_arrives_though_its_source_is_gone(place: Path, children: Start, how: str) -> None:
    with persistent(topology(delay="300ms"), timing=True) as fabric:
        node = fabric.attach("host1")
        child = children(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host0", "client")
            for i in range(50):
                node.store(fabric.gva("host1", 8 * i), i + 1)
            node.write(fabric.gva("host1", 4096), b"bulk" * 2000)
            say(1)
            if arguments[0] == "close":
                fabric.close()
            if arguments[0] == "_exit":
                os._exit(0)
            """,
            how,
        )
        child.expect(1)
        child.finish()
        assert node.read(fabric.gva("host1"), 400) == bytes(400), "visible before its arrival"
        want = b"".join((i + 1).to_bytes(8, "little") for i in range(50))
        assert eventually(lambda: node.progress() * 0 + (node.read(fabric.gva("host1"), 400) == want))
        assert eventually(lambda: node.progress() * 0 + (node.read(fabric.gva("host1", 4096), 8000) == b"bulk" * 2000))


@pytest.mark.parametrize("ordering", ["posted", "adversarial"])
def test_a_killed_source_leaves_a_queue_that_works(place: Path, children: Start, ordering: str) -> None:
    code = """
        fabric = fabrex.Fabric.open("lab")
        node = fabric.attach("host0", "client")
        say(1)
        i = 0
        while True:
            i += 1
            node.store(fabric.gva("host1"), i)
            node.write(fabric.gva("host1", 4096), bytes([i % 256]) * 3000)
            node.store(fabric.gva("host1", 64), i)
        """
    noise = random.Random(7)
    with persistent(topology(delay="20us"), timing=True, ordering=ordering) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        for turn in range(8):
            child = children(code)
            child.expect(1)
            time.sleep(0.01 + noise.random() / 50)
            child.kill()
            h0.store(fabric.gva("host1", 128), turn + 1)
            h0.flush("host1")
            assert h0.load(fabric.gva("host1", 128)) == turn + 1
            before = int.from_bytes(h1.read(fabric.gva("host1"), 8), "little")
            after = int.from_bytes(h1.read(fabric.gva("host1", 64), 8), "little")
            assert before - 1 <= after <= before, "a later store landed without an earlier one"
            h0.store(fabric.gva("host1"), 0)
            h0.store(fabric.gva("host1", 64), 0)
            h0.flush("host1")
        assert fabric.info()["counters"]["corrupt_resets"] == 0


def test_a_flag_wakes_another_process(place: Path, children: Start) -> None:
    with persistent(topology(), timing=True) as fabric:
        node = fabric.attach("host0")
        child = children(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host1")
            say("ready")
            for i in range(1, 101):
                # The poll goes over the link, as a consumer's does that keeps its flag in the producer's memory.
                assert node.wait_until(fabric.gva("host0"), ">=", i, timeout=10) >= i
                node.store(fabric.gva("host0", 64), i)
            node.flush()
            say("done")
            """
        )
        child.expect("ready")
        for i in range(1, 101):
            node.store(fabric.gva("host0"), i)
            end = time.monotonic() + 10
            while int.from_bytes(node.read(fabric.gva("host0", 64), 8), "little") < i:
                node.progress()
                assert time.monotonic() < end, f"no answer to {i}"
        child.expect("done")
        child.finish()


MEMBER = """
    fabric = fabrex.Fabric.open("lab", timeout=20)
    number = arguments[0]
    node = fabric.attach(f"host{number}")
    say("there")
    if arguments[1]:
        time.sleep(arguments[1])
    for turn in range(20):
        fabric.put(f"turn{turn}.{number}", str(turn * 100 + number).encode())
        node.barrier(f"a{turn % 3}", timeout=20)
        seen = [fabric.get(f"turn{turn}.{other}") for other in range(4)]
        assert seen == [str(turn * 100 + other).encode() for other in range(4)], seen
    say("through")
    hear()
    try:
        node.barrier("last")
        say("nobody died")
    except fabrex.PeerLost as error:
        say("PeerLost", "host3" in str(error))
    hear()
    try:
        node.barrier("last", timeout=20)
        say("again")
    except fabrex.FabricError as error:
        say(repr(error))
"""


def test_four_processes_meet_one_late_and_then_one_dies(place: Path, children: Start) -> None:
    with persistent(topology(4), timing=True):
        members = [children(MEMBER, number, 0.4 if number == 2 else 0) for number in range(4)]
        for member in members:
            member.expect("there")
        for member in members:
            member.expect("through")
        for member in members[:3]:
            member.tell("on")
        time.sleep(0.1)
        members[3].kill()
        for member in members[:3]:
            member.expect("PeerLost", True, timeout=5)


def test_one_that_died_at_a_barrier_can_come_again(place: Path, children: Start) -> None:
    code = """
        fabric = fabrex.Fabric.open("lab")
        node = fabric.attach("host1", "owner")
        say("there")
        try:
            node.barrier("b", timeout=10, size=3)
            say("through")
        except fabrex.FabricError as error:
            say(repr(error))
        """
    with persistent(topology(3), timing=True) as fabric:
        node, third = fabric.attach("host0"), fabric.attach("host2")
        first = children(code)
        first.expect("there")
        time.sleep(0.1)
        first.kill()
        assert eventually(lambda: fabric.node_info("host1")["state"] == "lost")
        with pytest.raises(fabrex.PeerLost):
            node.barrier("b", timeout=5, size=3)
        second = children(code)
        second.expect("there")
        time.sleep(0.1)
        with pytest.raises(fabrex.WaitTimeout):
            third.barrier("b", timeout=0.1, size=3)
        other = children(code.replace('"host1", "owner"', '"host2", "client"'))
        other.expect("there")
        node.barrier("b", timeout=5, size=3)
        second.expect("through")
        other.expect("through")


def test_a_death_outside_a_barrier_does_not_concern_it(place: Path, children: Start) -> None:
    with persistent(topology(3), timing=True) as fabric:
        node = fabric.attach("host0")
        stranger = children('fabric = fabrex.Fabric.open("lab"); fabric.attach("host2"); say(1); hear()')
        stranger.expect(1)
        stranger.kill()
        assert eventually(lambda: fabric.node_info("host2")["state"] == "lost")
        partner = children(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host1")
            say("there")
            time.sleep(0.2)
            node.barrier("two", timeout=5, size=2)
            say("through")
            """
        )
        partner.expect("there")
        node.barrier("two", timeout=5, size=2)
        partner.expect("through")
