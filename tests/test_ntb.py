# SPDX-License-Identifier: Apache-2.0
"""The NTB device: the kernel selftest's steps for every profile and pair, bad input, masks, order, events, exact counts."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Child, eventually, persistent, topology

import fabrex
from fabrex.ntb import Event, MsiDescriptor

pytest_plugins = ["helpers"]

PROFILES = ["fabrex", "xeon-gen3", "xeon-gen4", "amd", "idt", "switchtec", "epf"]
# Doorbells, vectors, scratchpads, messages: what the drivers of these devices say.
HAS = {
    "fabrex": (64, 64, 128, 8),
    "xeon-gen3": (32, 33, 16, 0),
    "xeon-gen4": (32, 33, 16, 0),
    "amd": (16, 16, 8, 0),
    "idt": (32, 1, 0, 4),
    "switchtec": (28, 1, 128, 0),
    "epf": (31, 31, 64, 0),
}
HOSTS = [f"host{i}" for i in range(4)]
PAIRS = list(itertools.permutations(HOSTS, 2))
ONES = 0xFFFFFFFF
Hosts = dict[str, fabrex.Node]


@pytest.fixture(params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["untimed", "timed"])
def timing(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def four(place: Path, profile: str, timing: bool) -> Iterator[tuple[fabrex.Fabric, Hosts]]:
    with fabrex.Fabric.create(topology(4, ntb=profile, windows="manual"), "lab", timing=timing) as fabric:
        yield fabric, {name: fabric.attach(name) for name in HOSTS}


@pytest.fixture
def pair(place: Path, timing: bool) -> Iterator[tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]]:
    with fabrex.Fabric.create(topology(), "lab", timing=timing) as fabric:
        yield fabric, fabric.attach("host0"), fabric.attach("host1")


def bells(events: list[Event]) -> int:
    """Return the doorbell bits of events, each of which must be told once."""
    bits = 0
    for event in events:
        assert event.kind == "doorbell" and not bits & event.bits, events
        bits |= event.bits
    return bits


def gather(node: fabrex.Node, wanted: int, timeout: float = 5.0) -> int:
    """Wait until all of these doorbell bits have been told."""
    bits, end = 0, time.monotonic() + timeout
    while bits != wanted:
        bits |= bells(node.ntb.wait_event(max(end - time.monotonic(), 0.001)))
    return bits


def rejected(function: Callable[..., Any], *arguments: Any) -> None:
    """The device has no such thing."""
    with pytest.raises(fabrex.InvalidArgument):
        function(*arguments)


# ---- the steps of the kernel's selftest, for every ordered pair -----------------------------------------------------


def test_ports(four: tuple[fabrex.Fabric, Hosts]) -> None:
    _fabric, hosts = four
    for name, node in hosts.items():
        ntb, others = node.ntb, [n for n in HOSTS if n != name]
        assert ntb.port_number() == HOSTS.index(name)
        assert ntb.peer_port_count() == 3 and ntb.peers() == others
        for pidx, peer in enumerate(others):
            assert ntb.peer_index(peer) == pidx and ntb.peer_name(pidx) == peer
            assert ntb.peer_port_number(peer) == ntb.peer_port_number(pidx) == HOSTS.index(peer)
            assert ntb.peer_port_idx(HOSTS.index(peer)) == pidx
        rejected(ntb.peer_port_number, 3)
        rejected(ntb.peer_port_idx, ntb.port_number())
        rejected(ntb.peer_port_idx, 4)
        rejected(ntb.peer_index, name)
        rejected(ntb.peer_index, "sw0")
        rejected(ntb.peer_name, -1)
        with pytest.raises(fabrex.FabricNotFound):
            ntb.peer_index("nobody")


def test_link_down_and_up(four: tuple[fabrex.Fabric, Hosts]) -> None:
    fabric, hosts = four
    for node in hosts.values():
        assert node.ntb.poll() == []  # links were up from the start: nothing has changed
    for near, far in PAIRS:
        a, b = hosts[near].ntb, hosts[far].ntb
        state = a.link_state()
        assert (state.peers, state.speed, state.width) == (7, 4, 16) and a.link_is_up(far) and b.link_is_up(near)
        a.link_disable()
        assert not a.link_is_up() and not a.link_is_up(far) and not b.link_is_up(near) and b.link_is_up()
        assert a.link_state() == fabrex.ntb.LinkState(0, 0, 0)
        assert a.wait_event(1) == [Event("link", 0)]
        assert b.wait_event(1) == [Event("link", 7 & ~(1 << b.peer_index(near)))]
        a.link_disable()  # once more changes nothing
        assert a.poll() == b.poll() == []
        with pytest.raises(fabrex.LinkDown):
            a.mw_get_align(far, 0)
        with pytest.raises(fabrex.LinkDown):
            b.mw_get_align(near, 0)
        a.link_enable()
        assert a.link_is_up(far) and b.link_is_up(near)
        assert a.wait_event(1) == b.wait_event(1) == [Event("link", 7)]
        for node in hosts.values():
            node.ntb.poll()
    link = fabric.links["host0:ntb0-sw0:p0"]
    link.down()
    assert hosts["host1"].ntb.wait_event(1) == [Event("link", 6)]
    assert hosts["host0"].ntb.wait_event(1) == [Event("link", 0)]
    link.up()
    assert hosts["host1"].ntb.wait_event(1) == [Event("link", 7)]
    for speed, width in ((-2, 0), (7, 0), (0, 33)):
        with pytest.raises(fabrex.InvalidArgument):
            hosts["host0"].ntb.link_enable(speed, width)


def test_every_doorbell_bit(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    _fabric, hosts = four
    count, vectors = HAS[profile][:2]
    valid = (1 << count) - 1
    for node in hosts.values():
        ntb = node.ntb
        assert ntb.db_valid_mask() == valid and ntb.db_vector_count() == vectors
        masks = [ntb.db_vector_mask(v) for v in range(vectors)]
        assert sum(masks) == valid and sum(m.bit_count() for m in masks) == count
        with pytest.raises(fabrex.InvalidArgument):
            ntb.db_vector_mask(vectors)
    for near, far in PAIRS:
        a, b = hosts[near], hosts[far]
        for bit in range(count):
            a.ntb.peer_db_set(far, 1 << bit)
            a.flush(far)
            assert b.ntb.db_read() == 1 << bit
            [event] = b.ntb.wait_event(5)
            assert event == Event("doorbell", 1 << bit, 0 if vectors == 1 else bit)
            b.ntb.db_clear(1 << bit)
            assert b.ntb.db_read() == 0
        assert b.ntb.poll() == [] and a.ntb.db_read() == 0
        a.ntb.peer_db_set(far, valid)
        assert gather(b, valid) == valid
        b.ntb.db_clear(valid)


def test_every_scratchpad(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    _fabric, hosts = four
    count = HAS[profile][2]
    values = random.Random(profile)
    for near, far in PAIRS:
        a, b = hosts[near], hosts[far]
        assert a.ntb.spad_count() == count
        written = [values.getrandbits(32) for _ in range(count)]
        for idx, value in enumerate(written):
            a.ntb.peer_spad_write(far, idx, value)
        for idx, value in enumerate(written):
            assert a.ntb.peer_spad_read(far, idx) == value  # pushes the writes
            assert b.ntb.spad_read(idx) == value
            b.ntb.spad_write(idx, value ^ ONES)
            assert a.ntb.peer_spad_read(far, idx) == value ^ ONES
        if not count:
            assert b.ntb.spad_read(0) == a.ntb.peer_spad_read(far, 0) == ONES
        for idx in (count, count + 1000, -1, 1 << 40):
            with pytest.raises(fabrex.InvalidArgument):
                b.ntb.spad_write(idx, 1)
            with pytest.raises(fabrex.InvalidArgument):
                a.ntb.peer_spad_write(far, idx, 1)
            if count:
                with pytest.raises(fabrex.InvalidArgument):
                    b.ntb.spad_read(idx)
                with pytest.raises(fabrex.InvalidArgument):
                    a.ntb.peer_spad_read(far, idx)


def test_every_message_register(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    _fabric, hosts = four
    count = HAS[profile][3]
    for near, far in PAIRS:
        a, b = hosts[near], hosts[far]
        inbits, outbits = b.ntb.msg_inbits(), b.ntb.msg_outbits()
        assert b.ntb.msg_count() == inbits.bit_count() == outbits.bit_count() == count and not inbits & outbits
        low = inbits & -inbits
        for idx in range(count):
            value = 0x1000 * HOSTS.index(near) + idx
            a.ntb.peer_msg_write(far, idx, value)
            assert b.ntb.wait_event(5) == [Event("message", low << idx)]
            assert b.ntb.msg_read_sts() == low << idx
            assert b.ntb.msg_read(idx) == (value, b.ntb.peer_index(near))
            # Full: it keeps what it has, and the sender learns of it.
            a.ntb.peer_msg_write(far, idx, 7)
            assert a.ntb.wait_event(5) == [Event("message", 1 << idx)]
            assert a.ntb.msg_read_sts() == 1 << idx and b.ntb.msg_read(idx)[0] == value
            a.ntb.msg_clear_sts(1 << idx)
            b.ntb.msg_clear_sts(low << idx)
            a.ntb.peer_msg_write(far, idx, 8)
            assert b.ntb.wait_event(5) == [Event("message", low << idx)] and b.ntb.msg_read(idx)[0] == 8
            b.ntb.msg_clear_sts(low << idx)
        assert a.ntb.msg_read_sts() == b.ntb.msg_read_sts() == 0 and a.ntb.poll() == b.ntb.poll() == []
        rejected(a.ntb.peer_msg_write, far, count, 1)
        rejected(b.ntb.msg_clear_sts, 1 << 63)
        rejected(b.ntb.msg_set_mask, 1 << 63)
        rejected(b.ntb.msg_clear_mask, 1 << 63)
        if count:
            with pytest.raises(fabrex.InvalidArgument):
                b.ntb.msg_read(count)
        else:
            assert b.ntb.msg_read(0) == (ONES, -1)


def test_every_window(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    fabric, hosts = four
    numbers = random.Random(profile)
    for near, far in PAIRS:
        a, b = hosts[near], hosts[far]
        count = a.ntb.mw_count(far)
        assert count == len(a.ntb.windows)
        sample = range(count) if count < 40 else sorted([*numbers.sample(range(count), 12), 0, count - 1])
        for widx in sample:
            window = a.ntb.windows[widx]
            address_align, size_align, size_max = a.ntb.mw_get_align(far, widx)
            assert (address_align, size_align, size_max) == (window.address_align, window.size_align, window.max_size)
            # What the device says is what it takes: an entry of a look-up table has one size.
            size = -(-min(size_max, 1 << 20) // size_align) * size_align
            assert size == size_max or not window.lut or profile == "fabrex"
            if size > 8 << 20:
                continue  # more than there is behind it
            window.set_translation(far, 0, size)
            assert (window.translation, window.size, window.peer) == (0, size, far)
            data = numbers.randbytes(min(size, 8192))
            a.write(window.address, data)
            assert a.read(window.address, len(data)) == data
            assert b.read(fabric.gva(far), len(data)) == data
            window.clear_translation()
        rejected(a.ntb.mw_get_align, far, count)
        rejected(a.ntb.mw_get_align, 3, 0)
        rejected(a.ntb.mw_count, -1)


def test_ping_pong(four: tuple[fabrex.Fabric, Hosts]) -> None:
    """Each side answers the other's doorbell; the count of both is exact."""
    _fabric, hosts = four
    rounds = 20
    for near, far in itertools.combinations(HOSTS, 2):
        counts = {near: 0, far: 0}

        def play(me: str, other: str, counts: dict[str, int] = counts) -> None:
            node = hosts[me]
            for _ in range(rounds):
                assert bells(node.ntb.wait_event(10)) == 2
                node.ntb.db_clear(2)
                counts[me] += 1
                node.ntb.peer_db_set(other, 2)

        threads = [threading.Thread(target=play, args=args) for args in ((near, far), (far, near))]
        for thread in threads:
            thread.start()
        hosts[far].ntb.peer_db_set(near, 2)
        for thread in threads:
            thread.join(30)
        assert counts == {near: rounds, far: rounds}
        # The last answer stays.
        assert bells(hosts[near].ntb.wait_event(5)) == 2
        hosts[near].ntb.db_clear(2)
        assert hosts[near].ntb.poll() == hosts[far].ntb.poll() == []


def test_doorbells_gather(four: tuple[fabrex.Fabric, Hosts]) -> None:
    """Bit by bit the register fills, and nothing else changes; who waits for all of them finds all."""
    _fabric, hosts = four
    for near, far in PAIRS:
        a, b = hosts[near], hosts[far]
        valid, rung = b.ntb.db_valid_mask(), 0
        b.ntb.db_set_mask(valid)
        for bit in range(64):
            assert b.ntb.db_read() == rung
            a.ntb.peer_db_set(far, 1 << bit & valid)  # a bit that is not there: nothing is rung
            rung |= 1 << bit & valid
            a.flush(far)
        assert b.ntb.db_read() == valid and b.ntb.poll() == []
        b.ntb.db_clear_mask(valid)
        assert gather(b, valid) == valid
        b.ntb.db_clear(valid)
        assert b.ntb.db_read() == b.ntb.db_read_mask() == 0


def test_a_window_shows_what_its_owner_writes(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    """The other direction: the owner fills its memory, the peer reads it through the window, and copies through it by DMA."""
    fabric, hosts = four
    numbers = random.Random(profile)
    for near, far in PAIRS:
        a, b = hosts[near], hosts[far]
        window = b.ntb.windows[0]
        _address, size_align, size_max = b.ntb.mw_get_align(near, 0)
        size = -(-min(65536, size_max) // size_align) * size_align
        window.set_translation(near, 0, size)
        data, other = numbers.randbytes(size), numbers.randbytes(size)
        a.write(fabric.gva(near), data)
        a.flush(near)
        assert b.read(window.address, size) == data
        source = b.alloc(size)
        b.write(source.gva, other)
        b.dma.copy(dst=window.address, src=source.gva, size=size, visible=True).wait(30)
        assert a.read(fabric.gva(near), size) == other
        b.dma.copy(dst=source.gva, src=window.address, size=size, visible=True).wait(30)
        assert b.read(source.gva, size) == other
        source.free()
        window.clear_translation()
        with pytest.raises((fabrex.NoWindow, fabrex.AddressError)):
            b.load(window.address)


# ---- what silicon rejects -------------------------------------------------------------------------------------------


def test_bad_doorbells(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    _fabric, hosts = four
    a, b = hosts["host0"].ntb, hosts["host1"].ntb
    beyond = 1 << HAS[profile][0]
    if beyond < 1 << 64:
        rejected(a.db_clear, beyond | 1)
        rejected(a.db_set_mask, beyond | 1)
        rejected(a.db_clear_mask, beyond | 1)
        rejected(a.peer_db_set, "host1", beyond | 1)
    for bits in (1 << 64, -1):
        with pytest.raises(OverflowError):
            a.peer_db_set("host1", bits)
    with pytest.raises(TypeError):
        a.peer_db_set("host1", "1")  # type: ignore[arg-type]
    for peer in (3, -1, 1 << 40):
        with pytest.raises(fabrex.InvalidArgument):
            a.peer_db_set(peer, 1)
    if profile == "fabrex":
        a.db_set(5)
        assert a.db_read() == b.peer_db_read("host0") == 5
        b.peer_db_clear("host0", 4)
        b.peer_db_set_mask("host0", 6)
        assert b.peer_db_read("host0") == 1 and b.peer_db_read_mask("host0") == 6 == a.db_read_mask()
        b.peer_db_clear_mask("host0", 2)
        assert b.peer_db_read_mask("host0") == 4
    else:
        with pytest.raises(fabrex.InvalidArgument):
            a.db_set(1)
        rejected(a.peer_db_clear, "host1", 1)
        rejected(a.peer_db_set_mask, "host1", 1)
        rejected(a.peer_db_clear_mask, "host1", 1)
        assert a.peer_db_read("host1") == a.peer_db_read_mask("host1") == 0
    assert b.db_read() == b.db_read_mask() == 0


def test_calls_while_the_link_is_down_change_nothing(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    fabric, hosts = four
    _bells, _vectors, spads, messages = HAS[profile]
    for cut in ("near", "far", "cable"):
        for near, far in (("host0", "host1"), ("host3", "host2")):
            a, b = hosts[near].ntb, hosts[far].ntb
            link = fabric.links[f"{near}:ntb0-sw0:p{near[-1]}"]
            cuts = {"near": (a.link_disable, a.link_enable), "far": (b.link_disable, b.link_enable), "cable": (link.down, link.up)}
            down, up = cuts[cut]
            down()
            a.peer_db_set(far, 1)
            if spads:
                a.peer_spad_write(far, 0, 1)
                with pytest.raises(fabrex.LinkDown):
                    a.peer_spad_read(far, 0)
            if messages:
                a.peer_msg_write(far, 0, 1)
            if profile == "fabrex":
                with pytest.raises(fabrex.LinkDown):
                    a.peer_db_read(far)
            up()
            assert b.db_read() == 0 and b.msg_read_sts() == 0 and all(e.kind == "link" for e in b.poll())
            assert not spads or b.spad_read(0) == 0
            with pytest.raises(fabrex.LinkDown):  # what was lost is told where it is asked for
                hosts[near].flush(far, check=True)


def test_strict_errors_raise_at_once(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True, strict_errors=True) as fabric:
        a, b = fabric.attach("host0"), fabric.attach("host1")
        b.ntb.link_disable()
        with pytest.raises(fabrex.LinkDown):
            a.ntb.peer_db_set("host1", 1)
        assert b.ntb.db_read() == 0


def test_closed_handles(pair: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    _fabric, a, _b = pair
    calls: list[Callable[[], Any]] = [
        a.ntb.db_read, a.ntb.poll, a.ntb.fileno, a.ntb.port_number, a.ntb.link_disable, lambda: a.ntb.peer_db_set(0, 1),
        lambda: a.ntb.spad_read(0), lambda: a.ntb.peer_spad_read(0, 0), lambda: a.ntb.msg_read(0),
    ]  # fmt: skip
    a.close()
    for call in calls:
        with pytest.raises(fabrex.ClosedHandle):
            call()


# ---- masks, barrier, order ------------------------------------------------------------------------------------------


def test_a_mask_holds_events_back_and_loses_none(pair: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    _fabric, a, b = pair
    b.ntb.db_set_mask(0b110)
    assert b.ntb.db_read_mask() == 0b110
    a.ntb.peer_db_set("host1", 0b111)
    a.flush("host1")
    assert b.ntb.wait_event(1) == [Event("doorbell", 1, 0)] and b.ntb.db_read() == 0b111
    with pytest.raises(fabrex.WaitTimeout):
        b.ntb.wait_event(0.02)
    b.ntb.db_clear_mask(0b010)
    assert b.ntb.wait_event(1) == [Event("doorbell", 2, 1)]
    b.ntb.db_clear(0b100)  # cleared before it was unmasked: no event
    b.ntb.db_clear_mask(0b100)
    assert b.ntb.poll() == []
    # Told already and pending still: unmasking fires anew.
    b.ntb.db_set_mask(0b010)
    b.ntb.db_clear_mask(0b010)
    assert b.ntb.wait_event(1) == [Event("doorbell", 2, 1)]
    b.ntb.db_clear_mask(0b010)  # not masked: nothing happens
    assert b.ntb.poll() == []
    a.ntb.peer_db_set("host1", 0b010)  # set already, and rung again
    assert b.ntb.wait_event(1) == [Event("doorbell", 2, 1)]
    inbits = b.ntb.msg_inbits()
    b.ntb.msg_set_mask(inbits)
    a.ntb.peer_msg_write("host1", 0, 1)
    a.flush("host1")
    assert b.ntb.poll() == []
    b.ntb.msg_clear_mask(inbits)
    assert b.ntb.wait_event(1) == [Event("message", inbits & -inbits)]


def test_a_doorbell_arrives_when_its_time_has_come(place: Path) -> None:
    """A posted doorbell is not there before its link has carried it, and fires though nobody touches the target."""
    with fabrex.Fabric.create(topology(delay="30ms"), "lab", timing=True) as fabric:
        a, b = fabric.attach("host0"), fabric.attach("host1")
        b.ntb.poll()
        start = fabric.now_ps
        a.ntb.peer_db_set("host1", 1)
        a.store(fabric.gva("host1"), 1)
        assert b.ntb.db_read() == 0
        assert bells(b.ntb.wait_event(5)) == 1
        assert 30e9 <= fabric.now_ps - start < 90e9
        b.ntb.db_clear(1)
        # What is on its way when the barrier comes never arrives, in neither direction.
        a.ntb.peer_db_set("host1", 1)
        b.ntb.peer_spad_write("host0", 3, 1)
        b.ntb.link_disable()
        b.ntb.link_enable()
        time.sleep(0.07)
        assert b.ntb.db_read() == 0 and a.ntb.spad_read(3) == 0
        assert fabric.node_info("host1")["posted_dropped"] + fabric.node_info("host0")["posted_dropped"] == 2


RINGER = """
fabric = fabrex.Fabric.open("lab")
node = fabric.attach("host0")
gva = fabric.gva("host1")
for i in range(1, arguments[0] + 1):
    node.write(gva + 4096, i.to_bytes(8, "little") * 64)
    node.store(gva, i)
    node.ntb.peer_spad_write("host1", 0, i)
    node.ntb.peer_db_set("host1", 1)
    while node.ntb.wait_event(20)[0].kind != "doorbell":
        pass
    node.ntb.db_clear(node.ntb.db_read())
say("done")
"""


def test_a_doorbell_is_behind_the_data(place: Path, children: Callable[..., Child], timing: bool) -> None:
    with persistent(topology(delay="300ns"), timing=timing) as fabric:
        node, rounds = fabric.attach("host1"), 300
        child = children(RINGER, rounds)
        gva = fabric.gva("host1")
        for i in range(1, rounds + 1):
            assert bells(node.ntb.wait_event(20)) == 1
            node.ntb.db_clear(1)
            assert node.load(gva) == i and node.ntb.spad_read(0) == i
            assert node.read(gva + 4096, 512) == i.to_bytes(8, "little") * 64
            node.ntb.peer_db_set("host0", 1 << (i % 64))
        child.expect("done")


# ---- events ---------------------------------------------------------------------------------------------------------

SENDER = """
fabric = fabrex.Fabric.open("lab")
node = fabric.attach("host0")
say("ready")
while True:
    what, value = hear()
    getattr(node.ntb, what)(*value)
    say("sent")
"""


def test_a_descriptor_for_select(place: Path, children: Callable[..., Child], timing: bool) -> None:
    with persistent(topology(delay="20ms" if timing else "5ns"), timing=timing) as fabric:
        node = fabric.attach("host1")
        child = children(SENDER)
        child.expect("ready")
        node.ntb.poll()
        descriptor = node.ntb.fileno()
        assert descriptor == node.ntb.fileno()
        for what, value, event in (
            ("peer_db_set", ["host1", 8], Event("doorbell", 8, 3)),
            ("peer_msg_write", ["host1", 1, 99], Event("message", node.ntb.msg_inbits() & -node.ntb.msg_inbits() << 1)),
            ("link_disable", [], Event("link", 0)),
            ("link_enable", [], Event("link", 1)),
        ):
            assert select.select([descriptor], [], [], 0)[0] == []
            child.tell(what, value)
            child.expect("sent")
            found: list[Event] = []
            while not found:
                assert select.select([descriptor], [], [], 10)[0] == [descriptor]
                found = node.ntb.poll()
            assert found == [event]
        # A peer that dies is an event as well.
        child.kill()
        assert select.select([descriptor], [], [], 10)[0] == [descriptor] and node.ntb.poll() == [Event("link", 0)]
        seen: list[Event] = []
        node.ntb.set_callback(seen.append)
        node.ntb.db_set(1)
        assert select.select([descriptor], [], [], 10)[0] == [descriptor]
        node.ntb.poll()
        assert seen == [Event("doorbell", 1, 0)]
        # An event that was there before anybody asked for a descriptor.
        second = fabric.attach("host1", "client")
        node.ntb.db_set(2)
        assert select.select([second.ntb.fileno()], [], [], 10)[0]


def test_asyncio(place: Path, children: Callable[..., Child], timing: bool) -> None:
    with persistent(topology(delay="5ms" if timing else "5ns"), timing=timing) as fabric:
        node = fabric.attach("host1")
        child = children(SENDER)
        child.expect("ready")
        node.ntb.poll()

        async def main() -> None:
            with pytest.raises(fabrex.WaitTimeout):
                await node.ntb.wait_event_async(0.02)
            for bit in range(20):
                waiting = asyncio.ensure_future(node.ntb.wait_event_async(20))
                await asyncio.sleep(0)
                child.tell("peer_db_set", ["host1", 1 << bit])
                assert await waiting == [Event("doorbell", 1 << bit, bit)]
                child.expect("sent")
                node.ntb.db_clear(1 << bit)

        asyncio.run(main())


def test_a_waiter_uses_no_processor(pair: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    _fabric, a, b = pair
    result: list[Event] = []
    thread = threading.Thread(target=lambda: result.extend(b.ntb.wait_event(20)))
    b.ntb.poll()
    thread.start()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    used = time.process_time() - before
    a.ntb.peer_db_set("host1", 4)
    thread.join(20)
    assert result == [Event("doorbell", 4, 2)]
    assert used < 0.1, f"{used} s of 0.5 s"


def test_a_dead_peer_is_a_link_event(place: Path, children: Callable[..., Child]) -> None:
    with persistent(topology(), timing=False) as fabric:
        node = fabric.attach("host1")
        child = children(SENDER)
        child.expect("ready")
        node.ntb.poll()
        child.tell("peer_db_set", ["host1", 1])
        child.expect("sent")
        child.kill()
        assert eventually(lambda: not node.ntb.link_is_up("host0"))
        events = node.ntb.wait_event(5)
        assert Event("doorbell", 1, 0) in events
        assert Event("link", 0) in events or node.ntb.wait_event(5) == [Event("link", 0)]


COUNTER = """
fabric = fabrex.Fabric.open("lab")
node = fabric.attach(arguments[0])
mine, seed, rounds = arguments[1], arguments[2], arguments[3]
import random
numbers, bits = random.Random(seed), [b for b in range(64) if b % 4 == mine]
say("ready")
hear()
rung = 0
for i in range(rounds):
    bit = 1 << numbers.choice(bits)
    # This bit's event has been taken when it is clear again.
    while node.ntb.peer_db_read("host3") & bit:
        pass
    node.ntb.peer_db_set("host3", bit)
    node.flush("host3")
    rung += 1
    node.ntb.peer_spad_write("host3", mine, rung)
    if i % 16 == 0:
        node.ntb.peer_db_set_mask("host3", bit)
        node.ntb.peer_db_clear_mask("host3", 0)
        node.ntb.peer_db_clear_mask("host3", bit)
node.flush("host3")
say(rung)
"""


@pytest.mark.parametrize("producers", [1, 3])
def test_concurrent_doorbells_are_counted_exactly(
    place: Path, children: Callable[..., Child], timing: bool, producers: int
) -> None:
    """Each process has bits of its own and rings one only when it is clear: no ring is lost and none invented."""
    rounds, told = 150, [0, 0, 0, 0]
    with persistent(topology(4), timing=timing) as fabric:
        node = fabric.attach("host3")
        processes = [children(COUNTER, f"host{i}", i, i + 1, rounds) for i in range(producers)]
        for child in processes:
            child.expect("ready")
        node.ntb.poll()
        for child in processes:
            child.tell("go")
        end = time.monotonic() + 60
        pending = 0
        while sum(told) < rounds * producers and time.monotonic() < end:
            try:
                events = node.ntb.wait_event(2)
            except fabrex.WaitTimeout:
                break
            for event in events:
                if event.kind != "doorbell":
                    continue
                # Unmasking over a pending bit may fire it twice before it is cleared: the register says which are new.
                new = event.bits & node.ntb.db_read()
                pending |= new
            for bit in range(64):
                if pending >> bit & 1:
                    told[bit % 4] += 1
            node.ntb.db_clear(pending)
            pending = 0
        assert [child.hear() for child in processes] == [rounds] * producers
        assert told[:producers] == [rounds] * producers and node.ntb.db_read() == 0
        assert [node.ntb.spad_read(i) for i in range(producers)] == [rounds] * producers
        assert all(e.kind == "link" for e in node.ntb.poll())


REGISTERS = """
fabric = fabrex.Fabric.open("lab")
node = fabric.attach("host1", "client")
mine, rounds = arguments
import random
numbers = random.Random(mine)
bits = sum(1 << b for b in range(64) if b % 4 == mine)
say("ready")
hear()
db = mask = 0
for i in range(rounds):
    some = numbers.getrandbits(64) & bits
    step = numbers.randrange(4)
    if step == 0:
        node.ntb.db_set(some); db |= some
    elif step == 1:
        node.ntb.db_clear(some); db &= ~some
    elif step == 2:
        node.ntb.db_set_mask(some); mask |= some
    else:
        node.ntb.db_clear_mask(some); mask &= ~some
    assert node.ntb.db_read() & bits == db and node.ntb.db_read_mask() & bits == mask
    node.ntb.spad_write(mine, i)
    assert node.ntb.spad_read(mine) == i
say(db, mask)
"""


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_program_one_device(place: Path, children: Callable[..., Child], count: int) -> None:
    """Each has bits of its own: no change of another's ever touches them."""
    with persistent(topology(), timing=False) as fabric:
        node = fabric.attach("host1")
        processes = [children(REGISTERS, i, 400) for i in range(count)]
        for child in processes:
            child.expect("ready")
        for child in processes:
            child.tell("go")
        db = mask = 0
        for child in processes:
            said = child.hear()
            db, mask = db | said[0], mask | said[1]
        assert (node.ntb.db_read(), node.ntb.db_read_mask()) == (db, mask)


# ---- interrupts by message ------------------------------------------------------------------------------------------

MSIS = {"fabrex": 64, "switchtec": 28}


def test_interrupts_by_message(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    _fabric, hosts = four
    count = MSIS.get(profile, 0)
    if not count:
        node = hosts["host0"].ntb
        assert node.msi_count() == 0
        rejected(node.msi_request)
        rejected(node.msi_set_mask, 1)
        return
    descriptors = {name: [node.ntb.msi_request() for _ in range(count)] for name, node in hosts.items()}
    for name, node in hosts.items():
        assert node.ntb.msi_count() == count and [d.vector for d in descriptors[name]] == list(range(count))
        rejected(node.ntb.msi_request)
        rejected(node.ntb.msi_free, count)
        rejected(node.ntb.msi_peer_trigger, 3, descriptors[name][0])
        rejected(node.ntb.msi_peer_trigger, 0, MsiDescriptor(2, 0))
        rejected(node.ntb.msi_peer_trigger, 0, MsiDescriptor(4096, 0))
        rejected(node.ntb.msi_peer_address, 0, MsiDescriptor(4096, 0))
    for near, far in PAIRS:
        a, b = hosts[near], hosts[far]
        for vector, descriptor in enumerate(descriptors[far]):
            a.ntb.msi_peer_trigger(far, descriptor)
            assert b.ntb.wait_event(5) == [Event("msi", 1 << vector, vector)]
        # The same by a store to the address, through the requester's own bus.
        a.store(a.ntb.msi_peer_address(far, descriptors[far][5]), descriptors[far][5].data, size=4)
        assert b.ntb.wait_event(5) == [Event("msi", 1 << 5, 5)]
        with pytest.raises(fabrex.UnsupportedRequest):
            a.store(a.ntb.msi_peer_address(far, descriptors[far][0]), 1, size=8)
        assert a.ntb.poll() == b.ntb.poll() == [] and b.ntb.msi_read_pending() == 0


def test_a_masked_interrupt_stays_pending(pair: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    _fabric, a, b = pair
    one, two = b.ntb.msi_request(), b.ntb.msi_request()
    b.ntb.msi_set_mask(1 << two.vector)
    assert b.ntb.msi_read_mask() == 2
    for descriptor in (one, two, one, two):
        a.ntb.msi_peer_trigger("host1", descriptor)
    a.flush("host1")
    assert b.ntb.msi_read_pending() == 3
    assert b.ntb.poll() == [Event("msi", 1, 0)]  # an edge: several before it is told are one
    assert b.ntb.msi_read_pending() == 2 and b.ntb.poll() == []
    with pytest.raises(fabrex.WaitTimeout):
        b.ntb.wait_event(0.02)
    b.ntb.msi_clear_mask(2)
    assert b.ntb.wait_event(1) == [Event("msi", 2, 1)] and b.ntb.msi_read_pending() == 0
    b.ntb.msi_set_mask(2)
    b.ntb.msi_clear_mask(2)  # told once, gone
    assert b.ntb.poll() == []


def test_a_freed_vector_rings_nobody(pair: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    fabric, a, b = pair
    old = b.ntb.msi_request()
    a.ntb.msi_peer_trigger("host1", old)
    a.flush("host1", check=True)
    b.ntb.msi_free(old.vector)  # what was pending of it is gone with it
    rejected(b.ntb.msi_free, old.vector)
    new = b.ntb.msi_request()
    assert new.vector == old.vector and new.data != old.data
    before = fabric.node_info("host1")["posted_dropped"]
    for stale in (old, MsiDescriptor(new.addr_offset, new.data + 1), MsiDescriptor(400, new.data)):
        a.ntb.msi_peer_trigger("host1", stale)
        with pytest.raises(fabrex.FabricError):  # it was lost, and is told where it is asked for
            a.flush("host1", check=True)
    assert fabric.node_info("host1")["posted_dropped"] == before + 3
    assert b.ntb.poll() == [] and b.ntb.msi_read_pending() == 0
    client = fabric.attach("host1", "client")
    taken = [client.ntb.msi_request() for _ in range(63)]
    rejected(client.ntb.msi_request)
    rejected(b.ntb.msi_free, taken[0].vector)  # another handle's
    client.close()
    assert b.ntb.msi_request().vector == taken[0].vector
    a.ntb.msi_peer_trigger("host1", new)
    assert b.ntb.wait_event(5) == [Event("msi", 1 << new.vector, new.vector)]


MSI_HOLDER = """
fabric = fabrex.Fabric.open("lab")
node = fabric.attach("host1", "client")
taken = [node.ntb.msi_request() for _ in range(63)]
say([[d.addr_offset, d.data] for d in taken])
hear()
"""


def test_vectors_of_a_dead_process_are_free_again(place: Path, children: Callable[..., Child]) -> None:
    with persistent(topology(), timing=False) as fabric:
        node = fabric.attach("host1")
        first = node.ntb.msi_request()
        child = children(MSI_HOLDER)
        offset, data = child.hear()[0]
        rejected(node.ntb.msi_request)
        child.kill()
        assert eventually(lambda: fabric.reap() == 0 and fabric.node_info("host1")["clients"] == 0)
        second = node.ntb.msi_request()
        assert second.vector != first.vector and (second.addr_offset, second.data) != (offset, data)


MSI_RINGER = """
fabric = fabrex.Fabric.open("lab")
node = fabric.attach("host0")
descriptor = fabrex.ntb.MsiDescriptor(*arguments[1:3])
gva = fabric.gva("host1")
for i in range(1, arguments[0] + 1):
    node.write(gva + 4096, i.to_bytes(8, "little") * 64)
    node.ntb.msi_peer_trigger("host1", descriptor)
    while node.ntb.wait_event(20)[0].kind != "doorbell":
        pass
    node.ntb.db_clear(node.ntb.db_read())
say("done")
"""


def test_an_interrupt_is_behind_the_data(place: Path, children: Callable[..., Child], timing: bool) -> None:
    with persistent(topology(delay="300ns"), timing=timing) as fabric:
        node, rounds = fabric.attach("host1"), 200
        descriptor = node.ntb.msi_request()
        child = children(MSI_RINGER, rounds, descriptor.addr_offset, descriptor.data)
        gva = fabric.gva("host1")
        for i in range(1, rounds + 1):
            events = [e for e in node.ntb.wait_event(20) if e.kind != "link"] or node.ntb.wait_event(20)
            assert events == [Event("msi", 1, 0)]
            assert node.read(gva + 4096, 512) == i.to_bytes(8, "little") * 64
            node.ntb.peer_db_set("host0", 1)
        child.expect("done")


def test_an_interrupt_over_a_dead_link_vanishes(pair: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    _fabric, a, b = pair
    descriptor = b.ntb.msi_request()
    b.ntb.link_disable()
    a.ntb.msi_peer_trigger("host1", descriptor)
    a.store(a.ntb.msi_peer_address("host1", descriptor), descriptor.data, size=4)
    b.ntb.link_enable()
    assert all(event.kind == "link" for event in b.ntb.poll()) and b.ntb.msi_read_pending() == 0


# ---- requester IDs --------------------------------------------------------------------------------------------------

TABLE = {"fabrex": 256, "idt": 64, "switchtec": 256}


def test_a_requester_that_is_not_in_the_table_is_dropped(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    fabric, hosts = four
    owner, far = hosts["host0"], hosts["host1"]
    assert owner.ntb.rid_count() == TABLE.get(profile, 0)
    if profile not in TABLE:
        rejected(owner.ntb.rid_set, [0])
        rejected(owner.ntb.rid_set, None)
        return
    owner.ntb.windows[0].set_translation("host1", 0, 1 << 20)
    there = owner.ntb.windows[0].address
    clients = [fabric.attach("host0", "client") for _ in range(2)]
    assert [node.ntb.function() for node in (owner, *clients)] == [0, 1, 2] and owner.ntb.rid_get() is None
    for node in (owner, *clients):
        node.store(there, 1)
        assert node.load(there) == 1
    owner.ntb.rid_set([0, 2])
    assert clients[0].ntb.rid_get() == [0, 2]
    before = fabric.node_info("host1")["posted_dropped"], fabric.node_info("host0")["aer"]["nonfatal"]
    clients[0].store(there, 5)
    clients[0].write(there, b"12345678")
    clients[0].ntb.peer_db_set("host1", 1)
    for refused in (lambda: clients[0].load(there), lambda: clients[0].read(there, 100), lambda: clients[0].fetch_add(there, 1),
                    lambda: clients[0].flush("host1")):  # fmt: skip
        with pytest.raises(fabrex.UnsupportedRequest):
            refused()
    after = fabric.node_info("host1")["posted_dropped"], fabric.node_info("host0")["aer"]["nonfatal"]
    assert (after[0] - before[0], after[1] - before[1]) == (3, 3)
    assert clients[1].load(there) == 1 and owner.load(there) == 1 and far.ntb.db_read() == 0
    clients[1].store(there, 6)
    clients[1].flush("host1")
    assert far.load(fabric.gva("host1")) == 6
    # What others send to this node is none of the table's business, and its own memory none of the NTB's.
    clients[0].store(fabric.gva("host0"), 9)
    assert clients[0].load(fabric.gva("host0")) == 9
    clients[0].close()
    again = fabric.attach("host0", "client")
    assert again.ntb.function() == 1  # the lowest number that is free
    with pytest.raises(fabrex.UnsupportedRequest):
        again.load(there)
    for bad in ([256], [-1], range(TABLE[profile] + 1)):
        rejected(owner.ntb.rid_set, bad)
    assert owner.ntb.rid_get() == [0, 2]
    owner.ntb.rid_set(None)
    assert owner.ntb.rid_get() is None and again.load(there) == 6
    owner.ntb.rid_set([])
    with pytest.raises(fabrex.UnsupportedRequest):
        owner.load(there)


# ---- shares of a peer's windows, inbound windows, read-back ---------------------------------------------------------


def test_resource_indices(four: tuple[fabrex.Fabric, Hosts]) -> None:
    """No two peers of a host get the same of its windows."""
    _fabric, hosts = four
    for name, node in hosts.items():
        others = [hosts[other].ntb for other in HOSTS if other != name]
        assert [other.peer_resource_idx(name) for other in others] == [0, 1, 2]
        count = len(node.ntb.windows)
        if count < 3:
            assert [other.peer_highest_mw_idx(name) for other in others[:2]] == [1, 0]
            rejected(others[2].peer_highest_mw_idx, name)
        else:
            assert [other.peer_highest_mw_idx(name) for other in others] == [count - 1, count - 2, count - 3]
        rejected(node.ntb.peer_resource_idx, 3)
        rejected(node.ntb.peer_highest_mw_idx, 3)


def test_inbound_windows(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    fabric, hosts = four
    for near, far in PAIRS:
        a, b = hosts[near], hosts[far]
        try:
            widx = b.ntb.peer_highest_mw_idx(near)
        except fabrex.InvalidArgument:
            continue
        assert b.ntb.mw_count(near) == len(a.ntb.windows)
        _address_align, _size_align, size_max = b.ntb.mw_get_align(near, widx)
        window = a.ntb.windows[widx]
        size = size_max if window.lut and profile != "fabrex" else min(size_max, 1 << 20)
        b.ntb.mw_set_trans(near, widx, 0, size)
        assert (window.peer, window.translation, window.size) == (far, 0, size)
        a.store(window.address + 8, 77)
        a.flush(far)
        assert b.load(fabric.gva(far, 8)) == 77
        other = next(name for name in HOSTS if name not in (near, far))
        rejected(hosts[other].ntb.mw_clear_trans, near, widx)
        assert window.programmed
        b.ntb.mw_clear_trans(near, widx)
        assert not window.programmed
        b.ntb.mw_clear_trans(near, widx)  # nothing to do
        with pytest.raises(fabrex.WindowError):
            b.ntb.mw_set_trans(near, widx, 2, size)
        with pytest.raises(fabrex.WindowError):
            b.ntb.mw_set_trans(near, widx, 0, size_max + 1)
        with pytest.raises(fabrex.AddressError):
            b.ntb.mw_set_trans(near, widx, 1 << 62, size)
        rejected(b.ntb.mw_set_trans, near, len(a.ntb.windows), 0, size)
        with pytest.raises(OverflowError):
            b.ntb.mw_set_trans(near, widx, -1, size)
        assert not window.programmed


def test_a_translation_that_reads_back_otherwise_is_an_error(four: tuple[fabrex.Fabric, Hosts], profile: str) -> None:
    _fabric, hosts = four
    window = hosts["host0"].ntb.windows[len(hosts["host0"].ntb.windows) - 1]
    size = window.max_size if window.lut and profile != "fabrex" else min(window.max_size, 1 << 20)
    if window.address_align > 4 << 20:
        size, bit = 1 << 20, 0  # its base is a multiple of the aperture: only 0 has memory behind it
    else:
        bit = max(window.address_align, window.max_size if window.lut else 0, 4096)
        bit = bit if bit < 4 << 20 else 0
    window.set_translation("host1", 0, size)
    if bit:
        window.inject_stuck(bit)
        window.set_translation("host1", 0, size)  # nothing that is written shows it
        with pytest.raises(OSError) as caught:
            window.set_translation("host1", bit, size)
        assert caught.value.errno == errno.EIO and isinstance(caught.value, fabrex.SystemRefused)
        assert not window.programmed
        with pytest.raises(fabrex.NoWindow):
            hosts["host0"].store(window.address, 1)
        window.inject_stuck(0)
        window.set_translation("host1", bit, size)
        assert window.translation == bit
    with pytest.raises(OverflowError):
        window.inject_stuck(-1)


def test_an_ended_fabric_leaves_no_event_file(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        node.ntb.fileno()
        assert [name for name in os.listdir(place) if "events" in name]
    assert os.listdir(place) == []
