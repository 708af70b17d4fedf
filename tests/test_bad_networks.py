# SPDX-License-Identifier: Apache-2.0
"""Machines over a network that delays, breaks, stalls and parts: relay.py stands between them, on loopback.

`make campaign-partition` does this at random and for long.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually
from relay import bed

import fabrex
from fabrex.net import agent

pytest_plugins = ["helpers"]


# -- delay ----------------------------------------------------------------------------------------------------------------


def test_a_network_within_the_modelled_time_is_not_felt(place: Path) -> None:
    """The model asks for 80 ms there and back, the network for 20: operations end when the model says."""
    with bed(2, delay="20ms", timing=True) as made, made.first.attach("host0") as h0:
        made.relay.both("m0", "m1", delay=0.01, jitter=0.002)
        gva = made.first.gva("host1", 64)
        h0.load(gva)
        asked = h0.estimate("load", gva, 8)["completes_ps"]
        before = made.machine(1)["late"]
        for _ in range(10):
            began = made.first.now_ps
            h0.load(gva)
            assert made.first.now_ps - began >= asked
        assert made.machine(1)["late"] - before <= 1  # a processor that others use may be late by itself


def test_a_network_beyond_the_modelled_time_makes_late_and_is_counted(place: Path) -> None:
    with bed(2, delay="5ms", timing=True) as made, made.first.attach("host0") as h0:
        made.relay.both("m0", "m1", delay=0.03)
        gva = made.first.gva("host1", 64)
        before = made.machine(1)["late"]
        for i in range(5):
            assert h0.fetch_add(gva, 1) == i
        h0.store(gva + 64, 9)
        h0.flush()
        assert h0.load(gva + 64) == 9
        assert made.machine(1)["late"] - before == 7


# -- connections that break -----------------------------------------------------------------------------------------------


def while_doing(what: Callable[[], None], fault: Callable[[], None]) -> None:
    """Have `fault` happen again and again while something is done."""
    over = threading.Event()

    def trouble() -> None:
        while not over.is_set():
            fault()

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        what()
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("timing", [False, True])
def test_resets_at_random_lose_nothing_and_repeat_nothing(place: Path, timing: bool) -> None:
    with bed(2, timing=timing) as made, made.first.attach("host0") as h0:
        relay, gva = made.relay, made.first.gva("host1", 64)
        connects = made.machine(1)["connects"]
        data, bulk = bytes(range(256)) * 1024, h0.alloc(1 << 18, on="host1").gva
        count = stored = 0

        def fault() -> None:
            time.sleep(relay.random.random() * 0.1)
            relay.reset(within=20_000)

        def work() -> None:
            nonlocal count, stored
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                begun = [h0.begin("fetch_add", gva, 1) for _ in range(32)]
                # Requests do not wait for each other; each is done once.
                assert {operation.wait(20) for operation in begun} == set(range(count, count + 32))
                count += 32
                for _ in range(50):
                    stored += 1
                    h0.store(gva + 64 + 8 * (stored % 1024), stored)
                h0.write(bulk, data)
                assert h0.read(bulk, len(data)) == data
                h0.flush("host1", check=True)

        while_doing(work, fault)
        assert h0.load(gva) == count
        seen = [made.peers["m1"].call("node.load", gva + 64 + 8 * (i % 1024)) for i in range(max(1, stored - 1023), stored + 1)]
        assert seen == list(range(max(1, stored - 1023), stored + 1))
        assert relay.resets > 3 and made.machine(1)["connects"] > connects
        assert made.machine(1)["gave_up"] == 0


def test_a_half_open_connection_is_noticed_and_made_anew(place: Path) -> None:
    """What was sent vanished, and nobody said so; new connections are good. Also the control connection goes on."""
    with bed(2, timing=False) as made, made.first.attach("host0") as h0:
        gva = made.first.gva("host1", 64)
        done = 0
        for _ in range(2):
            assert h0.fetch_add(gva, 1) == done
            done += 1
            before = made.machine(1)["connects"]
            made.relay.both("m0", "m1", vanish=True)
            begun = [h0.begin("fetch_add", gva, 1) for _ in range(8)]
            h0.store(gva + 64, 100 + done)
            time.sleep(0.3)  # long enough for a ping or two to vanish
            made.relay.heal()
            for operation in begun:
                assert operation.wait(10) == done
                done += 1
            h0.flush("host1", check=True)
            assert h0.load(gva + 64) == 100 + done - 8
            assert made.machine(1)["connects"] > before
        assert made.machine(1)["state"] == "up" and made.machine(1)["gave_up"] == 0
        assert h0.load(gva) == done


def test_a_broken_control_connection_is_made_anew(place: Path) -> None:
    """Members go on learning what the coordinator tells them, after a reset and after silence."""
    with bed(3, timing=False) as made, made.first.attach("host0") as h0:
        relay, peer = made.relay, made.peers["m1"]
        for fault in (lambda: relay.reset("m1", "m0", within=1), lambda: relay.both("m0", "m1", vanish=True)):
            fault()
            time.sleep(0.3)
            relay.heal()
            h0.fetch_add(made.first.gva("host1"), 1)
        assert peer.call("node.load", made.first.gva("host2")) == 0
        made.peers.pop("m2").close()  # leaves: m1 learns it from m0 only
        assert eventually(lambda: peer.call("fabric.machines")[2]["state"] == "lost", 15)
        assert [m["state"] for m in peer.call("fabric.machines")] == ["up", "up", "lost"]
        assert [m["state"] for m in made.first.machines()] == ["up", "up", "lost"]


# -- partitions -----------------------------------------------------------------------------------------------------------


def test_partition_and_healing(place: Path) -> None:
    """Apart for good: both sides lose the other within its deadline, and nothing hangs. Then the machine joins again."""
    with bed(2, timing=False) as made, made.first.attach("host0") as h0:
        gva, peer = made.first.gva("host1", 64), made.peers["m1"]
        for i in range(5):
            assert h0.fetch_add(gva, 1) == i
        made.relay.both("m0", "m1", hold=True)
        begun = [h0.begin("fetch_add", gva, 1) for _ in range(8)]
        h0.store(gva + 64, 7)
        began = time.monotonic()
        unknown = 0
        for operation in begun:
            with pytest.raises(fabrex.FabricError) as told:
                operation.wait(20)
            assert isinstance(told.value, (fabrex.PeerLost, fabrex.CompletionTimeout)), told.value
            unknown += 1
        assert eventually(lambda: made.machine(1)["state"] == "lost", 10)
        # Two seconds by what it watches with; a busy machine may add to it.
        assert time.monotonic() - began < 2 * agent.LOST_S + 2
        with pytest.raises(fabrex.FabricError):
            h0.flush("host1", check=True)  # the store is not known to be there
        with pytest.raises(fabrex.PeerLost):
            h0.load(gva)
        # The other side says the same, and its own memory has what was done: each at most once.
        assert eventually(lambda: peer.call("fabric.machines")[0]["state"] == "lost", 10)
        with pytest.raises(fabrex.PeerLost):
            peer.call("node.load", made.first.gva("host0"))
        assert 5 <= peer.call("node.load", gva) <= 5 + unknown
        made.relay.heal()
        time.sleep(0.3)
        assert 5 <= peer.call("node.load", gva) <= 5 + unknown
        assert made.machine(1)["state"] == "lost"  # it does not come back by itself
        peer.close()
        made.join("m1")
        made.first.agent.wait_for(timeout=20)
        assert eventually(lambda: made.first.node_info("host1")["state"] == "powered", 10)
        assert h0.fetch_add(gva, 1) == 0  # memory that is new
        assert made.peers["m1"].call("node.load", gva) == 1


def test_a_slow_reader_stalls_nobody_else(place: Path) -> None:
    """m2 takes what it asked for at 300 kB/s; m1 does not notice, nor does m0 itself."""
    with bed(3, timing=False) as made, made.first.attach("host0") as h0:
        quick, slow = made.peers["m1"], made.peers["m2"]
        gva, word = h0.alloc(4 << 20).gva, made.first.gva("host0", 64)
        data = os.urandom(1 << 20)
        h0.write(gva, data)
        made.relay.shape("m0", "m2", rate=300e3)
        slow.send("node.read", gva, len(data))
        began = time.monotonic()
        for i in range(100):
            assert quick.call("node.fetch_add", word, 1) == 2 * i
            assert h0.fetch_add(word, 1) == 2 * i + 1
        meanwhile = time.monotonic() - began
        assert slow.result() == data
        whole = time.monotonic() - began
        assert whole > 3.0 and meanwhile < whole / 2, (meanwhile, whole)


def test_who_stops_reading_is_cut_off_and_stalls_nobody(place: Path) -> None:
    """m2 asks and takes nothing: what it posts and asks is held there; the gateway's memory for it is bounded."""
    with bed(3, timing=False) as made, made.first.attach("host0") as h0:
        quick, slow = made.peers["m1"], made.peers["m2"]
        gva, word = h0.alloc(4 << 20).gva, made.first.gva("host0", 64)
        slow.call("node.load", gva)
        made.relay.shape("m0", "m2", hold=True)  # its questions arrive, the answers do not
        slow.send("node.read", gva, 4 << 20)
        for i in range(200):
            assert quick.call("node.fetch_add", word, 1) == 2 * i
            assert h0.fetch_add(word, 1) == 2 * i + 1
        made.relay.heal()
        with contextlib.suppress(fabrex.PeerLost):  # it was lost meanwhile, if that took a while
            slow.result()


def test_who_is_cut_off_from_all_sees_all_as_lost(place: Path) -> None:
    """Also those whom only the coordinator watched: nobody says any more who is lost."""
    with bed(3, timing=False) as made:
        peer = made.peers["m1"]
        assert peer.call("node.load", made.first.gva("host2")) == 0
        for other in ("m0", "m2"):
            made.relay.both("m1", other, hold=True)
        assert eventually(lambda: [m["state"] for m in peer.call("fabric.machines")] == ["lost", "up", "lost"], 20)
        assert made.peers["m2"].call("node.load", made.first.gva("host0")) == 0
        assert eventually(lambda: [m["state"] for m in made.first.machines()] == ["up", "lost", "up"], 10)


def test_all_faults_at_random(place: Path) -> None:
    """A round of `make campaign-partition`."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "campaign"))
    try:
        import partition
    finally:
        sys.path.pop(0)
    assert partition.run_round(4)["wrong"] == []


# -- what goes the other way, and what is left behind ---------------------------------------------------------------------


@pytest.mark.parametrize("timing", [False, True])
def test_a_completion_passes_no_write_of_however_many(place: Path, timing: bool) -> None:
    """70 functions of host1 write to host0 and then raise a flag at home: whoever reads the flag finds all that was written.

    The way of the writes is slow and that of the answer is not; so each of them must be named in the answer.
    """
    source = """
def work(fabric, node, gva, flag, step):
    if step == 1:
        fabric.kept = [fabric.attach("host1", role="client") for _ in range(70)]
        for handle in fabric.kept:
            handle.load(gva)  # connected
    for i, handle in enumerate(fabric.kept):
        handle.store(gva + 8 * i, step)
    node.store(flag, step)
"""
    with bed(2, timing=timing) as made, made.first.attach("host0") as h0:
        peer = made.peers["m1"]
        gva, flag = made.first.gva("host0", 4096), made.first.gva("host1", 64)
        inbox = h0.alloc(64)

        def by_dma() -> int:
            h0.dma.copy(dst=inbox.gva, src=flag, size=8).wait(20)
            return int(inbox.memory.cast("Q")[0])

        ways: tuple[Callable[[], int], ...] = (
            lambda: h0.load(flag),
            lambda: int.from_bytes(h0.read(flag, 8), "little"),
            by_dma,
        )
        for step, look in enumerate(ways, 1):
            made.relay.shape("m1", "m0", delay=0.25 if step > 1 else 0.0)
            peer.send("program", source, gva, flag, step)
            assert eventually(lambda look=look, step=step: look() == step, 20)
            assert [h0.load(gva + 8 * i) for i in range(70)] == [step] * 70
            peer.result()


def test_unnamed_buffers_end_with_their_process(place: Path, children: Callable[..., Any]) -> None:
    """On another machine as on one's own: the process exits, is killed, or its machine is lost; named ones stay."""
    with bed(2, timing=False) as made:
        first = made.first

        def held() -> int:
            return sum(buffer.size for buffer in first.buffers() if buffer.node == "host0")

        code = """
        directory, name = arguments
        with fabrex.Fabric.open(name, directory) as fabric, fabric.attach("host1", role="client") as node:
            kept = [node.alloc(4096, on="host0") for _ in range(200)]
            for buffer in kept[::2]:
                buffer.free()
            say(len(kept))
            hear()
            for _ in range(300):
                node.alloc(64, on="host0").free()
            node.close()
            say("closed")
            hear()
        """
        before = held()
        for _ in range(2):
            where = os.path.join(made.directory, "m1")
            started = [children(code, where, first.name) for _ in range(4)]
            for child in started:
                child.expect(200)
            assert held() == before + 4 * 100 * 4096
            started[0].kill()
            for child in started[1:]:
                child.tell(0)
                child.expect("closed")
            assert held() >= before + 3 * 100 * 4096  # a handle's end is not its process's
            started[1].tell(0)
            started[1].finish()
            for child in started[2:]:
                child.kill()
            assert eventually(lambda: held() == before, 15), held() - before
        named = made.peers["m1"].call("node.alloc", 4096, on="host0", name="stays")
        assert named
        made.peers["m1"].call("node.alloc", 8192, on="host0")
        assert held() == before + 3 * 4096
        made.relay.both("m0", "m1", hold=True)
        assert eventually(lambda: held() == before + 4096, 15), held() - before
