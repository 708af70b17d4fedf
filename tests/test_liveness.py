# SPDX-License-Identifier: Apache-2.0
"""Who is alive: slots, sudden death of an owner and of clients, and processes that are stopped."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Child, control_path, eventually, patch, persistent, table, topology

import fabrex

pytest_plugins = ["helpers"]

Start = Callable[..., Child]
BOUND = 2.0  # seconds within which the others must know of a death

OWNER = """
    fabric = fabrex.Fabric.open("lab")
    node = fabric.attach("host1", "owner")
    buffer = node.alloc(4096, "inbox")
    unnamed = node.alloc(4096)
    node.store(buffer.gva, 4711)
    say(buffer.gva, buffer.handle().hex())
    hear()
"""


def _lost(node: fabrex.Node, gva: int) -> bool:
    try:
        node.load(gva)
        return False
    except fabrex.PeerLost:
        return True


@pytest.mark.parametrize("timing", [False, True], ids=["untimed", "timed"])
def test_peers_of_a_killed_owner_learn_of_it(place: Path, children: Start, timing: bool) -> None:
    with persistent(topology(3), timing=timing) as fabric:
        node = fabric.attach("host0")
        owner = children(OWNER)
        gva, handle = owner.hear()
        assert node.load(gva) == 4711
        incarnation = fabric.node_info("host1")["incarnation"]
        assert fabric.node_info("host1")["owner_pid"] == owner.pid
        owner.kill()
        assert eventually(lambda: _lost(node, gva), BOUND)
        assert fabric.node_info("host1")["state"] == "lost"
        for attempt in (
            lambda: node.read(gva, 100),
            lambda: node.fetch_add(gva, 1),
            lambda: node.flush("host1"),
            lambda: node.wait_until(gva, "==", 0, timeout=5),
            lambda: node.alloc(64, on="host1"),
            lambda: node.view(gva, 8),
        ):
            with pytest.raises(fabrex.PeerLost):
                attempt()
        dropped = fabric.node_info("host1")["posted_dropped"]
        node.store(gva, 1)  # posted: it vanishes
        assert fabric.node_info("host1")["posted_dropped"] == dropped + 1
        assert node.load(fabric.gva("host2")) == 0, "the others are as they were"
        again = fabric.attach("host1", "owner")
        assert fabric.node_info("host1")["incarnation"] == incarnation + 1
        assert fabric.node_info("host1")["state"] == "powered"
        node.store(gva, 5)
        assert node.load(gva) == 5
        for attempt in (lambda: fabric.buffer("inbox"), lambda: fabric.from_handle(bytes.fromhex(handle))):
            with pytest.raises((fabrex.StaleHandle, fabrex.FabricNotFound)):
                attempt()
        whole = again.alloc((16 << 20) - 65536)
        whole.free()


def test_a_new_owner_can_use_the_names_of_the_old_ones_buffers(place: Path, children: Start) -> None:
    with persistent(topology(), timing=False) as fabric:
        node = fabric.attach("host0")
        owner = children(OWNER)
        gva, _ = owner.hear()
        owner.kill()
        assert eventually(lambda: _lost(node, gva), BOUND)
        again = fabric.attach("host1", "owner")
        assert again.alloc(4096, "inbox").size == 4096


def test_attaching_right_after_the_owners_death_makes_an_owner(place: Path, children: Start) -> None:
    with persistent(topology(), timing=False) as fabric:
        for _ in range(5):  # before anybody has looked for the dead
            owner = children('fabric = fabrex.Fabric.open("lab"); node = fabric.attach("host1"); say(node.owner); hear()')
            owner.expect(True)
            owner.kill()
            with fabric.attach("host1") as again:
                assert again.owner


def test_a_quick_new_owner_does_not_inherit_the_buffers_of_a_dead_one(place: Path, children: Start) -> None:
    with persistent(topology(), timing=False) as fabric:
        for _ in range(3):
            owner = children(OWNER.replace('"inbox"', '"inbox" + str(os.getpid())'))
            _, handle = owner.hear()
            owner.kill()
            with fabric.attach("host1", "owner"), pytest.raises(fabrex.StaleHandle):
                fabric.from_handle(bytes.fromhex(handle))


def test_there_is_one_owner_and_any_number_of_clients(place: Path, children: Start) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        first = fabric.attach("host0")
        assert first.owner and repr(first).endswith("(owner)>")
        with pytest.raises(fabrex.FabricExists, match=str(os.getpid())):
            fabric.attach("host0", "owner")
        clients = [fabric.attach("host0") for _ in range(100)]
        assert not any(client.owner for client in clients)
        assert fabric.node_info("host0")["clients"] == 100
        for i, client in enumerate(clients):
            client.fetch_add(fabric.gva("host1"), i)
        assert first.load(fabric.gva("host1")) == sum(range(100))
        child = children(
            """
            fabric = fabrex.Fabric.open("lab")
            try:
                fabric.attach("host0", "owner")
            except fabrex.FabricExists:
                say("refused")
            say(fabric.attach("host0").owner)
            hear()
            """
        )
        child.expect("refused")
        child.expect(False)
        for client in clients:
            client.close()
        assert fabric.node_info("host0")["clients"] == 1
        child.kill()
        assert eventually(lambda: fabric.node_info("host0")["clients"] == 0, BOUND)
        first.close()
        assert fabric.attach("host0").owner
        with pytest.raises(fabrex.InvalidArgument):
            fabric.attach("host0", "boss")
        with pytest.raises(fabrex.FabricNotFound):
            fabric.attach("host9")


def test_a_switch_is_nobody(place: Path) -> None:
    with fabrex.Fabric.create(topology(3), "lab") as fabric, pytest.raises(fabrex.InvalidArgument, match="switch"):
        fabric.attach("sw0")


def test_an_owner_that_leaves_in_order_leaves_its_memory(place: Path, children: Start) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        node = fabric.attach("host0")
        child = children(
            """
            with fabrex.Fabric.open("lab") as fabric, fabric.attach("host1") as node:
                node.store(fabric.gva("host1"), 5)
            say("left")
            """
        )
        child.expect("left")
        child.finish()
        time.sleep(0.2)
        assert node.load(fabric.gva("host1")) == 5
        assert fabric.node_info("host1")["state"] == "powered" and fabric.node_info("host1")["owner_pid"] is None


def test_killed_clients_leave_no_slot_no_session_and_no_lock(place: Path, children: Start) -> None:
    code = """
        fabric = fabrex.Fabric.open("lab")
        node = fabric.attach("host0", "client")
        say(1)
        i = 0
        while True:
            i += 1
            node.alloc(4096).free()
            node.store(fabric.gva("host1", 8 * (i % 64)), i)
            fabric.put(f"key{i % 10}", bytes(i % 300))
            if i % 50 == 0:
                node.ntb.windows[1].set_translation("host1", 0, 16 << 20)
        """
    with persistent(topology(), timing=True) as fabric:
        node = fabric.attach("host0")
        for _ in range(3):
            clients = [children(code) for _ in range(2)]
            for client in clients:
                client.expect(1)
            time.sleep(0.05)
            for client in clients:
                client.kill()
            assert eventually(lambda: fabric.info()["processes"] == 1, BOUND)
            assert eventually(lambda: fabric.info()["attached"] == 1, BOUND)
            start = time.monotonic()
            node.alloc(4096, "mine").free()
            fabric.put("key1", b"x")
            node.ntb.windows[1].set_translation("host1", 0, 16 << 20)
            node.store(fabric.gva("host1"), 1)
            node.flush("host1")
            assert node.load(fabric.gva("host1")) == 1
            assert time.monotonic() - start < 3, "a dead process still holds something"
        assert fabric.buffers() == [], "unnamed buffers of the dead have no other friend"
        assert fabric.node_info("host0")["regions"][0]["allocated"] == 0
        assert fabric.info()["counters"]["corrupt_resets"] == 0


def test_a_link_can_be_taken_down_while_a_process_is_stopped_anywhere(place: Path, children: Start) -> None:
    code = """
        fabric = fabrex.Fabric.open("lab")
        node = fabric.attach("host0", "client")
        from fabrex._handle import ffi, lib
        addresses, total = ffi.new("uint64_t[]", [fabric.gva("host1", 8 * i) for i in range(512)]), ffi.new("uint64_t *")
        say("ready")
        while True:
            lib.fbx_scatter(node._handle.pointer, addresses, 512, 8, b"x" * 4096, total)
        """
    with persistent(topology(), timing=False) as fabric:
        peer = fabric.attach("host1")
        (link,) = fabric.links.values()
        child = children(code)
        child.expect("ready")
        outcomes = set()
        for _ in range(6):
            time.sleep(0.003)
            child.signal(signal.SIGSTOP)
            start = time.monotonic()
            try:
                link.down()
                outcomes.add("down")
                memory = peer.view(fabric.gva("host1"), 4096)
                memory[:] = bytes(4096)
                child.signal(signal.SIGCONT)
                time.sleep(0.005)
                assert bytes(memory) == bytes(4096), "it landed after the link was down"
            except fabrex.Busy:
                outcomes.add("busy")
                child.signal(signal.SIGCONT)
            assert time.monotonic() - start < 10
            eventually(lambda: _down(link))
            link.up()
        assert outcomes <= {"down", "busy"}


def _down(link: fabrex.Link) -> bool:
    try:
        link.down()
        return True
    except fabrex.Busy:
        return False


def test_a_second_attempt_after_busy_waits_as_the_first_did(place: Path, children: Start) -> None:
    """The mark of a process that is stopped in the middle of an operation, set by hand."""
    with persistent(topology(), timing=False) as fabric:
        fabric.attach("host1")
        child = children(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host0")
            node.store(fabric.gva("host1"), 1)
            say("ready")
            hear()
            """
        )
        child.expect("ready")
        offset, stride, _, high = table(control_path(), "lanes")
        (link,) = fabric.links.values()
        with control_path().open("rb") as file:
            file.seek(offset)
            lanes = [struct.unpack_from("<II", file.read(stride)) for _ in range(high)]
        (mine,) = [i for i, (_, requester) in enumerate(lanes) if requester == 2]
        patch(control_path(), offset + stride * mine, b"\1\0\0\0")
        with pytest.raises(fabrex.Busy, match=str(child.pid)):
            link.down()
        with pytest.raises(fabrex.Busy):
            link.down()
        patch(control_path(), offset + stride * mine, b"\0\0\0\0")
        link.down()


def test_a_stopped_owner_is_alive(place: Path, children: Start) -> None:
    with persistent(topology(), timing=True) as fabric:
        node = fabric.attach("host0")
        owner = children(OWNER)
        gva, _ = owner.hear()
        owner.signal(signal.SIGSTOP)
        time.sleep(0.2)
        assert node.load(gva) == 4711
        node.store(gva, 5)
        node.flush("host1")
        assert node.load(gva) == 5
        assert fabric.node_info("host1")["state"] == "powered"
        with pytest.raises(fabrex.FabricExists):
            fabric.attach("host1", "owner")
        owner.signal(signal.SIGCONT)


def test_the_watcher_itself_may_be_killed(place: Path, children: Start) -> None:
    """Whoever looks for the dead dies first; another takes over and finds both."""
    watcher = children('fabric = fabrex.Fabric.create("fabrex-pair", "lab", persistent=True); time.sleep(0.1); say(1); hear()')
    watcher.expect(1)
    fabric = fabrex.Fabric.open("lab")
    try:
        owner = children(OWNER)
        gva, _ = owner.hear()
        node = fabric.attach("host0")
        assert node.load(gva) == 4711
        watcher.kill()
        owner.kill()
        assert eventually(lambda: _lost(node, gva), BOUND)
        assert fabric.info()["processes"] == 1
    finally:
        fabric.close()
        fabrex.Fabric.destroy("lab", force=True)


def test_an_owner_whose_memory_only_others_look_at(place: Path, children: Start) -> None:
    """Its service thread is the first in its process to touch the region."""
    with persistent(topology(), timing=True) as fabric:
        owner = children(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host1")
            say("ready")
            hear()
            say(node.load(fabric.gva("host1")))
            """
        )
        owner.expect("ready")
        node = fabric.attach("host0")
        node.view(fabric.gva("host1"), 8)
        node.store(fabric.gva("host1"), 7)
        time.sleep(0.2)
        owner.tell("look")
        owner.expect(7, timeout=3)
