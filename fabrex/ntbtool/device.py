# SPDX-License-Identifier: Apache-2.0
"""One node's NTB device as the drivers see it, and what they borrow: memory and windows, given back as they were.

Owns: the node's handle, buffers behind inbound windows, the settings that windows had before. Must not know: files.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .. import errors
from .._handle import check, lib
from ..errors import FabricError
from ..fabric import Fabric
from ..memory import Buffer
from ..node import Node
from ..ntb import Ntb
from .codes import fail

_FIXED_BYTES = 65536
_MOST_ALIGNED = 1 << 30


def pci_name(position: int) -> str:
    """Return the name that the device has under debugfs: each host is a PCI domain of its own."""
    return f"{position:04x}:03:00.0"


@dataclass
class Inbound:
    """Memory that a peer's window shows.

    Attributes:
        gva, bus: its address on the fabric, and on the node's own bus.
        size: bytes.
    """

    gva: int
    bus: int
    size: int
    buffer: Buffer | None


class Device:
    """One node's device.

    Attributes:
        name: as under debugfs: `0000:03:00.0`.
        node_name: the node.
        number: its place among the devices.
        window_count: how many windows the drivers see.
    """

    def __init__(self, fabric: Fabric, node_name: str, number: int, windows: int | None = None) -> None:
        self.fabric = fabric
        self.node_name = node_name
        self.number = number
        self.name = pci_name(number)
        self._lock = threading.RLock()
        self._node = fabric.attach(node_name)
        self._incarnation = self._state()["incarnation"]
        there = len(self.ntb.windows)
        self.window_count = there if windows is None else min(there, windows)
        self._borrowed: dict[int, tuple[Any, set[object]]] = {}

    def _state(self) -> dict[str, Any]:
        return self.fabric.node_info(self.node_name)

    @property
    def node(self) -> Node:
        """The node's handle."""
        return self._node

    @property
    def ntb(self) -> Ntb:
        """The device itself."""
        return self._node.ntb

    def refresh(self) -> None:
        """Attach anew if the process that was the node died and another has taken its place."""
        with self._lock:
            state = self._state()
            if state["incarnation"] != self._incarnation and state["state"] != "lost":
                self._node.close()
                self._node = self.fabric.attach(self.node_name)
                self._incarnation = self._state()["incarnation"]
                self._borrowed.clear()

    def close(self) -> None:
        """Give back every window and detach."""
        with self._lock:
            for widx in list(self._borrowed):
                with contextlib.suppress(FabricError):
                    self._restore(widx)
            self._node.close()

    # -- what the driver asks the device --------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Its port."""
        return self.ntb.port_number()

    def peers(self) -> list[str]:
        """Return the names of the peers, by index."""
        return self.ntb.peers()

    def reads_peer_doorbells(self) -> bool:
        """Return whether the device can set its own doorbell, and do with a peer's more than ring it."""
        try:
            self.ntb.db_set(0)
        except errors.InvalidArgument:
            return False
        return True

    def arrived(self, peer: str) -> None:
        """Return when what was posted to a peer is there. What a dead link has swallowed nobody waits for."""
        with contextlib.suppress(errors.LinkDown, errors.PeerLost, errors.NoWindow, errors.CompletionTimeout):
            self._node.flush(peer)

    # -- what is borrowed -----------------------------------------------------------------------------------------------

    def memory(self, wanted: int, widest: int, address_align: int, size_align: int) -> Inbound:
        """Return memory for a window of a peer: as much as is wanted, rounded up to what the window takes.

        A window as Xeon gen3's, whose translation must be aligned to all of its aperture, can only show the beginning of the bus.
        There each node has 64 KiB that `alloc` hands out to nobody (`fabric.gva`); all such windows show them.

        Raises:
            OSError: ENOMEM.
        """

        def rounded(value: int, to: int) -> int:
            return -(-value // to) * to

        regions = self._state()["regions"]
        if not regions:
            fail(errno.ENOMEM)
        size = rounded(min(wanted, widest), size_align)
        if address_align > _MOST_ALIGNED:
            if size > min(_FIXED_BYTES, regions[0]["bytes"]) or regions[0]["bus"] % address_align:
                fail(errno.ENOMEM)
            return Inbound(regions[0]["gva"], regions[0]["bus"], size, None)
        size = rounded(rounded(size, address_align), size_align)
        buffer = self._node.alloc(size, align=max(address_align, 64))
        region = next(r for r in regions if r["gva"] <= buffer.gva < r["gva"] + r["bytes"])
        bus = region["bus"] + buffer.gva - region["gva"]
        if bus % address_align:
            buffer.free()
            fail(errno.ENOMEM)
        return Inbound(buffer.gva, bus, size, buffer)

    def free(self, inbound: Inbound) -> None:
        """Take memory back."""
        if inbound.buffer is not None:
            with contextlib.suppress(FabricError):
                inbound.buffer.free()

    def program(self, widx: int, peer: str, bus: int, size: int, user: object) -> None:
        """Point a window at a peer's memory; what it showed before comes back when its last user lets go of it.

        Raises:
            FabricError: as the device says; then the window is as it was.
        """
        with self._lock:
            window = self.ntb.windows[widx]
            before = window._info()
            window.set_translation(peer, bus, size)
            self._borrowed.setdefault(widx, (before, set()))[1].add(user)

    def release(self, widx: int, user: object) -> None:
        """Let go of a window."""
        with self._lock:
            _before, users = self._borrowed.get(widx, (None, set()))
            if user in users:
                users.discard(user)
                if not users:
                    self._restore(widx)

    def _restore(self, widx: int) -> None:
        before, _users = self._borrowed.pop(widx)
        window = self.ntb.windows[widx]
        if not before.programmed:
            window.clear_translation()
            return
        # As it was bit for bit, whatever kinds of permission and mapping there are.
        code = lib.fbx_mw_set_trans(
            self.fabric._live(), self.node.index, widx, before.peer, before.translation, before.bytes, before.perm, before.mapping
        )
        check(code, self.node)

    def borrowed(self) -> list[int]:
        """Return the windows that drivers have programmed."""
        with self._lock:
            return sorted(self._borrowed)


class Devices:
    """The devices of a fabric, by node and by name, and which driver has them."""

    def __init__(self, fabric: Fabric, windows: int | None = None) -> None:
        self.fabric = fabric
        self._lock = threading.RLock()
        self._driver = ""
        self._leave: Callable[[], None] = lambda: None
        self.all: list[Device] = []
        names = [node.name for node in fabric.topology.nodes.values() if node.kind != "switch"]
        try:
            self.all += (Device(fabric, name, number, windows) for number, name in enumerate(names))
        except BaseException:
            self.close()
            raise
        self._by_node = {device.node_name: device for device in self.all}

    def __iter__(self) -> Iterator[Device]:
        return iter(self.all)

    def of(self, node_name: str) -> Device:
        """Return a node's device."""
        return self._by_node[node_name]

    def peer(self, device: Device, pidx: int) -> Device:
        """Return the device of a peer."""
        return self._by_node[device.ntb.peer_name(pidx)]

    def alive(self) -> None:
        """Raise ENODEV if the fabric has gone."""
        if self.fabric.closed or not self.fabric.info()["alive"]:
            fail(errno.ENODEV)

    def bind(self, driver: str, enter: Callable[[], None] | None = None, leave: Callable[[], None] | None = None) -> None:
        """Give the devices to a driver: as in the kernel one has them at a time, and whoever opens its files loads it."""
        with self._lock:
            if driver != self._driver:
                self._leave()
                self._driver, self._leave = driver, leave or (lambda: None)
                if enter is not None:
                    enter()

    def close(self) -> None:
        """Unload the driver, give everything back and detach."""
        with self._lock:
            with contextlib.suppress(FabricError, OSError):
                self._leave()
            self._driver, self._leave = "", lambda: None
        for device in self.all:
            device.close()
