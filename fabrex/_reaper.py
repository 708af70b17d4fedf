# SPDX-License-Identifier: Apache-2.0
"""The process beside a test run: it forks the run's node processes, and cleans up after a run that was killed.

One is started per pytest process (each worker of pytest-xdist is one) when that first makes a fabric, in a session of its own,
so that what kills the tests does not kill it. It owns three things:

- *Starting.* Importing pytest, fabrex and the compiled core takes 200 ms and more; it is done here once, and each node process is
  a fork of the result. Fork is safe because this process has a single thread of Python and never opens a fabric.
- *Ending.* It is the parent of every node process and, as a child subreaper, becomes the parent of whatever those leave behind:
  nothing escapes by daemonizing, and no process id is ever used after the process has been waited for.
- *Cleaning up.* When the tests' process is gone (its end of the socket closes, or the process ends), it ends all descendants,
  takes down the fabrics of the run's prefix, removes the run's private directory, and exits.

It knows nothing of pytest, and must not import the core before it has to: for tests that start no nodes it is a small process
that sleeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def _prctl(option: int, value: Any) -> None:
    """Ask the kernel for something that only makes ends tidier; where it refuses, the rest still works."""
    with contextlib.suppress(OSError, ImportError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children_of(pid: int) -> list[int]:
    """Return the living and unreaped children of a process, this one's included."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        pass
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found.append(int(entry))
    return found


def _command_of(pid: int) -> str:
    """Return how a process was started, for people."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode("utf-8", "replace").strip()[:200] or Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


class Reaper:
    """The loop of this process.

    Args:
        control: socket to the tests' process; its end is that process's end.
        parent: that process's id.
        directory: where the run's fabrics are.
        prefix: what their names begin with.
        private: the directory is the run's own: all in it is the run's, and it goes with it.
        program: module with what a node process does: `run(*descriptors)`, and `compiled(path)` for what it will need.
    """

    def __init__(self, control: socket.socket, parent: int, directory: str, prefix: str, private: bool, program: str) -> None:
        self.control = control
        self.parent = parent
        self.directory = directory
        self.prefix = prefix
        self.private = private
        self.program = program
        self.nodes: dict[int, int] = {}  # living node processes and the descriptor on which their status is told
        self.named: dict[
            int, int
        ] = {}  # what the tests' process calls them, and their ids: it may speak of one before it knows its id
        self.loaded: set[str] = set()
        self.pid = os.getpid()
        self.parent_fd = -1
        self.wake_read, self.wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve requests until the tests' process is gone, then clean up."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.wake_read, select.POLLIN)
        with contextlib.suppress(OSError, AttributeError):
            # A fork of the tests' process may hold the socket open after its death.
            self.parent_fd = os.pidfd_open(self.parent)
            poll.register(self.parent_fd, select.POLLIN)
        while os.getppid() == self.parent:
            ready = {fd for fd, _ in poll.poll(None if self.parent_fd >= 0 else 500)}
            if self.wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wake_read, 4096)
                self._wait()
            # The last requests count, even if who made them has gone since: they hold descriptors.
            if self.control.fileno() in ready and not self._request():
                break
            if self.parent_fd in ready:
                break
        self._end()

    def _request(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 8, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return False
        if not data:
            return False
        request = json.loads(data)
        if request["do"] == "fork":
            self._fork(request, fds)
        elif request["do"] == "kill":
            self._kill(self.named.get(request["node"], 0), request["signal"], request["group"])
        elif request["do"] == "sweep":
            left = self._sweep()
            with contextlib.suppress(OSError):
                self.control.send(json.dumps({"left": left[:32]}).encode())
        return True

    # -- node processes -----------------------------------------------------------------------------------------------

    def _fork(self, request: dict[str, Any], fds: list[int]) -> None:
        *given, status = fds
        try:
            program = self._load(request["preload"])
            for path in request["compile"]:
                program.compiled(path)
            pid = os.fork()
        except BaseException as error:
            for fd in given:
                os.close(fd)
            _tell(status, {"failed": f"cannot start a process for the node: {type(error).__name__}: {error}"})
            os.close(status)
            return
        if pid == 0:
            try:
                os.setsid()
                _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != self.pid:
                    os._exit(1)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self.control.close()
                for fd in (self.wake_read, self.wake_write, self.parent_fd, status, *self.nodes.values()):
                    if fd >= 0:
                        os.close(fd)
                program.run(*given)
            finally:
                os._exit(70)
        for fd in given:
            os.close(fd)
        self.nodes[pid] = status
        self.named[request["node"]] = pid
        _tell(status, {"pid": pid})

    def _load(self, names: list[str]) -> Any:
        """Import what node processes will need, once; return the module of what they do."""
        import importlib

        wanted = {"fabrex.fabric", self.program, *names} - self.loaded
        if wanted:
            import gc
            import warnings

            for name in sorted(wanted):
                # What is only asked for to be quick may fail: a node that needs it will say what is wrong.
                with contextlib.suppress(*([Exception] if name in names else [])):
                    importlib.import_module(name)
                self.loaded.add(name)
            # Threads of a preloaded library are its own affair; Python's are none.
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            gc.collect()
            gc.freeze()
        return sys.modules[self.program]

    def _kill(self, pid: int, number: int, group: bool) -> None:
        if pid in self.nodes:
            with contextlib.suppress(OSError):
                if group:
                    os.killpg(pid, number)
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    def _wait(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            told = self.nodes.pop(pid, None)
            if told is not None:
                self.named = {name: other for name, other in self.named.items() if other != pid}
                _tell(told, {"status": status})
                os.close(told)

    def _sweep(self, everything: bool = False) -> list[list[Any]]:
        """End what node processes left behind (`everything`: them too); return process ids and commands."""
        seen: dict[int, str] = {}
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            self._wait()
            left = [pid for pid in _children_of(self.pid) if everything or pid not in self.nodes]
            if not left:
                break
            for pid in left:
                seen.setdefault(pid, _command_of(pid))
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)
        return [[pid, command] for pid, command in seen.items()]

    # -- the end ------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._sweep(everything=True)
        ours = self._files()
        if ours:
            from .fabric import Fabric

            for name in sorted({entry.split("@")[2] for entry in ours}):
                with contextlib.suppress(Exception):
                    Fabric.destroy(name, self.directory, force=True)
            for entry in self._files():
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.directory, entry))
        if self.private:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.directory, ".lock"))
            with contextlib.suppress(OSError):
                os.rmdir(self.directory)

    def _files(self) -> list[str]:
        begin = f"fabrex@{os.getuid()}@" + ("" if self.private else self.prefix)
        try:
            return [entry for entry in os.listdir(self.directory) if entry.startswith(begin)]
        except OSError:
            return []


def _tell(fd: int, what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(what).encode() + b"\n")


def main() -> None:
    """Run by `python -c` with one argument, JSON: what `Reaper` takes (`control` is a descriptor), and descriptors to `keep`."""
    given = json.loads(sys.argv[1])
    sys.argv = ["fabrex-reaper"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What ends a run ends this process too, afterwards and by itself.
        signal.signal(number, signal.SIG_IGN)
    _prctl(_PR_SET_NAME, b"fabrex-reaper")
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for fd in given.pop("keep"):
        os.set_inheritable(fd, False)  # not for programs that nodes start
    control = socket.socket(fileno=given.pop("control"))
    Reaper(control, **given).serve()
