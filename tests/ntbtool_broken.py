# SPDX-License-Identifier: Apache-2.0
"""Mount the drivers' files with one kind of file broken: `ntbtool_broken.py FABRIC MOUNTPOINT KIND read|write|error`.

For tests that a script for NTB hardware, or the steps, notice it. KIND is a path with N for numbers and DEVICE for devices.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Any, NoReturn

from fabrex import Fabric
from fabrex.ntbtool import Debugfs, Directory, File, MemoryFile, Settings
from fabrex.ntbtool.mount import serve

COUNTERS = {"ntb_pingpong/DEVICE/count", "ntb_msi_test/DEVICE/irqN_occurrences"}


def kind_of(path: str) -> str:
    """A path's kind."""
    return re.sub(r"\d+(?=/|$|_)", "N", re.sub(r"[0-9a-f]{4}:03:00\.0", "DEVICE", path))


def _other(match: re.Match[str]) -> str:
    word = match[0]
    if word in "YN":
        return "N" if word == "Y" else "Y"
    return f"{int(word, 16) ^ 0x1010:#x}" if word.startswith("0x") else str(int(word) + 1)


def _broken(*arguments: Any) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def break_file(entry: File | MemoryFile, how: str, counter: bool = False) -> bool:
    """Break a file; False if it cannot be broken so.

    Args:
        how: "read": another value than the right one (of a counter: always the first); "write": nothing happens; "error": EIO.
    """
    if how == "error":
        entry._load = None if entry._load is None else _broken
        entry._store = None if entry._store is None else _broken  # type: ignore[assignment]
        return True
    if isinstance(entry, MemoryFile):
        load, store = entry._load, entry._store
        if how == "read":
            entry._load = lambda offset, size: bytes(b ^ 1 for b in load(offset, size))
        else:
            entry._store = lambda offset, data: store(offset, bytes(len(data)))
        return True
    if how == "write":
        if entry._store is None:
            return False
        entry._store = lambda text, waiting: None
        return True
    if entry._load is None:
        return False
    text = entry._load
    if counter:
        said: list[str] = []
        entry._load = lambda: (said or said.append(text()) or said)[0]  # type: ignore[func-returns-value]
    else:
        entry._load = lambda: re.sub(r"\b0x([0-9a-f]+)\b|\b\d+\b|\b[YN]\b", _other, text())
    return True


def break_kind(debugfs: Debugfs, kind: str, how: str) -> int:
    """Break all files of a kind, also those that are made later; returns how many there are now."""
    add = Directory.add
    folders = [(path, entry) for path, entry in debugfs.root.walk() if isinstance(entry, Directory)]
    places = [entry for path, entry in folders if kind_of(path + "/") == kind.rpartition("/")[0] + "/"]

    def broken(self: Directory, name: str, entry: Any) -> None:
        if isinstance(entry, MemoryFile) and self in places and re.sub(r"\d+", "N", name) == kind.rpartition("/")[2]:
            break_file(entry, how)
        add(self, name, entry)

    Directory.add = broken  # type: ignore[method-assign]
    found = [entry for path, entry in debugfs.root.walk() if kind_of(path) == kind]
    return sum(break_file(entry, how, kind in COUNTERS) for entry in found if isinstance(entry, (File, MemoryFile)))


def main() -> None:
    """Serve until unmounted."""
    name, place, kind, how = sys.argv[1:]
    with Fabric.open(name) as fabric:
        debugfs = Debugfs(fabric, Settings(pingpong_delay_ms=20, windows=1))
        try:
            break_kind(debugfs, kind, how)
            serve(debugfs, place, lambda: print("mounted", flush=True))
        finally:
            debugfs.close()


if __name__ == "__main__":
    main()
