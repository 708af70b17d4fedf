# SPDX-License-Identifier: Apache-2.0
"""Files and directories as objects, and how a write that blocks comes to an end.

Whatever goes wrong is an OSError with the number that the kernel's driver would have returned. Must not know: FUSE, devices.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

from .codes import fail, translated


class Waiting:
    """What a blocking write asks while it waits; whoever serves the file says what may end the wait."""

    def __init__(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        self._interrupted = interrupted

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when it is true.

        Looks often at first and every 10 ms later, which costs a waiter no processor worth the name. The device's events are left
        alone: each is told once, and belongs to the programs that run on the host.

        Raises:
            OSError: EINTR, the writer got a signal; or what the condition raises (ENODEV: the fabric has gone).
        """
        pause = 0.0002
        while not condition():
            if self._interrupted():
                fail(errno.EINTR)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.01)

    def look(self) -> None:
        """Raise EINTR if the writer got a signal."""
        if self._interrupted():
            fail(errno.EINTR)


class Entry:
    """A file or a directory.

    Attributes:
        mode: permission bits.
        touched: called when it is opened.
    """

    def __init__(self, mode: int, touched: Callable[[], None] | None = None) -> None:
        self.mode = mode
        self.touched = touched


class File(Entry):
    """A file whose text is made when it is read, and taken as a command when it is written."""

    def __init__(
        self,
        mode: int,
        load: Callable[[], str] | None = None,
        store: Callable[[str, Waiting], None] | None = None,
    ) -> None:
        super().__init__(mode)
        self._load = load
        self._store = store

    def read(self) -> str:
        """Return what it says; EINVAL if it cannot be read."""
        if self._load is None:
            fail(errno.EINVAL)
        with translated():
            return self._load()

    def write(self, text: str, waiting: Waiting) -> None:
        """Take one write; EINVAL if it cannot be written."""
        if self._store is None:
            fail(errno.EINVAL)
        with translated():
            self._store(text, waiting)


class MemoryFile(Entry):
    """A file that is memory."""

    def __init__(
        self,
        size: int,
        load: Callable[[int, int], bytes],
        store: Callable[[int, bytes], None],
    ) -> None:
        super().__init__(0o600)
        self.size = size
        self._load = load
        self._store = store

    def read_at(self, offset: int, size: int) -> bytes:
        """Return bytes; fewer at the end, none beyond it."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        with translated():
            return self._load(offset, size)

    def write_at(self, offset: int, data: bytes) -> int:
        """Write what fits and return how much that was; ENOSPC if nothing does."""
        fits = data[: max(self.size - offset, 0)]
        if data and not fits:
            fail(errno.ENOSPC)
        with translated():
            if fits:
                self._store(offset, fits)
        return len(fits)


class Directory(Entry):
    """A directory. Its entries are made when somebody looks into it; more may come and go."""

    def __init__(self, build: Callable[[], dict[str, Entry]] | None = None, mode: int = 0o755) -> None:
        super().__init__(mode)
        self._build = build
        self._entries: dict[str, Entry] = {}
        self._lock = threading.RLock()

    def _all(self) -> dict[str, Entry]:
        with self._lock:
            if self._build is not None:
                build, self._build = self._build, None
                self._entries = {**build(), **self._entries}
            return self._entries

    def names(self) -> list[str]:
        """Return the names in it, sorted."""
        with self._lock:
            return sorted(self._all())

    def __getitem__(self, name: str) -> Entry:
        with self._lock:
            entry = self._all().get(name)
        if entry is None:
            fail(errno.ENOENT)
        return entry

    def add(self, name: str, entry: Entry) -> None:
        """Put an entry into it."""
        with self._lock:
            self._all()[name] = entry

    def remove(self, name: str) -> None:
        """Take an entry out of it, if it is there."""
        with self._lock:
            self._all().pop(name, None)

    def find(self, path: str) -> Entry:
        """Return what a path leads to; ENOENT, ENOTDIR."""
        found: Entry = self
        for part in path.strip("/").split("/"):
            if not part:
                continue
            if not isinstance(found, Directory):
                fail(errno.ENOTDIR)
            found = found[part]
        return found

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Entry]]:
        """Yield path and entry of everything below, files and directories."""
        for name in self.names():
            entry = self[name]
            yield prefix + name, entry
            if isinstance(entry, Directory):
                yield from entry.walk(f"{prefix}{name}/")
