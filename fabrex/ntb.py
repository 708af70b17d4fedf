# SPDX-License-Identifier: Apache-2.0
"""A node's NTB device: windows, doorbells, scratchpads, messages, links and events.

Methods are called like the functions of the Linux NTB API (`include/linux/ntb.h`) without their prefix, and take peers by name
or by peer index.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ._handle import SLICE_NS, check, ffi, lib
from .errors import InvalidArgument, ValueRangeError, WaitTimeout

if TYPE_CHECKING:
    from .node import Node

_RETRY_PS = 100_000
BUS = 1 << 63
"""Marks an address as one on the calling node's own bus."""

_PERMISSIONS = {"": 0, "none": 0, "r": 1, "w": 2, "rw": 3}
_MAPPINGS = {"uc": 0, "uncached": 0, "wc": 1, "write-combining": 1, "managed": 2}


class Window:
    """One memory window of a node (ntb_mw)."""

    def __init__(self, node: Node, index: int) -> None:
        self.node = node
        self.index = index

    def _info(self) -> Any:
        out = ffi.new("struct fbx_window_info *")
        check(lib.fbx_mw_info(self.node.fabric._live(), self.node.index, self.index, out), self.node)
        return out

    def __repr__(self) -> str:
        info = self._info()
        where = f"{self.peer} {info.translation:#x}+{info.bytes:#x}" if info.programmed else "not programmed"
        return f"<Window {self.index} of {self.node.name}: {where}>"

    @property
    def programmed(self) -> bool:
        """Whether it leads anywhere."""
        return bool(self._info().programmed)

    @property
    def lut(self) -> bool:
        """Whether it is an entry of the look-up table: small, of one size."""
        return bool(self._info().lut)

    @property
    def peer(self) -> str | None:
        """The node that it shows, or None."""
        info = self._info()
        return self.node.fabric._node_name(info.peer) if info.programmed else None

    @property
    def translation(self) -> int:
        """Bus address at the peer of the window's first byte."""
        return int(self._info().translation)

    @property
    def size(self) -> int:
        """Bytes that it shows; 0 if it is not programmed."""
        return int(self._info().bytes)

    @property
    def max_size(self) -> int:
        """Most bytes that the device lets it show."""
        return int(self._info().max_bytes)

    @property
    def address_align(self) -> int:
        """Alignment of a translation, in bytes (ntb_mw_get_align)."""
        return int(self._info().address_align)

    @property
    def size_align(self) -> int:
        """Alignment of a size, in bytes (ntb_mw_get_align)."""
        return int(self._info().size_align)

    @property
    def address(self) -> int:
        """Address of its first byte on this node's own bus, for load, store, read and write of this node."""
        return int(self._info().bus) | BUS

    def set_translation(
        self, peer: str, address: int, size: int, *, perm: str = "rw", mapping: str = "managed", ro: bool = False, ido: bool = False
    ) -> None:
        """Show `size` bytes from bus address `address` of `peer` (ntb_peer_mw_set_trans).

        Args:
            perm: "r", "w", "rw" or "none".
            mapping: "uc" (uncached): each store is a packet, in order; "wc" (write-combining): stores wait in buffers that leave in
                any order until `drain()`; "managed", as the manager's own windows: bulk writes combine, single stores keep
                their order unless the topology says `pio: {wc: true}`.
            ro, ido: attributes of every request through it (relaxed ordering, ID-based ordering).
        Raises:
            WindowError: the device's alignment or size forbids it; nothing has changed.
            AddressError: there is no memory on the peer's bus; nothing has changed.
            SystemRefused: the register reads back something else (EIO); the window leads nowhere now.
            Busy: a process is stopped in the middle of an operation through it.
        See: fbx_mw_set_trans().
        """
        if perm not in _PERMISSIONS or mapping not in _MAPPINGS:
            raise InvalidArgument(f"perm is one of {', '.join(map(repr, _PERMISSIONS))}; mapping of {', '.join(_MAPPINGS)}")
        fabric = self.node.fabric
        if not 0 <= address < 1 << 63 or not 0 <= size < 1 << 63:
            raise InvalidArgument("addresses and sizes are not negative and have 63 bits")
        code = lib.fbx_mw_set_trans(
            fabric._live(),
            self.node.index,
            self.index,
            fabric._node_index(peer),
            address,
            size,
            _PERMISSIONS[perm] | (lib.FBX_WINDOW_RO if ro else 0) | (lib.FBX_WINDOW_IDO if ido else 0),
            _MAPPINGS[mapping],
        )
        check(code, self.node)

    def clear_translation(self) -> None:
        """Let it lead nowhere (ntb_peer_mw_clear_trans). After this nothing lands through it any more."""
        check(lib.fbx_mw_clear_trans(self.node.fabric._live(), self.node.index, self.index), self.node)

    def inject_stuck(self, bits: int) -> None:
        """Inject a fault: these bits of the translation register no longer take a 1; 0 repairs it.

        `set_translation` reads back what it wrote. If that differs it raises SystemRefused (EIO), as the drivers do, and the
        window leads nowhere.
        """
        check(lib.fbx_mw_inject_stuck(self.node.fabric._live(), self.node.index, self.index, _word(bits, 64)), self.node)


class Windows:
    """The windows of a node, by index: direct ones first, then those of the look-up table."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __len__(self) -> int:
        return check(lib.fbx_mw_count(self._node.fabric._live(), self._node.index), self._node)

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._node.name} has {len(self)} windows, no window {index}")
        return Window(self._node, index)

    def __iter__(self) -> Iterator[Window]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class Event:
    """Something that a node's NTB device reports.

    Attributes:
        kind: "doorbell", "message", "link" or "msi".
        bits: doorbell bits; status bits of messages; the peers (by index) whose link is up now; the vector's bit.
        vector: the interrupt vector of a doorbell or an interrupt message; None for others.
    """

    kind: Literal["doorbell", "message", "link", "msi"]
    bits: int
    vector: int | None = None


@dataclass(frozen=True)
class MsiDescriptor:
    """What a peer must know to interrupt this node by a message (struct ntb_msi_desc): pass it on by whatever way.

    Attributes:
        addr_offset: where in the node's interrupt page to write.
        data: what to write there, 32 bits.
    """

    addr_offset: int
    data: int

    @property
    def vector(self) -> int:
        """The interrupt vector that it rings."""
        return self.addr_offset // 4


@dataclass(frozen=True)
class LinkState:
    """State of a device's links.

    Attributes:
        peers: bit i is set where the link to peer i is up (the first 64).
        speed: PCIe generation of the node's own link; 0 while nothing is up.
        width: its lanes; 0 while nothing is up.
    """

    peers: int
    speed: int
    width: int


_EVENTS = 128
_KINDS: dict[int, Literal["doorbell", "message", "link", "msi"]] = {1: "doorbell", 2: "message", 3: "link", 4: "msi"}


def _word(value: Any, bits: int) -> int:
    number = operator.index(value)
    if not 0 <= number < 1 << bits:
        raise ValueRangeError(f"{number:#x} does not fit {bits} bits")
    return number


def _index(value: Any) -> int:
    """Return an index for the core, which knows how many there are."""
    number = operator.index(value)
    return number if 0 <= number < 0xFFFFFFFF else 0xFFFFFFFF


class Ntb:
    """The NTB device of one node.

    A doorbell bit that is set and not masked is an event, told once to whoever waits or polls first; the register keeps the bit
    until it is cleared. Writes to a peer (doorbells, scratchpads, messages) are posted: they arrive behind the data that was
    written there before them, and vanish like data where the link is down.

    Attributes:
        windows: its memory windows, by index.
    """

    def __init__(self, node: Node) -> None:
        self.windows = Windows(node)
        self._node = node
        self._callback: Callable[[Event], object] | None = None

    def __repr__(self) -> str:
        return f"<Ntb of {self._node.name}>"

    def _call(self, function: Any, *arguments: Any) -> int:
        if self._node._scheduler is not None:
            self._node._scheduler.site()
        result = function(self._node._pointer(), *arguments)
        if self._node._scheduler is not None:
            while result == lib.FBX_E_AGAIN:  # a peer's registers take no more for now
                self._node._scheduler.sleep_until(self._node.now_ps + _RETRY_PS)
                result = function(self._node._pointer(), *arguments)
            if result >= 0:
                self._node._point()
        return check(result, self._node)

    def _visit(self, peer: str | int) -> int:
        """Under the virtual clock: make the round trip to a peer that a read of its registers is. Returns its index."""
        pidx = self.peer_index(peer)
        if self._node._scheduler is not None and 0 <= pidx < self.peer_port_count():
            self._node.flush(self.peer_name(pidx))
        return pidx

    def _get(self, function: Any, *arguments: Any, kind: str = "uint64_t *") -> int:
        out = ffi.new(kind)
        self._call(function, *arguments, out)
        return int(out[0])

    # -- ports --------------------------------------------------------------------------------------------------------

    def port_number(self) -> int:
        """Return this node's port (ntb_port_number)."""
        return self._call(lib.fbx_port_number)

    def peer_port_count(self) -> int:
        """Return how many peers there are (ntb_peer_port_count)."""
        return self._call(lib.fbx_peer_port_count)

    def peer_port_number(self, peer: str | int) -> int:
        """Return a peer's port (ntb_peer_port_number)."""
        return self._call(lib.fbx_peer_port_number, self.peer_index(peer))

    def peer_port_idx(self, port: int) -> int:
        """Return the index of the peer at a port (ntb_peer_port_idx)."""
        return self._call(lib.fbx_peer_port_idx, _word(port, 31))

    def peer_index(self, peer: str | int) -> int:
        """Return a peer's index from its name; an index stays what it is, and is checked where it is used."""
        if isinstance(peer, str):
            return self._call(lib.fbx_node_pidx, self._node.fabric._node_index(peer))
        return _index(peer)

    def peer_name(self, pidx: int) -> str:
        """Return the name of a peer."""
        return self._node.fabric._node_name(self._call(lib.fbx_peer_node, _index(pidx)))

    def peers(self) -> list[str]:
        """Return the names of the peers, by index."""
        return [self.peer_name(i) for i in range(self.peer_port_count())]

    # -- links --------------------------------------------------------------------------------------------------------

    def link_is_up(self, peer: str | int | None = None) -> bool:
        """Return whether the link to a peer is up; to any, without one (ntb_link_is_up)."""
        if peer is not None:
            return bool(self._call(lib.fbx_ntb_peer_is_up, self.peer_index(peer)))
        return self.link_state().peers != 0

    def link_state(self) -> LinkState:
        """Return which links are up, their speed and their width (ntb_link_is_up)."""
        peers, speed, width = ffi.new("uint64_t *"), ffi.new("uint32_t *"), ffi.new("uint32_t *")
        self._call(lib.fbx_ntb_link_is_up, peers, speed, width)
        return LinkState(int(peers[0]), int(speed[0]), int(width[0]))

    def link_enable(self, max_speed: int = -1, max_width: int = -1) -> None:
        """Open this node's NTB (ntb_link_enable). It is open from the start."""
        self._call(lib.fbx_ntb_link_enable, max_speed, max_width)

    def link_disable(self) -> None:
        """Close this node's NTB, a barrier: after this nothing crosses it, either way (ntb_link_disable).

        Raises:
            Busy: a process is stopped in the middle of an operation through it.
        """
        self._call(lib.fbx_ntb_link_disable)

    # -- windows ------------------------------------------------------------------------------------------------------

    def peer_resource_idx(self, peer: str | int) -> int:
        """Return which share of a peer's resources is this node's: its index among that peer's peers (ntb_peer_resource_idx)."""
        return self._call(lib.fbx_peer_resource_idx, self.peer_index(peer))

    def peer_highest_mw_idx(self, peer: str | int) -> int:
        """Return the last of a peer's windows that is this node's share of them (ntb_peer_highest_mw_idx).

        Raises:
            InvalidArgument: the peer has fewer windows than peers.
        """
        return self._call(lib.fbx_peer_highest_mw_idx, self.peer_index(peer))

    def mw_count(self, peer: str | int) -> int:
        """Return how many inbound windows there are from a peer (ntb_mw_count). Outbound ones: `len(windows)`."""
        return self._call(lib.fbx_ntb_mw_count, self.peer_index(peer))

    def mw_get_align(self, peer: str | int, widx: int) -> tuple[int, int, int]:
        """Return address alignment, size alignment and largest size of an inbound window (ntb_mw_get_align).

        Raises:
            LinkDown: the link to the peer is down.
        """
        out = ffi.new("uint64_t[3]")
        self._call(lib.fbx_mw_get_align, self.peer_index(peer), _index(widx), out, out + 1, out + 2)
        return int(out[0]), int(out[1]), int(out[2])

    def mw_set_trans(self, peer: str | int, widx: int, address: int, size: int) -> None:
        """Let a peer's window show `size` bytes from bus address `address` of this node (ntb_mw_set_trans).

        Inbound and outbound windows are the same ones, seen from either side: this programs the peer's
        `windows[widx]`, and whoever programs it last decides where it leads. `peer_highest_mw_idx` says which is free for it.

        Raises:
            WindowError: the device's alignment or size forbids it; nothing has changed.
            AddressError: this node has no memory there; nothing has changed.
            SystemRefused: the register reads back something else (EIO).
        """
        bounded = [_word(value, 63) for value in (address, size)]
        self._call(lib.fbx_ntb_mw_set_trans, self.peer_index(peer), _index(widx), *bounded)

    def mw_clear_trans(self, peer: str | int, widx: int) -> None:
        """Let a peer's window no longer show this node (ntb_mw_clear_trans). InvalidArgument if it shows another one."""
        self._call(lib.fbx_ntb_mw_clear_trans, self.peer_index(peer), _index(widx))

    # -- requester IDs ------------------------------------------------------------------------------------------------

    def rid_count(self) -> int:
        """Return the entries that the device's requester-ID table has; 0 if it has no table."""
        return self._call(lib.fbx_rid_count)

    def rid_set(self, functions: Iterable[int] | None) -> None:
        """Say which of this node's requester functions may send requests across its NTB; None: all, as it is at first.

        A function is a handle's `function()`. What comes from others is dropped: posted writes vanish and are counted, all
        else raises UnsupportedRequest.

        Raises:
            InvalidArgument: the device has no such table, or it has fewer entries; nothing has changed.
        """
        if functions is None:
            self._call(lib.fbx_rid_open)
            return
        chosen = sorted({_index(function) for function in functions})
        self._call(lib.fbx_rid_set, ffi.new("uint32_t[]", chosen), len(chosen))

    def rid_get(self) -> list[int] | None:
        """Return the functions in the table; None while all may pass."""
        out = ffi.new("uint32_t[256]")
        count = lib.fbx_rid_get(self._node._pointer(), out, 256)
        return None if count == lib.FBX_E_NOT_FOUND else [int(f) for f in out[0 : check(count, self._node)]]

    def function(self) -> int:
        """Return the requester function of this handle: 0 for the node's owner, others for its clients."""
        return self._call(lib.fbx_node_function)

    # -- doorbells ----------------------------------------------------------------------------------------------------

    def db_valid_mask(self) -> int:
        """Return the doorbell bits that the device has (ntb_db_valid_mask)."""
        return self._get(lib.fbx_db_valid_mask)

    def db_vector_count(self) -> int:
        """Return the number of interrupt vectors of the doorbell (ntb_db_vector_count)."""
        return self._call(lib.fbx_db_vector_count)

    def db_vector_mask(self, vector: int) -> int:
        """Return the bits that share a vector (ntb_db_vector_mask)."""
        return self._get(lib.fbx_db_vector_mask, _index(vector))

    def db_read(self) -> int:
        """Return the doorbell bits that are set, masked or not (ntb_db_read)."""
        return self._get(lib.fbx_db_read)

    def db_set(self, bits: int) -> None:
        """Set bits of the own doorbell (ntb_db_set). InvalidArgument where the device cannot."""
        self._call(lib.fbx_db_set, _word(bits, 64))

    def db_clear(self, bits: int) -> None:
        """Clear bits (ntb_db_clear)."""
        self._call(lib.fbx_db_clear, _word(bits, 64))

    def db_read_mask(self) -> int:
        """Return the bits that are masked (ntb_db_read_mask)."""
        return self._get(lib.fbx_db_read_mask)

    def db_set_mask(self, bits: int) -> None:
        """Mask bits: they stay pending and are no event (ntb_db_set_mask)."""
        self._call(lib.fbx_db_set_mask, _word(bits, 64))

    def db_clear_mask(self, bits: int) -> None:
        """Unmask bits; what is pending of them is an event now (ntb_db_clear_mask)."""
        self._call(lib.fbx_db_clear_mask, _word(bits, 64))

    def peer_db_read(self, peer: str | int) -> int:
        """Return a peer's doorbell (ntb_peer_db_read); 0 where the device cannot."""
        return self._get(lib.fbx_peer_db_read, self._visit(peer))

    def peer_db_set(self, peer: str | int, bits: int) -> None:
        """Ring bits of a peer's doorbell (ntb_peer_db_set): posted, behind what was written there before.

        Raises:
            InvalidArgument: the device has no such bit, or there is no such peer; nothing was rung.
        See: fbx_peer_db_set().
        """
        self._call(lib.fbx_peer_db_set, self.peer_index(peer), _word(bits, 64))

    def peer_db_clear(self, peer: str | int, bits: int) -> None:
        """Clear bits of a peer's doorbell (ntb_peer_db_clear). InvalidArgument where the device cannot."""
        self._call(lib.fbx_peer_db_clear, self.peer_index(peer), _word(bits, 64))

    def peer_db_read_mask(self, peer: str | int) -> int:
        """Return a peer's doorbell mask (ntb_peer_db_read_mask); 0 where the device cannot."""
        return self._get(lib.fbx_peer_db_read_mask, self._visit(peer))

    def peer_db_set_mask(self, peer: str | int, bits: int) -> None:
        """Mask bits of a peer's doorbell (ntb_peer_db_set_mask). InvalidArgument where the device cannot."""
        self._call(lib.fbx_peer_db_set_mask, self.peer_index(peer), _word(bits, 64))

    def peer_db_clear_mask(self, peer: str | int, bits: int) -> None:
        """Unmask bits of a peer's doorbell (ntb_peer_db_clear_mask). InvalidArgument where the device cannot."""
        self._call(lib.fbx_peer_db_clear_mask, self.peer_index(peer), _word(bits, 64))

    # -- scratchpads --------------------------------------------------------------------------------------------------

    def spad_count(self) -> int:
        """Return the number of scratchpads (ntb_spad_count)."""
        return self._call(lib.fbx_spad_count)

    def spad_read(self, idx: int) -> int:
        """Return a scratchpad's 32 bits; all ones where the device has none at all (ntb_spad_read)."""
        return self._get(lib.fbx_spad_read, _index(idx), kind="uint32_t *")

    def spad_write(self, idx: int, value: int) -> None:
        """Write an own scratchpad (ntb_spad_write)."""
        self._call(lib.fbx_spad_write, _index(idx), _word(value, 32))

    def peer_spad_read(self, peer: str | int, idx: int) -> int:
        """Read a peer's scratchpad, a round trip (ntb_peer_spad_read).

        Raises:
            LinkDown: no answer: C sees all ones.
        """
        return self._get(lib.fbx_peer_spad_read, self._visit(peer), _index(idx), kind="uint32_t *")

    def peer_spad_write(self, peer: str | int, idx: int, value: int) -> None:
        """Write a peer's scratchpad: posted, behind what was written there before (ntb_peer_spad_write)."""
        self._call(lib.fbx_peer_spad_write, self.peer_index(peer), _index(idx), _word(value, 32))

    # -- messages -----------------------------------------------------------------------------------------------------

    def msg_count(self) -> int:
        """Return the number of message registers (ntb_msg_count)."""
        return self._call(lib.fbx_msg_count)

    def msg_inbits(self) -> int:
        """Return the status bits of messages received, register 0 lowest (ntb_msg_inbits)."""
        return self._get(lib.fbx_msg_inbits)

    def msg_outbits(self) -> int:
        """Return the status bits of messages sent that were not taken (ntb_msg_outbits)."""
        return self._get(lib.fbx_msg_outbits)

    def msg_read_sts(self) -> int:
        """Return the status bits that are set (ntb_msg_read_sts)."""
        return self._get(lib.fbx_msg_read_sts)

    def msg_clear_sts(self, bits: int) -> None:
        """Clear status bits; a register that was full takes messages again (ntb_msg_clear_sts)."""
        self._call(lib.fbx_msg_clear_sts, _word(bits, 64))

    def msg_set_mask(self, bits: int) -> None:
        """Mask status bits: they are no event (ntb_msg_set_mask)."""
        self._call(lib.fbx_msg_set_mask, _word(bits, 64))

    def msg_clear_mask(self, bits: int) -> None:
        """Unmask status bits; what is pending of them is an event now (ntb_msg_clear_mask)."""
        self._call(lib.fbx_msg_clear_mask, _word(bits, 64))

    def msg_read(self, idx: int) -> tuple[int, int]:
        """Return a message and the index of the peer that sent it (ntb_msg_read).

        All ones, and -1 for the peer, where the device has no messages.
        """
        pidx = ffi.new("uint32_t *")
        value = self._get(lib.fbx_msg_read, _index(idx), pidx, kind="uint32_t *")
        return value, -1 if pidx[0] == 0xFFFFFFFF else int(pidx[0])

    def peer_msg_write(self, peer: str | int, idx: int, value: int) -> None:
        """Send a message: posted, behind what was written there before (ntb_peer_msg_write).

        A register that still holds a message takes no other: this node's outbound status bit says so when it has been found.
        """
        self._call(lib.fbx_peer_msg_write, self.peer_index(peer), _index(idx), _word(value, 32))

    # -- interrupts by message ----------------------------------------------------------------------------------------

    def msi_count(self) -> int:
        """Return the interrupt vectors that the device has for messages."""
        return self._call(lib.fbx_msi_count)

    def msi_request(self) -> MsiDescriptor:
        """Take an interrupt vector (ntbm_msi_request_irq). Its events have the kind "msi". It is free again with this handle.

        Raises:
            InvalidArgument: the device has none, or none is free.
        """
        out = ffi.new("struct fbx_msi_desc *")
        self._call(lib.fbx_msi_request, out)
        return MsiDescriptor(int(out.addr_offset), int(out.data))

    def msi_free(self, vector: int) -> None:
        """Give back an interrupt vector that this handle took (ntbm_msi_free_irq). Its descriptor rings nobody any more."""
        self._call(lib.fbx_msi_free, _index(vector))

    def msi_read_pending(self) -> int:
        """Return the vectors, bit by bit, whose interrupt has not been told."""
        return self._get(lib.fbx_msi_read_pending)

    def msi_read_mask(self) -> int:
        """Return the vectors, bit by bit, that are masked."""
        return self._get(lib.fbx_msi_read_mask)

    def msi_set_mask(self, vectors: int) -> None:
        """Mask vectors: interrupts stay pending and are no event."""
        self._call(lib.fbx_msi_set_mask, _word(vectors, 64))

    def msi_clear_mask(self, vectors: int) -> None:
        """Unmask vectors; what is pending of them is an event now."""
        self._call(lib.fbx_msi_clear_mask, _word(vectors, 64))

    def msi_peer_trigger(self, peer: str | int, descriptor: MsiDescriptor) -> None:
        """Interrupt a peer by its descriptor (ntb_msi_peer_trigger): posted, behind what was written there before.

        A descriptor whose vector is no longer held is dropped there and counted.
        """
        self._call(lib.fbx_msi_peer_trigger, self.peer_index(peer), self._descriptor(descriptor))

    def msi_peer_address(self, peer: str | int, descriptor: MsiDescriptor) -> int:
        """Return the address on this node's bus where a store of 4 bytes of `data` is that interrupt (ntb_msi_peer_addr)."""
        return self._get(lib.fbx_msi_peer_addr, self.peer_index(peer), self._descriptor(descriptor))

    @staticmethod
    def _descriptor(descriptor: MsiDescriptor) -> Any:
        return ffi.new("struct fbx_msi_desc *", (_word(descriptor.addr_offset, 32), _word(descriptor.data, 32)))

    # -- events -------------------------------------------------------------------------------------------------------

    def set_callback(self, callback: Callable[[Event], object] | None) -> None:
        """Call `callback(event)` for each event that `poll`, `wait_event` or `wait_event_async` takes, in their thread."""
        self._callback = callback

    def _take(self, nanoseconds: int) -> list[Event]:
        records = ffi.new("struct fbx_ntb_event[]", _EVENTS)
        count = lib.fbx_ntb_wait_event(self._node._pointer(), records, _EVENTS, nanoseconds)
        if count == lib.FBX_E_AGAIN:
            return []
        check(count, self._node)
        events = []
        for record in records[0:count]:
            kind = _KINDS[record.kind]
            events.append(Event(kind, int(record.bits), int(record.vector) if kind in ("doorbell", "msi") else None))
        if self._callback is not None:
            for event in events:
                self._callback(event)
        return events

    def poll(self) -> list[Event]:
        """Take the events that are there, without waiting."""
        self._node._point()
        return self._take(0)

    def wait_event(self, timeout: float | None = None) -> list[Event]:
        """Wait until there are events and take them; waiting uses no processor.

        Args:
            timeout: seconds; None waits as long as it takes.
        Raises:
            WaitTimeout: nothing happened.
        See: fbx_ntb_wait_event().
        """
        scheduler = self._node._scheduler
        if scheduler is not None:
            deadline = (1 << 64) - 1 if timeout is None else self._node.now_ps + int(timeout * 1e12)
            while not (events := self._take(0)):
                if self._node.now_ps >= deadline:
                    raise WaitTimeout(f"no event at {self._node.name} in {timeout} s", node=self._node.name)
                scheduler.watch(self._node._address, 2, 0, min(deadline, (1 << 64) - 1))
            return events
        end = None if timeout is None else time.monotonic_ns() + int(timeout * 1e9)
        while True:
            left = SLICE_NS if end is None else min(SLICE_NS, max(end - time.monotonic_ns(), 0))
            events = self._take(left)
            if events:
                return events
            if end is not None and time.monotonic_ns() >= end:
                raise WaitTimeout(f"no event at {self._node.name} in {timeout} s", node=self._node.name)

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are events, for select, poll, epoll and asyncio.

        It may be readable without one: then `poll` returns an empty list and it no longer is. It lives as long as the node's
        handle.
        """
        return self._call(lib.fbx_ntb_event_fd)

    async def wait_event_async(self, timeout: float | None = None) -> list[Event]:
        """Wait for events in an asyncio program, without a thread; see `wait_event`."""
        import asyncio

        loop, descriptor = asyncio.get_running_loop(), self.fileno()
        end = None if timeout is None else loop.time() + timeout
        while not (events := self.poll()):
            left = None if end is None else end - loop.time()
            if left is not None and left <= 0:
                raise WaitTimeout(f"no event at {self._node.name} in {timeout} s", node=self._node.name)
            ready = asyncio.Event()
            loop.add_reader(descriptor, ready.set)
            try:
                await asyncio.wait_for(ready.wait(), left)
            except asyncio.TimeoutError:
                continue
            finally:
                loop.remove_reader(descriptor)
        return events
