# SPDX-License-Identifier: Apache-2.0
"""The fabric that node programs see under the exhaustive clock: their calls, as requests to the abstract machine.

The node, fabric, NTB and DMA objects here have the names and arguments of the real ones, and check them likewise. What is not
explored (cancelling, time) is refused or stands still, and says so.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from ..errors import (
    AddressError,
    AlignmentError,
    FabricError,
    FabricNotFound,
    InvalidArgument,
    OutOfFabricMemory,
    ValueRangeError,
    WaitTimeout,
)
from ..topology import Topology
from ._history import Standing, fingerprint, frames
from ._machine import (
    ATOMIC,
    NEVER,
    POSTED,
    READ,
    WORD,
    Handle,
    Request,
    Thrown,
    answer_objects,
    changed,
    issue_objects,
    line_object,
    stream_object,
)
from ._rules import Tlp

SLOT = 40  # a region's range of global addresses is 1 << SLOT; the same numbers as in the core, so that traces agree
FIXED = 65536  # bytes of each region that alloc never hands out

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


# -- the fabric -------------------------------------------------------------------------------------------------------


class World:
    """What all programs of an exploration share: the topology and its addresses and ways."""

    def __init__(self, topology: Topology, stale: frozenset[str], programs: int) -> None:
        self.topology, self.programs = topology, programs
        self.names = list(topology.nodes)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.stale = stale
        self.regions = [(self.index[node.name], tier) for node in topology.nodes.values() for tier in node.memory.values()]
        self.first: dict[int, int] = {}
        for region, (node, _) in enumerate(self.regions):
            self.first.setdefault(node, region)
        self._ways: dict[tuple[int, int], int] = {}

    def owner_of(self, word: Any) -> int:
        """Return the node whose memory (or register) an object is."""
        if isinstance(word, int):
            return self.regions[(word >> SLOT) - 1][0]
        return int(word[1])

    def place(self, gva: int, size: int, op: str) -> int:
        """Return the node of a range; raises AddressError."""
        region = (gva >> SLOT) - 1
        if not 0 <= region < len(self.regions):
            raise AddressError(f"there is no memory at {gva:#x}", op=op, gva=gva)
        node, tier = self.regions[region]
        if (gva & ((1 << SLOT) - 1)) + size > tier.size:
            raise AddressError(f"{size} bytes at {gva:#x} leave {tier.name} of {self.names[node]}", op=op, gva=gva)
        return node

    def say(self, gva: int) -> str:
        """Return an address as people read it."""
        region = (gva >> SLOT) - 1
        if not 0 <= region < len(self.regions):
            return f"{gva:#x}"
        node, tier = self.regions[region]
        return f"{self.names[node]}:{tier.name}+{gva & ((1 << SLOT) - 1):#x}"

    def ways(self, a: int, b: int) -> int:
        """Return how many ways without a common link there are between two nodes, shortest first."""
        key = (min(a, b), max(a, b))
        if key not in self._ways:
            self._ways[key] = self._count_ways(*key)
        return self._ways[key]

    def _count_ways(self, a: int, b: int) -> int:
        links = [(self.index[link.a[0]], self.index[link.b[0]]) for link in self.topology.links.values()]
        free, count = set(range(len(links))), 0
        while True:
            came: dict[int, tuple[int, int]] = {a: (-1, -1)}
            queue = [a]
            for at in queue:
                if at != a and not self.topology.nodes[self.names[at]].is_switch:
                    continue
                for number in sorted(free):
                    ends = links[number]
                    if at in ends:
                        to = ends[0] if ends[1] == at else ends[1]
                        if to not in came:
                            came[to] = (at, number)
                            queue.append(to)
            if b not in came:
                return count
            at = b
            while at != a:
                at, number = came[at]
                free.discard(number)
            count += 1


def _words(gva: int, size: int) -> Iterable[tuple[int, int, int, int]]:
    """Yield word address, shift in bits, bytes and offset in the range for each aligned word of a range."""
    at = gva
    while at < gva + size:
        word = at & ~7
        end = min(word + 8, gva + size)
        yield word, 8 * (at - word), end - at, at - gva
        at = end


def _mask(count: int) -> int:
    return (1 << (8 * count)) - 1


def _attributes(**attributes: Any) -> str:
    return "".join(f", {name}={value!r}" for name, value in attributes.items() if value)


class Fabric(Standing):
    """The fabric as a program sees it: addresses, names, values. Time stands still: `now_ps` is 0."""

    now_ps = 0
    timing = False
    ordering = "exhaustive"
    closed = False

    def __init__(self, world: World, node: Node) -> None:
        self._world, self._node = world, node
        self.topology = world.topology
        self.name = world.topology.name

    def _standing(self) -> Any:
        return self._node._standing()

    def gva(self, node: str, offset: int = 0) -> int:
        """Return the global address of `offset` in the fixed area of a node's first region."""
        if not 0 <= offset < FIXED:
            raise InvalidArgument(f"offset {offset} lies outside the fixed area of 64 KiB")
        return ((self._region(node, None) + 1) << SLOT) + offset

    def address(self, node: str, offset: int = 0, *, tier: str | None = None) -> int:
        """Return the global address of `offset` in a tier of a node."""
        region = self._region(node, tier)
        if not 0 <= offset < self._world.regions[region][1].size:
            raise InvalidArgument(f"offset {offset} lies outside {self._world.regions[region][1].name} of {node}")
        return ((region + 1) << SLOT) + offset

    def _region(self, node: str, tier: str | None) -> int:
        world = self._world
        if node not in world.index:
            raise FabricNotFound(f"no node {node!r}; there are {', '.join(world.names[:8])}")
        index = world.index[node]
        if index not in world.first:
            raise InvalidArgument(f"{node} has no memory")
        tiers = list(world.topology.nodes[node].memory)
        if tier is not None and tier not in tiers:
            raise InvalidArgument(f"{node} has no tier {tier!r}; it has {', '.join(tiers)}")
        return world.first[index] + (tiers.index(tier) if tier else 0)

    def attach(self, name: str, role: str = "any") -> Node:
        """Return another handle: a requester of its own."""
        return self._node._another(name)

    def put(self, key: str, value: bytes) -> None:
        """Store a value under a key."""
        data, obj = bytes(value), ("name", "value", key)
        self._node._local(f"put({key!r})", (), (obj,), lambda mem: (None, {obj: data}))

    def get(self, key: str, timeout: float | None = 0.0) -> bytes:
        """Return the value of a key."""
        obj = ("name", "value", key)
        return bytes(self._node._await_name(f"get({key!r})", obj, timeout))

    def buffer(self, name: str, timeout: float | None = 0.0) -> Buffer:
        """Find a buffer by its name."""
        gva, size = self._node._await_name(f"buffer({name!r})", ("name", "buffer", name), timeout)
        return Buffer(self._node, gva, size, name)


class Buffer(Standing):
    """Allocated memory. Its raw views are copies, as under the adversary: see `fabrex.Buffer.acquire`."""

    def __init__(self, node: Node, gva: int, size: int, name: str) -> None:
        self._node = node
        self.fabric, self.gva, self.size, self.name = node.fabric, gva, size, name
        self.node = node._world.names[node._world.place(gva, size, "buffer")]
        self._copy, self._kept = bytearray(size), bytes(size)

    def __len__(self) -> int:
        return self.size

    def _standing(self) -> Any:
        return self.gva, self.size, bytes(self._copy), self._kept

    def free(self) -> None:
        """Give it back; its addresses are not handed out again."""

    @property
    def memory(self) -> memoryview:
        """The bytes that `acquire` found; what is changed here is others' after `release`."""
        return memoryview(self._copy)

    def acquire(self) -> memoryview:
        """Declare that this program reads and writes the raw bytes from now on; returns `memory`."""
        if self.node != self._node.name:
            self._node.load(self.gva, size=1)
        self._kept = self._node._raw(self.gva, self.size)
        self._copy[:] = self._kept
        return self.memory

    def release(self) -> None:
        """Declare that it no longer does: what it changed is in the fabric's memory when this has returned."""
        words = []
        for word, shift, count, offset in _words(self.gva, self.size):
            data = self._copy[offset : offset + count]
            if data != self._kept[offset : offset + count]:
                words.append((word, _mask(count) << shift, int.from_bytes(data, "little") << shift))
        if words:
            self._node._at_once(f"release({self._node._say(self.gva)})", words, None)
        self._kept = bytes(self._copy)
        self._node.drain()

    @contextlib.contextmanager
    def access(self) -> Iterator[memoryview]:
        """`acquire` and `release` around a block."""
        view = self.acquire()
        try:
            yield view
        finally:
            self.release()

    def numpy(self, dtype: Any = "u1", shape: int | tuple[int, ...] | None = None) -> Any:
        """Return a NumPy array over `memory`."""
        import numpy as np

        kind = np.dtype(dtype)
        shape = (self.size // kind.itemsize,) if shape is None else shape
        return np.frombuffer(self.memory, dtype=kind, count=int(np.prod(shape))).reshape(shape)


class Operation(Standing):
    """A request under way that the program did not wait for."""

    def __init__(self, node: Node, kind: str, gva: int, number: Any) -> None:
        self._node, self.kind, self.gva, self._number = node, kind, gva, number
        self._result: Any = None
        self._ended = False

    def _standing(self) -> Any:
        return self._number, self._ended

    def done(self) -> bool:
        """Return whether it is complete; never waits."""
        if self._ended:
            return True
        request = Request("ready", self._node._handle, f"{self.kind}.done()", target=self._number)
        return bool(self._node._do(request.access((("op", self._number),))))

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for completion and return the result."""
        if not self._ended:
            request = Request("finish", self._node._handle, f"{self.kind}.wait()", target=self._number, how=timeout is not None)
            self._result = self._node._do(request.access((("op", self._number),)))
            self._ended = True
        return self._result

    def result(self) -> Any:
        """Return what it brought; it must be complete."""
        if not self.done():
            raise InvalidArgument("the operation is under way; wait() for it, or await it")
        return self.wait()

    def __await__(self) -> Any:
        result = self.wait()
        yield from ()
        return result


class _Done(Standing):
    """A posted write under `begin`: complete when it has been issued."""

    def __init__(self, kind: str, gva: int) -> None:
        self.kind, self.gva = kind, gva

    def _standing(self) -> Any:
        return self.kind, self.gva

    def done(self) -> bool:
        return True

    def wait(self, timeout: float | None = None) -> None:
        return None

    result = wait

    def __await__(self) -> Any:
        yield from ()


class Node(Standing):
    """A node under the exhaustive clock, with the calls of `fabrex.Node`.

    One argument more: `path=` chooses among several ways to the target, 0 being the one that the fabric uses by itself.
    """

    closed = False

    def __init__(
        self,
        world: World,
        name: str,
        program: int,
        number: int = 0,
        root: Node | None = None,
        client: int = 0,
    ) -> None:
        self._world = world
        self._root = root or self
        self._dead = False
        self._stack: Any = None  # of the program at its last call
        self._handles = 0
        self._allocated: dict[int, int] = {}
        self.name = name
        self.index = world.index[name]
        facts = world.topology.nodes[name]
        self.owner = not number and not client
        self._order: dict[str, Any] = {}
        self._past = False  # operations of begin() go past the cache
        requester: tuple[int, ...] = (self.index, 0) if self.owner else (self.index, program + 1, number)
        self._handle = Handle((program, number), self.index, requester, facts.pio.wc, name in world.stale)
        self.fabric = Fabric(world, self)
        alike = [node.name for node in world.topology.nodes.values() if node.kind == facts.kind]
        self.rank, self.size = alike.index(name), len(alike)
        self.dma = Dma(self)
        self.ntb = Ntb(self)

    def _standing(self) -> Any:
        return self._handle.key, tuple(self._order.items())

    def __repr__(self) -> str:
        return f"<Node {self.name} under the exhaustive clock>"

    def __enter__(self) -> Node:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def close(self) -> None:
        """Detach; writes that have departed still land."""

    def _another(self, name: str) -> Node:
        self._root._handles += 1
        if name not in self._world.index:
            raise FabricNotFound(f"no node {name!r}")
        return Node(self._world, name, self._handle.key[0], self._root._handles, self._root)

    # -- handing requests out -----------------------------------------------------------------------------------------

    def _do(self, request: Request) -> Any:
        from greenlet import GreenletExit, getcurrent

        if self._root._dead:
            raise GreenletExit
        calls = frames()
        request.where = f"{calls[0].f_code.co_filename}:{calls[0].f_lineno}" if calls else ""
        self._root._stack = fingerprint(calls)
        answer = getcurrent().parent.switch(request)
        if isinstance(answer, Thrown):
            if answer.name == "WaitTimeout":
                raise WaitTimeout(f"{answer.text}: it did not happen", node=self.name)
            raise FabricNotFound(answer.text)
        return answer

    def _local(
        self, text: str, reads: Sequence[Any], writes: Sequence[Any], answer: Callable[[Any], Any], timeout: bool = False
    ) -> Any:
        return self._do(Request("local", self._handle, text, answer=answer, how=timeout).access(reads, writes))

    def _drains(self) -> tuple[Any, ...]:
        return (("n", self.index),) if self._handle.wc else ()

    def _cached(self, word: int) -> tuple[Any, ...]:
        return (("y", self.index, word),) if self._handle.stale else ()

    def _await_name(self, text: str, obj: Any, timeout: float | None) -> Any:
        def look(mem: Any) -> Any:
            value = mem.get(obj)
            if value is None:
                return (Thrown("FabricNotFound", f"{text}: it is not there"), {}) if timeout == 0.0 else NEVER
            return value, {}

        return self._local(text, (obj,), (), look, timeout is not None)

    # -- memory -------------------------------------------------------------------------------------------------------

    def alloc(
        self, size: int, name: str | None = None, *, on: str | None = None, tier: str | None = None, align: int = 64
    ) -> Buffer:
        """Allocate memory. Each program has its own part of a region, so no order decides the addresses."""
        size = operator.index(size)
        if size < 1:
            raise InvalidArgument(f"{size} bytes: at least 1")
        region = self.fabric._region(self.name if on is None else on, tier)
        room = (self._world.regions[region][1].size - FIXED) // self._world.programs & ~63
        arena = FIXED + self._handle.key[0] * room
        counts = self._root._allocated
        at = counts.get(region, 0)
        align = max(align, 64)
        at += -(arena + at) % align
        if at + size > room:
            raise OutOfFabricMemory(f"programs for explore() allocate at most {room} bytes each in this region")
        counts[region] = at + size
        gva = ((region + 1) << SLOT) + arena + at
        if name:
            obj = ("name", "buffer", name)
            self._local(f"alloc({size}, name={name!r})", (), (obj,), lambda mem: (None, {obj: (gva, size)}))
        return Buffer(self, gva, size, name or "")

    def _checked(self, gva: Any, size: int, op: str, sizes: tuple[int, ...]) -> tuple[int, int, int]:
        gva, size = operator.index(gva), operator.index(size)
        if size not in sizes:
            raise AlignmentError(f"{op} of {size} bytes: they are {', '.join(map(str, sizes))}", op=op, gva=gva)
        if gva % size:
            raise AlignmentError(f"{gva:#x} is not aligned to {size} bytes", op=op, gva=gva)
        return gva, size, self._world.place(gva, size, op)

    def order(self, *, ro: bool = False, ido: bool = False, tc: int = 0) -> None:
        """Set what this handle's operations have that do not say otherwise."""
        if not 0 <= operator.index(tc) <= 7:
            raise InvalidArgument(f"traffic class {tc}: they are 0 to 7")
        self._order = {"ro": ro, "ido": ido, "tc": tc}

    def _tlp(self, kind: str, target: int, ro: Any, ido: Any, tc: int, path: int) -> Tlp:
        if self._order:
            ro, ido, tc = ro or self._order["ro"], ido or self._order["ido"], tc or self._order["tc"]
        if not 0 <= tc <= 7:
            raise InvalidArgument(f"traffic class {tc}: they are 0 to 7")
        if target != self.index:
            ways = self._world.ways(self.index, target)
            if not 0 <= path < max(ways, 1):
                raise InvalidArgument(f"path {path}: there are {ways} from {self.name} to {self._world.names[target]}")
            if not ways:
                raise FabricError(f"there is no way from {self.name} to {self._world.names[target]}")
        return Tlp(kind, self.index, target, path, tc, bool(ro), bool(ido), self._handle.requester)

    def _say(self, gva: int) -> str:
        return self._world.say(gva)

    def _load(self, kind: str, gva: int, size: int, target: int, text: str, finish: Any, asynchronous: bool, **how: Any) -> Any:
        words = list(_words(gva, size))
        local, cached = target == self.index, self._handle.stale and target != self.index and not asynchronous

        def answer(values: Sequence[int]) -> Any:
            data = bytearray(size)
            for value, (_, shift, count, offset) in zip(values, words, strict=True):
                data[offset : offset + count] = ((value >> shift) & _mask(count)).to_bytes(count, "little")
            return finish(bytes(data))

        if local and len(words) == 1 and not asynchronous:
            word = words[0][0]
            return self._local(text, (word,), (), lambda mem: (answer((mem.get(word, 0),)), {}))
        tlp = (
            None
            if local or cached
            else self._tlp(READ, target, how.get("ro"), how.get("ido"), how.get("tc", 0), how.get("path", 0))
        )
        pieces = tuple((word, None, cached) for word, _, _, _ in words)
        request = Request("begin" if asynchronous else "ask", self._handle, text, answer=answer, pieces=pieces, tlp=tlp)
        request.ended = asynchronous
        reads, writes = {word for word, _, _, _ in words}, set()
        if self._handle.stale:
            writes = {("y", self.index, word) for word in reads}
        if tlp is not None:
            request.access((stream_object(*tlp[1:5]),), self._drains())
            reads.update(answer_objects(tlp))
        else:
            request.access((), self._drains())
        return self._do(request.later(reads, writes))

    def load(self, gva: int, size: int = 8, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0) -> Any:
        """Load 1, 2, 4 or 8 bytes as an int, or 16, 32 or 64 as bytes."""
        gva, size, target = self._checked(gva, size, "load", (1, 2, 4, 8, 16, 32, 64))
        text = f"load({self._say(gva)}{_attributes(size=size if size != 8 else 0, ro=ro, ido=ido, tc=tc, path=path)})"
        return self._load("load", gva, size, target, text, _as_load(size), False, ro=ro, ido=ido, tc=tc, path=path)

    def read(self, gva: int, size: int, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0) -> bytes:
        """Read bytes."""
        gva, size = operator.index(gva), operator.index(size)
        target = self._world.place(gva, size, "read")
        if size == 0:
            return b""
        text = f"read({self._say(gva)}, {size}{_attributes(ro=ro, ido=ido, tc=tc, path=path)})"
        return bytes(self._load("read", gva, size, target, text, bytes, False, ro=ro, ido=ido, tc=tc, path=path))

    def readinto(self, gva: int, array: Any) -> int:
        """Fill a buffer."""
        view = memoryview(array).cast("B")
        view[:] = self.read(gva, len(view))
        return len(view)

    def gather(self, gvas: Iterable[int], out: Any, size: int | None = None) -> None:
        """Load from many addresses, one after the other."""
        addresses, view = [int(gva) for gva in gvas], memoryview(out).cast("B")
        each = len(view) // len(addresses) if size is None else size
        for i, gva in enumerate(addresses):
            value = self.load(gva, each)
            view[i * each : (i + 1) * each] = value if isinstance(value, bytes) else value.to_bytes(each, "little")

    def scatter(self, gvas: Iterable[int], values: Any, size: int | None = None) -> None:
        """Store to many addresses, one after the other."""
        addresses, view = [int(gva) for gva in gvas], bytes(memoryview(values).cast("B"))
        each = len(view) // len(addresses) if size is None else size
        for i, gva in enumerate(addresses):
            data = view[i * each : (i + 1) * each]
            self.store(gva, data if each > 8 else int.from_bytes(data, "little"), each)

    def _post(self, gva: int, data: bytes, target: int, text: str, answer: Any, **how: Any) -> Any:
        tlp = self._tlp(POSTED, target, how.get("ro"), how.get("ido"), how.get("tc", 0), how.get("path", 0))
        words = [
            (word, _mask(count) << shift, int.from_bytes(data[offset : offset + count], "little") << shift)
            for word, shift, count, offset in _words(gva, len(data))
        ]
        objects = {word for word, _, _ in words}
        if target == self.index:
            if len(words) == 1:
                word, mask, value = words[0]
                return self._local(text, (), (word,), lambda mem: (answer, {word: changed(mem.get(word, 0), "set", mask, value)}))
            return self._at_once(text, words, answer)
        if self._handle.stale and not self._past:
            request = Request("cached", self._handle, text, answer=answer, words=tuple(words))
            own = {("y", self.index, word) for word in objects}
            return self._do(request.access(objects, own).later((), objects | set(issue_objects(tlp))))
        request = Request("post", self._handle, text, answer=answer)
        request.words = tuple((tlp, word, "set", mask, value) for word, mask, value in words)
        if self._handle.wc:
            request.how = "wc"
        buffers = {line_object(self._handle.key, word) for word in objects} if request.how else set()
        own = {*issue_objects(tlp), *self._drains(), *buffers}
        return self._do(request.access((), own).later((), objects))

    def _at_once(self, text: str, words: list[tuple[int, int, int]], answer: Any) -> Any:
        """Write words that everybody sees at once, one after the other."""
        tlp = Tlp(POSTED, self.index, self.index, 0, 0, False, False, self._handle.requester)
        request = Request("post", self._handle, text, answer=answer, number="home")
        request.words = tuple((tlp, word, "set", mask, value) for word, mask, value in words)
        return self._do(request.access((), self._drains()).later((), {word for word, _, _ in words}))

    def _raw(self, gva: int, size: int) -> bytes:
        """Read bytes as they are now, word by word."""
        words = list(_words(gva, size))

        def answer(values: Sequence[int]) -> bytes:
            parts = zip(values, words, strict=True)
            return b"".join((value >> shift & _mask(count)).to_bytes(count, "little") for value, (_, shift, count, _) in parts)

        request = Request("ask", self._handle, f"acquire({self._say(gva)})", answer=answer)
        request.pieces = tuple((word, None, False) for word, _, _, _ in words)
        return bytes(self._do(request.access((), self._drains()).later({word for word, _, _, _ in words})))

    def store(
        self, gva: int, value: Any, size: int = 8, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0
    ) -> None:
        """Store an int of 1, 2, 4 or 8 bytes, or 16, 32 or 64 bytes: posted."""
        gva, size, target = self._checked(gva, size, "store", (1, 2, 4, 8, 16, 32, 64))
        data = _as_bytes(value, size)
        shown = value if size <= 8 else f"{size} bytes"
        text = f"store({self._say(gva)}, {shown}{_attributes(size=size if size != 8 else 0, ro=ro, ido=ido, tc=tc, path=path)})"
        self._post(gva, data, target, text, None, ro=ro, ido=ido, tc=tc, path=path)

    def write(self, gva: int, data: Any, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0) -> int:
        """Write bytes: posted, many packets."""
        gva, content = operator.index(gva), bytes(memoryview(data).cast("B"))
        target = self._world.place(gva, len(content), "write")
        if not content:
            return 0
        text = f"write({self._say(gva)}, {len(content)} bytes{_attributes(ro=ro, ido=ido, tc=tc, path=path)})"
        return int(self._post(gva, content, target, text, len(content), ro=ro, ido=ido, tc=tc, path=path))

    def _atomic(
        self, op: str, gva: int, size: int, change: Callable[[int, int], int | None], said: str, asynchronous: bool, **how: Any
    ) -> Any:
        sizes = (4, 8, 16) if op == "compare_swap" else (4, 8)
        gva, size, target = self._checked(gva, size, op, sizes)
        word, shift = (gva & ~7, 8 * (gva & 7)) if size <= 8 else (gva, 0)
        text = f"{op}({self._say(gva)}, {said}{_attributes(size=size if size != 8 else 0, **how)})"
        mask = _mask(size)

        def apply(old: int) -> tuple[int, int | None]:
            field = (old >> shift) & mask
            new = change(field, mask)
            return field, None if new is None else (old & ~(mask << shift)) | (new & mask) << shift

        if size == 16:
            return self._wide(gva, target, text, change, asynchronous, how)
        if target == self.index and not asynchronous:

            def here(mem: Any) -> Any:
                field, new = apply(mem.get(word, 0))
                return field, ({} if new is None else {word: new})

            return self._local(text, (word,), (word,), here)
        tlp = (
            None
            if target == self.index
            else self._tlp(ATOMIC, target, how.get("ro"), how.get("ido"), how.get("tc", 0), how.get("path", 0))
        )
        request = Request("begin" if asynchronous else "ask", self._handle, text, answer=_first, tlp=tlp)
        request.ended = asynchronous
        request.pieces = ((word, apply, False),)
        reads: tuple[Any, ...] = ()
        if tlp is not None:
            reads = answer_objects(tlp)
            request.access((stream_object(*tlp[1:5]),), self._drains())
        else:
            request.access((), self._drains())
        return self._do(request.later(reads, (word, *self._cached(word))))

    def _wide(self, gva: int, target: int, text: str, change: Any, asynchronous: bool, how: Any) -> Any:
        raise InvalidArgument("compare_swap of 16 bytes is not explored", hint="use 8 bytes")

    def fetch_add(self, gva: int, value: int, size: int = 8, **how: Any) -> int:
        """Add; returns the old value."""
        value = _fits(value, size)
        return int(self._atomic("fetch_add", gva, size, lambda old, mask: (old + value) & mask, str(value), False, **how))

    def swap(self, gva: int, value: int, size: int = 8, **how: Any) -> int:
        """Exchange; returns the old value."""
        value = _fits(value, size)
        return int(self._atomic("swap", gva, size, lambda old, mask: value, str(value), False, **how))

    def compare_swap(self, gva: int, expected: int, desired: int, size: int = 8, **how: Any) -> int:
        """Exchange if it is as expected; returns the old value."""
        expected, desired = _fits(expected, size), _fits(desired, size)
        change = _compare_swap(expected, desired)
        return int(self._atomic("compare_swap", gva, size, change, f"{expected}, {desired}", False, **how))

    def begin(self, kind: str, gva: int, *arguments: Any, size: int = 8, **how: Any) -> Any:
        """Start an operation without waiting for it."""
        if kind in ("store", "write"):
            past, self._past = self._past, True
            try:
                getattr(self, kind)(gva, *arguments, **({"size": size} if kind == "store" else {}), **how)
            finally:
                self._past = past
            return _Done(kind, gva)
        if kind in ("load", "read"):
            if kind == "load":
                gva, size, target = self._checked(gva, size, kind, (1, 2, 4, 8, 16, 32, 64))
            else:
                size = operator.index(arguments[0])
                target = self._world.place(operator.index(gva), size, kind)
            finish = bytes if kind == "read" else _as_load(size)
            text = f"begin({kind!r}, {self._say(gva)}{_attributes(**how)})"
            number = self._load(kind, gva, size, target, text, finish, True, **how)
        elif kind in ("fetch_add", "swap", "compare_swap"):
            values = [_fits(value, size) for value in arguments]
            changes: dict[str, Any] = {
                "fetch_add": lambda old, mask: (old + values[0]) & mask,
                "swap": lambda old, mask: values[0],
                "compare_swap": _compare_swap(*values) if len(values) == 2 else None,
            }
            number = self._atomic(kind, gva, size, changes[kind], ", ".join(map(str, values)), True, **how)
        else:
            raise InvalidArgument(f"{kind!r} is no operation")
        return Operation(self, kind, gva, number)

    # -- order and waiting --------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let write-combining buffers leave for the link."""
        self._do(Request("drain", self._handle, "drain()").access((), self._drains()))

    def fence(self) -> None:
        """Order this handle's posted writes, without waiting."""
        self._do(Request("fence", self._handle, "fence()").access((), (("n", self.index),)))

    def flush(self, target: str | None = None, *, check: bool = False) -> None:
        """Return when earlier posted writes are visible."""
        index = None
        if target is not None:
            if target not in self._world.index:
                raise FabricNotFound(f"no node {target!r}")
            index = self._world.index[target]
        peers = range(len(self._world.names)) if index is None else (index,)
        reads = [obj for peer in peers for obj in (("I", self.index, peer), ("I", peer, self.index), ("n", peer))]
        said = f"flush({target!r})" if target else "flush()"
        self._do(Request("flush", self._handle, said, target=index).access(reads, self._drains()))

    def wait_until(self, gva: int, compare: str, value: int, timeout: float | None = None, *, size: int = 8) -> int:
        """Wait until the value compares so; returns what was found. It looks past a cache."""
        if compare not in _COMPARE:
            raise InvalidArgument(f"{compare!r} is no comparison; use one of {', '.join(_COMPARE)}")
        gva, size, target = self._checked(gva, size, "wait", (1, 2, 4, 8))
        value, test, shift, mask = _fits(value, size), _COMPARE[compare], 8 * (gva & 7), _mask(size)
        word = gva & ~7

        def holds(old: int) -> bool:
            return test((old >> shift) & mask, value)

        text = f"wait_until({self._say(gva)}, {compare!r}, {value})"
        if target == self.index:

            def look(mem: Any) -> Any:
                old = mem.get(word, 0)
                return ((old >> shift) & mask, {}) if holds(old) else NEVER

            return int(self._local(text, (word,), (), look, timeout is not None))
        tlp = self._tlp(READ, target, False, False, 0, 0)
        request = Request("ask", self._handle, text, tlp=tlp, cond=holds, how=timeout is not None)
        request.answer = lambda values: (values[0] >> shift) & mask
        request.pieces = ((word, None, False),)
        request.access((stream_object(*tlp[1:5]),), self._drains())
        return int(self._do(request.later((word, *answer_objects(tlp)), self._cached(word))))

    def barrier(self, name: str = "barrier", timeout: float | None = None, *, size: int | None = None) -> None:
        """Wait until all have come. It orders programs, not writes."""
        expected = self.size if size is None else size
        obj, me = ("bar", name), self._handle.key[0]
        arrival = ("bar", name, me)

        def arrive(mem: Any) -> Any:
            count = mem.get(obj, 0)
            return count // expected, {obj: count + 1}

        ticket = self._local(f"barrier({name!r}): arrive", (), (arrival,), arrive)

        def leave(mem: Any) -> Any:
            return (None, {}) if mem.get(obj, 0) // expected > ticket else NEVER

        everybody = [("bar", name, i) for i in range(self._world.programs) if i != me]
        self._local(f"barrier({name!r})", everybody, (), leave, timeout is not None)

    def progress(self) -> int:
        """Nothing: writes become visible by themselves."""
        return 0

    # -- caches -------------------------------------------------------------------------------------------------------

    def invalidate(self, gva: int, size: int = 64) -> None:
        """Forget cached copies of a range: later loads see what is there now or later. Dirty bytes are written back first."""
        self._cache("invalidate", gva, size)

    def writeback(self, gva: int, size: int = 64) -> None:
        """Let cached stores to a range leave as posted writes, in any order among themselves."""
        self._cache("writeback", gva, size)

    def _cache(self, what: str, gva: int, size: int) -> None:
        gva = operator.index(gva)
        target = self._world.place(gva, size, what)
        if not self._handle.stale or target == self.index:
            return
        first, last = gva & ~63, (gva + max(size, 1) - 1) & ~63
        words = tuple(range(first, last + 64, 8))
        request = Request("writeback", self._handle, f"{what}({self._say(gva)}, {size})", words=words, how=what == "invalidate")
        tlp = self._tlp(POSTED, target, False, False, 0, 0)
        reads = words if request.how else ()
        request.access(reads, (*(("y", self.index, word) for word in words), *issue_objects(tlp)))
        self._do(request.later((), words))


def _first(values: Sequence[Any]) -> Any:
    return values[0]


def _as_load(size: int) -> Callable[[bytes], Any]:
    return bytes if size > 8 else lambda data: int.from_bytes(data, "little")


def _fits(value: Any, size: int) -> int:
    number = operator.index(value)
    if number < 0 or number >> (8 * size):
        raise ValueRangeError(f"{number} does not fit an unsigned value of {size} bytes")
    return number


def _as_bytes(value: Any, size: int) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        if len(value) != size:
            raise InvalidArgument(f"{len(value)} bytes for a store of {size}")
        return bytes(value)
    return _fits(value, size).to_bytes(size, "little")


def _compare_swap(expected: int, desired: int) -> Callable[[int, int], int | None]:
    return lambda old, mask: desired if old == expected else None


# -- DMA --------------------------------------------------------------------------------------------------------------


class Completion(Standing):
    """A DMA operation under way."""

    def __init__(self, node: Node, number: Any, size: int) -> None:
        self._node, self._number, self.size = node, number, size
        self._ended = False

    def _standing(self) -> Any:
        return self._number, self._ended

    def _poll(self) -> tuple[bool, int]:
        if self._ended:
            return True, self.size
        request = Request("poll", self._node._handle, "dma.done()", target=self._number)
        done, landed = self._node._do(request.access((("op", self._number),)))
        return done, landed

    def done(self) -> bool:
        """Return whether it is complete; never waits."""
        return self._poll()[0]

    @property
    def bytes_done(self) -> int:
        """Bytes issued or landed."""
        return self._poll()[1]

    def wait(self, timeout: float | None = None) -> int:
        """Wait for completion; returns the bytes moved."""
        if not self._ended:
            request = Request("await", self._node._handle, "dma.wait()", target=self._number, how=timeout is not None)
            self._node._do(request.access((("op", self._number),)))
            self._ended = True
        return self.size

    def cancel(self) -> bool:
        """Refuse: cancelling is not explored."""
        raise InvalidArgument("cancel() is not explored", hint="wait() for the operation")

    def __await__(self) -> Any:
        result = self.wait()
        yield from ()
        return result


class Dma(Standing):
    """A node's DMA engine. It is the same requester as its handle."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.channels: int = node._world.topology.nodes[node.name].dma.channels

    def _standing(self) -> Any:
        return self._node._standing()

    def _submit(
        self,
        text: str,
        pieces: Iterable[tuple[int, int | None, int, int]],
        *,
        visible: bool = False,
        ro: bool = False,
        ido: bool = False,
        tc: int = 0,
        channel: int = 0,
        path: int = 0,
        signal: tuple[int, int] | None = None,
    ) -> Completion:
        node, world = self._node, self._node._world
        if not 0 <= operator.index(channel) < self.channels:
            raise InvalidArgument(f"channel {channel}: {node.name} has {self.channels}")
        words: list[Any] = []
        sizes: list[int] = []
        last: Tlp | None = None
        for dst, src, value, size in pieces:
            at = 0
            target = world.place(dst, size, "dma")
            source = None if src is None else world.place(src, size, "dma")
            if src is not None and max(dst, src) < min(dst, src) + size:
                raise InvalidArgument("source and destination overlap")
            out = None if target == node.index else node._tlp(POSTED, target, ro, ido, tc, path)
            ask = None if source in (None, node.index) else node._tlp(READ, source, ro, ido, tc, path)
            last = out or last
            while at < size:
                step = min(8 - (dst + at) % 8, size - at)
                if src is not None:
                    step = min(step, 8 - (src + at) % 8)
                shift = 8 * ((dst + at) % 8)
                mask = _mask(step) << shift
                if src is None:
                    came: Any = (None, 0, (value >> (8 * at) & _mask(step)) << shift, None)
                else:
                    came = ((src + at) & ~7, 8 * ((src + at) % 8) - shift, 0, ask)
                words.append((came, (out, (dst + at) & ~7, "set", mask)))
                sizes.append(step)
                at += step
        request = Request("submit", node._handle, text, words=(), how=channel)
        if signal is not None:
            gva, value = signal
            gva, _, target = node._checked(gva, 8, "signal", (8,))
            out = None if target == node.index else node._tlp(POSTED, target, False, False, tc, path)
            last = out or last
            request.number = len(words)
            words.append(((None, 0, value, None), (out, gva, "set", WORD)))
            sizes.append(0)
        request.words, request.pieces, request.tlp, request.ended = tuple(words), tuple(sizes), last, visible
        reads: set[Any] = {("n", node.index)}
        writes: set[Any] = set()
        first: set[Any] = set()
        for (obj, _, _, ask), (out, target_obj, _, _) in words:
            writes.add(target_obj)
            if obj is not None:
                reads.add(obj)
            if ask is not None:
                first.add(stream_object(*ask[1:5]))
                reads.update(answer_objects(ask))
            if out is not None:
                writes.update(issue_objects(out))
                reads.update((("I", out.target, out.source), ("n", out.target)))
        number = node._do(request.access(first, node._drains()).later(reads, writes))
        return Completion(node, number, sum(sizes))

    def copy(self, dst: int, src: int, size: int, **options: Any) -> Completion:
        """Copy bytes."""
        dst, src, size = map(operator.index, (dst, src, size))
        text = f"dma.copy({self._node._say(dst)}, {self._node._say(src)}, {size}{_attributes(**options)})"
        return self._submit(text, [(dst, src, 0, size)], **options)

    def fill(self, dst: int, value: int, size: int, *, width: int = 1, **options: Any) -> Completion:
        """Fill with a pattern."""
        pattern = int.from_bytes(_fits(value, width).to_bytes(width, "little") * (size // width + 1), "little")
        text = f"dma.fill({self._node._say(dst)}, {value}, {size}{_attributes(**options)})"
        return self._submit(text, [(operator.index(dst), None, pattern, size)], **options)

    def copy_list(self, pieces: Iterable[tuple[int, int, int]], **options: Any) -> Completion:
        """Copy many pieces."""
        rows = [(operator.index(dst), operator.index(src), 0, size) for dst, src, size in pieces]
        return self._submit(f"dma.copy_list({len(rows)} pieces{_attributes(**options)})", rows, **options)

    def copy_2d(self, dst: int, src: int, width: int, height: int, dst_stride: int, src_stride: int, **options: Any) -> Completion:
        """Copy rows."""
        rows = [(dst + row * dst_stride, src + row * src_stride, 0, width) for row in range(height)]
        return self._submit(f"dma.copy_2d({self._node._say(dst)}, {height} rows{_attributes(**options)})", rows, **options)

    def put_signal(self, dst: int, src: int, size: int, signal: int, value: int, **options: Any) -> Completion:
        """Copy, then store a value behind it. The signal itself is never relaxed."""
        dst, src, size, signal = map(operator.index, (dst, src, size, signal))
        say = self._node._say
        if self._node._world.place(dst, size, "dma") != self._node._world.place(signal, 8, "dma"):
            raise InvalidArgument("the signal must be in the same node as the destination: other nodes are other paths")
        text = f"dma.put_signal({say(dst)}, {say(src)}, {size}, {say(signal)}, {value}{_attributes(**options)})"
        return self._submit(text, [(dst, src, 0, size)], signal=(signal, _fits(value, 8)), **options)


# -- NTB --------------------------------------------------------------------------------------------------------------


class Event:
    """What a doorbell tells: `kind`, `bits`, `vector`."""

    kind = "doorbell"

    def __init__(self, bits: int, vector: int) -> None:
        self.bits, self.vector = bits, vector

    def __repr__(self) -> str:
        return f"Event('doorbell', {self.bits:#x}, vector={self.vector})"


class Ntb(Standing):
    """Doorbells and scratchpads of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def _standing(self) -> Any:
        return self._node._standing()

    def _peer(self, peer: str | int) -> int:
        world = self._node._world
        if isinstance(peer, str):
            if peer not in world.index or peer == self._node.name:
                raise FabricNotFound(f"{peer!r} is no peer of {self._node.name}")
            return world.index[peer]
        others = [i for i, name in enumerate(world.names) if i != self._node.index and not world.topology.nodes[name].is_switch]
        if not 0 <= peer < len(others):
            raise InvalidArgument(f"no peer {peer}")
        return others[peer]

    def _ring(self, peer: str | int, text: str, obj: Any, how: str, mask: int, value: int, tc: int = 0) -> None:
        node = self._node
        target = self._peer(peer)
        tlp = node._tlp(POSTED, target, False, False, tc, 0)
        where = (obj[0], target, *obj[1:])
        request = Request("post", node._handle, text, words=((tlp, where, how, mask, value),))
        node._do(request.access((), (*issue_objects(tlp), *node._drains())).later((), (where,)))

    def peer_db_set(self, peer: str | int, bits: int) -> None:
        """Ring bits of a peer's doorbell: posted."""
        self._ring(peer, f"ntb.peer_db_set({peer!r}, {bits:#x})", ("db",), "db_set", 0, bits)

    def peer_spad_write(self, peer: str | int, idx: int, value: int) -> None:
        """Write a peer's scratchpad: posted."""
        text = f"ntb.peer_spad_write({peer!r}, {idx}, {value})"
        self._ring(peer, text, ("spad", idx), "set", 0xFFFFFFFF, _fits(value, 4))

    def peer_spad_read(self, peer: str | int, idx: int) -> int:
        """Read a peer's scratchpad: a round trip."""
        node, target = self._node, self._peer(peer)
        tlp, obj = node._tlp(READ, target, False, False, 0, 0), ("spad", target, idx)
        request = Request("ask", node._handle, f"ntb.peer_spad_read({peer!r}, {idx})", answer=_first, tlp=tlp)
        request.pieces = ((obj, None, False),)
        request.access((stream_object(*tlp[1:5]),), node._drains())
        return int(node._do(request.later((obj, *answer_objects(tlp)))))

    def spad_read(self, idx: int) -> int:
        """Read an own scratchpad."""
        obj = ("spad", self._node.index, idx)
        return int(self._node._local(f"ntb.spad_read({idx})", (obj,), (), lambda mem: (mem.get(obj, 0), {})))

    def spad_write(self, idx: int, value: int) -> None:
        """Write an own scratchpad."""
        obj = ("spad", self._node.index, idx)
        self._node._local(f"ntb.spad_write({idx}, {value})", (), (obj,), lambda mem: (None, {obj: value}))

    def _own(self, text: str, how: str, bits: int) -> None:
        obj = ("db", self._node.index)
        self._node._local(text, (obj,), (obj,), lambda mem: (None, {obj: changed(mem.get(obj, 0), how, 0, bits)}))

    def db_read(self) -> int:
        """Return the doorbell bits that are set."""
        obj = ("db", self._node.index)
        return int(self._node._local("ntb.db_read()", (obj,), (), lambda mem: ((mem.get(obj) or (0, 0, 0))[0], {})))

    def db_set(self, bits: int) -> None:
        """Set bits of the own doorbell."""
        self._own(f"ntb.db_set({bits:#x})", "db_set", bits)

    def db_clear(self, bits: int) -> None:
        """Clear bits."""
        self._own(f"ntb.db_clear({bits:#x})", "db_clear", bits)

    def db_set_mask(self, bits: int) -> None:
        """Mask bits."""
        self._own(f"ntb.db_set_mask({bits:#x})", "db_mask", bits)

    def db_clear_mask(self, bits: int) -> None:
        """Unmask bits."""
        self._own(f"ntb.db_clear_mask({bits:#x})", "db_unmask", bits)

    def _take(self, text: str, waits: bool, timeout: bool) -> list[Event]:
        obj = ("db", self._node.index)

        def take(mem: Any) -> Any:
            bits, masked, told = mem.get(obj) or (0, 0, 0)
            fresh = bits & ~masked & ~told
            if not fresh:
                return NEVER if waits else (0, {})
            return fresh, {obj: (bits, masked, told | fresh)}

        fresh = self._node._local(text, (obj,), (obj,), take, timeout)
        return [Event(1 << bit, bit) for bit in range(64) if fresh >> bit & 1]

    def poll(self) -> list[Event]:
        """Take the events that are there."""
        return self._take("ntb.poll()", False, False)

    def wait_event(self, timeout: float | None = None) -> list[Event]:
        """Wait until there are events and take them."""
        return self._take("ntb.wait_event()", True, timeout is not None)


__all__ = ["Node", "World"]
