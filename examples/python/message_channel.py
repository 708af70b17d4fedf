# SPDX-License-Identifier: Apache-2.0
"""Messages between hosts over windows, doorbells and scratchpads, in order and exactly once, whatever the link does.

What software for NTBs is made of, in one file: each side lets its peer see a receive area through a memory window, both agree
over scratchpads, messages are posted into slots behind which a doorbell rings, and counts of what was received travel back as
credits. When a link goes down and up again, what was on it is gone; both sides then agree anew and the sender repeats what
was not received. Several clients share a channel, each with a queue of its own.

    python examples/python/message_channel.py [--flaps 6] [--bytes 2000000] [--seed 1]

moves a file from host0 to host1, and numbers beside it on another queue, while the link flaps.

    transport = Transport(node)
    channel = transport.open("host1")
    channel.connect(timeout=10)
    channel.queues[0].send(b"hello")
    channel.queues[0].receive(timeout=10)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import struct
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fabrex

MAGIC = 0x4643  # "CF": this protocol's name in the geometry word
QUEUES, SLOTS, SLOT_BYTES = 2, 8, 2048
HEAD = struct.Struct("<QII")  # a slot: the word that announces it, length, CRC-32; then the bytes
AREA = 4096 + QUEUES * SLOTS * SLOT_BYTES  # a page of credits, 8 bytes a queue; then the slots
PAYLOAD = SLOT_BYTES - HEAD.size
HELLO, ACK, GEOMETRY, WORDS = 0, 1, 2, 3  # scratchpads of one peer
RING_HELLO, RING_DATA, RING_CREDIT, BELLS = 0, 1, 2, 3  # doorbells of one peer


class PeerRestarted(Exception):
    """The peer is another process now: what it had not received went with the old one."""


class Queue:
    """One client's messages, both ways. Counts only grow: a credit that is lost or old does no harm."""

    def __init__(self, channel: Channel, index: int) -> None:
        self.channel, self.index = channel, index
        self.unacked: deque[bytes] = deque()  # messages acked … next - 1
        self.next = self.sent = self.acked = 0  # messages given to us; written to the peer; received there
        self.inbox: deque[bytes] = deque()
        self.received = 0

    def send(self, message: bytes, timeout: float | None = None) -> None:
        """Give a message to the channel. Waits while the peer does not keep up (TimeoutError)."""
        if len(message) > PAYLOAD:
            raise ValueError(f"a message has at most {PAYLOAD} bytes, not {len(message)}")
        transport = self.channel.transport
        with transport.changed:
            transport.drive(lambda: self.channel.usable() and len(self.unacked) < 2 * SLOTS, timeout, "room for a message")
            self.unacked.append(bytes(message))
            self.next += 1
            self.channel.push()

    def receive(self, timeout: float | None = None) -> bytes:
        """Return the next message (TimeoutError)."""
        transport = self.channel.transport
        with transport.changed:
            transport.drive(lambda: bool(self.inbox) or not self.channel.usable(), timeout, "a message")
            message = self.inbox.popleft()
            if not transport.driving:  # otherwise whoever does pulls soon: events that it has taken come before messages
                self.channel.pull()
            return message

    def drain(self, timeout: float | None = None) -> None:
        """Wait until the peer has received everything (TimeoutError)."""
        transport = self.channel.transport
        with transport.changed:
            transport.drive(lambda: self.channel.usable() and not self.unacked, timeout, "the peer to receive all")


class Channel:
    """What one host has with one peer."""

    def __init__(self, transport: Transport, peer: str) -> None:
        self.transport, self.peer = transport, peer
        node = self.node = transport.node
        ntb = self.ntb = node.ntb
        # Our share of the peer's registers and windows, so that its other peers do not meet us there; its share of ours.
        share, theirs = ntb.peer_resource_idx(peer), ntb.peer_index(peer)
        self.far_pads, self.far_bells = share * WORDS, share * BELLS
        self.near_pads, self.near_bells = theirs * WORDS, theirs * BELLS
        inbound = ntb.peer_highest_mw_idx(peer)
        self.outbound = ntb.windows[len(ntb.windows) - 1 - theirs]
        address_align, size_align, size_max = ntb.mw_get_align(peer, inbound)  # LinkDown if the link is not up
        exact = self.outbound.lut and size_max < 1 << 20  # entries of a table have one size
        self.size = size_max if exact else -(-AREA // size_align) * size_align
        if self.size < AREA or self.size > size_max:
            raise ValueError(f"a window of {size_max} bytes is too small for {AREA}")
        self.area = node.alloc(self.size, align=max(address_align, size_max if exact else 4096))
        ntb.mw_set_trans(peer, inbound, self.area.gva - node.fabric.region_gva(node.name), self.size)
        self.queues = [Queue(self, i) for i in range(QUEUES)]
        self.life = random.SystemRandom().randrange(1, 1 << 16)
        self.epoch = 1  # of our receive area: frames that carry another one are of before a flap
        self.their_hello = 0
        self.up = self.restarted = False
        self.renegotiations = self.repeated = self.damaged = 0

    @property
    def hello(self) -> int:
        return self.life << 16 | self.epoch

    def usable(self) -> bool:
        if self.restarted:
            raise PeerRestarted(self.peer)
        return True

    def connect(self, timeout: float | None = None) -> None:
        """Wait until both sides have agreed."""
        with self.transport.changed:
            self.say_hello()
            self.transport.drive(lambda: self.usable() and self.up, timeout, f"{self.peer} to answer")

    # -- agreeing: scratchpads, and the counts in front of them ------------------------------------------------------

    def say_hello(self) -> None:
        """Tell the peer who we are now, what we have received, and which hello of its we know: in this order."""
        ntb, pads = self.ntb, self.far_pads
        try:
            if self.outbound.programmed:
                for queue in self.queues:
                    self.node.store(self.outbound.address + 8 * queue.index, queue.received)
                ntb.peer_spad_write(self.peer, pads + ACK, self.their_hello)
            ntb.peer_spad_write(self.peer, pads + GEOMETRY, MAGIC << 16 | QUEUES << 8 | SLOTS)
            ntb.peer_spad_write(self.peer, pads + HELLO, self.hello)
            ntb.peer_db_set(self.peer, 1 << self.far_bells + RING_HELLO)
        except ConnectionError:
            pass  # only with strict errors; the link's event follows

    def link_changed(self) -> None:
        """Whatever was on its way may be gone: begin anew, also if the link is up again already."""
        self.epoch = self.epoch % 0xFFFF + 1
        self.up = False
        self.renegotiations += 1
        self.say_hello()

    def heard_hello(self) -> None:
        hello = self.ntb.spad_read(self.near_pads + HELLO)
        geometry = self.ntb.spad_read(self.near_pads + GEOMETRY)
        ack = self.ntb.spad_read(self.near_pads + ACK)
        if not hello or not self.outbound.programmed:
            return
        if geometry != MAGIC << 16 | QUEUES << 8 | SLOTS:
            raise ValueError(f"{self.peer} speaks another protocol: {geometry:#x}")
        if hello != self.their_hello:
            self.restarted |= bool(self.their_hello) and hello >> 16 != self.their_hello >> 16
            self.their_hello = hello
            self.resume()
            self.say_hello()
        if ack == self.hello and not self.up:
            self.up = True
            self.resume()

    def resume(self) -> None:
        """Go on behind what the peer has received; its counts were written before its hello."""
        for queue in self.queues:
            self.credit(queue)
            self.repeated += queue.sent - queue.acked
            queue.sent = queue.acked

    # -- messages ----------------------------------------------------------------------------------------------------

    def credit(self, queue: Queue) -> None:
        count = self.node.load(self.area.gva + 8 * queue.index)
        while queue.acked < min(count, queue.next):
            queue.unacked.popleft()
            queue.acked += 1
        queue.sent = max(queue.sent, queue.acked)

    def ring(self, bell: int) -> None:
        with suppress(ConnectionError):
            self.ntb.peer_db_set(self.peer, 1 << self.far_bells + bell)

    def stalled(self) -> bool:
        return any(len(queue.inbox) >= SLOTS for queue in self.queues)

    @staticmethod
    def slot(queue: Queue, number: int) -> int:
        return 4096 + (queue.index * SLOTS + number % SLOTS) * SLOT_BYTES

    def push(self) -> None:
        """Write what there are slots for. Bytes first, then the word that announces them, then the doorbell: posted, in order."""
        if not self.up:
            return
        rung = False
        for queue in self.queues:
            self.credit(queue)
            while queue.sent < min(queue.next, queue.acked + SLOTS):
                message = queue.unacked[queue.sent - queue.acked]
                at = self.outbound.address + self.slot(queue, queue.sent)
                try:
                    self.node.write(at + 8, HEAD.pack(0, len(message), zlib.crc32(message))[8:] + message)
                    self.node.store(at, (self.their_hello & 0xFFFF) << 40 | (queue.sent + 1))
                except ConnectionError:
                    return
                queue.sent += 1
                rung = True
        if rung:
            self.ring(RING_DATA)

    def pull(self) -> None:
        """Take what has arrived, as far as clients have room, and give credits for it."""
        taken = False
        for queue in self.queues:
            while len(queue.inbox) < SLOTS:
                at = self.area.gva + self.slot(queue, queue.received)
                if self.node.load(at) != self.epoch << 40 | (queue.received + 1):
                    break
                # Bytes may have been lost in a flap and this word not: its event came first, so look for it before believing.
                if self.transport.look():
                    return
                _word, size, checksum = HEAD.unpack(self.node.read(at, HEAD.size))
                message = self.node.read(at + HEAD.size, min(size, PAYLOAD))
                if zlib.crc32(message) != checksum:
                    self.damaged += 1
                    self.link_changed()
                    return
                queue.inbox.append(message)
                queue.received += 1
                taken = True
        if taken and self.outbound.programmed:
            with suppress(ConnectionError):
                for queue in self.queues:
                    self.node.store(self.outbound.address + 8 * queue.index, queue.received)
            self.ring(RING_CREDIT)


class Transport:
    """The channels of one host. It takes all events of the node's NTB, in whichever client's thread happens to wait."""

    def __init__(self, node: fabrex.Node) -> None:
        self.node = node
        self.channels: dict[str, Channel] = {}
        self.changed = threading.Condition(threading.RLock())
        self.driving = False

    def open(self, peer: str, timeout: float | None = None) -> Channel:
        """Make the channel to a peer; waits for the link (TimeoutError)."""
        with self.changed:
            needed = max(self.node.ntb.peer_index(peer), self.node.ntb.peer_resource_idx(peer)) + 1
            if needed * WORDS > self.node.ntb.spad_count() or needed * BELLS > self.node.ntb.db_valid_mask().bit_length():
                raise ValueError(f"{self.node.name} has too few scratchpads or doorbells for a channel to {peer}")
            while peer not in self.channels:
                self.drive(lambda: self.node.ntb.link_is_up(peer), timeout, f"the link to {peer}")
                with suppress(fabrex.LinkDown):  # it may go again meanwhile
                    self.channels[peer] = Channel(self, peer)
            return self.channels[peer]

    def drive(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Wait until `ready()`; one of the waiting threads handles events for all. Called with the lock held, once."""
        end = None if timeout is None else time.monotonic() + timeout
        while not ready():
            slice_ = 0.002 if any(channel.stalled() for channel in self.channels.values()) else 0.05
            left = slice_ if end is None else min(slice_, end - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"{self.node.name}: no end of waiting for {what}")
            if self.driving:
                self.changed.wait(left)
                continue
            self.driving = True
            self.changed.release()
            events: list[fabrex.ntb.Event] = []
            quiet = False
            try:
                events = self.node.ntb.wait_event(left)
            except fabrex.WaitTimeout:
                quiet = True
            finally:
                self.changed.acquire()
                self.driving = False
            self._handle(events)
            for channel in self.channels.values():
                if quiet and not channel.up:
                    channel.say_hello()  # the last one may have been lost
                channel.pull()
                channel.push()
            self.changed.notify_all()

    def look(self) -> bool:
        """Handle events that are there already; True if a link was among them."""
        return self._handle(self.node.ntb.poll())

    def _handle(self, events: list[fabrex.ntb.Event]) -> bool:
        bells = 0
        for event in events:
            if event.kind == "doorbell":
                self.node.ntb.db_clear(event.bits)
                bells |= event.bits
        links = any(event.kind == "link" for event in events)
        for channel in self.channels.values():
            if links:
                channel.link_changed()
            if bells >> channel.near_bells + RING_HELLO & 1:
                channel.heard_hello()
        return links


# -- what the clients do: a file on queue 0, numbers on queue 1 -----------------------------------------------------------


def send_file(queue: Queue, path: Path, timeout: float) -> str:
    """Send a file; returns its SHA-256."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    queue.send(json.dumps({"name": path.name, "bytes": len(data), "sha256": digest}).encode(), timeout)
    for at in range(0, len(data), PAYLOAD):
        queue.send(data[at : at + PAYLOAD], timeout)
    queue.drain(timeout)
    return digest


def receive_file(queue: Queue, folder: Path, timeout: float) -> tuple[Path, str]:
    """Receive a file; returns where it is and the SHA-256 of what is there."""
    facts = json.loads(queue.receive(timeout))
    path, left = folder / Path(facts["name"]).name, facts["bytes"]
    with path.open("wb") as out:
        while left:
            piece = queue.receive(timeout)
            out.write(piece)
            left -= len(piece)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def told(fabric: fabrex.Fabric, key: str) -> bool:
    with suppress(fabrex.FabricNotFound):
        return bool(fabric.get(key))
    return False


def host0(fabric: fabrex.Fabric, path: str, numbers: int, results: multiprocessing.Queue[Any]) -> None:
    with fabric, fabric.attach("host0", role="owner") as node:
        channel = Transport(node).open("host1")
        channel.connect(60)

        def count() -> None:
            for i in range(numbers):
                channel.queues[1].send(str(i).encode(), 60)
            channel.queues[1].drain(60)

        second = threading.Thread(target=count)
        second.start()
        digest = send_file(channel.queues[0], Path(path), 60)
        second.join()
        fabric.put("all-received", b"1")  # until here the peer answers: its last credits may get lost
        results.put(("host0", digest, channel.renegotiations, channel.repeated))


def host1(fabric: fabrex.Fabric, folder: str, numbers: int, results: multiprocessing.Queue[Any]) -> None:
    with fabric, fabric.attach("host1", role="owner") as node:
        transport = Transport(node)
        channel = transport.open("host0")
        channel.connect(60)
        got: list[int] = []
        second = threading.Thread(target=lambda: got.extend(int(channel.queues[1].receive(60)) for _ in range(numbers)))
        second.start()
        _path, digest = receive_file(channel.queues[0], Path(folder), 60)
        second.join()
        assert got == list(range(numbers)), "the numbers on the second queue are not all there in order"
        with transport.changed:
            transport.drive(lambda: told(fabric, "all-received"), 60, "the end")
        results.put(("host1", digest, channel.renegotiations, channel.damaged))


def main() -> None:
    parser = argparse.ArgumentParser(description="move a file between two hosts while the link between them flaps")
    parser.add_argument("--flaps", type=int, default=6)
    parser.add_argument("--bytes", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    numbers, chance = 500, random.Random(given.seed)
    spawn = multiprocessing.get_context("spawn")  # a handle does not survive fork; a fabric pickles to a reopen
    results = spawn.Queue()
    with tempfile.TemporaryDirectory() as folder, fabrex.Fabric.create("fabrex-pair") as fabric:
        source = Path(folder, "source.bin")
        source.write_bytes(chance.randbytes(given.bytes))
        Path(folder, "received").mkdir()
        processes = [
            spawn.Process(target=host0, args=(fabric, str(source), numbers, results)),
            spawn.Process(target=host1, args=(fabric, str(Path(folder, "received")), numbers, results)),
        ]
        for process in processes:
            process.start()
        link, flaps = fabric.links["host0:ntb0-sw0:p0"], 0
        while not told(fabric, "all-received") and all(process.exitcode is None for process in processes):
            time.sleep(chance.uniform(0.005, 0.03))
            if flaps < given.flaps and fabric.node_info("host1")["delivered"] > 20:
                link.down()
                time.sleep(chance.choice([0, 0, 0.005, 0.02]))  # also so short that nobody sees it down
                link.up()
                flaps += 1
        said = {name: rest for name, *rest in (results.get(timeout=60) for _ in processes)}
        for process in processes:
            process.join(60)
        lost = sum(fabric.node_info(name)["posted_dropped"] for name in ("host0", "host1"))
    assert said["host1"][0] == said["host0"][0], "the file is not what was sent"
    print(
        f"{given.bytes} bytes and {numbers} numbers arrived intact through {flaps} flaps: {lost} writes were lost on the way, "
        f"{said['host0'][2]} messages sent again, {said['host0'][1]} times agreed anew"
    )


if __name__ == "__main__":
    main()
