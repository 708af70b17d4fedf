# SPDX-License-Identifier: Apache-2.0
"""A node: the process that is a host, accelerator or memory box, or one of its clients."""

from __future__ import annotations

import math
import operator
import os
import time
import weakref
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._handle import SLICE_NS, NodeHandle, Requester, check, encoded, ffi, lib
from .dma import Dma
from .errors import ClosedHandle, InvalidArgument, WaitTimeout
from .memory import Buffer, map_view
from .ntb import Ntb
from .registered import Registered, register, register_address

if TYPE_CHECKING:
    import random

    from .fabric import Fabric

COMPARE = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARE = {name: code for code, name in enumerate(COMPARE)}  # the core's numbers
_KINDS = {"load": 0, "store": 1, "read": 2, "write": 3, "fetch_add": 4, "swap": 5, "compare_swap": 6, "flush": 7}
_ESTIMATED = _KINDS | {"dma_read": 9, "dma_write": 10}
_ATTRIBUTES = {"ro": 1, "ido": 2}
ALL_NODES = 0xFFFFFFFF
_BEGUN_NS = 50_000  # how often a program that waits takes on what it began


def seconds_to_ps(seconds: float) -> int:
    """Return picoseconds; raises InvalidArgument for what is no duration."""
    if not isinstance(seconds, (int, float)) or math.isnan(seconds) or seconds < 0:
        raise InvalidArgument(f"{seconds!r} is no number of seconds; give one that is not negative")
    return int(min(seconds * 1e12, 1 << 62))


class Operation:
    """One operation under way: wait for it, poll it, or await it.

    Attributes:
        kind: "load", "store", "read"…
        gva: where.
    """

    def __init__(self, node: Node, kind: str, record: Any, keep: Any) -> None:
        self.kind = kind
        self.gva: int = record.gva
        self._node = node
        self._record = record
        self._keep = keep
        self._error: BaseException | None = None
        self._status = lib.FBX_E_AGAIN
        if node._scheduler is not None:
            node._scheduler.site()
        self._settle(lib.fbx_op_begin(node._pointer(), record))
        if self._status == lib.FBX_E_AGAIN:
            node._go_on(self)
        if node._scheduler is not None:
            node._scheduler.point()

    def _settle(self, status: int) -> None:
        """Note how far it is; what went wrong is known only right now, before the thread's next failure."""
        self._status = status
        if status < 0 and status != lib.FBX_E_AGAIN:
            try:
                check(status, self._node)
            except Exception as error:
                self._error = error

    def done(self) -> bool:
        """Return whether it is complete; moves it along, never waits."""
        if self._status == lib.FBX_E_AGAIN:
            self._settle(lib.fbx_op_advance(self._node._pointer(), self._record))
        return bool(self._status != lib.FBX_E_AGAIN)

    @property
    def issued_ps(self) -> int:
        """Fabric time at which it was issued, in ps."""
        return int(self._record.issued_ps)

    @property
    def arrives_ps(self) -> int:
        """Fabric time at which it reaches the memory, in ps; a posted write is visible then."""
        return int(self._record.arrives_ps)

    @property
    def completes_ps(self) -> int:
        """Fabric time at which it is complete for the issuer, in ps."""
        return int(self._record.completes_ps)

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for completion and return the result.

        Args:
            timeout: seconds of fabric time; None waits as long as it takes.
        Raises:
            WaitTimeout: it is still under way; it goes on.
        """
        pointer = self._node._pointer()
        deadline = None if timeout is None else lib.fbx_fabric_now(self._node.fabric._live()) + seconds_to_ps(timeout)
        while self._status == lib.FBX_E_AGAIN:
            limit = SLICE_NS
            if deadline is not None:
                left = deadline - lib.fbx_fabric_now(self._node.fabric._live())
                if left <= 0 and not self.done():
                    raise WaitTimeout(f"{self.kind} at {self.gva:#x} takes longer than {timeout} s", node=self._node.name)
                limit = max(min(limit, left // 1000), 0)
            if self._status == lib.FBX_E_AGAIN and self._node._scheduler is not None:
                until = self._record.next_ps if deadline is None else min(self._record.next_ps, deadline)
                self._node._scheduler.sleep_until(until)
                self.done()
            elif self._status == lib.FBX_E_AGAIN:
                self._settle(lib.fbx_op_wait(pointer, self._record, limit))
        return self.result()

    def result(self) -> Any:
        """Return what it brought: an int, bytes, or None.

        Raises:
            InvalidArgument: it is not complete. Otherwise what the operation itself raises.
        """
        if self._status == lib.FBX_E_AGAIN:
            raise InvalidArgument("the operation is under way; wait() for it, or await it")
        if self._error is not None:
            raise self._error
        if self.kind in ("store", "write", "flush"):
            return None
        if self.kind == "read" or (self.kind == "load" and self._record.bytes > 8):
            return bytes(self._keep)
        if self.kind == "compare_swap" and self._record.bytes == 16:
            return int(self._record.operand[0]) | int(self._record.operand[1]) << 64
        return int(self._record.operand[0])

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        while not self.done():
            left = self._record.next_ps - lib.fbx_fabric_now(self._node.fabric._live())
            yield from asyncio.sleep(max(left, 0) / 1e12).__await__()
            lib.fbx_fabric_slept(self._node.fabric._live(), max(left, 0) // 1000)
        return self.result()

    def __del__(self) -> None:
        if getattr(self, "_status", None) == lib.FBX_E_AGAIN and not self._node.closed:
            lib.fbx_op_forget(self._node._handle.pointer, self._record)  # nobody asks any more, and its buffer goes


class Node(Requester):
    """An attached node. Created by `Fabric.attach` or `fabrex.attach`.

    Scalar operations (`load`, `store`, `fetch_add`, `swap`, `compare_swap`) come from the compiled base.

    Attributes:
        name: the node's name in the topology.
        fabric: the Fabric that it is attached to.
        rank, size: position among the nodes of its kind and their number; a launcher's environment takes precedence.
        ntb: its NTB device: windows, doorbells, scratchpads, messages, events.
        dma: its DMA engine.
    """

    def __init__(self, fabric: Fabric, name: str, kind: int = 2) -> None:
        self.fabric = fabric
        self.name = name
        self._handle = NodeHandle(fabric._handle, name, kind)
        self._bind(self._handle.address, self._handle)
        self._address = self._handle.address
        self._begun: list[Operation] = []
        self._scheduler: Any = fabric._scheduler
        if self._scheduler is not None:
            self._schedule(self._scheduler)
        self.index: int = lib.fbx_node_index(self._handle.pointer)
        self.owner: bool = bool(lib.fbx_node_is_owner(self._handle.pointer))
        if fabric.timing and self._scheduler is None:
            lib.fbx_set_binding_cost(self._handle.pointer, self._call_cost_ps())
        self.rank, self.size = self._place()
        self.ntb = Ntb(self)
        self.dma = Dma(self)
        self._random: random.Random | None = None
        self._registered: weakref.WeakSet[Registered] = weakref.WeakSet()

    def _call_cost_ps(self) -> int:
        """Measure what a timed call from Python takes longer than it was asked to: that counts toward modelled time."""
        ask, nothing, clock = 400, self._nothing, time.perf_counter_ns
        stretch = self.fabric.topology.dilation_num / self.fabric.topology.dilation_den
        asked = int(ask * 1000 / stretch)
        empty, taken = [], []
        for _ in range(101):
            start = clock()
            empty.append(clock() - start)
            start = clock()
            nothing(asked, size=8)
            taken.append(clock() - start)
        return max(0, min(int((sorted(taken)[50] - sorted(empty)[50] - ask) * 1000 / stretch), 500_000))

    def _place(self) -> tuple[int, int]:
        launched = self._scheduler is None and os.environ.get("FABREX_NODE") == self.name
        if launched and "FABREX_RANK" in os.environ and "FABREX_SIZE" in os.environ:
            return int(os.environ["FABREX_RANK"]), int(os.environ["FABREX_SIZE"])
        alike = [n.name for n in self.fabric.topology.nodes.values() if n.kind == self.fabric.topology.nodes[self.name].kind]
        return alike.index(self.name), len(alike)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "owner" if self.owner else "client"
        return f"<Node {self.name} of {self.fabric.name!r} ({state})>"

    @property
    def closed(self) -> bool:
        """Whether this handle, or its fabric, is closed."""
        return self._handle.closed or self.fabric.closed

    def _pointer(self) -> Any:
        if self._handle.closed or self._handle.fabric.closed or self._handle.pid != os.getpid():
            forked = self._handle.pid != os.getpid()
            raise ClosedHandle(
                f"the handle of {self.name} " + ("was opened before fork" if forked else "is closed"),
                node=self.name,
                hint="attach the node anew in this process",
            )
        return self._handle.pointer

    def close(self) -> None:
        """Detach. Buffers stay, registered memory goes; posted writes that have departed still land. Idempotent."""
        for registered in list(self._registered):
            registered.close()
        self._handle.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a node is what this process is, and cannot be pickled; pickle the fabric and attach there")

    # -- memory -------------------------------------------------------------------------------------------------------

    def alloc(
        self, size: int, name: str | None = None, *, on: str | None = None, tier: str | None = None, align: int = 64
    ) -> Buffer:
        """Allocate and commit `size` bytes.

        Args:
            size: bytes, at least 1.
            name: for `fabric.buffer(name)` in other processes; letters, digits, `_ . -`, at most 63.
            on: the node whose memory it is; this one by default.
            tier: the tier of memory; the node's first by default.
            align: a power of two, at least 64 is used.
        Raises:
            OutOfFabricMemory: the tier, the shared-memory file system or the machine has no room.
            FabricExists: the name is taken.
        See: fbx_alloc().
        """
        region = self.fabric._region(self.name if on is None else on, tier)
        record = ffi.new("struct fbx_buffer *")
        check(lib.fbx_alloc(self._pointer(), region, size, align, encoded(name or ""), record), self)
        self._point()
        return Buffer(self.fabric, self, record[0])

    def register(self, data: Any, *, read_only: bool | None = None, service: bool = False) -> Registered:
        """Give memory that this process already has a global address.

        Args:
            data: a contiguous NumPy array, CPU tensor, bytearray, or anything with the buffer protocol. It is held, and its
                buffer exported, until `close()`.
            read_only: peers may only read; the default is what the memory itself permits.
            service: have this process's service thread move the bytes even where the kernel would.
        Returns:
            Registered: `gva`, `size`, `close()`.
        Raises:
            InvalidArgument: no memory of this process, or not contiguous.
        See: fbx_register().
        """
        registered = register(self, data, read_only=read_only, service=service)
        self._registered.add(registered)
        return registered

    def register_address(
        self, pointer: int, nbytes: int, *, keepalive: Any = None, read_only: bool = False, service: bool = False
    ) -> Registered:
        """Give `nbytes` from address `pointer` of this process a global address.

        Memory that was freed meanwhile makes operations fail and nothing worse, so far as the system can tell.

        Args:
            keepalive: an object that is held until `close()`, such as the tensor whose storage it is.
        Raises:
            AddressError: nothing is mapped there.
        """
        registered = register_address(self, pointer, nbytes, keepalive=keepalive, read_only=read_only, service=service)
        self._registered.add(registered)
        return registered

    def view(self, gva: int, size: int) -> memoryview:
        """Return the raw bytes, functional and untimed. See `Buffer.memory`."""
        return map_view(self, gva, size)

    # -- bulk ---------------------------------------------------------------------------------------------------------

    def _record(self, kind: str, gva: int, size: int, pointer: Any, **attributes: Any) -> Any:
        record = ffi.new("struct fbx_op *")
        record.kind = _KINDS[kind]
        address = operator.index(gva)
        if not 0 <= address < 1 << 64:
            raise OverflowError(f"{address} is no 64-bit address")
        record.gva = address
        record.bytes = size
        record.buffer = pointer
        for name, value in attributes.items():
            if name == "tc":
                if not 0 <= value <= 7:
                    raise InvalidArgument(f"traffic class {value}: they are 0 to 7")
                record.tc = value
            elif name == "path":
                if not 0 <= value <= 3:
                    raise InvalidArgument(f"path {value}: they are 0 to 3")
                record.path = value
            elif value:
                record.attr |= _ATTRIBUTES[name]
        return record

    def _run(self, record: Any) -> None:
        pointer = self._pointer()
        if self._scheduler is not None:
            status, _ = self._scheduler.begin(self._address, int(ffi.cast("uintptr_t", record)))
            check(status, self)
            return
        status = lib.fbx_op_begin(pointer, record)
        try:
            while status == lib.FBX_E_AGAIN:
                status = lib.fbx_op_wait(pointer, record, SLICE_NS)
        except BaseException:
            lib.fbx_op_forget(pointer, record)  # its buffer goes
            raise
        check(status, self)

    def read(self, gva: int, size: int, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0) -> bytes:
        """Read `size` bytes (bulk PIO: one request of the CPU's access width at a time, so slow over a real fabric)."""
        out = bytearray(operator.index(size))
        self.readinto(gva, out, ro=ro, ido=ido, tc=tc, path=path)
        return bytes(out)

    def readinto(self, gva: int, array: Any, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0) -> int:
        """Fill `array` (any writable C-contiguous buffer) from `gva`; returns the bytes read."""
        pointer = ffi.from_buffer("char[]", array, require_writable=True)
        size = len(pointer)
        if self.fabric.timing or ro or ido or tc or path:
            self._run(self._record("read", gva, size, pointer, ro=ro, ido=ido, tc=tc, path=path))
        elif (code := lib.fbx_read(self._pointer(), operator.index(gva), pointer, size)) < 0:
            check(code, self)
        return size

    def write(self, gva: int, data: Any, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0) -> int:
        """Write all of `data` (any C-contiguous buffer), posted; returns the bytes written.

        Returns when the last byte has left this node; it is visible at the peer at its arrival. Faults of the fabric do not
        raise: see `flush(check=True)`.
        """
        pointer = ffi.from_buffer("char[]", data)
        size = len(pointer)
        if self.fabric.timing or ro or ido or tc or path:
            self._run(self._record("write", gva, size, pointer, ro=ro, ido=ido, tc=tc, path=path))
        elif (code := lib.fbx_write(self._pointer(), operator.index(gva), pointer, size)) < 0:
            check(code, self)
        return size

    def gather(self, gvas: Any, out: Any, size: int | None = None) -> None:
        """Load from many addresses in one call, one after the other.

        Args:
            gvas: addresses: a buffer of uint64 (a NumPy array) or an iterable of ints.
            out: a writable buffer; element i receives what is at gvas[i].
            size: bytes of each; len(out) divided by the number of addresses if left out.
        Raises:
            As `load`; what was loaded before stays in `out`.
        """
        self._many(lib.fbx_gather, gvas, ffi.from_buffer("char[]", out, require_writable=True), size)

    def scatter(self, gvas: Any, values: Any, size: int | None = None) -> None:
        """Store to many addresses in one call; the mirror of `gather`."""
        self._many(lib.fbx_scatter, gvas, ffi.from_buffer("char[]", values), size)

    def _many(self, call: Any, gvas: Any, data: Any, size: int | None) -> None:
        addresses = _addresses(gvas)
        count = len(addresses)
        if not count:
            return
        each = len(data) // count if size is None else size
        if each < 1 or each * count != len(data):
            raise InvalidArgument(f"{len(data)} bytes do not divide into {count} elements" + (f" of {size}" if size else ""))
        done, record = ffi.new("uint64_t *"), ffi.new("struct fbx_op *")
        record.kind = lib.FBX_OTHER
        if self._scheduler is not None:
            self._scheduler.site()
        try:
            while (code := call(self._pointer(), record, addresses, count, each, data, done, SLICE_NS)) == lib.FBX_E_AGAIN:
                if self._scheduler is not None:
                    self._scheduler.operation(self._address, int(ffi.cast("uintptr_t", record)))
        except BaseException:
            if record.kind != lib.FBX_OTHER and not self.closed:
                lib.fbx_op_forget(self._handle.pointer, record)
            raise
        check(code, self)

    # -- order and waiting --------------------------------------------------------------------------------------------

    def order(self, *, ro: bool = False, ido: bool = False, tc: int = 0) -> None:
        """Set what this handle's operations have that do not say otherwise.

        Args:
            ro: relaxed ordering. ido: ID-based ordering. tc: traffic class, 0 to 7.
        See: fbx_set_order().
        """
        if not 0 <= operator.index(tc) <= 7:
            raise InvalidArgument(f"traffic class {tc}: they are 0 to 7")
        check(lib.fbx_set_order(self._pointer(), (1 if ro else 0) | (2 if ido else 0), tc), self)

    def drain(self) -> None:
        """Let write-combining buffers leave for the link: local and cheap.

        What is stored after it does not pass what was stored before it through write-combining windows.
        """
        check(lib.fbx_drain(self._pointer()), self)
        self._point()

    def invalidate(self, gva: int, size: int = 64) -> None:
        """Forget cached copies of a range. A node that does not cache (see `Fabric.attach`) has none to forget."""

    def writeback(self, gva: int, size: int = 64) -> None:
        """Let cached stores to a range leave for the fabric. A node that does not cache has none."""

    def fence(self) -> None:
        """Order, without waiting: no later posted write of this handle becomes visible before an earlier one."""
        check(lib.fbx_fence(self._pointer()), self)
        self._point()

    def flush(self, target: str | None = None, *, check: bool = False) -> None:
        """Return when this node's earlier posted writes are visible at `target` (all that it wrote to, if left out).

        Args:
            check: raise LinkDown if posted writes of this handle were lost since the last such check.
        Raises:
            LinkDown, PeerLost: the read that flushes cannot get there.
            CompletionTimeout: a stopped process holds the delivery.
        """
        if target is not None:
            targets = [self.fabric._node_index(target)]
        else:
            room = len(self.fabric.topology.nodes)
            written = ffi.new("uint32_t[]", room)
            targets = list(written[0 : min(lib.fbx_written_nodes(self._pointer(), written, room), room)])
        for index in targets:
            record = self._record("flush", 0, 0, ffi.NULL)
            record.operand[0] = index
            self._run(record)
        if check:
            _raise_if(lib.fbx_check_lost(self._pointer()), self)

    def wait_until(self, gva: int, compare: str, value: int, timeout: float | None = None, *, size: int = 8) -> int:
        """Wait until the unsigned value at `gva` compares so with `value`; returns what was found.

        Args:
            compare: "==", "!=", "<", "<=", ">" or ">=".
            timeout: seconds of fabric time; None waits for ever.
        Raises:
            WaitTimeout: it did not; PeerLost, LinkDown: it no longer can.
        """
        if compare not in _COMPARE:
            raise InvalidArgument(f"{compare!r} is no comparison; use one of {', '.join(_COMPARE)}")
        value = operator.index(value)
        if value < 0 or size not in (1, 2, 4, 8) or value >> (8 * size):
            raise OverflowError(f"{value} does not fit an unsigned value of {size} bytes")
        pointer, last, record = self._pointer(), ffi.new("uint64_t *"), ffi.new("struct fbx_op *")
        record.kind = lib.FBX_OTHER
        gva = operator.index(gva)
        deadline = (1 << 64) - 1 if timeout is None else self.fabric.now_ps + seconds_to_ps(timeout)
        while True:
            if self._scheduler is not None:
                status, last[0] = self._scheduler.wait_until(
                    self._address, gva, size, _COMPARE[compare], value, min(deadline, (1 << 64) - 1)
                )
            else:
                if self._begun:
                    self._take_on()
                limit = _BEGUN_NS if self._begun else SLICE_NS
                status = lib.fbx_wait_until(pointer, record, gva, size, _COMPARE[compare], value, deadline, limit, last)
            if status != lib.FBX_E_AGAIN:
                check(status, self)
                return int(last[0])
            if timeout is not None and self.fabric.now_ps >= deadline:
                raise WaitTimeout(
                    f"the value at {gva:#x} is {last[0]} and was to be {compare} {value} within {timeout} s",
                    op="wait",
                    node=self.name,
                    gva=gva,
                )
            self._pointer()

    def barrier(self, name: str = "barrier", timeout: float | None = None, *, size: int | None = None) -> None:
        """Wait until all `size` nodes (this one's `size` by default) have arrived at barrier `name`.

        Raises:
            WaitTimeout: not all came; PeerLost: one of them died.
        """
        ticket = ffi.new("uint64_t *")
        expected = self.size if size is None else size
        deadline = None if timeout is None else self.fabric.now_ps + seconds_to_ps(timeout)

        called = encoded(name)
        try:
            slice_ns = SLICE_NS if self._scheduler is None else 0
            while (code := lib.fbx_barrier(self._pointer(), called, expected, ticket, slice_ns)) == lib.FBX_E_AGAIN:
                if self._scheduler is not None:
                    self._scheduler.watch(self._address, 3, lib.fbx_names_seen(self.fabric._live()), _never(deadline))
                elif self._begun:
                    self._take_on()
                if deadline is not None and self.fabric.now_ps >= deadline:
                    raise WaitTimeout(f"not all {expected} nodes came to barrier {name!r} within {timeout} s", node=self.name)
            check(code, self)
            self._point()
        except BaseException:
            if ticket[0] and not self.closed:
                lib.fbx_barrier_leave(self._handle.pointer, called, ticket[0])  # so that it can come again
            raise

    def progress(self) -> int:
        """Deliver what is due at this node; returns the number of writes delivered. Rarely needed: every access does it."""
        delivered = check(lib.fbx_progress(self._pointer()), self)
        self._point()
        return delivered

    # -- time and chance ----------------------------------------------------------------------------------------------

    @property
    def now_ps(self) -> int:
        """Fabric time, in ps since the fabric was made."""
        return self.fabric.now_ps

    def sleep(self, seconds: float) -> None:
        """Let `seconds` of fabric time pass."""
        deadline = self.fabric.now_ps + seconds_to_ps(seconds)
        if self._scheduler is not None:
            self._scheduler.sleep_until(deadline)
            return
        stretch = self.fabric.topology.dilation_num / self.fabric.topology.dilation_den
        while (left := deadline - self.fabric.now_ps) > 0:
            self._pointer()
            nap = min(left / 1e12 * stretch, 0.5)
            time.sleep(nap)
            lib.fbx_fabric_slept(self.fabric._live(), int(nap * 1e9))

    @property
    def random(self) -> random.Random:
        """Random numbers that follow from the fabric's seed and this node alone: the same in every run with that seed."""
        if self._random is None:
            import random

            self._random = random.Random(self.fabric.info()["seed"] * 4099 + self.index)
        return self._random

    def _point(self) -> None:
        """Under the virtual clock: let others run whose turn it is."""
        if self._scheduler is not None and self._scheduler.current() >= 0:
            self._scheduler.point()

    # -- resumable ----------------------------------------------------------------------------------------------------

    def _go_on(self, operation: Operation) -> None:
        """Have an operation that was begun go on while this program does other things."""
        self._begun = [other for other in self._begun if other._status == lib.FBX_E_AGAIN]
        self._begun.append(operation)
        if self._scheduler is not None:
            check(lib.fbx_sim_begun(lib.fbx_sim_of(self.fabric._live()), self._pointer(), operation._record), self)

    def _take_on(self) -> None:
        """Take operations that were begun as far as they go: called while this program waits for something else."""
        for operation in self._begun:
            operation.done()

    def begin(self, kind: str, gva: int, *arguments: Any, size: int = 8, **attributes: Any) -> Operation:
        """Start an operation without waiting for it.

        Args:
            kind: "load", "store", "read", "write", "fetch_add", "swap" or "compare_swap".
            gva: where.
            arguments: as for the method of that name.
        Returns:
            An Operation: `wait(timeout)`, `done()`, `result()`, `await`.
        """
        if kind not in _KINDS or kind == "flush":
            raise InvalidArgument(f"{kind!r} is no operation; use one of {', '.join(k for k in _KINDS if k != 'flush')}")
        wanted = {"load": 0, "read": 1, "compare_swap": 2}.get(kind, 1)
        if len(arguments) != wanted:
            raise TypeError(f"{kind} takes {wanted} argument(s) after the address, not {len(arguments)}")
        size = operator.index(size)
        keep: Any = None
        pointer = ffi.NULL
        if kind == "read" or (kind == "load" and size > 8):
            size = operator.index(arguments[0]) if kind == "read" else size
            keep = bytearray(size)
            pointer = ffi.from_buffer("char[]", keep, require_writable=True)
        elif kind == "write":
            pointer = ffi.from_buffer("char[]", arguments[0])
            size = len(pointer)
        elif kind == "store" and size > 8:
            value = arguments[0]
            wide = bytes(value) if isinstance(value, (bytes, bytearray)) else operator.index(value).to_bytes(size, "little")
            if len(wide) != size:
                raise InvalidArgument(f"{len(wide)} bytes for a store of {size}")
            pointer = ffi.from_buffer("char[]", wide)
        record = self._record(kind, gva, size, pointer, **attributes)
        if kind not in ("load", "read", "write") and not (kind == "store" and size > 8):
            width = 16 if kind == "compare_swap" and size == 16 else min(max(size, 1), 8)
            for i, argument in enumerate(arguments):
                value = operator.index(argument)
                if value < 0 or value >> (8 * width):
                    raise OverflowError(f"{value} does not fit {width} bytes")
                record.operand[2 * i] = value & (1 << 64) - 1
                record.operand[2 * i + 1] = value >> 64
        # The exported buffer is held with the operation: it must not shrink or close while bytes move.
        return Operation(self, kind, record, pointer if keep is None else keep)

    def estimate(self, kind: str, gva: int, size: int = 8) -> dict[str, int]:
        """Return what the model says an operation takes on the idle fabric.

        Args:
            kind: as for `begin`, "flush", or "dma_write" and "dma_read" (between `gva` and memory of this node).
        Returns:
            departs_ps, arrives_ps, completes_ps (from issue), hops, wire_bytes.
        """
        if kind not in _ESTIMATED:
            raise InvalidArgument(f"{kind!r} is no operation")
        out = ffi.new("struct fbx_estimate *")
        check(lib.fbx_estimate(self._pointer(), _ESTIMATED[kind], gva, size, out), self)
        return {name: int(getattr(out, name)) for name in ("departs_ps", "arrives_ps", "completes_ps", "hops", "wire_bytes")}


# `flush` has a parameter that is called like the function.
_raise_if = check


def _never(deadline: int | None) -> int:
    """Return a deadline as the core takes it."""
    return (1 << 64) - 1 if deadline is None else min(deadline, (1 << 64) - 1)


def _addresses(gvas: Any) -> Any:
    """Return a C array of uint64 from a buffer of them or an iterable of ints."""
    try:
        view = memoryview(gvas)
    except TypeError:
        values: Iterable[int] = gvas
        return ffi.new("uint64_t[]", [operator.index(v) for v in values])
    if view.itemsize != 8 or view.format not in ("Q", "q", "L", "l", "<Q", "=Q", "@Q") or not view.c_contiguous:
        raise InvalidArgument("addresses are a C-contiguous buffer of uint64, or an iterable of ints")
    return ffi.from_buffer("uint64_t[]", gvas)


__all__ = ["ALL_NODES", "COMPARE", "Node", "Operation"]
