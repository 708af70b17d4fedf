# SPDX-License-Identifier: Apache-2.0
"""A node process: what happens between the fork and the end of the node's program.

It gets its job over a packet socket, tells there what it prints (with the time at which it was printed), and last what its
program returned or raised. Test modules are imported anew from their files, under the names they have in the tests' process,
whether or not they are importable there; their assertions explain themselves as pytest's do.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.machinery
import importlib.util
import io
import os
import pickle
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from types import CodeType, ModuleType
from typing import Any

import pytest

__all__ = ["DUMP_SIGNAL", "compiled", "run"]

HEAD = struct.Struct("<BQ")
"""Of a packet: its kind, and the monotonic time in ns at which it was sent."""
PART, READY, GO, RETURNED, RAISED, OUT, ERR = range(7)
CHUNK = 32768

DUMP_SIGNAL = signal.SIGRTMIN + 9
"""Makes a node process write the stacks of all its threads."""

_compiled: dict[tuple[str, int, int], CodeType] = {}


def packets(kind: int, data: bytes) -> list[bytes]:
    """Return the packets of a message: parts, then its end."""
    now = time.monotonic_ns()
    found = [HEAD.pack(PART, now) + data[at : at + CHUNK] for at in range(0, max(len(data) - CHUNK, 0), CHUNK)]
    return [*found, HEAD.pack(kind, now) + data[len(found) * CHUNK :]]


# -- importing test modules --------------------------------------------------------------------------------------------


def compiled(path: str) -> CodeType:
    """Return the code of a test module, its assertions rewritten; remembered while the file stays as it is."""
    stat = os.stat(path)
    key = (path, stat.st_mtime_ns, stat.st_size)
    if key not in _compiled:
        import ast

        with open(path, "rb") as file:
            source = file.read()
        tree = ast.parse(source, path)
        try:
            from _pytest.assertion.rewrite import rewrite_asserts

            rewrite_asserts(tree, source, path, None)
        except Exception:
            # Not pytest's public interface: without it, assertions fail all the same, with fewer words.
            tree = ast.parse(source, path)
        _compiled[key] = compile(tree, path, "exec", dont_inherit=True)
    return _compiled[key]


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        return compiled(self.path)


class _Finder:
    """Finds modules of the tests' process by the files that they have there.

    Args:
        modules: name -> (file or None, search locations or None).
        rewrite: explain assertions.
    """

    def __init__(self, modules: dict[str, tuple[str | None, list[str] | None]], rewrite: bool) -> None:
        self.modules = modules
        self.rewrite = rewrite

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.modules:
            return None
        file, locations = self.modules[name]
        if file is None:
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = locations or []
            return spec
        loader = _Loader(name, file) if self.rewrite else None
        return importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=locations)


# -- talking to the tests' process -------------------------------------------------------------------------------------


class _Channel:
    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)

    def send(self, kind: int, data: bytes = b"") -> None:
        # Who would read it may have gone: then this process is about to be ended, too.
        with contextlib.suppress(OSError):
            for packet in packets(kind, data):
                self.socket.send(packet)

    def receive(self, wanted: int) -> bytes:
        data = b""
        while True:
            packet = self.socket.recv(HEAD.size + CHUNK)
            if not packet:
                os._exit(71)
            kind, _ = HEAD.unpack_from(packet)
            data += packet[HEAD.size :]
            if kind == wanted:
                return data


class _Stream(io.RawIOBase):
    """Standard output or error as Python sees it: each write becomes a packet with its time.

    The descriptor is a pipe to the same place, for what is written by other means.
    """

    def __init__(self, channel: _Channel, kind: int, fd: int) -> None:
        self._channel = channel
        self._kind = kind
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        raw = bytes(data)
        for at in range(0, len(raw), CHUNK):
            self._channel.send(self._kind, raw[at : at + CHUNK])
        return len(raw)


def _text_stream(channel: _Channel, kind: int, fd: int) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Stream(channel, kind, fd))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)


# -- the program -------------------------------------------------------------------------------------------------------


def _describe(error: BaseException, style: str) -> dict[str, Any]:
    """Return what the tests' process is told about an exception."""
    try:
        kept = pickle.dumps(error)
        if type(pickle.loads(kept)) is not type(error):
            kept = b""
    except Exception:
        kept = b""
    try:
        info = pytest.ExceptionInfo.from_exc_info((type(error), error, error.__traceback__))  # type: ignore[arg-type]
        # What is below the program's own frames is this file.
        info.traceback = info.traceback.filter(lambda entry: str(entry.path) != __file__) or info.traceback
        shown = str(info.getrepr(style=style, funcargs=False, truncate_locals=True))  # type: ignore[arg-type]
        if style == "long" and not shown.startswith((">", " ")):
            shown = "    " + shown  # which str() has cut off
    except Exception:
        import traceback

        shown = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except Exception:
        message = "(its str() fails)"
    # pytest's own outcomes say that they are builtins, so they do not pickle.
    outcome = "skip" if isinstance(error, pytest.skip.Exception) else "fail" if isinstance(error, pytest.fail.Exception) else ""
    return {"pickle": kept, "type": name, "message": message, "traceback": shown, "outcome": outcome}


def _leave(code: int) -> None:
    """End as a Python program does, without taking the interpreter apart."""
    import atexit
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = code or 1
    os._exit(code)


def run(channel_fd: int, out_fd: int, err_fd: int, stacks_fd: int) -> None:
    """Be a node process. Does not return."""
    code = 1
    try:
        code = _run(_Channel(channel_fd), out_fd, err_fd, stacks_fd)
    finally:
        _leave(code)


def _run(channel: _Channel, out_fd: int, err_fd: int, stacks_fd: int) -> int:
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, standard in ((null, 0), (out_fd, 1), (err_fd, 2)):
        os.dup2(fd, standard)
        os.close(fd)
    faulthandler.enable(stacks_fd)
    faulthandler.register(DUMP_SIGNAL, stacks_fd, all_threads=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout = sys.__stdout__ = _text_stream(channel, OUT, 1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text_stream(channel, ERR, 2)  # type: ignore[misc]

    job: dict[str, Any] = pickle.loads(channel.receive(GO))
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.path[:] = job["path"]
    sys.argv = [job["node"]]
    style = job["style"]
    sys.meta_path.insert(0, _Finder(job["rewritten"], True))
    sys.meta_path.append(_Finder(job["modules"], False))
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # not the state that all forks share
    fabric = None
    try:
        os.chdir(job["directory"])
        program, arguments = pickle.loads(job["program"])
        from ..fabric import Fabric

        fabric = Fabric.open(job["fabric"], job["place"])
        node = fabric.attach(job["node"], job["role"])
        os.environ.update(FABREX_FABRIC=fabric.name, FABREX_NODE=node.name, FABREX_RANK=str(node.rank), FABREX_SIZE=str(node.size))
        channel.send(READY)
        channel.receive(GO)
        value = _call(program, node, arguments)
        try:
            packed = pickle.dumps(value)
        except Exception as error:
            raise TypeError(
                f"what the program of {node.name} returned, a {type(value).__name__}, cannot be sent to the test: {error}"
            ) from error
        fabric.close()
        _flush()
        channel.send(RETURNED, packed)
        return 0
    except SystemExit as error:
        _flush()
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException as error:
        _flush()
        channel.send(RAISED, pickle.dumps(_describe(error, style)))
        return 1
    finally:
        if fabric is not None:
            with contextlib.suppress(Exception):
                fabric.close()


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()


def _call(program: Callable[..., Any], node: Any, arguments: tuple[Any, ...]) -> Any:
    return program(node, *arguments)
