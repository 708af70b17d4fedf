# SPDX-License-Identifier: Apache-2.0
"""Fabrics of tests: running programs as nodes, each in a process of its own, and telling what became of them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import re
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from ..fabric import Fabric
from ._child import CHUNK, DUMP_SIGNAL, ERR, GO, HEAD, OUT, PART, RAISED, READY, RETURNED, packets

if TYPE_CHECKING:
    from ._session import Session

__all__ = ["FabricUnderTest", "NodeDied", "NodeError", "NodeFailed", "NodeProcess", "NodeTimeout", "RemoteError", "Run"]

Program = Callable[..., Any]

GRACE = 1.0
"""Seconds that the other nodes have after one has failed: enough to notice and to say so, and not the whole timeout."""
_DEADLINE = "still running at the deadline"
_OTHERS = "still running when another node had failed"
_OVER = "still running when the test ended"
_OUTPUT_LIMIT = 1 << 20
_SHOWN_LIMIT = 400


class NodeError(Exception):
    """A node process did not end as a program does; base of the classes below.

    Attributes:
        node: which.
    """

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.node), dict(self.__dict__))


class NodeDied(NodeError):
    """It ended without returning or raising.

    Attributes:
        signal: the number of the signal that killed it, or None.
        exitcode: its exit status; as in `subprocess`, a signal's number is negative.
    """

    signal: int | None = None
    exitcode: int = 0


class NodeTimeout(NodeError, TimeoutError):
    """It was still running at the deadline, and was ended."""


class RemoteError(NodeError):
    """It raised an exception that cannot be pickled: its class and message, in words."""


class NodeFailed(Exception):
    """At least one node failed. Its text has every failed node's traceback.

    Attributes:
        exceptions: node -> what it raised, of its own class where that can be pickled; NodeDied, NodeTimeout or RemoteError.
        run: the Run, with every node's output and status.
    """

    def __init__(self, message: str, exceptions: dict[str, BaseException], run: Run | None = None) -> None:
        super().__init__(message)
        self.exceptions = exceptions
        self.run = run

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.exceptions))


for _class in (NodeError, NodeDied, NodeTimeout, RemoteError, NodeFailed):
    _class.__module__ = "fabrex.pytest_plugin"  # where people import it from, and what reports show


# -- one node ----------------------------------------------------------------------------------------------------------


class NodeProcess:
    """The process of one node in a Run.

    Attributes:
        name: its key in the programs that were started: the node, or `node/label`.
        node: the node's name.
        pid: its process id, once it has one.
    """

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name
        self.node = name.partition("/")[0]
        self.pid: int | None = None
        self.exitcode: int | None = None
        self.stacks = b""
        self._number = 0
        self._ready = False
        self._ended = False
        self._answer: tuple[int, bytes] | None = None
        self._failed_to_start = ""
        self._ended_because = ""  # why the run ended it: _DEADLINE, _OTHERS or _OVER
        self._killed_by_test: int | None = None
        self._output: list[tuple[int, str, bytes]] = []
        self._output_size = 0
        self._partial = b""
        self._status_text = b""
        self._outgoing: deque[bytes] = deque()
        self._seconds = 0.0
        self._error: BaseException | None = None
        self._traceback = ""

    def __repr__(self) -> str:
        return f"<NodeProcess {self.name}: {self.outcome}>"

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self._ended

    @property
    def outcome(self) -> str:
        """What became of it, in words."""
        if not self._ended:
            return "running"
        if self._failed_to_start:
            return self._failed_to_start
        if self._ended_because:
            return f"{self._ended_because}, and ended"
        code = self.exitcode
        if code is not None and code < 0:
            died = f"killed by {_signal_name(-code)}"
            if self._killed_by_test is not None:
                died += ", as the test asked"
            return died + (" after it had returned" if self._answer and self._answer[0] == RETURNED else "")
        if self._answer is not None and self._answer[0] == RAISED:
            return f"raised {self._describe()['type']}"
        if self._answer is not None:
            return "returned" if code == 0 else f"returned, then ended with status {code}"
        return f"ended with status {code} without returning"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal. The death of a node that was killed so is no failure of the run."""
        self.run._wait_for(lambda: self._ready or self._ended, self.run.fabric._timeout)
        if not self._ended:
            self._killed_by_test = int(number)
            self.run._session.kill(self._number, number)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end; returns the exit status, negative for a signal.

        Raises:
            NodeTimeout: it has not ended.
        """
        limit = self.run.fabric._timeout if timeout is None else timeout
        if not self.run._wait_for(lambda: self._ended, limit):
            raise NodeTimeout(f"{self.name} is still running after {limit:g} s", self.name)
        return self.exitcode

    def output(self) -> str:
        """Return what it has printed so far, standard output and error together."""
        with self.run._changed:
            return b"".join(data for _, _, data in sorted(self._output, key=lambda entry: entry[0])).decode("utf-8", "replace")

    # -- inside -------------------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        assert self._answer is not None
        described: dict[str, Any] = pickle.loads(self._answer[1])
        return described

    def _print(self, at: int, stream: str, data: bytes) -> None:
        self._output_size += len(data)
        if self._output_size <= _OUTPUT_LIMIT:
            self._output.append((at, stream, data))

    def _failure(self) -> BaseException | None:
        """Return the exception that stands for what became of it; None if it did not fail."""
        if self._error is None:
            self._error = self._make_failure()
        return self._error

    def _make_failure(self) -> BaseException | None:
        if self._failed_to_start:
            return NodeError(self._failed_to_start, self.name)
        if self._ended_because == _DEADLINE:
            return NodeTimeout(f"still running after {self._seconds:.3g} s", self.name)
        if self._answer is not None and self._answer[0] == RAISED:
            described = self._describe()
            self._traceback = described["traceback"]
            if described["outcome"]:
                return {"skip": pytest.skip.Exception, "fail": pytest.fail.Exception}[described["outcome"]](described["message"])
            if described["pickle"]:
                with contextlib.suppress(Exception):
                    error = pickle.loads(described["pickle"])
                    if isinstance(error, BaseException):
                        return error
            return RemoteError(f"{described['type']}: {described['message']}", self.name)
        code = self.exitcode
        if code == 0 or self._ended_because:
            return None
        if self._killed_by_test is not None and code == -self._killed_by_test:
            return None
        died = NodeDied(self.outcome, self.name)
        died.exitcode = code or 0
        died.signal = -code if code is not None and code < 0 else None
        return died

    def _has_failed(self) -> bool:
        """Whether it is known to have failed, cheaply and from any thread."""
        if self._answer is not None and self._answer[0] == RAISED:
            return True
        if not self._ended or self._ended_because:
            return False
        expected = self._killed_by_test is not None and self.exitcode == -self._killed_by_test
        return bool(self._failed_to_start) or (self.exitcode != 0 and not expected)


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


# -- a run -------------------------------------------------------------------------------------------------------------


class Run(Mapping[str, NodeProcess]):
    """Programs that run as nodes of a fabric: a mapping of their names to their processes. Made by `fabric.start`."""

    def __init__(self, fabric: FabricUnderTest, session: Session, programs: Mapping[str, bytes], modules: dict[str, Any]) -> None:
        self.fabric = fabric
        self._session = session
        self._nodes = {name: NodeProcess(self, name) for name in programs}
        self._changed = threading.Condition()
        self._selector = selectors.DefaultSelector()
        self._started = time.monotonic_ns()
        self._first_failure: float | None = None
        self.observed = False
        try:
            for name, program in programs.items():
                self._start(self._nodes[name], program, modules)
        except BaseException:
            self._selector.close()
            raise
        self._thread = threading.Thread(target=self._pump, name="fabrex-run", daemon=True)
        self._thread.start()

    def __getitem__(self, name: str) -> NodeProcess:
        return self._nodes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __repr__(self) -> str:
        return f"<Run {', '.join(f'{node.name}: {node.outcome}' for node in self._nodes.values())}>"

    # -- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None, *, grace: float = GRACE) -> dict[str, Any]:
        """Wait until every node has ended; returns what their programs returned.

        Args:
            timeout: seconds; the ini option fabrex_timeout if left out. What still runs then is ended, its stacks in the report.
            grace: seconds that the others have once one has failed.
        Raises:
            NodeFailed: a program raised, or a process died or hung. If all that happened is that programs skip, the test skips.
        """
        __tracebackhide__ = True
        self.join(timeout, grace=grace)
        return self.results()

    def join(self, timeout: float | None = None, *, grace: float = GRACE) -> None:
        """Wait as `wait` does, and leave it to the caller to look at what became of each node. Raises nothing."""
        __tracebackhide__ = True
        self.observed = True
        seconds = self.fabric._timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        try:
            with self._changed:
                while not self._all_ended():
                    limit = deadline if self._first_failure is None else min(deadline, self._first_failure + grace)
                    left = limit - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
        except BaseException:
            self._end(_OVER, dump=False)
            raise
        if not self._all_ended():
            self._end(_DEADLINE if self._first_failure is None else _OTHERS)
        self._thread.join(5.0)

    def results(self) -> dict[str, Any]:
        """Return what the programs of ended nodes returned.

        Raises:
            NodeFailed: as `wait`.
        """
        __tracebackhide__ = True
        self.observed = True
        failed = {name: error for name, node in self._nodes.items() if (error := node._failure()) is not None}
        if failed and all(isinstance(error, pytest.skip.Exception) for error in failed.values()):
            pytest.skip("; ".join(f"{name}: {error}" for name, error in failed.items()))
        if failed:
            raise NodeFailed(self._explain(failed), failed, self)
        found: dict[str, Any] = {}
        for name, node in self._nodes.items():
            found[name] = pickle.loads(node._answer[1]) if node._answer is not None and node._ended else None
        return found

    def _all_ended(self) -> bool:
        return all(node._ended for node in self._nodes.values())

    def _wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def _end(self, why: str, dump: bool = True) -> None:
        """End what still runs; with its stacks, if they are wanted."""
        with self._changed:
            running = [node for node in self._nodes.values() if not node._ended]
            for node in running:
                node._ended_because = why
                node._seconds = (time.monotonic_ns() - self._started) / 1e9
        if dump:
            for node in running:
                state = _state_of(node.pid) if node.pid is not None else ""
                if state:
                    node.stacks += f"The process is {state}.\n".encode()
                if not state.startswith("stopped"):
                    self._session.kill(node._number, DUMP_SIGNAL)
            # The handler writes in pieces, and nobody says which is the last: wait until it has been quiet for a little.
            until, seen = time.monotonic() + 2.0, -1
            while time.monotonic() < until and not all(node._ended for node in running):
                size = sum(len(node.stacks) for node in running)
                if size == seen and all(b"(most recent call first)" in n.stacks or b"stopped" in n.stacks for n in running):
                    break
                seen = size
                time.sleep(0.05)
        for node in running:
            self._session.kill(node._number, signal.SIGKILL, group=True)
        if not self._wait_for(self._all_ended, 10.0):
            self._session.abandon()
            self._wait_for(self._all_ended, 5.0)

    # -- telling ------------------------------------------------------------------------------------------------------

    def _explain(self, failed: dict[str, BaseException]) -> str:
        order = sorted(failed, key=lambda name: isinstance(failed[name], NodeTimeout))
        first = failed[order[0]]
        words = f"{type(first).__name__}: {first}" if not isinstance(first, (NodeDied, RemoteError)) else str(first)
        lines = [f"{order[0]}: {words.splitlines()[0] if words else ''}"]
        if len(order) > 1:
            lines[0] += f" (and {len(order) - 1} more of {len(self._nodes)} nodes failed)"
        for name in order:
            node = self._nodes[name]
            lines += ["", f"---- {name}: {node.outcome} ----"]
            if node._traceback:
                lines.append(node._traceback)
            elif not node.stacks:
                lines.append(str(failed[name]))
            lines += _stacks_of(node)
        for name, node in self._nodes.items():
            if name not in failed and node._ended_because:
                lines += ["", f"---- {name}: {node.outcome} ----"]
                lines += _stacks_of(node)
        return "\n".join(lines)

    def sections(self) -> list[tuple[str, str]]:
        """Return titles and texts for a test's report: how each node ended, and what all of them printed, by time."""
        fabric = self.fabric
        width = max(len(name) for name in self._nodes)
        status = [
            f"{name:<{width}}  pid {node.pid or '?'}: {node.outcome}"
            + (f" (exit status {node.exitcode})" if node.exitcode is not None and node.exitcode > 0 else "")
            for name, node in self._nodes.items()
        ]
        found = [(f"fabrex: nodes of {fabric.name} ({fabric._said})", "\n".join(status))]
        with self._changed:
            entries = [(at, name, stream, data) for name, n in self._nodes.items() for at, stream, data in n._output]
            cut = [name for name, node in self._nodes.items() if node._output_size > _OUTPUT_LIMIT]
        lines: list[tuple[int, str]] = []
        pending: dict[tuple[str, str], tuple[int, bytes]] = {}
        for at, name, stream, data in sorted(entries, key=lambda entry: entry[0]):
            begun, before = pending.pop((name, stream), (at, b""))
            *whole, rest = (before + data).split(b"\n")
            for line in whole:
                lines.append((begun, self._line(begun, name, stream, line, width)))
                begun = at
            if rest:
                pending[name, stream] = (begun, rest)
        lines += [(at, self._line(at, name, stream, rest, width)) for (name, stream), (at, rest) in pending.items()]
        text = [line for _, line in sorted(lines, key=lambda line: line[0])]
        if len(text) > _SHOWN_LIMIT:
            text = [f"({len(text) - _SHOWN_LIMIT} earlier lines left out)", *text[-_SHOWN_LIMIT:]]
        text += [f"({name} printed more than {_OUTPUT_LIMIT >> 20} MiB; the rest is left out)" for name in cut]
        if text:
            found.append(("fabrex: what nodes printed (seconds, node, ! for standard error)", "\n".join(text)))
        return found

    def _line(self, at: int, name: str, stream: str, data: bytes, width: int) -> str:
        return f"{(at - self._started) / 1e9:8.4f} {name:<{width}} {stream} {data.decode('utf-8', 'replace')}"

    # -- the thread that reads ----------------------------------------------------------------------------------------

    def _start(self, node: NodeProcess, program: bytes, modules: dict[str, Any]) -> None:
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.setblocking(False)
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(4)]
        try:
            job = {
                "environment": dict(os.environ),
                "path": [str(entry) for entry in sys.path],
                "directory": os.getcwd(),
                "place": self.fabric.directory,
                "fabric": self.fabric.name,
                "node": node.node,
                "role": "client" if "/" in node.name else "any",
                "style": self.fabric._style,
                "rewritten": modules["rewritten"],
                "modules": modules["others"],
                "program": program,
            }
            node._outgoing.extend(packets(GO, pickle.dumps(job)))
            preload = [name for name in self._session.preload if name in sys.modules or name != "numpy"]
            request = {"preload": preload, "compile": modules["compile"]}
            node._number = self._session.fork(request, [theirs.fileno(), *(write for _, write in pipes)])
        except BaseException:
            channel.close()
            for read, _ in pipes:
                os.close(read)
            raise
        finally:
            theirs.close()
            for _, write in pipes:
                os.close(write)
        self._selector.register(channel, selectors.EVENT_READ | selectors.EVENT_WRITE, (node, "channel"))
        for (read, _), what in zip(pipes, ("-", "!", "stacks", "status"), strict=True):
            os.set_blocking(read, False)
            self._selector.register(read, selectors.EVENT_READ, (node, what))

    def _pump(self) -> None:
        try:
            while not self._all_ended():
                for key, mask in self._selector.select(1.0):
                    node, what = key.data
                    if mask & selectors.EVENT_WRITE:
                        self._send(key.fileobj, node)
                    if mask & selectors.EVENT_READ and self._is_open(key):
                        self._receive(key.fileobj, node, what)
        finally:
            with self._changed:
                for node in self._nodes.values():
                    if not node._ended:
                        node._failed_to_start = node._failed_to_start or "lost: the test run stopped listening to it"
                        node._ended = True
                for key in list(self._selector.get_map().values()):
                    self._close(key.fileobj)
                self._selector.close()
                self._changed.notify_all()

    def _is_open(self, key: selectors.SelectorKey) -> bool:
        """Whether what was ready a moment ago has not been closed by what came before it."""
        try:
            return bool(self._selector.get_key(key.fileobj).data == key.data)
        except (KeyError, ValueError):
            return False

    def _close(self, source: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)
        if isinstance(source, int):
            os.close(source)
        else:
            source.close()

    def _send(self, channel: Any, node: NodeProcess) -> None:
        """Send what waits; watch for room as long as some is left."""
        try:
            while node._outgoing:
                channel.send(node._outgoing[0])
                node._outgoing.popleft()
        except BlockingIOError:
            self._selector.modify(channel, selectors.EVENT_READ | selectors.EVENT_WRITE, (node, "channel"))
            return
        except OSError:
            node._outgoing.clear()
        self._selector.modify(channel, selectors.EVENT_READ, (node, "channel"))

    def _receive(self, source: Any, node: NodeProcess, what: str) -> bool:
        """Take in what is there; returns whether there may be more."""
        try:
            data = source.recv(HEAD.size + CHUNK) if what == "channel" else os.read(source, 65536)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        now = time.monotonic_ns()
        with self._changed:
            if not data:
                self._close(source)
                if what == "status" and not node._ended:
                    node._failed_to_start = node._failed_to_start or "lost: the process that starts nodes is gone"
                    self._ended(node)
            elif what == "channel":
                self._packet(node, data)
            elif what == "status":
                self._status(node, data)
            elif what == "stacks":
                node.stacks += data
            else:
                node._print(now, what, data)
            self._changed.notify_all()
        return bool(data)

    def _packet(self, node: NodeProcess, packet: bytes) -> None:
        kind, at = HEAD.unpack_from(packet)
        data = packet[HEAD.size :]
        if kind == PART:
            node._partial += data
        elif kind in (OUT, ERR):
            node._print(at, "!" if kind == ERR else "-", data)
        elif kind in (RETURNED, RAISED):
            node._answer = (kind, node._partial + data)
            node._partial = b""
            self._note_failure(node)
        elif kind == READY:
            node._ready = True
            # Nobody starts before all are nodes of the fabric.
            if all(each._ready for each in self._nodes.values()):
                for key in list(self._selector.get_map().values()):
                    other, what = key.data
                    if what == "channel":
                        other._outgoing.extend(packets(GO, b""))
                        self._send(key.fileobj, other)

    def _status(self, node: NodeProcess, data: bytes) -> None:
        *lines, node._status_text = (node._status_text + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "pid" in told:
                node.pid = told["pid"]
            elif "failed" in told:
                node._failed_to_start = told["failed"]
                self._ended(node)
            else:
                node.exitcode = os.waitstatus_to_exitcode(told["status"])
                self._ended(node)

    def _ended(self, node: NodeProcess) -> None:
        # What it had said and we have not read. Descendants may hold the pipes open, so their end is not waited for.
        for key in list(self._selector.get_map().values()):
            if key.data[0] is node and key.data[1] != "status":
                while self._receive(key.fileobj, node, key.data[1]):
                    pass
        node._ended = True
        self._note_failure(node)

    def _note_failure(self, node: NodeProcess) -> None:
        if self._first_failure is None and node._has_failed():
            self._first_failure = time.monotonic()


_STATES = {"T": "stopped (by a signal)", "t": "stopped (by a tracer)", "D": "in an uninterruptible wait of the kernel"}


def _stacks_of(node: NodeProcess) -> list[str]:
    """Return the lines that faulthandler wrote, without the frames of ours below the program."""
    ours = re.compile(r'  File "([^"]*/fabrex/(pytest_plugin/_child|_reaper)\.py|<string>)", line ')
    text = node.stacks.decode("utf-8", "replace").rstrip()
    return ["stacks of its threads:", *(line for line in text.splitlines() if not ours.match(line))] if text else []


def _state_of(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return _STATES.get(file.read().rpartition(")")[2].split()[0], "")
    return ""


# -- programs ----------------------------------------------------------------------------------------------------------


def pack(name: str, program: Any, arguments: tuple[Any, ...]) -> bytes:
    """Return a program and its arguments as bytes that another process understands.

    Raises:
        TypeError: it is not callable, or cannot be found by another process, or an argument cannot be sent.
    """
    __tracebackhide__ = True
    inner = program
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = getattr(inner, "__func__", inner)
    if not callable(program):
        raise TypeError(f"the program of {name} is {program!r}; give a function, or a tuple of a function and its arguments")
    qualified = getattr(inner, "__qualname__", "")
    if "<lambda>" in qualified or "<locals>" in qualified:
        kind = "a lambda" if qualified.endswith("<lambda>") else "defined inside another function"
        raise TypeError(
            f"the program of {name}, {qualified}, is {kind}. A node is a process of its own, which finds its program by module and "
            f"name: make it a function of the module, and give what it needs as arguments: "
            f"fabric.run({{{name!r}: (program, argument)}})"
        )
    for position, argument in enumerate(arguments):
        try:
            pickle.dumps(argument)
        except Exception as error:
            raise TypeError(
                f"argument {position + 1} of the program of {name}, a {type(argument).__name__}, cannot be sent to another "
                f"process: {error}"
            ) from None
    try:
        return pickle.dumps((program, arguments))
    except Exception as error:
        raise TypeError(f"the program of {name} cannot be sent to another process: {error}") from None


def modules_of(programs: list[Any], rootpath: str) -> dict[str, Any]:
    """Return where a node process finds the modules of the tests' process that it may not find by itself."""
    rewritten: dict[str, tuple[str | None, list[str] | None]] = {}
    others: dict[str, tuple[str | None, list[str] | None]] = {}
    root = rootpath.rstrip("/") + "/"
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py") or "site-packages" in file:
            continue
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        hooked = type(loader).__name__ == "AssertionRewritingHook"
        if not hooked and not file.startswith(root):
            continue
        locations = list(module.__path__) if hasattr(module, "__path__") else None
        (rewritten if hooked else others)[name] = (file, locations)
        parent = name.rpartition(".")[0]
        while parent and parent not in rewritten and parent not in others:
            package = sys.modules.get(parent)
            if package is None or getattr(package, "__file__", None) is None:
                others[parent] = (None, list(getattr(package, "__path__", [])))
            parent = parent.rpartition(".")[0]
    wanted = {getattr(program, "__module__", None) for program in programs}
    files = [file for name, (file, _) in rewritten.items() if name in wanted and file]
    return {"rewritten": rewritten, "others": others, "compile": files}


# -- fabrics -----------------------------------------------------------------------------------------------------------


class FabricUnderTest(Fabric):
    """A Fabric whose nodes can be run as processes. Made by the fixtures; it ends with its test."""

    _session: Session
    _timeout: float
    _style: str
    _said: str
    _runs: list[Run]

    def start(self, programs: Mapping[str, Any], *, args: tuple[Any, ...] = ()) -> Run:
        """Start programs as nodes, each in a process of its own; all begin when all are attached.

        Args:
            programs: node -> function(node, *args), or (function, argument, …). Functions of modules, test modules included.
                `node/label` is a client of the node: several processes may be one node.
            args: further arguments that every program gets, behind its own.
        Raises:
            TypeError: a program or argument that cannot be sent to another process. FabricNotFound: no such node.
        """
        __tracebackhide__ = True
        if not programs:
            raise ValueError("no programs: give at least one node and its function")
        packed: dict[str, bytes] = {}
        functions: list[Any] = []
        for name, given in programs.items():
            self._node_index(name.partition("/")[0])
            program, *own = given if isinstance(given, tuple) and given else (given,)
            packed[name] = pack(name, program, (*own, *args))
            functions.append(getattr(program, "func", program))
        run = Run(self, self._session, packed, modules_of(functions, self._session.rootpath))
        self._runs.append(run)
        return run

    def run(
        self,
        programs: Mapping[str, Any],
        *,
        args: tuple[Any, ...] = (),
        timeout: float | None = None,
        grace: float = GRACE,
    ) -> dict[str, Any]:
        """Run programs as nodes until all have ended; returns node -> what its program returned.

        Args:
            programs, args: as for `start`.
            timeout: seconds for all of it; the ini option fabrex_timeout if left out.
            grace: seconds that the others have once one has failed.
        Raises:
            NodeFailed: a program raised, or a process died or hung; it says which, with tracebacks.
        """
        __tracebackhide__ = True
        return self.start(programs, args=args).wait(timeout, grace=grace)


FabricUnderTest.__module__ = "fabrex.pytest_plugin"
