# SPDX-License-Identifier: Apache-2.0
"""A bad network between machines that needs no kernel module and no privilege: relays in front of their listeners.

A machine joins through the relay of the coordinator, and tells the others the address of its own relay (`advertise`). Whoever
connects says its name in the admission, which the relay reads; so a fault can be put between two machines, in one direction.

    with Relay() as relay:
        first = Fabric.host(...); relay.open("m0", first.agent.address)
        Fabric.join(relay.address("m0"), "m1", listen=f"127.0.0.1:{port}", advertise=relay.open("m1", ("127.0.0.1", port)))
        relay.shape("m0", "m1", delay=0.01)

What a direction of a pair can have: `delay` and `jitter` in seconds (order is kept, as TCP keeps it), `rate` in bytes a second,
`hold` (nothing passes, and comes later: a cable that was pulled for a while), `vanish` (bytes are taken and never arrive, and
what connects meanwhile is never answered: the other side is gone and nobody said so). `reset` ends connections with a TCP reset
after a random part of what they carry, in the middle of frames.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import socket
import struct
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
from transports import Remote

import fabrex

CHUNK = 64 << 10
ROOM = 1 << 20  # bytes on their way in one direction before the relay stops reading: the sender feels it


@dataclass
class Shape:
    """One direction between two machines."""

    delay: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    hold: bool = False
    vanish: bool = False


@dataclass(eq=False)
class Half:
    """One direction of a connection."""

    source: socket.socket
    sink: socket.socket
    chunks: deque[tuple[float, bytes]] = field(default_factory=deque)
    held: int = 0
    due: float = 0.0  # of the last chunk: none comes before it
    free: float = 0.0  # when the rate lets the next byte go
    ended: bool = False  # the source has said all
    told: bool = False
    lost: bool = False  # bytes have vanished: nothing sensible can come behind them
    passed: int = 0


@dataclass(eq=False)
class Pair:
    """A connection: `there` from who connected, `back` to it."""

    who: str
    whom: str
    there: Half
    back: Half
    heard: bytearray | None = field(default_factory=bytearray)  # the admission so far, until the name is known
    reset_after: int | None = None  # bytes that still pass

    def halves(self) -> tuple[Half, Half]:
        return self.there, self.back


def name_in(heard: bytes) -> str | None:
    """The machine that connects, from what it has said so far; None: not said yet."""
    at = 0
    for _ in range(3):
        if len(heard) < at + 4:
            return None
        [size] = struct.unpack_from("<I", heard, at)
        if size > 4096:
            return ""
        if len(heard) < at + 4 + size:
            return None
        message, at = heard[at + 4 : at + 4 + size], at + 4 + size
    try:
        said = msgpack.unpackb(bytes(message))
        return str(said["machine"])
    except (ValueError, KeyError, TypeError, msgpack.UnpackException):
        return ""


class Relay:
    """Relays for any number of machines, on one thread."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.moved: dict[tuple[str, str], int] = {}
        self.connections = 0
        self.resets = 0
        self._lock = threading.RLock()
        self._shapes: dict[tuple[str, str], Shape] = {}
        self._listeners: dict[str, tuple[socket.socket, tuple[str, int]]] = {}
        self._pairs: set[Pair] = set()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- on command -------------------------------------------------------------------------------------------------------

    def open(self, machine: str, where: tuple[str, int], host: str = "127.0.0.1") -> str:
        """Stand in front of a machine that listens at `where`; returns the relay's address. Again: it listens elsewhere now."""
        with self._lock:
            known = self._listeners.get(machine)
            sock = known[0] if known else socket.create_server((host, 0), backlog=64)
            self._listeners[machine] = (sock, where)
            if not known:
                sock.setblocking(False)
                self._selector.register(sock, selectors.EVENT_READ, machine)
        self._poke()
        return self.address(machine)

    def address(self, machine: str) -> str:
        """Where the relay of that machine listens."""
        host, port = self._listeners[machine][0].getsockname()[:2]
        return f"{host}:{port}"

    def shape(self, source: str, sink: str, **faults: Any) -> None:
        """Change what bytes from one machine to another have to suffer; "*" stands for all machines."""
        with self._lock:
            shape = replace(self._shapes.get((source, sink), Shape()), **faults)
            self._shapes[source, sink] = shape
        self._poke()

    def both(self, one: str, other: str, **faults: Any) -> None:
        """The same in both directions."""
        self.shape(one, other, **faults)
        self.shape(other, one, **faults)

    def heal(self) -> None:
        """No faults from now on. A connection whose bytes have vanished stays as dead as it is."""
        with self._lock:
            self._shapes.clear()
        self._poke()

    def reset(self, one: str = "*", other: str = "*", within: int = CHUNK) -> int:
        """Reset connections between two machines after at most `within` more bytes; returns how many."""
        count = 0
        with self._lock:
            for pair in self._pairs:
                if {one, other} <= {pair.who, pair.whom, "*"} and pair.reset_after is None:
                    pair.reset_after = self.random.randrange(within)
                    count += 1
        self._poke()
        return count

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            self._stop = True
        self._poke()
        self._thread.join(10)
        for pair in list(self._pairs):
            self._drop(pair)
        for sock, _ in self._listeners.values():
            sock.close()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    # -- the thread -------------------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b".")

    def _shape(self, source: str, sink: str) -> Shape:
        for key in ((source, sink), (source, "*"), ("*", sink), ("*", "*")):
            if key in self._shapes:
                return self._shapes[key]
        return Shape()

    def _run(self) -> None:
        wait: float | None = None
        while True:
            events = self._selector.select(wait)
            with self._lock:
                if self._stop:
                    return
                ready: dict[int, int] = {}
                for key, mask in events:
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            while self._woken.recv(4096):
                                pass
                    elif isinstance(key.data, str):
                        self._accept(key.data)
                    else:
                        ready[key.fd] = mask
                now = time.monotonic()
                nexts: list[float] = []
                for pair in list(self._pairs):
                    self._serve(pair, ready, now, nexts)
                wait = max(min(nexts) - time.monotonic(), 0.0) if nexts else None

    def _accept(self, machine: str) -> None:
        sock, where = self._listeners[machine]
        try:
            client, _ = sock.accept()
        except OSError:
            return
        try:
            server = socket.create_connection(where, timeout=1.0)
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = Pair("?", machine, Half(client, server), Half(server, client))
        self._pairs.add(pair)
        self.connections += 1
        for end in (client, server):
            self._selector.register(end, selectors.EVENT_READ, pair)

    def _serve(self, pair: Pair, ready: dict[int, int], now: float, nexts: list[float]) -> None:
        wanted: dict[socket.socket, int] = {}
        for half, source, sink in ((pair.there, pair.who, pair.whom), (pair.back, pair.whom, pair.who)):
            shape = self._shape(source, sink)
            try:
                if ready.get(half.source.fileno(), 0) & selectors.EVENT_READ:
                    self._read(pair, half, shape, now)
                blocked = self._write(pair, half, shape, now, nexts)
            except (ConnectionError, OSError):
                self._drop(pair, reset=True)
                return
            if pair not in self._pairs:
                return
            reads = not half.ended and half.held < ROOM and not (shape.hold and half.held)
            wanted[half.source] = wanted.get(half.source, 0) | (selectors.EVENT_READ if reads else 0)
            wanted[half.sink] = wanted.get(half.sink, 0) | (selectors.EVENT_WRITE if blocked else 0)
        if all(half.told for half in pair.halves()):
            self._drop(pair)
            return
        for sock, events in wanted.items():
            known = self._selector.get_map().get(sock.fileno())
            if events and known is None:
                self._selector.register(sock, events, pair)
            elif events and known is not None and known.events != events:
                self._selector.modify(sock, events, pair)
            elif not events and known is not None:
                self._selector.unregister(sock)

    def _read(self, pair: Pair, half: Half, shape: Shape, now: float) -> None:
        try:
            data = half.source.recv(CHUNK)
        except BlockingIOError:
            return
        if not data:
            half.ended = True
            return
        if half is pair.there and pair.heard is not None:
            pair.heard += data
            if (name := name_in(pair.heard)) is not None:
                pair.who, pair.heard = name, None
        half.lost |= shape.vanish
        if half.lost:
            return
        late = shape.delay + self.random.random() * shape.jitter
        half.due = max(half.due, now + late)
        half.chunks.append((half.due, data))
        half.held += len(data)

    def _write(self, pair: Pair, half: Half, shape: Shape, now: float, nexts: list[float]) -> bool:
        """Pass on what is due; returns whether the sink has no room for it."""
        half.lost |= shape.vanish and bool(half.chunks)
        if half.lost:
            half.chunks.clear()
            half.held = 0
            return False  # an end vanishes as well
        if shape.hold:
            return False
        while half.chunks:
            due, data = half.chunks[0]
            start = max(due, half.free)
            if start > now:
                nexts.append(start)
                return False
            part = data[: max(int(shape.rate * 0.01), 1)] if shape.rate else data
            last = pair.reset_after is not None and pair.reset_after <= len(part)
            if last:
                part = part[: pair.reset_after]
            try:
                sent = half.sink.send(part) if part else 0
            except BlockingIOError:
                return True
            if last and sent == len(part):
                self.resets += 1
                self._drop(pair, reset=True)
                return False
            if pair.reset_after is not None:
                pair.reset_after -= sent
            if shape.rate:
                half.free = max(half.free, now - 0.05) + sent / shape.rate
            half.held -= sent
            half.passed += sent
            if sent < len(data):
                half.chunks[0] = (due, data[sent:])
            else:
                half.chunks.popleft()
        if half.ended and not half.told:
            half.told = True
            with contextlib.suppress(OSError):
                half.sink.shutdown(socket.SHUT_WR)
        return False

    def _drop(self, pair: Pair, reset: bool = False) -> None:
        self._pairs.discard(pair)
        for half, key in ((pair.there, (pair.who, pair.whom)), (pair.back, (pair.whom, pair.who))):
            self.moved[key] = self.moved.get(key, 0) + half.passed
            sock = half.source
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sock)
            if reset:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


# -- machines with relays before them -----------------------------------------------------------------------------------


def star(hosts: int, delay: str = "5ns", **settings: Any) -> fabrex.Topology:
    """Hosts on a switch, each on a machine of its own."""
    nodes: dict[str, Any] = {f"host{i}": {"kind": "host", "memory": {"dram": "32MiB"}} for i in range(hosts)}
    nodes["sw0"] = {"kind": "switch"}
    links = [{"endpoints": [f"host{i}:n", f"sw0:p{i}"], "pcie": {"gen": 4, "lanes": 16}, "delay": delay} for i in range(hosts)]
    machines = {f"m{i}": {"nodes": [f"host{i}", *(["sw0"] if not i else [])]} for i in range(hosts)}
    return fabrex.Topology("star", nodes, links, machines=machines, **settings)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Bed:
    """Machines with relays before them; m0 is this process."""

    def __init__(self, relay: Relay, first: fabrex.Fabric, directory: str) -> None:
        self.relay, self.first, self.directory = relay, first, directory
        self.peers: dict[str, Remote] = {}

    def join(self, machine: str) -> Remote:
        """Start a process that is a machine, and its host's owner."""
        port = free_port()
        advertise = self.relay.open(machine, ("127.0.0.1", port))
        there = os.path.join(self.directory, machine)
        os.makedirs(there, exist_ok=True)
        peer = Remote(
            "join", self.relay.address("m0"), machine, directory=there, listen=f"127.0.0.1:{port}", advertise=advertise,
            node="host" + machine[1:],
        )  # fmt: skip
        self.peers[machine] = peer
        return peer

    def machine(self, index: int) -> dict[str, Any]:
        return dict(self.first.machines()[index])


@contextmanager
def bed(hosts: int, *, seed: int = 7, **settings: Any) -> Iterator[Bed]:
    """`hosts` machines, all there."""
    with tempfile.TemporaryDirectory(prefix="machines-", dir=os.environ["FABREX_DIRECTORY"]) as directory, Relay(seed) as relay:
        first = fabrex.Fabric.host(star(hosts, **settings))
        made = Bed(relay, first, directory)
        try:
            relay.open("m0", first.agent.address)
            for i in range(1, hosts):
                made.join(f"m{i}")
            first.agent.wait_for(timeout=20)
            for peer in made.peers.values():
                peer.call("fabric.agent.wait_for", timeout=20)
            yield made
        finally:
            relay.heal()
            for peer in made.peers.values():
                with contextlib.suppress(Exception):
                    peer.close()
            first.close()
        for machine in made.peers:
            fabrex.Fabric.prune(os.path.join(directory, machine))
            assert os.listdir(os.path.join(directory, machine)) == []
