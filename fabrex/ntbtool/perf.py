# SPDX-License-Identifier: Apache-2.0
"""ntb_perf: copy data to a peer through a window and say how fast that was.

`run` takes a peer's index and returns when the copy is done; read, it tells of the last one. The window is borrowed for the run.
The older driver's files are here too: an empty line to `run` means the first peer, and `threads` is what `threads_count` is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import dataclass

from ..errors import FabricError
from ..node import Node
from .codes import errno_of, fail
from .device import Device, Devices, Inbound
from .text import switch, unsigned
from .tree import Directory, Entry, File, Waiting

_MOST_CHUNK_ORDER = 20
_MOST_THREADS = 32


@dataclass
class Parameters:
    """The driver's parameters, for all devices."""

    chunk_order: int = 19
    total_order: int = 30
    max_mw_size: int = 0
    use_dma: bool = False

    def directory(self) -> Directory:
        """Return them as files, as under /sys/module."""

        def whole(name: str, most: int) -> File:
            def store(text: str, waiting: Waiting) -> None:
                value = unsigned(text, 64)
                if value > most:
                    fail(errno.EINVAL)
                setattr(self, name, value)

            return File(0o644, lambda: f"{getattr(self, name)}\n", store)

        def dma(text: str, waiting: Waiting) -> None:
            self.use_dma = switch(text)

        return Directory(
            lambda: {
                "chunk_order": (chunk := whole("chunk_order", _MOST_CHUNK_ORDER)),
                "seg_order": chunk,  # as the older driver calls it
                "total_order": (total := whole("total_order", 40)),
                "run_order": total,
                "max_mw_size": whole("max_mw_size", (1 << 63) - 1),
                "use_dma": File(0o644, lambda: "Y\n" if self.use_dma else "N\n", dma),
            }
        )


@dataclass
class Result:
    """What one thread has done. `status` is None while it is under way, 0, or an error number."""

    status: int | None = None
    copied: int = 0
    microseconds: int = 0


class Perf:
    """The driver on one device.

    Attributes:
        directory: its files.
    """

    def __init__(self, devices: Devices, device: Device, parameters: Parameters) -> None:
        self.devices, self.device, self.parameters = devices, device, parameters
        self.directory = Directory(self._files)
        self._busy = threading.Lock()
        self._threads = 1
        self._peer = 0
        self._results: list[Result] = []
        self._old = False
        self._inbound: tuple[int, Inbound, int, int] | None = None

    def _files(self) -> dict[str, Entry]:
        parameters = self.parameters
        threads = File(0o600, lambda: f"{self._threads}\n", self._set_threads)
        return {
            "info": File(0o600, self._info),
            "run": File(0o600, self._statistics, self._run),
            "threads_count": threads,
            "threads": threads,
            "chunk_order": File(0o400, lambda: f"{parameters.chunk_order}\n"),
            "total_order": File(0o400, lambda: f"{parameters.total_order}\n"),
            "use_dma": File(0o400, lambda: "Y\n" if parameters.use_dma else "N\n"),
        }

    def _set_threads(self, text: str, waiting: Waiting) -> None:
        value = unsigned(text, 8)
        if not 1 <= value <= _MOST_THREADS:
            fail(errno.EINVAL)
        if not self._busy.acquire(blocking=False):
            fail(errno.EBUSY)
        self._threads = value
        self._busy.release()

    # -- what it says -----------------------------------------------------------------------------------------------------

    def _place(self, device: Device) -> int:
        """A device's place among all by port: the window with which peers see it."""
        return sum(other.port < device.port for other in self.devices)

    def _info(self) -> str:
        ntb = self.device.ntb
        run = self._inbound
        lines = [
            "    Performance measuring tool info:",
            "",
            f"Local port {self.device.port}, Global index {self._place(self.device)}",
        ]
        lines.append(f"Test status: on-fly with port {ntb.peer_port_number(run[0])} ({run[0]})" if run else "Test status: idle")
        for pidx in range(ntb.peer_port_count()):
            peer = self.devices.peer(self.device, pidx)
            lines += [
                f"Port {peer.port} ({pidx}), Global index {self._place(peer)}:",
                f"\tLink status: {'up' if ntb.link_is_up(pidx) else 'down'}",
            ]
            widx = self._window(self.device)
            window = ntb.windows[widx]
            bus = window.address & (1 << 63) - 1
            here = run if run and run[0] == pidx else None
            lines += [
                f"\tOut buffer addr 0x{bus:016x}",
                f"\tOut buff phys addr 0x{bus:016x}",
                f"\tOut buffer size 0x{here[3] if here else window.max_size:016x}",
                f"\tOut buffer xlat 0x{here[1].bus if here else 0:016x}[p]",
            ]
            lines.append("\tIn buffer addr: unallocated")
        return "\n".join(lines) + "\n"

    def _statistics(self) -> str:
        if not self._busy.acquire(blocking=False):
            if self._old:
                return "running\n"
            fail(errno.EBUSY)
        try:
            lines = [] if self._old else [f"    Peer {self._peer} test statistics:"]
            for number, result in enumerate(self._results):
                if result.status:
                    lines.append(f"{number}: error status -{result.status}")
                elif result.status == 0:
                    rate = result.copied // max(result.microseconds, 1)
                    lines.append(f"{number}: copied {result.copied} bytes in {result.microseconds} usecs, {rate} MBytes/s")
            return "".join(line + "\n" for line in lines)
        finally:
            self._busy.release()

    # -- what it does -----------------------------------------------------------------------------------------------------

    def _window(self, device: Device) -> int:
        return self._place(device) % device.window_count

    def _run(self, text: str, waiting: Waiting) -> None:
        old = not text.strip()
        pidx = 0 if old else unsigned(text, 31)
        if pidx >= self.device.ntb.peer_port_count() or not self.device.window_count:
            fail(errno.EINVAL)

        def linked() -> bool:
            self.devices.alive()
            return self.device.ntb.link_is_up(pidx)

        waiting.until(linked)
        if not self._busy.acquire(blocking=False):
            fail(errno.EBUSY)
        try:
            self._old, self._peer = old, pidx
            self._copy(pidx, waiting)
        finally:
            self._busy.release()

    def _copy(self, pidx: int, waiting: Waiting) -> None:
        parameters, device = self.parameters, self.device
        peer = self.devices.peer(device, pidx)
        widx = self._window(device)
        address_align, size_align, widest = peer.ntb.mw_get_align(device.node_name, widx)
        wanted = min(parameters.max_mw_size or 1 << _MOST_CHUNK_ORDER, 1 << _MOST_CHUNK_ORDER)
        self._results = [Result() for _ in range(self._threads)]
        if address_align > 1 << 30:
            wanted = min(wanted, 65536)
        inbound = peer.memory(wanted, widest, address_align, size_align)
        try:
            device.program(widx, peer.node_name, inbound.bus, inbound.size, self)
            try:
                self._inbound = (pidx, inbound, widx, inbound.size)
                self._race(device.ntb.windows[widx].address, inbound.size, waiting)
                device.arrived(peer.node_name)
            finally:
                self._inbound = None
                device.release(widx, self)
        finally:
            peer.free(inbound)

    def _race(self, address: int, size: int, waiting: Waiting) -> None:
        stop = threading.Event()
        chunk, total = min(size, 1 << self.parameters.chunk_order), 1 << self.parameters.total_order
        threads = [
            threading.Thread(target=self._one, args=(result, address, size, chunk, total, stop), name="ntb_perf", daemon=True)
            for result in self._results
        ]
        for thread in threads:
            thread.start()
        try:
            waiting.until(lambda: not any(thread.is_alive() for thread in threads))
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _one(self, result: Result, address: int, size: int, chunk: int, total: int, stop: threading.Event) -> None:
        fabric = self.device.fabric
        try:
            with fabric.attach(self.device.node_name, "client") as node, contextlib.ExitStack() as stack:
                source = None
                if self.parameters.use_dma:
                    source = node.alloc(chunk)
                    stack.callback(source.free)
                    node.write(source.gva, os.urandom(chunk))
                data = os.urandom(chunk)
                start = fabric.now_ps
                copied = offset = 0
                while copied < total:
                    if stop.is_set():
                        fail(errno.EINTR)
                    if offset + chunk > size:
                        offset = 0
                    self._chunk(node, address + offset, data, None if source is None else source.gva)
                    copied += chunk
                    offset += chunk
                result.copied, result.microseconds = copied, (fabric.now_ps - start) // 1_000_000
                result.status = 0
        except (FabricError, OSError, MemoryError) as error:
            result.status = errno_of(error)

    @staticmethod
    def _chunk(node: Node, to: int, data: bytes, source: int | None) -> None:
        if source is None:
            node.write(to, data)
        else:
            node.dma.copy(dst=to, src=source, size=len(data)).wait()
