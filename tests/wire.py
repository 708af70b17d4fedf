# SPDX-License-Identifier: Apache-2.0
"""Namespaces between which packets are delayed and lost where the kernel has no `netem`: a switch in user space.

Each machine's eth0 is a TUN device whose other end is here. A packet is passed on after its sender's delay, or not at all; so TCP
sees what it would see on a bad network, repeats and reorders. Needs what `Lan` needs, and /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fabrex.net.lan import Lan, _run, why_not

TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000


@dataclass
class Way:
    """What a machine's packets suffer."""

    delay: float = 0.0
    jitter: float = 0.0  # with it, packets overtake each other
    loss: float = 0.0  # of 1


def why_no_wire() -> str:
    """Say why this cannot be had here; empty if it can."""
    return why_not() or ("" if os.path.exists("/dev/net/tun") else "no /dev/net/tun")


def open_tun(namespace: str) -> int:
    """Make eth0 in a namespace, from a thread that goes there; returns its other end."""
    made: list[int | OSError] = []

    def go() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{namespace}", "rb") as there:
                if libc.setns(there.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TUN | IFF_NO_PI))
            made.append(tun)
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=go)  # a namespace is a thread's own matter, and this one ends
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class Wire(Lan):
    """Namespaces m0, m1, …, at 10.77.0.1, 10.77.1.1, … as in `Lan`, around a switch in this process."""

    def __init__(self, count: int, place: Path, seed: int = 0) -> None:
        self.ways = [Way() for _ in range(count)]
        self.passed = self.lost = 0
        self._random = random.Random(seed)
        self._tuns: list[int] = []
        self._apart = self._over = False
        self._thread: threading.Thread | None = None
        super().__init__(count, place)

    def _make(self) -> None:
        for i in range(self.count):
            name = self.name(i)
            _run("ip", "netns", "add", name)
            self._tuns.append(open_tun(name))
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "addr", "add", f"10.77.{i}.1/16", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
        self._thread = threading.Thread(target=self._switch, name="switch", daemon=True)
        self._thread.start()

    def shape(self, i: int, *, delay: float = 0.0, jitter: float = 0.0, loss: float = 0.0) -> None:
        """Shape what machine i sends."""
        self.ways[i] = Way(delay, jitter, loss)

    def cut(self, apart: bool) -> None:
        """Let nothing through between machines, or everything again."""
        self._apart = apart

    def _switch(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self._over:
            wait = min(max(waiting[0][0] - time.monotonic(), 0.0), 0.1) if waiting else 0.1
            ready, _, _ = select.select(self._tuns, [], [], wait)
            now = time.monotonic()
            for tun in ready:
                way = self.ways[self._tuns.index(tun)]
                with contextlib.suppress(BlockingIOError):
                    while True:
                        packet = os.read(tun, 65536)
                        if packet[0] >> 4 != 4 or packet[16:18] != b"\x0a\x4d" or packet[18] >= self.count:
                            continue
                        if self._apart or self._random.random() < way.loss:
                            self.lost += 1
                            continue
                        number += 1
                        heapq.heappush(waiting, (now + way.delay + self._random.random() * way.jitter, number, packet[18], packet))
            while waiting and waiting[0][0] <= now:
                _, _, to, packet = heapq.heappop(waiting)
                self.passed += 1
                with contextlib.suppress(OSError):
                    os.write(self._tuns[to], packet)

    def close(self) -> None:
        """End what runs, and remove what was made."""
        self._over = True
        if self._thread is not None:
            self._thread.join(5)
        for tun in self._tuns:
            os.close(tun)
        self._tuns = []
        super().close()
