# SPDX-License-Identifier: Apache-2.0
"""Starting one process per node, and making sure that none is left.

A `Launcher` starts commands with the environment that `fabrex.attach()` reads, passes their output on line by line with the
node's name before it, ends the rest when one fails, and cleans up whatever they started. Each command runs in a session of
its own. Three nets keep processes from being left behind: the launcher itself ends every process group; the kernel ends the
commands if the launcher dies (PR_SET_PDEATHSIG); and a watcher process, which notices the launcher's death by a closed pipe,
ends their descendants too and removes the fabric.

Owns: processes, their output and their ends. Must not know: the command line, tables, what the commands do.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from .errors import FabricNotFound, InvalidArgument

__all__ = ["Launcher", "Output", "Process", "Task", "environment", "find_command", "signal_name"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_LONG_LINE = 1 << 16
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


@dataclass(frozen=True)
class Task:
    """One command to run as one node.

    Attributes:
        node: the node's name, FABREX_NODE.
        command: program and arguments.
        label: what stands before its output; the node's name if left out.
        rank, size: FABREX_RANK and FABREX_SIZE, where others are started elsewhere; its place among the tasks if left out.
    """

    node: str
    command: Sequence[str]
    label: str = ""
    rank: int | None = None
    size: int | None = None


@dataclass
class Process:
    """A started command, and how it ended.

    Attributes:
        node, rank, label: who it is.
        command: program and arguments.
        pid: its process id, which is also its process group.
        exit_code: as a shell reports it (128 + number for a signal); None while it runs.
        signal: the number of the signal that ended it, or None.
        seconds: how long it ran.
        ended_by_us: the launcher ended it (another failed, a timeout, an interrupt).
    """

    node: str
    rank: int
    label: str
    command: tuple[str, ...]
    pid: int = 0
    exit_code: int | None = None
    signal: int | None = None
    seconds: float = 0.0
    ended_by_us: bool = False
    _popen: Any = field(default=None, repr=False)
    _began: float = field(default=0.0, repr=False)

    def describe(self) -> str:
        """Say how it ended, for people."""
        if self.exit_code is None:
            return f"{self.label} still runs"
        after = f"after {self.seconds:.1f} s"
        if self.signal is not None:
            return f"{self.label} was killed by {signal_name(self.signal)} {after}"
        return f"{self.label} exited with code {self.exit_code} {after}"


def signal_name(number: int) -> str:
    """Return `SIGKILL` for 9, `signal 99` for what has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def environment(fabric: str, directory: str, node: str, rank: int, size: int) -> dict[str, str]:
    """Return the variables that tell a process which node it is."""
    return {
        "FABREX_FABRIC": fabric,
        "FABREX_DIRECTORY": directory,
        "FABREX_NODE": node,
        "FABREX_RANK": str(rank),
        "FABREX_SIZE": str(size),
    }


def find_command(name: str) -> str:
    """Return the path of a program.

    Raises:
        FabricNotFound: there is none; its `code` is NO_COMMAND, or NOT_EXECUTABLE if there is such a file.
    """
    import shutil

    found = shutil.which(name)
    if found:
        return found
    if os.path.isdir(name):
        error = FabricNotFound(f"{name!r} is a directory and no command", hint="")
        error.code = "NOT_EXECUTABLE"
    elif os.path.isfile(name) and (os.sep in name or not os.access(name, os.X_OK)):
        error = FabricNotFound(f"{name!r} cannot be run", hint=f"`chmod +x {name}`, or name its interpreter first")
        error.code = "NOT_EXECUTABLE"
    else:
        error = FabricNotFound(f"there is no command {name!r}", hint="give a path, or a program that is in PATH")
        error.code = "NO_COMMAND"
    raise error


class Output:
    """Passes lines of several sources on, each with its label, to one stream.

    A line that is not finished is held back for `patience` seconds, so that lines of different sources do not mix; then it
    is shown as far as it goes, and is continued if nothing else came in between.
    """

    def __init__(self, stream: IO[bytes], *, prefix: bool = True, colour: bool = False, patience: float = 0.4) -> None:
        self._stream = stream
        self._prefix = prefix
        self._colour = colour
        self._patience = patience
        self._pending: dict[str, tuple[bytes, float]] = {}
        self._open: str | None = None
        self._paints: dict[str, int] = {}
        self.broken = False

    def feed(self, label: str, data: bytes, now: float) -> None:
        """Take what a source wrote."""
        held, since = self._pending.pop(label, (b"", now))
        *lines, rest = (held + data).split(b"\n")
        for line in lines:
            self._emit(label, line, True)
        if len(rest) >= _LONG_LINE:
            self._emit(label, rest, False)
        elif rest:
            self._pending[label] = (rest, since if held and not lines else now)

    def tick(self, now: float) -> None:
        """Show unfinished lines that have waited long enough."""
        for label, (data, since) in list(self._pending.items()):
            if now - since >= self._patience:
                del self._pending[label]
                self._emit(label, data, False)

    def finish(self, label: str) -> None:
        """The source has ended: show the rest, and end its line."""
        data, _ = self._pending.pop(label, (b"", 0.0))
        if data or self._open == label:
            self._emit(label, data, True)

    def _emit(self, label: str, line: bytes, whole: bool) -> None:
        out = b""
        if self._open is not None and self._open != label:
            out += b"\n"
            self._open = None
        if self._open is None and self._prefix:
            out += self._mark(label)
        out += line + (b"\n" if whole else b"")
        self._open = None if whole else label
        self._write(out)

    def _mark(self, label: str) -> bytes:
        mark = f"[{label}] "
        if self._colour:
            paint = self._paints.setdefault(label, _COLOURS[len(self._paints) % len(_COLOURS)])
            mark = f"\x1b[{paint}m[{label}]\x1b[0m "
        return mark.encode()

    def _write(self, data: bytes) -> None:
        if self.broken:
            return
        try:
            self._stream.write(data)
            self._stream.flush()
        except BrokenPipeError:
            self.broken = True


class Launcher:
    """Runs commands as nodes of a fabric that exists.

    Use it as a context manager: leaving it ends everything. `run()` does it all; `start()` and `poll()` are for those who
    have something else to do meanwhile.

    Args:
        fabric: the fabric's name.
        directory: where its segments are.
        tasks: what to run; ranks follow their order.
        timeout: seconds after which all are ended; None lets them run.
        grace: seconds between asking a process to end and killing it.
        stdout, stderr: where lines go; None for this process's own.
        output_dir: a directory that receives each command's output in files as well.
        say: called with a line about what happens, for people.
        extra_env: added to the environment.
        reclaim: the watcher removes the fabric if this process dies (it does so only when the fabric's life is over).
    """

    def __init__(
        self,
        fabric: str,
        directory: str,
        tasks: Iterable[Task],
        *,
        timeout: float | None = None,
        grace: float = 5.0,
        stdout: Output | None = None,
        stderr: Output | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        say: Callable[[str], None] | None = None,
        extra_env: Mapping[str, str] | None = None,
        reclaim: bool = True,
    ) -> None:
        self.fabric = fabric
        self.directory = directory
        self.timeout = timeout
        self.grace = grace
        self.timed_out = False
        self.interrupted: int | None = None
        self.first_failure: Process | None = None
        self.processes: list[Process] = []
        self._out = stdout or Output(sys.stdout.buffer)
        self._err = stderr or Output(sys.stderr.buffer)
        self._output_dir = Path(output_dir) if output_dir is not None else None
        self._say = say or (lambda line: None)
        self._extra_env = dict(extra_env or {})
        self._reclaim = reclaim
        self._selector = selectors.DefaultSelector()
        self._files: list[IO[bytes]] = []
        self._watcher: Any = None
        self._handlers: dict[int, Any] = {}
        self._began = 0.0
        self._asked: float | None = None
        self._killed = False
        self._reaper = False
        self._finished = False
        self._size: int | None = None
        seen: dict[str, int] = {}
        for rank, task in enumerate(tasks):
            label = task.label or task.node
            seen[label] = seen.get(label, 0) + 1
            shown = label if seen[label] == 1 else f"{label}.{seen[label]}"
            self.processes.append(Process(task.node, rank if task.rank is None else task.rank, shown, tuple(task.command)))
            self._size = task.size
        if not self.processes:
            raise InvalidArgument("there is nothing to run")

    # -- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start all commands.

        Raises:
            FabricNotFound: a command does not exist; nothing has been started.
            OSError: the operating system refused one; those already started have been ended.
        """
        paths = [find_command(process.command[0]) for process in self.processes]
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
        prepare = _child_setup()
        self._reaper = _become_reaper()
        self._watch()
        self._catch_signals()
        self._began = time.monotonic()
        try:
            for process, path in zip(self.processes, paths, strict=True):
                env = {**os.environ, "PYTHONUNBUFFERED": os.environ.get("PYTHONUNBUFFERED", "1"), **self._extra_env}
                env |= environment(self.fabric, self.directory, process.node, process.rank, self._size or len(self.processes))
                popen = subprocess.Popen(
                    process.command,
                    executable=path,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    preexec_fn=prepare,
                    bufsize=0,
                )
                process._popen, process.pid, process._began = popen, popen.pid, time.monotonic()
                self._tell_watcher(f"+{popen.pid}\n")
                self._listen(process, popen.stdout, self._out, "out")
                self._listen(process, popen.stderr, self._err, "err")
        except BaseException:
            self.close()
            raise

    def run(self) -> int:
        """Start, wait for all, clean up; returns the exit code."""
        with self:
            self.start()
            while self.poll(0.1):
                pass
        return self.exit_code

    def poll(self, seconds: float = 0.0) -> bool:
        """Pass output on for at most `seconds`, and look who has ended; returns whether any still runs."""
        now = time.monotonic()
        deadline = now + seconds
        while True:
            running = self._reap()
            wait = 0.0 if not running else max(min(deadline - now, 0.05), 0.0)
            self._pump(wait)
            now = time.monotonic()
            self._control(now)
            if not running or now >= deadline:
                return bool(running)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask all that still run to end; `poll` kills those that have not done so after the grace."""
        for process in self.processes:
            if process.exit_code is None and process.pid:
                process.ended_by_us = True
                _signal_group(process.pid, number)
        if self._asked is None:
            self._asked = time.monotonic()

    def close(self) -> None:
        """End whatever still runs, and everything that the commands started. Idempotent."""
        if self._finished:
            return
        self._finished = True
        started = [process for process in self.processes if process.pid]
        if any(process.exit_code is None for process in started):
            self.stop()
            while self._reap():
                self._pump(0.05)
                self._control(time.monotonic())
        self._end_leftovers(started)
        self._drain()
        for process in started:
            self._out.finish(process.label)
            self._err.finish(process.label)
        for file in self._files:
            file.close()
        self._selector.close()
        self._release_signals()
        if self._watcher is not None:
            self._tell_watcher("done\n")
            with contextlib.suppress(OSError):
                self._watcher.stdin.close()
            self._watcher.wait()
        _be_reaper(self._reaper)

    @property
    def exit_code(self) -> int:
        """0; 124 after a timeout; 128 + the signal that interrupted; the code of the first that failed."""
        if self.interrupted is not None:
            return 128 + self.interrupted
        if self.timed_out:
            return 124
        return self.first_failure.exit_code or 1 if self.first_failure else 0

    # -- inside -----------------------------------------------------------------------------------------------------

    def _listen(self, process: Process, pipe: Any, output: Output, kind: str) -> None:
        os.set_blocking(pipe.fileno(), False)
        file: IO[bytes] | None = None
        if self._output_dir is not None:
            file = (self._output_dir / f"{process.label}.{kind}").open("wb")
            self._files.append(file)
        self._selector.register(pipe, selectors.EVENT_READ, (process, output, file))

    def _pump(self, wait: float) -> None:
        now = time.monotonic()
        if not self._selector.get_map():
            if wait:
                time.sleep(min(wait, 0.01))
            return
        for key, _ in self._selector.select(wait):
            process, output, file = key.data
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            if not data:
                self._selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                output.finish(process.label)
                continue
            if file is not None:
                file.write(data)
            output.feed(process.label, data, now)
        self._out.tick(now)
        self._err.tick(now)

    def _reap(self) -> list[Process]:
        running = []
        for process in self.processes:
            if process.exit_code is not None or process._popen is None:
                continue
            # The group goes before its leader is waited for: until then its number cannot be another's.
            if not _has_ended(process.pid):
                running.append(process)
                continue
            _signal_group(process.pid, signal.SIGTERM)
            code = process._popen.wait()
            if not _group_lives(process.pid):
                self._tell_watcher(f"-{process.pid}\n")  # the number may now become another's
            process.seconds = time.monotonic() - process._began
            process.signal = -code if code < 0 else None
            process.exit_code = 128 - code if code < 0 else code
            if code and self.first_failure is None and not process.ended_by_us:
                self.first_failure = process
                others = [other for other in self.processes if other.exit_code is None and other.pid]
                ending = f"; ending {_some(other.label for other in others)}" if others and self._asked is None else ""
                self._say(process.describe() + ending)
                if others:
                    self.stop()
        return running

    def _control(self, now: float) -> None:
        running = [process for process in self.processes if process.exit_code is None and process.pid]
        if (self._out.broken or self._err.broken) and running and self._asked is None:
            self.interrupted = self.interrupted or signal.SIGPIPE
            self.stop()
        if self.timeout is not None and running and self._asked is None and now - self._began >= self.timeout:
            self.timed_out = True
            self._say(f"the time of {self.timeout:g} s is over; ending {_some(process.label for process in running)}")
            self.stop()
        if self._asked is not None and running and not self._killed and now - self._asked >= self.grace:
            self._killed = True
            self._say(f"{_some(process.label for process in running)} did not end within {self.grace:g} s; killing")
            for process in running:
                _signal_group(process.pid, signal.SIGKILL)

    def _end_leftovers(self, started: list[Process]) -> None:
        """End what the commands left running: in their groups, or escaped from them and now our children."""
        mark = f"FABREX_FABRIC={self.fabric}".encode()
        sessions = {process.pid for process in started}
        deadline = time.monotonic() + min(self.grace, 1.0)
        while left := _descendants(mark, sessions, self._watcher.pid if self._watcher else 0):
            number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            self._pump(0.02)
            for pid in left:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > deadline + 5.0:
                break

    def _drain(self) -> None:
        for key in list(self._selector.get_map().values()):
            process, output, file = key.data
            with contextlib.suppress(BlockingIOError, OSError):
                while data := os.read(key.fd, 1 << 16):
                    if file is not None:
                        file.write(data)
                    output.feed(process.label, data, time.monotonic())
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def _release_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted is not None:
            self._asked = time.monotonic() - self.grace  # asked twice: no more patience
        self.interrupted = number
        self.stop(number)

    def _watch(self) -> None:
        command = [sys.executable, "-m", "fabrex.launcher", self.directory, self.fabric if self._reclaim else ""]
        # The watcher must be able to import this package wherever it came from.
        root = os.path.dirname(os.path.abspath(next(iter(sys.modules["fabrex"].__path__))))
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._watcher = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
            bufsize=0,
        )

    def _tell_watcher(self, line: str) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self._watcher.stdin.write(line.encode())


def _some(labels: Iterable[str], limit: int = 6) -> str:
    listed = list(labels)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _child_setup() -> Callable[[], None]:
    """Return what a child calls between fork and exec: no allocation of note, no locks, no imports."""
    prctl, parent, getppid, leave = _libc().prctl, os.getpid(), os.getppid, os._exit
    kill = int(signal.SIGKILL)

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, kill, 0, 0, 0)
        if getppid() != parent:  # it died before the line above
            leave(137)

    return prepare


def _become_reaper() -> bool:
    """Orphans among the descendants become this process's children; returns whether they did so before."""
    import ctypes

    before = ctypes.c_int(0)
    libc = _libc()
    libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return bool(before.value)


def _be_reaper(wanted: bool) -> None:
    if not wanted:
        _libc().prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and session of a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[3])


def _descendants(mark: bytes, sessions: set[int], watcher: int) -> list[int]:
    """Living processes of these sessions, and below this one those with `mark` in their environment."""
    me = os.getpid()
    table: dict[int, tuple[str, int, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := _stat(int(entry))) is not None:
            table[int(entry)] = found
    below = {me}
    grew = True
    while grew:
        more = {pid for pid, (_, parent, _) in table.items() if parent in below} - below
        grew = bool(more)
        below |= more
    result = []
    for pid, (state, parent, session) in table.items():
        if pid in (me, watcher) or pid not in below:
            continue
        if state in "ZX":
            if parent == me and session in sessions:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            continue
        if session in sessions:
            result.append(pid)
            continue
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                result.append(pid)
    return result


def _watcher_main(directory: str, name: str) -> None:
    """Wait until the launcher says that it is done, or is gone; in that case end what it started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    text = b""
    while True:
        data = os.read(0, 4096)
        text += data
        *lines, text = text.split(b"\n")
        for line in lines:
            if line == b"done":
                return
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
        if not data:
            break
    marks = {f"FABREX_FABRIC={name}".encode()} if name else set()
    for _ in range(20):
        living = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid() or (found := _stat(int(entry))) is None or found[0] in "ZX":
                continue
            if found[2] in groups:
                living.append(int(entry))
            elif marks:
                with contextlib.suppress(OSError):
                    held = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                    if marks & set(held) and f"FABREX_DIRECTORY={directory}".encode() in held:
                        living.append(int(entry))
        for pid in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not living:
            break
        time.sleep(0.05)
    if name:
        from ._handle import lib

        lib.fbx_fabric_reclaim(os.fsencode(directory), name.encode())


if __name__ == "__main__":
    _watcher_main(*sys.argv[1:3])
