# SPDX-License-Identifier: Apache-2.0
"""ntb_msi_test: interrupts at a peer, and how often each has come.

A message-signalled interrupt is a posted write to an address that the target's interrupt controller listens to. A device that has
vectors for that is interrupted so, and its events are counted here as a handler would. For others the controller is memory of the
target: one word for each interrupt, which a peer's first window shows and a trigger adds to.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from functools import partial

from ..errors import FabricError
from ..ntb import MsiDescriptor
from .codes import fail
from .device import Device, Devices, Inbound
from .text import unsigned
from .tree import Directory, Entry, File, Waiting

_IRQS = 4
_BYTES = 4096


class Target:
    """One device: the interrupts that it has."""

    def __init__(self, devices: Devices, device: Device, targets: list[Target], lock: threading.Lock) -> None:
        self.devices, self.device, self.targets, self.lock = devices, device, targets, lock
        self.memory: Inbound | None = None
        self.vectors: list[MsiDescriptor] = []
        self._counted = [0] * _IRQS
        self._counting = threading.Lock()
        self.directory = Directory(self._files)

    def start(self) -> None:
        """Take vectors; or make the memory behind the interrupts, such that the first window of every peer can show it."""
        ntb = self.device.ntb
        self._counted = [0] * _IRQS
        if ntb.msi_count() >= _IRQS:
            while len(self.vectors) < _IRQS:
                self.vectors.append(ntb.msi_request())
            return
        windows = [peer.ntb.windows[0] for peer in self.devices if peer.window_count]
        if not windows:
            fail(errno.ENODEV)
        align = max(window.address_align for window in windows)
        self.memory = self.device.memory(_BYTES, 1 << 40, align, max(window.size_align for window in windows))
        self.device.node.write(self.memory.gva, bytes(8 * _IRQS))

    def stop(self) -> None:
        """Give them back."""
        while self.vectors:
            self.device.ntb.msi_free(self.vectors.pop().vector)
        if self.memory is not None:
            self.device.free(self.memory)
            self.memory = None

    def _files(self) -> dict[str, Entry]:
        files: dict[str, Entry] = {"port": File(0o400, lambda: f"{self.device.port}\n")}
        for irq in range(_IRQS):
            files[f"irq{irq}_occurrences"] = File(0o400, partial(self._occurrences, irq))
        for pidx in range(self.device.ntb.peer_port_count()):
            files[f"peer{pidx}"] = Directory(partial(self._peer_files, pidx))
        return files

    def _peer_files(self, pidx: int) -> dict[str, Entry]:
        return {
            "port": File(0o400, lambda: f"{self.device.ntb.peer_port_number(pidx)}\n"),
            "count": File(0o400, lambda: f"{_IRQS if self._ready(pidx) else 0}\n"),
            "ready": File(0o600, lambda: f"{int(self._ready(pidx))}\n", partial(self._await, pidx)),
            "trigger": File(0o200, None, partial(self._trigger, pidx)),
        }

    def _ready(self, pidx: int) -> bool:
        self.devices.alive()
        return self.device.ntb.link_is_up(pidx)

    def _await(self, pidx: int, text: str, waiting: Waiting) -> None:
        waiting.until(lambda: self._ready(pidx))

    def count(self) -> None:
        """Handle the interrupts that have come."""
        with self._counting:
            numbers = {descriptor.vector: irq for irq, descriptor in enumerate(self.vectors)}
            for event in self.device.ntb.poll():
                if event.kind == "msi" and event.vector in numbers:
                    self._counted[numbers[event.vector]] += 1

    def _occurrences(self, irq: int) -> str:
        if self.vectors:
            self.count()
            return f"{self._counted[irq]}\n"
        if self.memory is None:
            fail(errno.ENODEV)
        return f"{int.from_bytes(self.device.node.read(self.memory.gva + 8 * irq, 8), 'little')}\n"

    def _trigger(self, pidx: int, text: str, waiting: Waiting) -> None:
        irq = unsigned(text, 64)
        peer = self.devices.peer(self.device, pidx)
        target = self.targets[peer.number]
        if irq >= _IRQS or not self._ready(pidx):
            fail(errno.EINVAL)
        device = self.device
        if target.vectors:
            device.ntb.msi_peer_trigger(peer.node_name, target.vectors[irq])
            device.arrived(peer.node_name)
            target.count()
            return
        if target.memory is None:
            fail(errno.ENODEV)
        with self.lock:
            device.program(0, peer.node_name, target.memory.bus, target.memory.size, self)
            try:
                device.node.fetch_add(device.ntb.windows[0].address + 8 * irq, 1)
            finally:
                device.release(0, self)


class Msi:
    """The driver on all devices.

    Attributes:
        directories: a directory for each device, in their order.
    """

    def __init__(self, devices: Devices) -> None:
        self._targets: list[Target] = []
        lock = threading.Lock()
        self._targets += (Target(devices, device, self._targets, lock) for device in devices)
        self.directories = [target.directory for target in self._targets]

    def enter(self) -> None:
        """Set every device up."""
        try:
            for target in self._targets:
                target.start()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Give all memory back."""
        for target in self._targets:
            with contextlib.suppress(FabricError, OSError):
                target.stop()
