# SPDX-License-Identifier: Apache-2.0
"""ntb_pingpong: every device answers a doorbell, after a delay, with one to the next peer; `count` says how often it did.

Runs from the first opening of one of its files until a file of another driver is opened. Then doorbell masks are as they were
before; the values of the registers used (scratchpad 0, message 0) stay.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable

from ..errors import FabricError, InvalidArgument
from .codes import fail
from .device import Device, Devices
from .tree import Directory, File, Waiting


class Player:
    """One device.

    Attributes:
        count: doorbells answered.
    """

    def __init__(self, devices: Devices, device: Device, delay_s: Callable[[], float]) -> None:
        self.devices, self.device = devices, device
        self.count = 0
        self._delay_s = delay_s
        self._due: float | None = None
        self._mask = 0
        self._mine = 0
        self.directory = Directory(lambda: {"count": File(0o600, lambda: f"{self.count}\n", self._set)})

    def _set(self, text: str, waiting: Waiting) -> None:
        try:
            value = int(text, 0)
        except ValueError:
            fail(errno.EINVAL)
        if not -(1 << 31) <= value < 1 << 31:
            fail(errno.ERANGE)
        self.count = value

    def _bit(self, device: Device) -> int:
        """The doorbell bit on which a device hears: that of its port, or of its place where the port is beyond what there is."""
        bit = 1 << device.port
        return bit if bit & self.device.ntb.db_valid_mask() & device.ntb.db_valid_mask() else 1 << device.number

    def start(self) -> None:
        """Mask the doorbell, and begin if a peer is there."""
        ntb = self.device.ntb
        self._mask = ntb.db_read_mask()
        self._mine = self._bit(self.device)
        ntb.db_set_mask(ntb.db_valid_mask())
        ntb.db_clear(self._mine)
        ntb.link_enable()
        self._begin()

    def stop(self) -> None:
        """Leave the masks as they were."""
        with contextlib.suppress(FabricError):
            ntb = self.device.ntb
            ntb.db_clear(self._mine)
            ntb.db_set_mask(self._mask)
            ntb.db_clear_mask(ntb.db_valid_mask() & ~self._mask)

    def _next(self) -> Device | None:
        ntb = self.device.ntb
        up = [self.devices.peer(self.device, pidx) for pidx in range(ntb.peer_port_count()) if ntb.link_is_up(pidx)]
        later = [peer for peer in up if peer.port > self.device.port]
        return later[0] if later else up[0] if up else None

    def _begin(self) -> None:
        self._due = time.monotonic() + self._delay_s() if self._next() else None

    def _ping(self) -> None:
        peer = self._next()
        if peer is None:
            return
        ntb = self.device.ntb
        with contextlib.suppress(InvalidArgument):  # one of the two is enough
            ntb.peer_spad_write(peer.node_name, 0, self.count & 0xFFFFFFFF)
        with contextlib.suppress(InvalidArgument):
            ntb.peer_msg_write(peer.node_name, 0, self.count & 0xFFFFFFFF)
        ntb.peer_db_set(peer.node_name, self._bit(peer))
        ntb.db_clear_mask(self._mine)

    def _pong(self) -> None:
        ntb = self.device.ntb
        if ntb.msg_count():
            ntb.msg_clear_sts(ntb.msg_inbits() | ntb.msg_outbits())
        self.count += 1
        ntb.db_set_mask(self._mine)
        ntb.db_clear(self._mine)
        self._due = time.monotonic() + self._delay_s()

    def step(self) -> float:
        """Do what is due; returns the time of what comes next."""
        for event in self.device.ntb.poll():
            if event.kind == "link":
                self._begin()
            elif event.kind == "doorbell" and event.bits & self._mine and self.device.ntb.db_read() & self._mine:
                self._pong()
        if self._due is not None and time.monotonic() >= self._due:
            self._due = None
            self._ping()
        return self._due if self._due is not None else time.monotonic() + 3600


class Pingpong:
    """The driver: one thread plays all devices."""

    def __init__(self, devices: Devices, delay_s: Callable[[], float]) -> None:
        self._devices = devices
        self.players = [Player(devices, device, delay_s) for device in devices]
        self._thread: threading.Thread | None = None
        self._stop = (-1, -1)

    def enter(self) -> None:
        """Begin to play."""
        started: list[Player] = []
        try:
            for player in self.players:
                player.start()
                started.append(player)
        except BaseException:
            for player in started:
                player.stop()
            raise
        self._stop = os.pipe()
        self._thread = threading.Thread(target=self._play, name="ntb_pingpong", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Stop playing."""
        if self._thread is None:
            return
        os.close(self._stop[1])
        self._thread.join()
        os.close(self._stop[0])
        self._thread = None
        for player in self.players:
            player.stop()

    def _play(self) -> None:
        poller = select.poll()
        poller.register(self._stop[0], select.POLLIN | select.POLLHUP)
        with contextlib.suppress(FabricError):  # the fabric has gone, and the game with it
            for player in self.players:
                poller.register(player.device.ntb.fileno(), select.POLLIN)
            while True:
                soonest = min(player.step() for player in self.players)
                ready = poller.poll(max(0.0, min(soonest - time.monotonic(), 0.5)) * 1000)
                if any(descriptor == self._stop[0] for descriptor, _ in ready):
                    return
                self._devices.alive()
