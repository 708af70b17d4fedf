# SPDX-License-Identifier: Apache-2.0
"""What one pytest process has of its own: a directory, a prefix of names, and the process that forks nodes and cleans up.

Made when the first test asks for a fabric. Nothing here imports the core.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Session", "timing_lock"]

_SHARED_MEMORY = "/dev/shm"
_DIRECTORY = "fabrex-pytest-{uid}-"


class Session:
    """The run's own things in this process.

    Args:
        worker: pytest-xdist's name of this process, or "main".
        preload: modules that node processes find imported already.
        rootpath: of the tests.

    Attributes:
        directory: where fabrics of tests are: FABREX_DIRECTORY if it was set, else a private one.
        prefix: what the names of the run's fabrics in this process begin with; no other process has it.
    """

    def __init__(self, worker: str, preload: list[str], rootpath: Path) -> None:
        self.worker = worker
        self.preload = preload
        self.rootpath = str(rootpath)
        self.token = os.urandom(4).hex()
        self.prefix = f"{worker}-{self.token}-"
        given = os.environ.get("FABREX_DIRECTORY")
        self.private = not given
        self.directory = given or self._make_directory()
        self.pid = os.getpid()
        self._count = 0
        self._forks = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = threading.Lock()
        # From now on: a fabric may be there at any moment after this.
        self._ensure()

    # -- names and places ---------------------------------------------------------------------------------------------

    def _make_directory(self) -> str:
        place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK | os.X_OK) else tempfile.gettempdir()
        begin = _DIRECTORY.format(uid=os.getuid())
        _remove_abandoned(place, begin)
        path = os.path.join(place, f"{begin}{self.worker}-{self.token}")
        os.mkdir(path, 0o700)
        # Locked for as long as this process or its reaper lives: an unlocked one is abandoned.
        self._lock_fd = os.open(os.path.join(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path

    def name(self, label: str) -> str:
        """Return a name for a fabric that nobody has had."""
        self._count += 1
        words = re.sub(r"[^A-Za-z0-9_.-]+", "-", label).strip("-")
        return f"{self.prefix}{self._count}-{words}"[:63].rstrip("-.")

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """FABREX_DIRECTORY is the run's directory inside, and what it was outside."""
        before = os.environ.get("FABREX_DIRECTORY")
        os.environ["FABREX_DIRECTORY"] = self.directory
        try:
            yield
        finally:
            if before is None:
                os.environ.pop("FABREX_DIRECTORY", None)
            else:
                os.environ["FABREX_DIRECTORY"] = before

    def fabrics(self) -> set[str]:
        """Return the names of fabrics of this process's run of which any file is left."""
        begin = f"fabrex@{os.getuid()}@" + ("" if self.private else self.prefix)
        try:
            return {entry.split("@")[2] for entry in os.listdir(self.directory) if entry.startswith(begin)}
        except FileNotFoundError:
            return set()

    def remove(self, name: str) -> None:
        """Take a fabric down whatever state it is in."""
        from ..fabric import Fabric

        with contextlib.suppress(Exception):
            Fabric.destroy(name, self.directory, force=True)
        begin = f"fabrex@{os.getuid()}@{name}"
        with contextlib.suppress(OSError):
            for entry in os.listdir(self.directory):
                if entry == begin or entry.startswith(begin + "@"):
                    os.unlink(os.path.join(self.directory, entry))

    # -- the reaper ---------------------------------------------------------------------------------------------------

    def _ensure(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        if self._control is not None:
            self._control.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keep = [theirs.fileno(), *([self._lock_fd] if self.private else [])]
        given = {
            "keep": keep,
            "control": theirs.fileno(),
            "parent": os.getpid(),
            "directory": self.directory,
            "prefix": self.prefix,
            "private": self.private,
            "program": f"{__package__}._child",
        }
        program = f"import sys; sys.path[:] = {[str(p) for p in sys.path]!r}; from fabrex._reaper import main; main()"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # it outlives a killed run; holding the run's output open would hang who reads that
                stderr=subprocess.DEVNULL,
                pass_fds=keep,
                start_new_session=True,
            )
        self._control = ours
        return ours

    def fork(self, request: dict[str, Any], fds: list[int]) -> int:
        """Ask for a node process; the last of `fds` is where its id and its status are told. Returns a number for `kill`."""
        with self._lock:
            control = self._ensure()
            self._forks += 1
            socket.send_fds(control, [json.dumps({"do": "fork", "node": self._forks, **request}).encode()], fds)
            return self._forks

    def kill(self, node: int, number: int, group: bool = False) -> None:
        """Send a signal to a node process, if it is still one."""
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None:
                self._control.send(json.dumps({"do": "kill", "node": node, "signal": int(number), "group": group}).encode())

    def sweep(self, timeout: float = 15.0) -> list[tuple[int, str]]:
        """End what ended node processes have left behind; returns process ids and commands."""
        with self._lock:
            if self._control is None or self._process is None:
                return []
            try:
                self._control.settimeout(timeout)
                self._control.send(b'{"do": "sweep"}')
                data = self._control.recv(1 << 16)
            except OSError:
                return []
            finally:
                self._control.settimeout(None)
        return [(int(pid), str(command)) for pid, command in json.loads(data)["left"]] if data else []

    def abandon(self) -> None:
        """End the reaper, and with it every node process: for when it no longer answers."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the reaper; it cleans up and removes a private directory."""
        if self.pid != os.getpid():
            return
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(timeout=20.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self.private:
            with contextlib.suppress(OSError):
                os.close(self._lock_fd)
            shutil.rmtree(self.directory, ignore_errors=True)


def _remove_abandoned(place: str, begin: str) -> None:
    """Remove directories of runs of which not even the reaper is left (the machine went down, or all was killed at once)."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(place):
            if not entry.name.startswith(begin) or not entry.is_dir(follow_symlinks=False):
                continue
            # A lock file that is not there yet may be about to be.
            with contextlib.suppress(OSError):
                fd = os.open(os.path.join(entry.path, ".lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(fd)


@contextlib.contextmanager
def timing_lock(timeout: float) -> Iterator[None]:
    """Hold this user's lock of tests in real time: two at once would make each other late.

    Raises:
        TimeoutError: others held it all the time.
    """
    path = os.path.join(tempfile.gettempdir(), f"fabrex-timing-{os.getuid()}.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() >= deadline:
                raise TimeoutError(f"tests in real time run one at a time, and others held {path} for {timeout:g} s")
            time.sleep(0.01)
        yield
    finally:
        os.close(fd)
