# SPDX-License-Identifier: Apache-2.0
"""The tree as a file system, through libfuse 3 by way of mfusepy.

mfusepy is plain Python over ctypes, so nothing is compiled at installation; it needs libfuse3 and fusermount3 of the distribution
(Debian: fuse3). Its high-level interface has what the files need of FUSE and other bindings hide: a handler can ask whether the
caller was interrupted, so that a blocking write ends with Ctrl-C as it does in the kernel.

The mount ends with the process, whatever ends it: a shell waits for the process to go, and unmounts what it left. libfuse's own
auto_unmount does that too, but looks once only and too early: of twelve mounts killed at once three stayed (fuse 3.14.0).

Must not know: what the files mean.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import itertools
import os
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument, SystemRefused
from .codes import fail, translated
from .debugfs import Debugfs
from .tree import Directory, Entry, File, MemoryFile, Waiting

_THREADS = 4096  # blocking writes hold a thread each
_DEVICE = "/dev/fuse"


def missing() -> str:
    """Return what this machine lacks for a mount; nothing if all is there."""
    try:
        binding = importlib.import_module("mfusepy")
    except ImportError:
        return "the package mfusepy is not installed: pip install 'fabrex[fuse]'"
    except (OSError, AttributeError) as error:
        return f"libfuse 3 is missing: apt-get install fuse3 ({error})"
    if binding.fuse_version_major != 3:
        return "libfuse 3 is missing: apt-get install fuse3"
    if not any(os.access(os.path.join(place, "fusermount3"), os.X_OK) for place in os.get_exec_path()):
        return "fusermount3 is missing: apt-get install fuse3"
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return f"{_DEVICE} is missing or may not be opened; a container needs --device {_DEVICE} and --cap-add SYS_ADMIN"
    return ""


class _Opened:
    """One opening of a file. Text is made at the first read, so that one reader sees one state."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.text: bytes | None = None


class Operations:
    """What libfuse calls."""

    use_ns = True

    def __init__(self, debugfs: Debugfs, binding: Any, mounted: Callable[[], None]) -> None:
        self._debugfs = debugfs
        self._binding = binding
        self._mounted = mounted
        self._lib = binding._libfuse
        self._lib.fuse_get_session.restype = ctypes.c_void_p
        self._lib.fuse_get_session.argtypes = [ctypes.c_void_p]
        self._lib.fuse_session_exited.argtypes = [ctypes.c_void_p]
        self._session: int | None = None
        self._opened: dict[int, _Opened] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._born = time.time_ns()

    # -- beginning and end ------------------------------------------------------------------------------------------------

    def init_with_config(self, connection: Any, config: Any) -> None:
        """Files come and go without libfuse's doing: nothing may be remembered."""
        if config is not None:
            config.entry_timeout = config.attr_timeout = config.negative_timeout = 0.0
            config.hard_remove = 1
        context = self._lib.fuse_get_context()
        if context:
            self._session = self._lib.fuse_get_session(context.contents.fuse)
        self._mounted()

    def _interrupted(self) -> bool:
        if self._session is not None and self._lib.fuse_session_exited(self._session):
            return True
        return bool(self._lib.fuse_interrupted())

    # -- names ------------------------------------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Return a file's attributes."""
        with translated():
            entry = self._debugfs.find(path) if path.strip("/") else self._debugfs.root
        directory = isinstance(entry, Directory)
        return {
            "st_mode": (stat.S_IFDIR if directory else stat.S_IFREG) | entry.mode,
            "st_nlink": 2 if directory else 1,
            "st_size": entry.size if isinstance(entry, MemoryFile) else 0,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_atime": self._born,
            "st_mtime": self._born,
            "st_ctime": self._born,
        }

    def readdir(self, path: str, fh: int) -> list[str]:
        """Return the names in a directory."""
        with translated():
            entry = self._debugfs.find(path)
            if not isinstance(entry, Directory):
                fail(errno.ENOTDIR)
            return [".", "..", *entry.names()]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        """Nobody makes files here."""
        fail(errno.EACCES)

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        """Shells truncate what they write to: that means nothing to a register."""
        with translated():
            self._debugfs.find(path)
        return 0

    # -- files ------------------------------------------------------------------------------------------------------------

    def open(self, path: str, fi: Any) -> int:
        """Open a file; the page cache is not for registers."""
        with translated():
            entry = self._debugfs.open(path)
        with self._lock:
            number = next(self._numbers)
            self._opened[number] = _Opened(entry)
        fi.fh = number
        fi.direct_io = 1
        return 0

    def release(self, path: str | None, fi: Any) -> int:
        """Close a file."""
        with self._lock:
            self._opened.pop(fi.fh, None)
        return 0

    def _of(self, fi: Any) -> _Opened:
        with self._lock:
            opened = self._opened.get(fi.fh)
        if opened is None:
            fail(errno.EBADF)
        self._debugfs.devices.alive()
        return opened

    def read(self, path: str | None, size: int, offset: int, fi: Any) -> bytes:
        """Read a part of a file."""
        with translated():
            opened = self._of(fi)
            if isinstance(opened.entry, MemoryFile):
                return opened.entry.read_at(offset, size)
            if not isinstance(opened.entry, File):
                fail(errno.EISDIR)
            if opened.text is None or offset == 0:
                opened.text = opened.entry.read().encode()
            return opened.text[offset : offset + size]

    def write(self, path: str | None, data: bytes, offset: int, fi: Any) -> int:
        """Write: to memory, or a command. May block."""
        with translated():
            opened = self._of(fi)
            if isinstance(opened.entry, MemoryFile):
                return opened.entry.write_at(offset, data)
            if not isinstance(opened.entry, File):
                fail(errno.EISDIR)
            opened.entry.write(data.decode("latin-1"), Waiting(self._interrupted))
            return len(data)

    def statfs(self, path: str) -> dict[str, int]:
        """Nothing is stored here."""
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}


# Waits for the end of its standard input, which the serving process holds open. $1: the mount's source, $2: the mount point.
_WATCH = """
trap '' HUP INT TERM
read -r _
tries=0
while grep -qF " - fuse.ntbtool $1 " /proc/self/mountinfo && [ $tries -lt 100 ]; do
    fusermount3 -u -q -z "$2" 2>/dev/null
    tries=$((tries + 1))
    sleep 0.05
done
"""


@contextlib.contextmanager
def _watched(source: str, place: str) -> Iterator[None]:
    """Have the mount taken away when this process has gone."""
    nothing = subprocess.DEVNULL
    command = ["sh", "-c", _WATCH, "sh", source, place]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, start_new_session=True, cwd="/")
    try:
        yield
    finally:
        assert watch.stdin is not None
        watch.stdin.close()
        watch.wait()


def serve(debugfs: Debugfs, mountpoint: str, ready: Callable[[], None], *, everybody: bool = False) -> None:
    """Mount the tree and serve it until it is unmounted, or the process gets SIGINT, SIGTERM or SIGHUP.

    Must be called in the main thread. What libfuse and fusermount3 say on standard error while they mount becomes the error's text.

    Args:
        ready: called when it is mounted.
        everybody: other users may look, too.
    Raises:
        InvalidArgument: the mount point is no empty directory. SystemRefused: something is missing, or mounting failed.
    """
    lack = missing()
    if lack:
        raise SystemRefused(lack, hint="")
    place = os.path.abspath(mountpoint)
    if not os.path.isdir(place):
        raise InvalidArgument(f"{mountpoint!r} is no directory", hint=f"mkdir {mountpoint}")
    if os.listdir(place):
        raise InvalidArgument(f"{mountpoint!r} is not empty", hint="choose an empty directory")
    binding = importlib.import_module("mfusepy")
    # fusermount3 and libfuse say on standard error why they cannot mount.
    source = f"fabrex:{debugfs.devices.fabric.name}@{os.getpid()}"
    with tempfile.TemporaryFile() as said, open(os.devnull, "r+b") as nothing, _watched(source, place):
        saved = {number: os.dup(number) for number in (0, 1, 2)}

        def restore() -> None:
            while saved:
                number, copy = saved.popitem()
                os.dup2(copy, number)
                os.close(copy)

        def mounted() -> None:
            restore()
            ready()

        for number, to in ((0, nothing), (1, nothing), (2, said)):
            os.dup2(to.fileno(), number)
        options: dict[str, Any] = {"max_threads": _THREADS} if binding.fuse_version_minor >= 12 else {}
        try:
            binding.FUSE(
                Operations(debugfs, binding, mounted),
                place,
                raw_fi=True,
                foreground=True,
                nothreads=False,
                fsname=source,
                subtype="ntbtool",
                default_permissions=True,
                allow_other=everybody,
                **options,
            )
        except RuntimeError as error:
            if not saved:  # it was mounted: a signal has ended it
                return
            said.seek(0)
            why = said.read().decode(errors="replace").strip().replace("\n", "; ")
            raise SystemRefused(f"cannot mount at {mountpoint}: {why or error}", hint="see fusermount3(1)") from None
        finally:
            restore()


def is_mounted(mountpoint: str) -> bool:
    """Return whether one of our trees is mounted there."""
    place = os.path.realpath(mountpoint).replace(" ", "\\040")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[4] == place and after.startswith("fuse.ntbtool "):
                return True
    return False
