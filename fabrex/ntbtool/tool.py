# SPDX-License-Identifier: Apache-2.0
"""The files of ntb_tool: every register and window of a device, one file each.

Both generations of the driver are here. The newer one (Linux 4.16 and later) has a directory for each peer. The older one knows one
peer, the first; its files lie beside the newer one's: spad, peer_spad, mask, peer_mask, link_event, peer_trans*, mw*, peer_mw*.

Where a device register has no peer in its name (`peer_db`) all peers are meant: with one peer that is the peer; with several, each
hears the doorbell, as with hardware whose doorbell is one register for all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from .codes import fail
from .device import Device, Devices, Inbound
from .text import command, numbers, switch, unsigned
from .tree import Directory, Entry, File, MemoryFile, Waiting

_OLD_WINDOWS = 6  # the older driver's limit


def _hex(value: int) -> str:
    return f"{value:#x}\n"


class Window:
    """An inbound window: memory here that a window of a peer shows (mw_trans*, mw*)."""

    def __init__(self, tool: Tool, pidx: int, widx: int) -> None:
        self.tool, self.pidx, self.widx = tool, pidx, widx
        self.memory: Inbound | None = None

    @property
    def _peer(self) -> Device:
        return self.tool.devices.peer(self.tool.device, self.pidx)

    def align(self) -> tuple[int, int, int]:
        """Alignments and largest size; ENOTCONN while the link is down."""
        return self.tool.device.ntb.mw_get_align(self.pidx, self.widx)

    def show(self) -> str:
        """What mw_trans* says."""
        address_align, size_align, size_max = self.align()
        there = self.memory
        port = self.tool.device.ntb.peer_port_number(self.pidx)
        return (
            f"Inbound MW     \t{self.widx}\n"
            f"Port           \t{port} ({self.pidx})\n"
            f"Window Address \t0x{there.gva if there else 0:016x}\n"
            f"DMA Address    \t0x{there.bus if there else 0:016x}\n"
            f"Window Size    \t0x{there.size if there else 0:016x}[p]\n"
            f"Alignment      \t0x{address_align:016x}[p]\n"
            f"Size Alignment \t0x{size_align:016x}[p]\n"
            f"Size Max       \t0x{size_max:016x}[p]\n"
        )

    def old_show(self) -> str:
        """What the older driver's peer_trans* says."""
        address_align, size_align, size_max = self.align()
        window = self.tool.device.ntb.windows[self.widx]
        return (
            f"Peer MW {self.widx} Information:\n"
            f"Physical Address      \t0x{window.address & (1 << 63) - 1:016x}[p]\n"
            f"Window Size           \t{window.max_size}\n"
            f"Alignment             \t{address_align}\n"
            f"Size Alignment        \t{size_align}\n"
            f"Size Max              \t{size_max}\n"
            f"Ready                 \t{'Y' if self.memory else 'N'}\n"
            f"Allocated Size       \t{self.memory.size if self.memory else 0}\n"
        )

    def set(self, bits: int, text: str, waiting: Waiting) -> None:
        """A size makes the memory and shows it to the peer; 0 takes it away."""
        size = unsigned(text, bits)
        with self.tool.lock:
            self.clear()
            if size:
                address_align, size_align, size_max = self.align()
                device, peer = self.tool.device, self._peer
                memory = device.memory(size, size_max, address_align, size_align)
                try:
                    peer.program(self.widx, device.node_name, memory.bus, memory.size, self)
                except BaseException:
                    device.free(memory)
                    raise
                self.memory = memory
                file = MemoryFile(memory.size, self._read, self._write)
                self.tool.peer_directory(self.pidx).add(f"mw{self.widx}", file)
                if self.pidx == 0 and self.widx < _OLD_WINDOWS:
                    self.tool.directory.add(f"peer_mw{self.widx}", file)

    def clear(self) -> None:
        """Give the memory back."""
        if self.memory is None:
            return
        self.tool.peer_directory(self.pidx).remove(f"mw{self.widx}")
        if self.pidx == 0 and self.widx < _OLD_WINDOWS:
            self.tool.directory.remove(f"peer_mw{self.widx}")
        memory, self.memory = self.memory, None
        try:
            self._peer.release(self.widx, self)
        finally:
            self.tool.device.free(memory)

    def _at(self, offset: int) -> int:
        if self.memory is None:
            fail(errno.ENXIO)
        return self.memory.gva + offset

    def _read(self, offset: int, size: int) -> bytes:
        return self.tool.device.node.read(self._at(offset), size)

    def _write(self, offset: int, data: bytes) -> None:
        self.tool.device.node.write(self._at(offset), data)


class Outbound:
    """An outbound window: what this device sees of a peer (peer_mw_trans*, peer_mw*)."""

    def __init__(self, tool: Tool, widx: int) -> None:
        self.tool, self.widx = tool, widx
        self.pidx = -1
        self.address = self.size = 0

    def show(self) -> str:
        """What peer_mw_trans* says."""
        window = self.tool.device.ntb.windows[self.widx]
        bus = window.address & (1 << 63) - 1
        port = self.tool.device.ntb.peer_port_number(self.pidx) if self.size else -1
        return (
            f"Outbound MW:        \t{self.widx}\n"
            f"Port attached       \t{port} ({self.pidx if self.size else -1})\n"
            f"Virtual address     \t0x{bus if self.size else 0:016x}\n"
            f"Phys Address        \t0x{bus:016x}[p]\n"
            f"Mapping Size        \t0x{window.max_size:016x}[p]\n"
            f"Translation Address \t0x{self.address:016x}\n"
            f"Window Size         \t0x{self.size:016x}[p]\n"
        )

    def set(self, pidx: int, text: str, waiting: Waiting) -> None:
        """`ADDRESS:SIZE` shows a peer's memory; size 0 ends it."""
        found = numbers(text, ":")
        if len(found) < 2:
            fail(errno.EINVAL)
        address, size = found[:2]
        if address >> 63 or size >> 63:
            fail(errno.EINVAL)
        with self.tool.lock:
            self.clear()
            if size:
                device = self.tool.device
                device.program(self.widx, device.ntb.peer_name(pidx), address, size, self)
                self.pidx, self.address, self.size = pidx, address, size
                file = MemoryFile(size, partial(self.tool.look, self.widx), partial(self.tool.touch, self.widx))
                self.tool.peer_directory(pidx).add(f"peer_mw{self.widx}", file)

    def clear(self) -> None:
        """Let go of the window."""
        if not self.size:
            return
        self.tool.peer_directory(self.pidx).remove(f"peer_mw{self.widx}")
        self.pidx, self.address, self.size = -1, 0, 0
        self.tool.device.release(self.widx, self)


class OldWindow(MemoryFile):
    """The older driver's mw*: what a window shows of the peer, whoever programmed it."""

    def __init__(self, tool: Tool, widx: int) -> None:
        super().__init__(0, partial(tool.look, widx), partial(tool.touch, widx))
        self._tool, self._widx = tool, widx

    def _programmed(self) -> None:
        self.size = self._tool.device.ntb.windows[self._widx].size
        if not self.size:
            fail(errno.EIO)

    def read_at(self, offset: int, size: int) -> bytes:
        """Read through the window; EIO while it leads nowhere."""
        self._programmed()
        return super().read_at(offset, size)

    def write_at(self, offset: int, data: bytes) -> int:
        """Write through the window; EIO while it leads nowhere."""
        self._programmed()
        return super().write_at(offset, data)


class Tool:
    """The driver on one device.

    Attributes:
        directory: its files.
    """

    def __init__(self, devices: Devices, device: Device, lock: Any) -> None:
        self.devices = devices
        self.device = device
        self.lock = lock
        self.directory = Directory(self._files)
        self._outbound: list[Outbound] = []
        self._inbound: dict[tuple[int, int], Window] = {}

    def peer_directory(self, pidx: int) -> Directory:
        """Return the directory of a peer."""
        found = self.directory[f"peer{pidx}"]
        assert isinstance(found, Directory)
        return found

    def close(self) -> None:
        """Give every window and all memory back."""
        with self.lock:
            for outbound in self._outbound:
                outbound.clear()
            for inbound in self._inbound.values():
                inbound.clear()

    def look(self, widx: int, offset: int, size: int) -> bytes:
        """Read through an outbound window."""
        node = self.device.node
        return node.read(node.ntb.windows[widx].address + offset, size)

    def touch(self, widx: int, offset: int, data: bytes) -> None:
        """Write through an outbound window."""
        node = self.device.node
        node.write(node.ntb.windows[widx].address + offset, data)

    # -- the tree ---------------------------------------------------------------------------------------------------------

    def _files(self) -> dict[str, Entry]:
        ntb = self.device.ntb
        self._outbound = [Outbound(self, widx) for widx in range(self.device.window_count)]
        files: dict[str, Entry] = {
            "port": File(0o600, lambda: f"{self.device.port}\n"),
            "link": File(0o600, lambda: self._link_to(0), self._set_link),
            "db": self._bits(lambda: self.device.ntb.db_read(), self._db_set, lambda bits: self.device.ntb.db_clear(bits)),
            "db_valid_mask": File(0o600, lambda: _hex(self.device.ntb.db_valid_mask())),
            "db_mask": self._mask(),
            "db_event": File(0o200, None, self._await(lambda: self.device.ntb.db_read())),
            "peer_db": self._bits(self._peers("peer_db_read"), self._ring, self._each("peer_db_clear")),
            "peer_db_mask": self._peer_mask(),
        }
        for idx in range(ntb.spad_count()):
            files[f"spad{idx}"] = self._spad(idx)
        if messages := ntb.msg_count():
            for idx in range(messages):
                files[f"msg{idx}"] = File(0o600, partial(self._message, idx))
            files["msg_sts"] = self._bits(lambda: self.device.ntb.msg_read_sts(), None, lambda b: self.device.ntb.msg_clear_sts(b))
            files["msg_inbits"] = File(0o600, lambda: _hex(self.device.ntb.msg_inbits()))
            files["msg_outbits"] = File(0o600, lambda: _hex(self.device.ntb.msg_outbits()))
            files["msg_mask"] = self._bits(
                None, lambda b: self.device.ntb.msg_set_mask(b), lambda b: self.device.ntb.msg_clear_mask(b)
            )
            files["msg_event"] = File(0o200, None, self._await(lambda: self.device.ntb.msg_read_sts()))
        for pidx in range(ntb.peer_port_count()):
            files[f"peer{pidx}"] = Directory(partial(self._peer_files, pidx))
        if ntb.peer_port_count():
            files |= self._old_files()
        return files

    def _peer_files(self, pidx: int) -> dict[str, Entry]:
        ntb = self.device.ntb
        files: dict[str, Entry] = {
            "port": File(0o600, lambda: f"{self.device.ntb.peer_port_number(pidx)}\n"),
            "link": File(0o400, lambda: self._link_to(pidx)),
            "link_event": File(0o200, None, partial(self._await_link, pidx)),
        }
        for widx in range(self.devices.peer(self.device, pidx).window_count):
            window = self._window(pidx, widx)
            files[f"mw_trans{widx}"] = File(0o600, window.show, partial(window.set, 32))
        for outbound in self._outbound:
            files[f"peer_mw_trans{outbound.widx}"] = File(0o600, outbound.show, partial(outbound.set, pidx))
        for idx in range(ntb.spad_count()):
            files[f"spad{idx}"] = self._peer_spad(pidx, idx)
        for idx in range(ntb.msg_count()):
            files[f"msg{idx}"] = File(0o200, None, partial(self._send, pidx, idx))
        return files

    def _window(self, pidx: int, widx: int) -> Window:
        with self.lock:
            return self._inbound.setdefault((pidx, widx), Window(self, pidx, widx))

    def _old_files(self) -> dict[str, Entry]:
        files: dict[str, Entry] = {
            "mask": self._mask(),
            "peer_mask": self._peer_mask(),
            "link_event": File(0o200, None, partial(self._await_link, 0)),
        }
        if self.device.ntb.spad_count():
            files["spad"] = File(
                0o600,
                lambda: self._spads(self.device.ntb.spad_read),
                lambda text, _: self._set_spads(self.device.ntb.spad_write, text),
            )
            files["peer_spad"] = File(
                0o600,
                lambda: self._spads(partial(self.device.ntb.peer_spad_read, 0)),
                lambda text, _: self._set_spads(partial(self._write_peer_spad, 0), text),
            )
        windows = min(self.devices.peer(self.device, 0).window_count, len(self._outbound), _OLD_WINDOWS)
        for widx in range(windows):
            window = self._window(0, widx)
            files[f"mw{widx}"] = OldWindow(self, widx)
            files[f"peer_trans{widx}"] = File(0o600, window.old_show, partial(window.set, 64))
        return files

    # -- links --------------------------------------------------------------------------------------------------------------

    def _link_to(self, pidx: int) -> str:
        return "Y\n" if self.device.ntb.link_is_up(pidx) else "N\n"

    def _set_link(self, text: str, waiting: Waiting) -> None:
        if switch(text):
            self.device.ntb.link_enable()
        else:
            self.device.ntb.link_disable()

    def _await_link(self, pidx: int, text: str, waiting: Waiting) -> None:
        wanted = switch(text)
        waiting.until(self._alive(lambda: self.device.ntb.link_is_up(pidx) == wanted))

    def _alive(self, condition: Callable[[], bool]) -> Callable[[], bool]:
        def look() -> bool:
            self.devices.alive()
            return condition()

        return look

    # -- registers ----------------------------------------------------------------------------------------------------------

    def _bits(self, load: Callable[[], int] | None, on: Callable[[int], None] | None, off: Callable[[int], None] | None) -> File:
        """A register that takes `s BITS` and `c BITS`."""

        def store(text: str, waiting: Waiting) -> None:
            verb, bits = command(text)
            change = on if verb == "s" else off
            if change is None:
                fail(errno.EINVAL)
            change(bits)

        return File(0o600, None if load is None else lambda: _hex(load()), store)

    def _await(self, load: Callable[[], int]) -> Callable[[str, Waiting], None]:
        def store(text: str, waiting: Waiting) -> None:
            wanted = unsigned(text, 64)
            waiting.until(self._alive(lambda: load() == wanted))

        return store

    def _mask(self) -> File:
        device = self.device
        return self._bits(
            lambda: device.ntb.db_read_mask(), lambda b: device.ntb.db_set_mask(b), lambda b: device.ntb.db_clear_mask(b)
        )

    def _peer_mask(self) -> File:
        return self._bits(self._peers("peer_db_read_mask"), self._each("peer_db_set_mask"), self._each("peer_db_clear_mask"))

    def _db_set(self, bits: int) -> None:
        self.device.ntb.db_set(bits)

    def _peers(self, register: str) -> Callable[[], int]:
        def load() -> int:
            if not self.device.reads_peer_doorbells():
                fail(errno.EINVAL)
            bits = 0
            for peer in self.device.peers():
                bits |= getattr(self.device.ntb, register)(peer)
            return bits

        return load

    def _each(self, change: str) -> Callable[[int], None]:
        def store(bits: int) -> None:
            for peer in self.device.peers():
                getattr(self.device.ntb, change)(peer, bits)
                self.device.arrived(peer)

        return store

    def _ring(self, bits: int) -> None:
        if bits & ~self.device.ntb.db_valid_mask():
            fail(errno.EINVAL)
        for peer in self.device.peers():
            has = self.devices.of(peer).ntb.db_valid_mask()
            if bits & has or not bits:
                self.device.ntb.peer_db_set(peer, bits & has)
                self.device.arrived(peer)

    def _spad(self, idx: int) -> File:
        device = self.device
        return File(0o600, lambda: _hex(device.ntb.spad_read(idx)), lambda text, _: device.ntb.spad_write(idx, unsigned(text, 32)))

    def _peer_spad(self, pidx: int, idx: int) -> File:
        return File(
            0o600,
            lambda: _hex(self.device.ntb.peer_spad_read(pidx, idx)),
            lambda text, _: self._write_peer_spad(pidx, idx, unsigned(text, 32)),
        )

    def _write_peer_spad(self, pidx: int, idx: int, value: int) -> None:
        self.device.ntb.peer_spad_write(pidx, idx, value)
        self.device.arrived(self.device.ntb.peer_name(pidx))

    def _spads(self, read: Callable[[int], int]) -> str:
        return "".join(f"{idx}\t{read(idx):#x}\n" for idx in range(self.device.ntb.spad_count()))

    def _set_spads(self, write: Callable[[int, int], None], text: str) -> None:
        found = numbers(text)
        if len(found) < 2:
            fail(errno.EINVAL)
        for idx, value in zip(found[::2], found[1::2], strict=False):
            write(idx, value & 0xFFFFFFFF)

    def _message(self, idx: int) -> str:
        value, pidx = self.device.ntb.msg_read(idx)
        return f"0x{value:08x}<-{pidx}\n"

    def _send(self, pidx: int, idx: int, text: str, waiting: Waiting) -> None:
        self.device.ntb.peer_msg_write(pidx, idx, unsigned(text, 32))
        self.device.arrived(self.device.ntb.peer_name(pidx))
