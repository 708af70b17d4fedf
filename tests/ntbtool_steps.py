# SPDX-License-Identifier: Apache-2.0
"""What a script for NTB hardware does with the drivers' files, step by step, over the tree itself or a mount of it.

Each step raises Wrong when a file does not do what it is for; `run` returns how many passed. Deliberately written from the files'
documentation alone, so that it can find what is wrong with them.
"""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fabrex.ntbtool import Debugfs, Directory, File, MemoryFile, Waiting


class Wrong(Exception):
    """A file does not do what it should."""


class Files(Protocol):
    """How the steps reach files."""

    def read(self, path: str) -> str: ...
    def write(self, path: str, text: str) -> None: ...
    def names(self, path: str) -> list[str]: ...
    def get(self, path: str, size: int) -> bytes: ...
    def put(self, path: str, data: bytes) -> None: ...


class Tree:
    """The tree itself."""

    def __init__(self, debugfs: Debugfs, patience: float = 20.0) -> None:
        self.debugfs = debugfs
        self._patience = patience

    def read(self, path: str) -> str:
        entry = self.debugfs.open(path)
        assert isinstance(entry, File), path
        return entry.read()

    def write(self, path: str, text: str) -> None:
        entry = self.debugfs.open(path)
        assert isinstance(entry, File), path
        end = time.monotonic() + self._patience
        entry.write(text, Waiting(lambda: time.monotonic() > end))

    def names(self, path: str) -> list[str]:
        entry = self.debugfs.find(path)
        assert isinstance(entry, Directory), path
        return entry.names()

    def get(self, path: str, size: int) -> bytes:
        entry = self.debugfs.open(path)
        assert isinstance(entry, MemoryFile), path
        return b"".join(entry.read_at(at, min(4096, size - at)) for at in range(0, size, 4096))

    def put(self, path: str, data: bytes) -> None:
        entry = self.debugfs.open(path)
        assert isinstance(entry, MemoryFile), path
        for at in range(0, len(data), 4096):
            entry.write_at(at, data[at : at + 4096])


class Mounted:
    """A mount, by way of the kernel."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def read(self, path: str) -> str:
        return (self.place / path).read_text()

    def write(self, path: str, text: str) -> None:
        descriptor = os.open(self.place / path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(self.place / path))

    def get(self, path: str, size: int) -> bytes:
        with open(self.place / path, "rb", buffering=0) as file:
            found = b""
            while len(found) < size and (more := file.read(size - len(found))):
                found += more
        return found

    def put(self, path: str, data: bytes) -> None:
        with open(self.place / path, "wb", buffering=0) as file:
            while data:
                data = data[file.write(data) :]


def equal(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise Wrong(f"{what}: {found!r}, not {wanted!r}")


def number(text: str) -> int:
    if not text.endswith("\n"):
        raise Wrong(f"{text!r} is no line")
    return int(text, 0)


def refused(call: Callable[[], object], code: int, what: str) -> None:
    try:
        call()
    except OSError as error:
        equal(errno.errorcode.get(error.errno or 0), errno.errorcode[code], what)
    else:
        raise Wrong(f"{what}: accepted")


def blocks(files: Files, path: str, text: str, release: Callable[[], object], what: str) -> None:
    """A write that returns after `release`, and not before."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            files.write(path, text)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(0.03)
    early = not thread.is_alive()
    release()
    thread.join(10)
    if early or thread.is_alive() or failures:
        raise Wrong(f"{what}: {failures[0]!r}" if failures else f"{what}: {'did not block' if early else 'never ended'}")


class Pair:
    """Two devices, as a script is told of them.

    Attributes:
        near, far: their directories' names.
        passed: the steps that passed.
    """

    def __init__(self, files: Files, near: str, far: str, *, windows: int = 4, total: int = 1 << 16, patience: float = 10) -> None:
        self.files, self.near, self.far = files, near, far
        self.passed: list[str] = []
        self._windows, self._total = windows, total
        self._patience = patience
        self._numbers = random.Random(1)
        self.index = self.back = -1

    # -- ports, links ----------------------------------------------------------------------------------------------------

    def _find(self, driver: str, here: str, there: str) -> int:
        port = number(self.files.read(f"{driver}/{there}/port"))
        found = [
            int(name[4:])
            for name in self.files.names(f"{driver}/{here}")
            if re.fullmatch(r"peer\d+", name) and number(self.files.read(f"{driver}/{here}/{name}/port")) == port
        ]
        equal(len(found), 1, f"peers of {here} at port {port}")
        return found[0]

    def ports(self) -> None:
        if number(self.files.read(f"ntb_tool/{self.near}/port")) == number(self.files.read(f"ntb_tool/{self.far}/port")):
            raise Wrong("both have one port")
        self.index, self.back = self._find("ntb_tool", self.near, self.far), self._find("ntb_tool", self.far, self.near)

    @property
    def _here(self) -> str:
        return f"ntb_tool/{self.near}"

    @property
    def _there(self) -> str:
        return f"ntb_tool/{self.far}"

    @property
    def _peer(self) -> str:
        return f"{self._here}/peer{self.index}"

    @property
    def _self(self) -> str:
        return f"{self._there}/peer{self.back}"

    def links(self) -> None:
        read, write = self.files.read, self.files.write
        blocks(self.files, f"{self._self}/link_event", "N\n", lambda: write(f"{self._here}/link", "N\n"), "link_event N")
        for path in (self._peer, self._self):
            write(f"{path}/link_event", "N\n")
            equal(read(f"{path}/link"), "N\n", f"{path}/link")
            trans = [name for name in self.files.names(path) if re.fullmatch(r"mw_trans\d+", name)]
            for name in trans[:1]:
                refused(lambda path=path, name=name: read(f"{path}/{name}"), errno.ENOTCONN, f"{path}/{name} while down")
        blocks(self.files, f"{self._peer}/link_event", "Y\n", lambda: write(f"{self._here}/link", "Y\n"), "link_event Y")
        for path in (self._peer, self._self):
            equal(read(f"{path}/link"), "Y\n", f"{path}/link")
        refused(lambda: write(f"{self._here}/link", "x\n"), errno.EINVAL, "link x")

    # -- registers -------------------------------------------------------------------------------------------------------

    def doorbells(self) -> None:
        read, write, here, there = self.files.read, self.files.write, self._here, self._there
        valid = number(read(f"{here}/db_valid_mask"))
        equal(valid, number(read(f"{there}/db_valid_mask")), "db_valid_mask")
        write(f"{there}/db_mask", f"c {valid:#x}\n")
        write(f"{there}/db", f"c {valid:#x}\n")
        rung = 0
        for bit in range(64):
            equal(number(read(f"{there}/db")), rung, "db")
            if valid >> bit & 1:
                rung |= 1 << bit
                write(f"{here}/peer_db", f"s {1 << bit:#x}\n")
        equal(number(read(f"{there}/db")), valid, "db")
        write(f"{there}/db", f"c {valid & 0x55:#x}\n")
        equal(number(read(f"{there}/db")), valid & ~0x55, "db after clearing")
        write(f"{there}/db", f"c {valid:#x}\n")
        blocks(self.files, f"{there}/db_event", "0x6\n", lambda: write(f"{here}/peer_db", "s 6\n"), "db_event")
        write(f"{there}/db", "c 6")
        write(f"{there}/db_mask", "s 5\n")
        equal(number(read(f"{there}/db_mask")), 5, "db_mask")
        write(f"{there}/db_mask", "c 1\n")
        equal(number(read(f"{there}/db_mask")), 4, "db_mask after clearing")
        equal(number(read(f"{there}/mask")), 4, "mask")
        write(f"{there}/mask", f"c {valid:#x}\n")
        equal(number(read(f"{there}/db_mask")), 0, "db_mask after mask")
        for text in ("", "x 1\n", "s\n", "s x\n", "1\n"):
            refused(lambda text=text: write(f"{there}/db", text or "\n"), errno.EINVAL, f"db {text!r}")
        refused(lambda: write(f"{there}/db_event", "z\n"), errno.EINVAL, "db_event z")
        if valid + 1 < 1 << 64:
            refused(lambda: write(f"{here}/peer_db", f"s {valid + 1:#x}\n"), errno.EINVAL, "peer_db beyond")
        self._peer_doorbell()

    def _peer_doorbell(self) -> None:
        read, write, here, there = self.files.read, self.files.write, self._here, self._there
        try:
            write(f"{there}/db", "s 3\n")
        except OSError as error:
            equal(error.errno, errno.EINVAL, "db s")
            for name in ("peer_db", "peer_db_mask", "peer_mask"):
                refused(lambda name=name: read(f"{here}/{name}"), errno.EINVAL, f"{name} of a device that cannot")
            refused(lambda: write(f"{here}/peer_db", "c 1\n"), errno.EINVAL, "peer_db c of a device that cannot")
            return
        equal(number(read(f"{there}/db")), 3, "db after s")
        only = sum(bool(re.fullmatch(r"peer\d+", name)) for name in self.files.names(here)) == 1
        every = -1 if only else 0  # of several peers the bits of all are read
        equal(number(read(f"{here}/peer_db")) & (3 | every), 3, "peer_db")
        write(f"{here}/peer_db", "c 1\n")
        equal(number(read(f"{there}/db")), 2, "db after peer_db c")
        write(f"{there}/db", "c 2\n")
        write(f"{here}/peer_db_mask", "s 9\n")
        equal(number(read(f"{there}/db_mask")), 9, "db_mask after peer_db_mask")
        equal(number(read(f"{here}/peer_db_mask")) & (9 | every), 9, "peer_db_mask")
        write(f"{here}/peer_mask", "c 1\n")
        equal(number(read(f"{here}/peer_mask")) & (9 | every), 8, "peer_mask")
        write(f"{here}/peer_db_mask", "c 8\n")
        equal(number(read(f"{there}/db_mask")), 0, "db_mask after peer_db_mask c")

    def _count(self, path: str, stem: str) -> int:
        return sum(bool(re.fullmatch(rf"{stem}\d+", name)) for name in self.files.names(path))

    def scratchpads(self) -> None:
        read, write = self.files.read, self.files.write
        count = self._count(self._peer, "spad")
        equal(self._count(self._there, "spad"), count, "scratchpads")
        for idx in range(count):
            value = self._numbers.getrandbits(32)
            write(f"{self._peer}/spad{idx}", f"{value}\n")
            equal(number(read(f"{self._there}/spad{idx}")), value, f"spad{idx}")
            write(f"{self._there}/spad{idx}", f"{value ^ 0xFF:#x}\n")
            equal(number(read(f"{self._peer}/spad{idx}")), value ^ 0xFF, f"peer spad{idx}")
        if count:
            refused(lambda: write(f"{self._peer}/spad0", "0x100000000\n"), errno.ERANGE, "spad beyond")
            refused(lambda: write(f"{self._there}/spad0", "-\n"), errno.EINVAL, "spad -")
            refused(lambda: read(f"{self._there}/spad{count}"), errno.ENOENT, "spad that is not there")
            if not self.index and not self.back:  # the older files: all of the first peer's in one
                write(f"{self._here}/peer_spad", "0 0x11 1 18\n")
                equal(read(f"{self._there}/spad").splitlines()[:2], ["0\t0x11", "1\t0x12"], "spad")
                equal(len(read(f"{self._there}/spad").splitlines()), count, "lines of spad")
                write(f"{self._there}/spad", "1 0x13\n")
                equal(read(f"{self._here}/peer_spad").splitlines()[:2], ["0\t0x11", "1\t0x13"], "peer_spad")
                refused(lambda: write(f"{self._here}/peer_spad", "x\n"), errno.EINVAL, "peer_spad x")

    def messages(self) -> None:
        read, write, there = self.files.read, self.files.write, self._there
        count = self._count(self._peer, "msg")
        equal(self._count(there, "msg"), count, "messages")
        if not count:
            refused(lambda: read(f"{there}/msg_sts"), errno.ENOENT, "msg_sts of a device without messages")
            return
        inbits, outbits = number(read(f"{there}/msg_inbits")), number(read(f"{self._here}/msg_outbits"))
        equal(inbits.bit_count(), count, "msg_inbits")
        equal(outbits.bit_count(), count, "msg_outbits")
        if inbits & outbits:
            raise Wrong("msg_inbits and msg_outbits share bits")
        write(f"{there}/msg_mask", f"s {inbits:#x}\n")
        write(f"{there}/msg_mask", f"c {inbits:#x}\n")
        first = inbits & -inbits
        for path in (f"{there}/msg_sts", f"{self._here}/msg_sts"):
            write(path, f"c {inbits | outbits:#x}\n")
            equal(number(read(path)), 0, path)
        for idx in range(count):
            value = self._numbers.getrandbits(32)
            text = f"{value:#x}\n"
            if idx:
                write(f"{self._peer}/msg{idx}", text)
            else:
                blocks(
                    self.files,
                    f"{there}/msg_event",
                    f"{first:#x}\n",
                    lambda text=text: write(f"{self._peer}/msg0", text),
                    "msg_event",
                )
            equal(read(f"{there}/msg{idx}"), f"0x{value:08x}<-{self.back}\n", f"msg{idx}")
            equal(number(read(f"{there}/msg_sts")) & first << idx, first << idx, "msg_sts")
        write(f"{self._peer}/msg0", "1\n")
        equal(number(read(f"{self._here}/msg_sts")), outbits & -outbits, "msg_sts of a sender whose message was not taken")
        write(f"{self._here}/msg_sts", f"c {outbits:#x}\n")
        write(f"{there}/msg_sts", f"c {inbits:#x}\n")
        equal(number(read(f"{there}/msg_sts")), 0, "msg_sts after clearing")
        refused(lambda: write(f"{there}/msg_sts", "s 1\n"), errno.EINVAL, "msg_sts s")
        refused(lambda: write(f"{there}/msg_mask", f"s {1 << 63:#x}\n"), errno.EINVAL, "msg_mask beyond")

    # -- windows ---------------------------------------------------------------------------------------------------------

    def _facts(self, path: str) -> dict[str, int]:
        lines = (
            re.fullmatch(r"([A-Za-z ]+?):? *\t(-?\w+)(?: \(-?\d+\)|\[p\])?", line) for line in self.files.read(path).splitlines()
        )
        return {line[1]: int(line[2], 0) for line in lines if line}

    def windows(self) -> None:
        read, write = self.files.read, self.files.write
        count = self._count(self._peer, "mw_trans")
        equal(self._count(self._self, "peer_mw_trans"), count, "windows")
        chosen = (
            range(count)
            if count <= self._windows
            else sorted({0, count - 1, *self._numbers.sample(range(count), self._windows - 2)})
        )
        ports = number(read(f"{self._here}/port")), number(read(f"{self._there}/port"))
        for idx in chosen:
            write(f"{self._peer}/mw_trans{idx}", "65536\n")
            facts = self._facts(f"{self._peer}/mw_trans{idx}")
            size, bus = facts["Window Size"], facts["DMA Address"]
            equal((facts["Inbound MW"], facts["Port"]), (idx, ports[1]), f"mw_trans{idx}")
            if size < 65536 or size > facts["Size Max"] or size % facts["Size Alignment"] or bus % facts["Alignment"]:
                raise Wrong(f"mw_trans{idx}: {facts}")
            equal(self._count(self._peer, "mw"), 1, "mw files")
            write(f"{self._self}/peer_mw_trans{idx}", f"{bus:#x}:{size}\n")
            out = self._facts(f"{self._self}/peer_mw_trans{idx}")
            wanted = {"Outbound MW": idx, "Port attached": ports[0], "Translation Address": bus, "Window Size": size}
            equal({key: out.get(key) for key in wanted}, wanted, f"peer_mw_trans{idx}")
            data = self._numbers.randbytes(65536)
            self.files.put(f"{self._peer}/mw{idx}", data)
            equal(self.files.get(f"{self._self}/peer_mw{idx}", 65536), data, f"what peer_mw{idx} shows")
            self.files.put(f"{self._self}/peer_mw{idx}", data[:100])
            equal(self.files.get(f"{self._peer}/mw{idx}", 65536), data, f"what mw{idx} shows")
            self.files.put(f"{self._self}/peer_mw{idx}", data[::-1])
            equal(self.files.get(f"{self._peer}/mw{idx}", 65536), data[::-1], f"mw{idx} after a write to peer_mw{idx}")
            equal(len(self.files.get(f"{self._peer}/mw{idx}", size + 1)), size, f"bytes of mw{idx}")
            # A setting that is refused leaves nothing.
            refused(lambda idx=idx: write(f"{self._self}/peer_mw_trans{idx}", "1\n"), errno.EINVAL, "peer_mw_trans without a size")
            too_large = f"{bus:#x}:{facts['Size Max'] + facts['Size Alignment']}\n"
            refused(
                lambda idx=idx, t=too_large: write(f"{self._self}/peer_mw_trans{idx}", t), errno.EINVAL, "peer_mw_trans too large"
            )
            equal(self._count(self._self, "peer_mw"), 0, "peer_mw after a refusal")
            write(f"{self._self}/peer_mw_trans{idx}", f"{bus:#x}:0\n")
            equal(self._facts(f"{self._self}/peer_mw_trans{idx}")["Port attached"], -1, "Port attached after the end")
            write(f"{self._peer}/mw_trans{idx}", "0\n")
            equal(self._count(self._peer, "mw"), 0, "mw after the end")
        refused(lambda: write(f"{self._peer}/mw_trans0", "many\n"), errno.EINVAL, "mw_trans many")

    def old_windows(self) -> None:
        """The older driver: the far side makes the memory, the near side's window shows it."""
        if self.index or self.back:
            return
        read, write = self.files.read, self.files.write
        names = [name for name in self.files.names(self._there) if re.fullmatch(r"peer_trans\d+", name)]
        equal(len(names) <= 6 and len(names) == self._count(self._there, "mw"), True, "peer_trans files")
        for name in names[: self._windows]:
            idx = int(name[10:])
            refused(lambda idx=idx: self.files.get(f"{self._here}/mw{idx}", 1), errno.EIO, f"mw{idx} that shows nothing")
            write(f"{self._there}/{name}", "65536\n")
            said = dict(line.split("\t") for line in read(f"{self._there}/{name}").splitlines()[1:])
            facts = {key.strip(): value for key, value in said.items()}
            equal((facts["Ready"], int(facts["Allocated Size"]) >= 65536), ("Y", True), name)
            data = self._numbers.randbytes(65536)
            self.files.put(f"{self._here}/mw{idx}", data)
            equal(self.files.get(f"{self._here}/mw{idx}", 65536), data, f"mw{idx}")
            equal(self.files.get(f"{self._there}/peer_mw{idx}", 65536), data, f"peer_mw{idx}")
            self.files.put(f"{self._there}/peer_mw{idx}", data[::-1])
            equal(self.files.get(f"{self._here}/mw{idx}", 65536), data[::-1], f"mw{idx} after a write to peer_mw{idx}")
            write(f"{self._there}/{name}", "0\n")
            equal(self._count(self._there, "peer_mw"), 0, "peer_mw after the end")
        write(f"{self._here}/link", "N\n")
        equal(read(f"{self._there}/link"), "N\n", "link")
        blocks(self.files, f"{self._there}/link_event", "Y\n", lambda: write(f"{self._here}/link", "Y\n"), "link_event")
        equal(read(f"{self._here}/link"), "Y\n", "link")

    # -- the other drivers -----------------------------------------------------------------------------------------------

    def pingpong(self) -> None:
        paths = [f"ntb_pingpong/{device}/count" for device in (self.near, self.far)]
        self.files.write(paths[0], "100\n")
        if number(self.files.read(paths[0])) < 100:
            raise Wrong("count is not what was written")
        start = [number(self.files.read(path)) for path in paths]
        end = time.monotonic() + self._patience
        while any(number(self.files.read(path)) < at + 3 for path, at in zip(paths, start, strict=True)):
            if time.monotonic() > end:
                raise Wrong(f"count stands still at {start}")
            time.sleep(0.01)
        refused(lambda: self.files.write(paths[0], "x\n"), errno.EINVAL, "count x")

    def interrupts(self) -> None:
        read, write = self.files.read, self.files.write
        index, back = self._find("ntb_msi_test", self.near, self.far), self._find("ntb_msi_test", self.far, self.near)
        peer = f"ntb_msi_test/{self.near}/peer{index}"
        write(f"{self._here}/link", "N\n")
        equal((number(read(f"{peer}/ready")), number(read(f"{peer}/count"))), (0, 0), "ready and count while down")
        blocks(self.files, f"{peer}/ready", "1\n", lambda: write(f"{self._here}/link", "Y\n"), "ready")
        equal(number(read(f"{peer}/ready")), 1, "ready")
        count = number(read(f"{peer}/count"))
        equal(count, self._count_irqs(), "count")
        for irq in range(count):
            before = [number(read(f"ntb_msi_test/{self.far}/irq{i}_occurrences")) for i in range(count)]
            write(f"{peer}/trigger", f"{irq}\n")
            after = [number(read(f"ntb_msi_test/{self.far}/irq{i}_occurrences")) for i in range(count)]
            equal(after, [n + (i == irq) for i, n in enumerate(before)], "occurrences")
        refused(lambda: write(f"{peer}/trigger", f"{count}\n"), errno.EINVAL, "trigger beyond")
        equal(number(read(f"ntb_msi_test/{self.far}/peer{back}/port")), number(read(f"ntb_msi_test/{self.near}/port")), "port")

    def _count_irqs(self) -> int:
        return sum(name.startswith("irq") for name in self.files.names(f"ntb_msi_test/{self.far}"))

    def performance(self) -> None:
        read, write, perf = self.files.read, self.files.write, f"ntb_perf/{self.near}"
        parameters = "module/ntb_perf/parameters"
        write(f"{parameters}/total_order", f"{self._total.bit_length() - 1}\n")
        write(f"{parameters}/chunk_order", "14\n")
        for place in (parameters, perf):
            equal(number(read(f"{place}/total_order")), self._total.bit_length() - 1, f"{place}/total_order")
            equal(number(read(f"{place}/chunk_order")), 14, f"{place}/chunk_order")
        info = read(f"{perf}/info")
        equal(
            (f"Local port {number(read(f'ntb_tool/{self.near}/port'))}," in info, "Test status: idle" in info), (True, True), "info"
        )
        for threads, dma in ((1, "N"), (2, "Y")):
            write(f"{perf}/threads_count", f"{threads}\n")
            equal(number(read(f"{perf}/threads")), threads, "threads")
            write(f"{parameters}/use_dma", f"{dma}\n")
            for place in (parameters, perf):
                equal(read(f"{place}/use_dma"), f"{dma}\n", f"{place}/use_dma")
            write(f"{perf}/run", f"{self.index}\n")
            head, *lines = read(f"{perf}/run").splitlines()
            equal((head.strip(), len(lines)), (f"Peer {self.index} test statistics:", threads), "run")
            for thread, line in enumerate(lines):
                if not re.fullmatch(rf"{thread}: copied {self._total} bytes in \d+ usecs, \d+ MBytes/s", line):
                    raise Wrong(f"run: {line!r}")
        write(f"{perf}/threads", "1\n")
        write(f"{perf}/run", "\n")  # as the older driver takes it
        if not re.fullmatch(rf"0: copied {self._total} bytes in \d+ usecs, \d+ MBytes/s\n", read(f"{perf}/run")):
            raise Wrong(f"run, old: {read(f'{perf}/run')!r}")
        refused(lambda: write(f"{perf}/run", "64\n"), errno.EINVAL, "run 64")
        refused(lambda: write(f"{perf}/threads_count", "0\n"), errno.EINVAL, "threads_count 0")
        refused(lambda: write(f"{perf}/threads_count", "33\n"), errno.EINVAL, "threads_count 33")

    STEPS = (
        "ports",
        "links",
        "doorbells",
        "scratchpads",
        "messages",
        "windows",
        "old_windows",
        "interrupts",
        "performance",
        "pingpong",
    )

    def run(self, steps: tuple[str, ...] = STEPS) -> list[str]:
        """Run the steps, and return the names of those that passed: all, or Wrong is raised."""
        for step in steps:
            try:
                getattr(self, step)()
            except (OSError, ValueError, KeyError, AssertionError) as error:
                raise Wrong(f"{step}: {error!r}") from error
            self.passed.append(step)
        return self.passed
